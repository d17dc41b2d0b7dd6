"""How float32 products are formed on a GPU, and which GPU it is; what autocast does to a call."""

from __future__ import annotations

from contextlib import nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


def float32_precision() -> str:
    """`tf32` if torch's own setting for RNNs allows it, else `ieee`; `nn.LSTM` does the same.

    The setting is `torch.backends.cudnn.rnn.fp32_precision`, which inherits from
    `torch.backends.cudnn` and `torch.backends` where it is unset.
    """
    setting = torch.backends.cudnn.rnn.fp32_precision  # type: ignore[attr-defined] # made at run time
    return "tf32" if setting == "tf32" else "ieee"


def arch_of(device: torch.device) -> str:
    """`sm_90`, `gfx942`, ...: the architecture of a CUDA or ROCm device."""
    index = torch.cuda.current_device() if device.index is None else device.index
    return _arch(index)


@lru_cache(maxsize=64)
def _arch(index: int) -> str:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return str(properties.gcnArchName).split(":", maxsplit=1)[0]
    return f"sm_{properties.major}{properties.minor}"


def autocasts(device: str) -> bool:
    """Whether operations on such a device are being cast: also of one that has no autocast."""
    if not torch._C._is_any_autocast_enabled() or not torch.amp.is_autocast_available(device):
        return False
    return torch.is_autocast_enabled(device)


def uncast(device: str) -> AbstractContextManager[object]:
    """Where operations on such a device are not cast: what they get already was."""
    return torch.autocast(device, enabled=False) if autocasts(device) else nullcontext()


def returned(cell: str, device: str, arithmetic: torch.dtype, given: torch.dtype) -> torch.dtype:
    """The dtype of a call's results, from that of its arithmetic and of the state it is given.

    They differ under autocast, which on a CPU casts what a GRU multiplies, and not the h that it
    mixes.
    """
    return given if cell == "gru" and device == "cpu" else arithmetic
