"""Asks for the backends while they are being collected."""

from fastrnn.plugins import registry

BACKENDS = registry().backends
