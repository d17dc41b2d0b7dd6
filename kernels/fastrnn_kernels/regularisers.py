# mypy: ignore-errors
"""Recurrent dropout and zoneout: the same in every regime. Both are given as tensors, not drawn.

Recurrent dropout hides units of h from W_hh, the same ones at every step. Where programs read each
other's h from memory, what they read has a place of its own, ``seen``: h of two steps, used in
turn, and h0, all of them times the mask already. So nobody multiplies what another has multiplied.

Zoneout keeps a part of the state that entered a step. Gradients are of what the cell made before
that: ``made`` is c of a cell with cell state, h of one without.

    recurrent_mask  (G, B, H), read if DROPOUT
    seen            (3 * G * B * H,): twice (B, G, H), and h0 times the mask, (G, B, H)
    zoneout_h       (T, B, G, H), contiguous, read if ZONEOUT_H
    zoneout_c       (T, B, G, H), contiguous, read if ZONEOUT_C
    made            (T, B, G, H), written forward if MADE, read backward if ZONEOUT_C
    carry_h         as carry of `step.py`, of h: what was kept of it has a gradient that does not
                    come through W_hh; written and read if ZONEOUT_H
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .cells import Cell


@triton.jit
def load_at(
    sequence,  # (T, B, G, H), contiguous
    tau,
    rows,
    g,
    units,
    mask,
    B,
    G,
    H: tl.constexpr,
):
    """A tile of one position in time, in memory's dtype."""
    offsets = (((tau * B + rows) * G + g) * H)[:, None] + units[None, :]
    return tl.load(sequence + offsets, mask=mask, other=0.0)


@triton.jit
def mixed(kept, before, new, ACC: tl.constexpr):
    """A part of the state before, and the rest of the new one, in ACC."""
    kept = kept.to(ACC)
    return kept * before.to(ACC) + (1.0 - kept) * new


@triton.jit
def split_gradient(kept, gradient, ACC: tl.constexpr):
    """The gradient of `mixed`: of the new state, and of the one before."""
    passed = kept.to(ACC) * gradient
    return gradient - passed, passed


@triton.jit
def hidden(h, mask, ACC: tl.constexpr, DTYPE: tl.constexpr):
    """What W_hh takes in place of h, as rounded as in memory."""
    return (mask.to(ACC) * h.to(ACC)).to(DTYPE)


class Noise(NamedTuple):
    """What regularisers drew for a recurrence of T steps, B rows, G groups and H units.

    Attributes:
        recurrent_mask: (G, B, H), recurrent dropout: W_hh takes recurrent_mask * h.
        zoneout_h: (T, B, G, H), how much of the h that enters a step is kept:
            ``h[t] = zoneout_h h[t-1] + (1 - zoneout_h)`` times what the cell makes.
        zoneout_c: (T, B, G, H), the same of c, of a cell with cell state. The cell makes h of its
            own c, not of the mixed one.
    """

    recurrent_mask: torch.Tensor | None = None
    zoneout_h: torch.Tensor | None = None
    zoneout_c: torch.Tensor | None = None

    def keeps_back(self, cell: Cell) -> bool:
        """Whether gradients need what the cell made, ``made``."""
        return (self.zoneout_c if cell.has_cell_state else self.zoneout_h) is not None

    def flags(self) -> dict[str, bool]:
        """Of `sweep.constants`."""
        given = [tensor is not None for tensor in self]
        return dict(zip(("dropout", "zoneout_h", "zoneout_c"), given, strict=True))

    def contiguous(self) -> "Noise":
        """The same, as the kernels read it."""
        return Noise(*(tensor if tensor is None else tensor.contiguous() for tensor in self))

    def seen(self, h0: torch.Tensor) -> torch.Tensor | None:
        """``seen`` of a sequence that starts from h0, (G, B, H)."""
        if self.recurrent_mask is None:
            return None
        seen = h0.new_empty((3, *h0.shape))
        torch.mul(h0, self.recurrent_mask, out=seen[2])
        return seen


QUIET = Noise()
