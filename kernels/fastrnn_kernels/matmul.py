# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""float32 matrix products in the precision that was asked for.

Compiled and interpreted, not yet run on a GPU. The BLAS behind torch follows one setting of the
whole process; recurrences follow another. Where the two differ, the products before and after the
time loop run here: one call, one precision.

Long sums with a small result (a weight gradient sums over T * B) are cut into splits that run side
by side. Each writes its part, and one sum over the parts follows: no atomics, the same bits on
every run.
"""

import contextlib
import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import DeviceLimits
from .matmul_configs import PRECISIONS, MatmulConfig, MatmulProblem, Precision, heuristic
from .sweep import INTERPRETED

# 16 bytes, the widest load.
MAX_ALIGN = 4
# Row tiles that are worked on together: what they read of b is read from L2 while still there.
TOGETHER = 8

_STRIDES = ["a_stride", "a_stride_g", "b_stride", "b_stride_g"]
_RUN_TIME = ["G", "M", "N", "K", "pieces", *_STRIDES]


@triton.jit
def aligned(size, ALIGN: tl.constexpr):
    """A multiple of ALIGN, such that the compiler sees it: wide loads depend on it."""
    return size // ALIGN * ALIGN


@triton.jit
def tile_of_program(M, N, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, TOGETHER: tl.constexpr):
    """Program id -> (which product, first row, first column).

    One flat grid dimension, because the others end at 65,535. Within a product, TOGETHER row tiles
    go through the columns side by side.
    """
    tiles_m = tl.cdiv(M, BLOCK_M).to(tl.int32)
    tiles_n = tl.cdiv(N, BLOCK_N).to(tl.int32)
    program = tl.program_id(0)
    tile = program % (tiles_m * tiles_n)
    band = tile // (TOGETHER * tiles_n)
    in_band = tile % (TOGETHER * tiles_n)
    height = tl.minimum(tiles_m - band * TOGETHER, TOGETHER)
    first_row = (band * TOGETHER + in_band % height).to(tl.int64) * BLOCK_M
    first_col = (in_band // height).to(tl.int64) * BLOCK_N
    return (program // (tiles_m * tiles_n)).to(tl.int64), first_row, first_col


@triton.jit(do_not_specialize=_RUN_TIME)
def matmul_kernel(
    a,  # (G, M, K), contiguous along K if A_ALONG_K, else along M
    b,  # (G, K, N), contiguous along K if B_ALONG_K, else along N
    bias,  # (G, N), contiguous; read if HAS_BIAS
    out,  # (splits, G, M, N), contiguous, written
    G: tl.int64,
    M: tl.int64,
    N: tl.int64,
    K: tl.int64,
    pieces: tl.int64,  # of BLOCK_K in a split
    a_stride: tl.int64,  # of the dimension that is not contiguous
    a_stride_g: tl.int64,
    b_stride: tl.int64,
    b_stride_g: tl.int64,
    PRECISION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    A_ALONG_K: tl.constexpr,
    B_ALONG_K: tl.constexpr,
    A_ALIGN: tl.constexpr,  # divides a's strides and its contiguous size
    B_ALIGN: tl.constexpr,  # divides b's
    OUT_ALIGN: tl.constexpr,  # divides N
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """One tile of one split: out[s, g] = a[g] @ b[g] over the split's part of K (+ bias).

    Every offset is int64. Everything that may overrun is masked, with zeros read in place, which
    add nothing to a sum; rows and columns past the end see them but are not stored.
    """
    product, first_row, first_col = tile_of_program(M, N, BLOCK_M, BLOCK_N, TOGETHER)
    g = product % G
    rows = first_row + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    k_begin = product // G * pieces * BLOCK_K
    left = tl.minimum(K - k_begin, pieces * BLOCK_K)

    a_stride = aligned(a_stride, A_ALIGN)
    b_stride = aligned(b_stride, B_ALIGN)
    a += g * aligned(a_stride_g, A_ALIGN)
    b += g * aligned(b_stride_g, B_ALIGN)
    if A_ALONG_K:
        row_mask = rows < M
        a_ptrs = (a + k_begin + rows * a_stride)[:, None] + k[None, :]
    else:
        row_mask = rows < aligned(M, A_ALIGN)
        a_ptrs = (a + k_begin * a_stride + rows)[:, None] + (k * a_stride)[None, :]
    if B_ALONG_K:
        col_mask = cols < N
        b_ptrs = (b + k_begin + cols * b_stride)[None, :] + k[:, None]
    else:
        col_mask = cols < aligned(N, B_ALIGN)
        b_ptrs = (b + k_begin * b_stride + cols)[None, :] + (k * b_stride)[:, None]

    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for _ in range(tl.cdiv(left, BLOCK_K).to(tl.int32)):
        here = tl.minimum(left, BLOCK_K).to(tl.int32)
        if A_ALONG_K:
            a_mask = row_mask[:, None] & (k < aligned(here, A_ALIGN))[None, :]
        else:
            a_mask = row_mask[:, None] & (k < here)[None, :]
        if B_ALONG_K:
            b_mask = (k < aligned(here, B_ALIGN))[:, None] & col_mask[None, :]
        else:
            b_mask = (k < here)[:, None] & col_mask[None, :]
        a_tile = tl.load(a_ptrs, mask=a_mask, other=0.0)
        b_tile = tl.load(b_ptrs, mask=b_mask, other=0.0)
        acc = tl.dot(a_tile, b_tile, acc, input_precision=PRECISION, out_dtype=tl.float32)
        a_ptrs += BLOCK_K if A_ALONG_K else BLOCK_K * a_stride
        b_ptrs += BLOCK_K if B_ALONG_K else BLOCK_K * b_stride
        left -= BLOCK_K

    width = aligned(N, OUT_ALIGN)
    out_mask = cols < width
    if HAS_BIAS:
        acc += tl.load(bias + g * width + cols, mask=out_mask, other=0.0)[None, :]
    out_ptrs = (out + (product * M + rows) * width)[:, None] + cols[None, :]
    tl.store(out_ptrs, acc, mask=(rows < M)[:, None] & out_mask[None, :])


class _Operand(NamedTuple):
    """One operand as the kernel takes it."""

    tensor: Tensor
    along_k: bool
    """Is K the contiguous dimension?"""
    stride: int
    """Of the other one, in elements."""
    stride_g: int
    align: int


def constants(
    config: MatmulConfig,
    precision: Precision,
    *,
    has_bias: bool = False,
    along_k: tuple[bool, bool] = (True, True),
    align: tuple[int, int, int] = (MAX_ALIGN,) * 3,
) -> dict[str, Any]:
    """The compile-time arguments of the kernel. Whatever is not here never recompiles it.

    Args:
        config: the configuration.
        precision: of the product.
        has_bias: whether a bias is added.
        along_k: whether K is the contiguous dimension of a and of b.
        align: what divides sizes and strides of a, of b and of the result.
    """
    return {
        "PRECISION": precision,
        "HAS_BIAS": has_bias,
        "A_ALONG_K": along_k[0],
        "B_ALONG_K": along_k[1],
        "A_ALIGN": align[0],
        "B_ALIGN": align[1],
        "OUT_ALIGN": align[2],
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
        "TOGETHER": TOGETHER,
    }


def matmul(
    a: Tensor,
    b: Tensor,
    *,
    bias: Tensor | None = None,
    precision: Precision,
    config: MatmulConfig | None = None,
) -> Tensor:
    """Multiply float32 matrices, a @ b + bias, whatever torch's own setting says.

    A transposed view is read as it lies in memory; an operand without a contiguous dimension is
    copied once.

    Args:
        a: (..., M, K), float32, or (G, M, K) if b is batched.
        b: (K, N) or (G, K, N), float32.
        bias: (N,) or (G, N), float32, added to every row.
        precision: "ieee", "tf32" or "tf32x3" (NVIDIA only).
        config: launch configuration; by default `heuristic` chooses.

    Returns:
        (..., M, N) or (G, M, N), float32, contiguous.

    Raises:
        ValueError: an argument does not fit the others, the device or what is offered; the message
            names it, what came and what was expected.
    """
    _check(a, b, bias, precision)
    batched = b.dim() == 3
    a3 = a if batched else a.flatten(0, -2).unsqueeze(0)
    b3 = b if batched else b.unsqueeze(0)
    (G, M, K), N = a3.shape, b3.shape[2]
    shape = (*a.shape[:-1], N)
    if 0 in (G, M, N):
        return a.new_empty(shape)
    if K == 0:
        zeros = a.new_zeros(shape)
        return zeros if bias is None else zeros.add_(_rows(bias, batched))
    problem, limits = MatmulProblem(G, M, N, K, precision), DeviceLimits.of(a.device)
    if config is None:
        config = heuristic(problem, limits)
    else:
        config.check(problem, limits)

    left, right = _operand(a3, 2), _operand(b3, 1)
    splits = config.used_splits(problem)
    parts = a.new_empty(splits, G, M, N)
    fused = bias is not None and splits == 1
    compile_time = constants(
        config,
        precision,
        has_bias=fused,
        along_k=(left.along_k, right.along_k),
        align=(left.align, right.align, math.gcd(MAX_ALIGN, N)),
    )
    # Triton launches on the current device, which need not be that of the tensors.
    on_gpu = a.device.type == "cuda"
    with torch.cuda.device(a.device) if on_gpu else contextlib.nullcontext():
        matmul_kernel[(config.tiles(problem) * splits,)](
            left.tensor,
            right.tensor,
            bias.contiguous() if bias is not None and fused else parts,  # not read unless fused
            parts,
            G,
            M,
            N,
            K,
            config.pieces(problem),
            left.stride,
            left.stride_g,
            right.stride,
            right.stride_g,
            **compile_time,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )
    out = parts.view(shape) if splits == 1 else parts.sum(0).view(shape)
    return out if fused or bias is None else out.add_(_rows(bias, batched))


def _check(a: Tensor, b: Tensor, bias: Tensor | None, precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    if precision == "tf32x3" and torch.version.hip is not None:
        raise ValueError("precision: 'tf32x3' exists on NVIDIA GPUs only, got a ROCm device")
    if b.dim() not in (2, 3):
        raise ValueError(f"b: expected (K, N) or (G, K, N), got {tuple(b.shape)}")
    batched, K, N = b.dim() == 3, b.shape[-2], b.shape[-1]
    expected = f"({b.shape[0]}, M, {K})" if batched else f"(..., M, {K})"
    fits = a.dim() == 3 and a.shape[0] == b.shape[0] if batched else a.dim() >= 2
    if not fits or a.shape[-1] != K:
        raise ValueError(f"a: expected {expected}, got {tuple(a.shape)}")
    rows = (b.shape[0], N) if batched else (N,)
    if bias is not None and bias.shape != rows:
        raise ValueError(f"bias: expected {rows}, got {tuple(bias.shape)}")
    for name, tensor in (("a", a), ("b", b), ("bias", bias)):
        if tensor is not None and (tensor.dtype != torch.float32 or tensor.device != a.device):
            raise ValueError(
                f"{name}: expected torch.float32 on {a.device}, "
                f"got {tensor.dtype} on {tensor.device}"
            )
    if a.device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            "a: expected a GPU tensor, got one on the CPU, where kernels run in the interpreter "
            "only (TRITON_INTERPRET=1, set before Triton is imported)"
        )


def _rows(bias: Tensor, batched: bool) -> Tensor:
    """The bias such that torch adds it to every row."""
    return bias.unsqueeze(1) if batched else bias


def _operand(tensor: Tensor, k: int) -> _Operand:
    """How (G, M, K) or (G, K, N) lies in memory; ``k`` is the position of K.

    A dimension of one element has an arbitrary stride: it counts as contiguous only where no
    other is, so that short sequences find the kernels of long ones.
    """
    other = 3 - k
    sizes, strides = tensor.shape, tensor.stride()
    unit = [d for d in (k, other) if strides[d] == 1] or [d for d in (k, other) if sizes[d] == 1]
    if not unit:
        return _operand(tensor.contiguous(), k)
    along, across = unit[0], 3 - unit[0]
    stride = strides[across] if sizes[across] > 1 else 0
    stride_g = strides[0] if sizes[0] > 1 else 0
    align = math.gcd(MAX_ALIGN, sizes[along], stride, stride_g)
    return _Operand(tensor, along == k, stride, stride_g, align)
