"""torch's own path as a backend: cuDNN, MIOpen, oneDNN, MPS or ATen's loop, as torch chooses.

The honest baseline, and what runs wherever nothing else can.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_aten.backend import AtenBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `aten`."""
    return [AtenBackend()]
