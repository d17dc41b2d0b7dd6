"""Fused recurrent kernels in Triton: Elman RNN and LSTM, forward and back through time.

Of tensors, not of modules: knows nothing of backends, dispatch or `torch.nn`. Importing it touches
no device and not even Triton, which is imported with the first kernel: what fits a device and what
it would cost (`plan`) can be asked anywhere. Start at `launch.forward`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .configs import DeviceLimits, LaunchConfig, Problem, StepConfig
from .onchip import GridConfig, ResidentConfig
from .plan import Plan, plan

if TYPE_CHECKING:
    from .cells import CELLS, Cell
    from .launch import BackwardResult, ForwardResult, backward, forward
    from .regularisers import Noise

_NEEDS_TRITON = {
    "CELLS": "cells",
    "Cell": "cells",
    "BackwardResult": "launch",
    "ForwardResult": "launch",
    "Noise": "regularisers",
    "backward": "launch",
    "forward": "launch",
}

__all__ = [
    "CELLS",
    "BackwardResult",
    "Cell",
    "DeviceLimits",
    "ForwardResult",
    "GridConfig",
    "LaunchConfig",
    "Noise",
    "Plan",
    "Problem",
    "ResidentConfig",
    "StepConfig",
    "backward",
    "forward",
    "plan",
]


def __getattr__(name: str) -> Any:
    if name not in _NEEDS_TRITON:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_NEEDS_TRITON[name]}", __name__), name)
