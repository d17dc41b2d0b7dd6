"""Fused recurrent kernels in Triton: Elman RNN and LSTM, forward and back through time.

Of tensors, not of modules: knows nothing of backends, dispatch or `torch.nn`. Importing it imports
Triton and touches no device. Start at `launch.forward`.
"""

from .cells import CELLS, Cell
from .configs import DeviceLimits, LaunchConfig, Problem, heuristic
from .launch import BackwardResult, ForwardResult, backward, forward

__all__ = [
    "CELLS",
    "BackwardResult",
    "Cell",
    "DeviceLimits",
    "ForwardResult",
    "LaunchConfig",
    "Problem",
    "backward",
    "forward",
    "heuristic",
]
