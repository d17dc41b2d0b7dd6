"""The version, alone, so that building the package's metadata does not import torch."""

__version__ = "0.1.0"
"""Of the distribution."""
