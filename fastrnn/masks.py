"""`lengths=` and `resets=` of a call: what they may be, and the tensors that layers take."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from fastrnn import select
from fastrnn.transforms import has_numbers, has_tangents

Lengths = Tensor | Sequence[int] | int
"""Steps of each row; a number alone only where there is one row without a dimension for it."""


def check_combination(
    lengths: Lengths | None, resets: Tensor | None, *, packed: bool, recompute: int,
    reset_state: object = None,
) -> None:  # fmt: skip
    """Refuse what does not go together.

    Raises:
        ValueError: one of them beside a PackedSequence, resets beside recompute, or a reset state
            without resets.
    """
    if reset_state is not None and resets is None:
        raise ValueError("reset_state: got one without resets, expected None")
    if packed and lengths is not None:
        raise ValueError("lengths: got some for a PackedSequence, which has its own; expected None")
    if packed and resets is not None:
        raise ValueError(
            "resets: got some for a PackedSequence, expected None; they can be combined with "
            "padded input and lengths"
        )
    if recompute and resets is not None:
        # a chunk starts in the state that the one before it left, and there is only one h0
        raise ValueError(
            f"recompute and resets: got recompute={recompute} and resets, expected one of the two"
        )


def as_lengths(
    lengths: Lengths, steps: int, batch: int, device: torch.device, *, unbatched: bool
) -> Tensor:
    """(B,) int64 on `device`, between 0 and T.

    Values of a tensor are checked only where that waits for nothing, which is on the CPU and not
    while a graph is made, nor under vmap; elsewhere they are clamped.

    Args:
        lengths: (B,); a number too if `unbatched`.
        steps: T.
        batch: B.
        device: of the input.
        unbatched: whether the input had no batch dimension.

    Raises:
        TypeError: they are no integers.
        ValueError: there are more or fewer than B, or one is not in 0 to T.
    """
    if isinstance(lengths, Tensor):
        return _lengths_of_tensor(lengths, steps, batch, device, unbatched)
    values = [lengths] if unbatched and _is_integer(lengths) else lengths
    if not isinstance(values, list | tuple):
        alone = ", or an int" if unbatched else ""
        raise TypeError(
            f"lengths should be a list, tuple or tensor of ints{alone}, "
            f"got: {type(lengths).__name__}"
        )
    for value in values:
        if not _is_integer(value):
            raise TypeError(f"lengths should hold ints, got: {type(value).__name__}")
    if len(values) != batch:
        raise ValueError(f"lengths: got {len(values)}, expected {batch}, one for each row")
    _check_values(values, steps)
    return torch.tensor(values, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


def _lengths_of_tensor(
    lengths: Tensor, steps: int, batch: int, device: torch.device, unbatched: bool
) -> Tensor:
    dtype = lengths.dtype
    if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool:
        raise TypeError(f"lengths should be a tensor of integers, got: {dtype}")
    if unbatched and lengths.dim() == 0:
        lengths = lengths.unsqueeze(0)
    if lengths.shape != (batch,):
        raise ValueError(
            f"lengths: got shape {tuple(lengths.shape)}, expected ({batch},), one for each row"
        )
    if dtype != torch.int64:
        lengths = lengths.to(torch.int64)
    if lengths.device.type != "cpu" or torch.compiler.is_compiling() or not has_numbers(lengths):
        return lengths.to(device).clamp(0, steps)
    _check_values(lengths.tolist(), steps)
    return lengths if device.type == "cpu" else lengths.to(device)


def _check_values(values: Sequence[Any], steps: int) -> None:
    if values and (min(values) < 0 or max(values) > steps):
        row, value = next(each for each in enumerate(values) if not 0 <= each[1] <= steps)
        raise ValueError(f"lengths: got {value} for row {row}, expected 0 to T, {steps}")


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def as_resets(
    resets: Tensor,
    steps: int,
    batch: int,
    device: torch.device,
    *,
    batch_first: bool,
    unbatched: bool,
) -> Tensor:
    """(T, B) bool on `device`, contiguous.

    Args:
        resets: (T, B), or (B, T) if `batch_first`, or (T,) if `unbatched`.
        steps: T.
        batch: B.
        device: of the input.
        batch_first: whether the input is (B, T, I).
        unbatched: whether the input had no batch dimension.

    Raises:
        TypeError: it is no bool tensor.
        ValueError: it has another shape.
    """
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets should be a tensor of torch.bool, got: {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets should be a tensor of torch.bool, got: {resets.dtype}")
    if unbatched:
        names, expected = "(T,)", torch.Size((steps,))
    elif batch_first:
        names, expected = "(B, T)", torch.Size((batch, steps))
    else:
        names, expected = "(T, B)", torch.Size((steps, batch))
    if resets.shape != expected:
        raise ValueError(
            f"resets: got shape {tuple(resets.shape)}, expected {tuple(expected)}, {names}"
        )
    if unbatched:
        resets = resets.unsqueeze(1)
    elif batch_first:
        resets = resets.mT
    return resets.to(device).contiguous()


def as_marks(
    lengths: Lengths | None, resets: Tensor | None, steps: int, batch: int, device: torch.device,
    *, batch_first: bool, unbatched: bool,
) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
    """`as_lengths` and `as_resets` of those that are given."""
    if lengths is not None:
        lengths = as_lengths(lengths, steps, batch, device, unbatched=unbatched)
    if resets is not None:
        resets = as_resets(
            resets, steps, batch, device, batch_first=batch_first, unbatched=unbatched
        )
    return lengths, resets


def zero_past(x: Tensor, lengths: Tensor) -> Tensor:
    """X (T, B, I) with zeros in place of whatever is past a row's length, NaN too."""
    over = torch.arange(x.shape[0], device=x.device).unsqueeze(1) >= lengths
    if (
        torch.compiler.is_compiling()
        or has_tangents()
        or torch._C._are_functorch_transforms_active()
    ):
        return x.masked_fill(over.unsqueeze(2), 0)
    return select.zeroed(x, over)
