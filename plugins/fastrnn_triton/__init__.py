"""The fused Triton kernels of `fastrnn_kernels` as a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_triton.backend import TritonBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `triton`. Triton itself is imported when the backend is first asked."""
    return [TritonBackend()]
