"""Plain time steps and hand-written BPTT in torch: the truth the other backends are tested by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `reference`."""
    return [ReferenceBackend()]
