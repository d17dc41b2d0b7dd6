"""torch's own path as a backend: cuDNN, MIOpen, oneDNN, MPS or ATen's loop, as torch chooses.

The honest baseline, and what runs wherever nothing else can. `onednn` calls the same functions of
torch's, for what torch has no fast path for: LSTMs over rows of different lengths on a CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.hookspecs import hookimpl
from fastrnn_aten.backend import AtenBackend
from fastrnn_aten.onednn import OnednnBackend

if TYPE_CHECKING:
    from fastrnn.backend import Backend


@hookimpl
def fastrnn_backends() -> list[Backend]:
    """Register `aten` and `onednn`."""
    return [AtenBackend(), OnednnBackend()]
