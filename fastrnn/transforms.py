"""Whether somebody transforms a call: `torch.func.vmap`, or forward-mode derivatives."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.autograd import forward_ad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


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


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor is one of those that vmap hands out, within whatever other transform."""
    functorch = torch._C._functorch
    while functorch.is_functorch_wrapped_tensor(tensor):
        if functorch.is_batchedtensor(tensor):
            return True
        tensor = functorch.get_unwrapped(tensor)
    return False
