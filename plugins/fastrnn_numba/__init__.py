"""Time loops for CPUs, compiled by Numba: steps that cost what their arithmetic costs.

A step of torch's own loops is a dozen operations, each of which takes a microsecond to call; where
rows are few and layers are small that is nearly all of the time. Here a whole pass is one call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_numba import process as process  # before anybody forks
from fastrnn_numba.backend import NumbaBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `numba`. Numba itself is imported when a call first runs on it."""
    return [NumbaBackend()]
