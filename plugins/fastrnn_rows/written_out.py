"""A layer in one direction step by step in operations that torch differentiates in any way.

For gradients of gradients, many gradients at once, and `torch.func`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fastrnn.cell import cell_of

if TYPE_CHECKING:
    from torch import Tensor

    from fastrnn.direction import Weights
    from fastrnn_rows.steps import Steps


def run(
    cell: str, steps: Steps, x: Tensor, hx: tuple[Tensor, ...], weights: Weights
) -> tuple[Tensor, ...]:
    """Output (N, H) and final states (B, H), as `direction.run`."""
    known = cell_of(cell)
    weight_ih, weight_hh, bias = known.as_layer(*weights)
    gates_x = x @ weight_ih.mT if bias is None else torch.addmm(bias, x, weight_ih.mT)
    parts = gates_x.split(steps.sizes)  # type: ignore[no-untyped-call] # torch has not typed it
    states = tuple(state[:0] for state in hx) if steps.reverse else hx
    outputs, ended = [], []
    in_turn = reversed(parts) if steps.reverse else parts
    for part, start in zip(in_turn, steps.starts(*hx), strict=True):
        rows, before = len(part), len(states[0])
        if rows > before:  # some start here
            states = tuple(
                torch.cat((own, initial[before:rows]))
                for own, initial in zip(states, hx, strict=True)
            )
        elif rows < before:
            ended.append(tuple(state[rows:] for state in states))
            states = tuple(state[:rows] for state in states)
        if start is not None:
            over, *own = start
            states = tuple(
                state.index_copy(0, over, each) for state, each in zip(states, own, strict=True)
            )
        pre = (part + states[0] @ weight_hh.mT).chunk(known.gates, 1)
        h, c = known.step(pre, states[-1], ())  # of a GRU c is h, and an Elman RNN has none
        states = (h, c)[: len(hx)]
        outputs.append(h)
    return (
        torch.cat(outputs[::-1] if steps.reverse else outputs),
        *(torch.cat(each) for each in zip(states, *reversed(ended), strict=True)),
    )
