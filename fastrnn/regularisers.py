"""What regularisers draw at random, once a sequence or once a step, before a layer runs.

Recurrent dropout is that of Gal and Ghahramani, "A theoretically grounded application of dropout in
recurrent neural networks", 2016: one mask for all steps. Zoneout is that of Krueger et al.,
"Zoneout: regularizing RNNs by randomly preserving hidden activations", 2017.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.options import Options


class Noise(NamedTuple):
    """As `fastrnn.backend.Layer` has them; None where nothing was asked for."""

    recurrent_mask: Tensor | None = None
    zoneout_h: Tensor | None = None
    zoneout_c: Tensor | None = None


_QUIET = Noise()


def draw(
    options: Options, x: Tensor, states: Sequence[Tensor], groups: int, *, training: bool
) -> Noise:
    """What one layer needs.

    Out of training, recurrent dropout hides nothing, and zoneout mixes the two states that it would
    choose between, by its probabilities.

    Args:
        options: of the call.
        x: (T, B, ...), the layer's input.
        states: (h0,) or (h0, c0), each (G, B, P or H).
        groups: G.
        training: whether to draw.
    """
    if not options.recurrent_dropout and options.zoneout == (0.0, 0.0):
        return _QUIET
    mask = None
    if training and options.recurrent_dropout:
        ones = torch.ones_like(states[0])
        mask = torch.nn.functional.dropout(ones, options.recurrent_dropout, training=True)
    steps, batch = x.shape[:2]

    def kept(probability: float, state: Tensor) -> Tensor | None:
        if not probability:
            return None
        shape = (steps, batch, groups, state.shape[2])
        if training:
            # of no state: what vmap hands out would be many that are to be drawn alike
            odds = torch.full(shape, probability, dtype=state.dtype, device=state.device)
            return torch.bernoulli(odds)
        return state.new_full((1, 1, 1, 1), probability).expand(shape)

    return Noise(
        mask,
        kept(options.zoneout[0], states[0]),
        kept(options.zoneout[1], states[1]) if len(states) == 2 else None,
    )
