"""Whether somebody transforms a call: `torch.func.vmap`, or forward-mode derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

_C = torch._C._functorch


def is_transformed(input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]) -> bool:
    """Whether forward-mode derivatives are on, or one of the tensors stands for many."""
    if has_tangents():
        return True
    if not torch._C._are_functorch_transforms_active():
        return False
    return any(map(is_batched, (input, *states, *weights)))


def has_tangents() -> bool:
    """Whether tensors may have tangents: in `torch.func.jvp`, and in a dual level of autograd's."""
    return forward_ad._current_level >= 0


def requires_grad(tensor: Tensor) -> bool:
    """Whether anybody asks for a tensor's gradient: also who hands it to a transform.

    What vmap hands out does not require grad itself, even if it is many that do. A graph cannot
    look what that is, and takes it that they do.
    """
    if torch.compiler.is_compiling():
        return tensor.requires_grad or torch._C._are_functorch_transforms_active()
    while not tensor.requires_grad and _C.is_functorch_wrapped_tensor(tensor):
        tensor = _C.get_unwrapped(tensor)
    return tensor.requires_grad


def has_numbers(tensor: Tensor) -> bool:
    """Whether there are numbers to be read: not of many at once, and not of a fake tensor."""
    return type(tensor) is torch.Tensor and not is_batched(tensor)


def are_many_to_autograd(grads: Sequence[Tensor | None]) -> bool:
    """Whether they are many of each, of `torch.autograd.grad(is_grads_batched=True)`.

    Which torch can only spread over operations that it knows.
    """
    return any(grad is not None and _C.is_legacy_batchedtensor(grad) for grad in grads)


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is one of those that vmap hands out, within whatever other transform."""
    while _C.is_functorch_wrapped_tensor(tensor):
        if _C.is_batchedtensor(tensor):
            return True
        tensor = _C.get_unwrapped(tensor)
    return False
