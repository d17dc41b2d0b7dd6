"""Tracers other than torch.compile's: `torch.fx.symbolic_trace` and `torch.jit.trace`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import Proxy

INSTEAD = (
    "a model that fastrnn.revert(model) has brought back to torch.nn, or use torch.compile or "
    "torch.export"
)
"""What to hand to TorchScript, which knows none of fastrnn's layers."""


def as_leaf(module: nn.Module, input: Proxy, **arguments: Any) -> Any:
    """One node of a graph for the whole call, as torch's tracer makes of a layer of torch.nn.

    It takes no other modules for leaves, and would go into what chooses a backend, which no proxy
    can answer.

    Args:
        module: what is called.
        input: its input.
        arguments: the others, by name; those that are None or False stand for being left out.
    """
    tracer: Any = input.tracer
    given = {name: it for name, it in arguments.items() if it is not None and it is not False}
    path = tracer.path_of_module(module)
    return tracer.create_proxy("call_module", path, (input,), given)


def check_no_jit() -> None:
    """Refuse `torch.jit.trace`, which turns the sizes that a backend is chosen by into tensors.

    Raises:
        RuntimeError: it is tracing.
    """
    if torch._C._is_tracing():
        raise RuntimeError(f"fastrnn's layers cannot be traced by torch.jit.trace; trace {INSTEAD}")
