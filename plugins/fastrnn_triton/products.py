"""Which matrix products torch's BLAS would do in another precision than was asked for.

The time loop follows torch's precision for RNNs, as cuDNN does for all of an RNN; the BLAS follows
torch's precision for products, a setting of the whole process that must not be touched for one
call: other threads multiply too. Where the two differ, a product runs in Triton. Compiled and
interpreted, not yet run on a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TF32_ON_AMD = ("gfx942",)
"""AMD GPUs for which Triton compiles tf32 products; it refuses them for all others."""


def torch_will_do(a: Tensor, precision: str) -> bool:
    """Whether torch multiplies a by another matrix as `precision` asks.

    torch's setting is `torch.backends.cuda.matmul.fp32_precision`; where that is unset, reading it
    gives that of `torch.backends`, and "none" if that is unset too, which means full float32.
    tf32x3 is never what a BLAS does; tf32 allows more exact products where there is none.
    """
    if a.dtype != torch.float32 or a.device.type != "cuda":
        return True
    rounds = torch.backends.cuda.matmul.fp32_precision == "tf32"
    if precision == "tf32":
        return rounds or not _triton_has_tf32(a.device)
    return precision == "ieee" and not rounds


def multiply(a: Tensor, b: Tensor, add: Tensor | None, precision: str) -> Tensor:
    """Return a @ b (+ add) in float32 by the Triton kernel; shapes as in `fastrnn.products`."""
    matmul = _kernel()
    if add is None or add.dim() == 1:
        return matmul(a, b, bias=add, precision=precision)
    if b.dim() == 3:
        return matmul(a, b, bias=add.squeeze(1), precision=precision)
    return matmul(a, b, precision=precision).add_(add)


def _kernel() -> Callable[..., Tensor]:
    """What launches the kernel, imported only then: importing Triton takes a second."""
    from fastrnn_kernels.matmul import matmul

    return matmul


def _triton_has_tf32(device: torch.device) -> bool:
    return _has_tf32(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=64)
def _has_tf32(index: int) -> bool:
    properties = torch.cuda.get_device_properties(index)
    if torch.version.hip is not None:
        return properties.gcnArchName.split(":", maxsplit=1)[0] in TF32_ON_AMD
    return properties.major >= 8
