"""Problems for layers of plugins' cells, and the equations of two of them once more, in NumPy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from fastrnn import calls
from fastrnn.options import Options
from fastrnn.request import Spec
from fastrnn.testing import weight_shapes

Tensors = list[torch.Tensor]


def leaves_of(
    spec: Spec, T: int, B: int, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[torch.Tensor, Tensors, Tensors]:
    """Input, states and weights that want gradients, rounded to the dtype."""
    generator = torch.Generator().manual_seed(seed)

    def leaf(shape: tuple[int, ...], scale: float = 1.0) -> torch.Tensor:
        values = (torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) * scale
        return values.to(dtype).requires_grad_()

    rows = spec.num_layers * spec.directions
    states = [leaf((rows, B, spec.hidden_size)) for _ in range(1 + spec.has_cell_state)]
    bound = 1 / math.sqrt(spec.hidden_size)
    return (
        leaf((T, B, spec.input_size), 2.0),
        states,
        [leaf(shape, bound) for shape in weight_shapes(spec)],
    )


def run(
    spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors, backend: str, **how: Any
) -> Tensors:
    """Output, final states and, if asked for, every state, in a row."""
    options, training = how.pop("options", Options()), how.pop("training", True)
    output, *states = calls.run(
        spec, x, tuple(hx) if spec.has_cell_state else hx[0], weights, batch_first=False,
        dropout=0.0, training=training, backend=backend, options=options, **how,
    )  # fmt: skip
    flat = [each for s in states for each in (s if isinstance(s, tuple) else (s,))]
    return ([] if output is None else [output]) + flat


def gradients(made: Tensors, leaves: Tensors) -> tuple[torch.Tensor, ...]:
    """Of random weighted sums."""
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(m.shape, generator=generator).to(m) for m in made]
    return torch.autograd.grad(made, leaves, upstream, allow_unused=True, materialize_grads=True)


def sigmoid(a: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-a))


def numpy_step(cell: str, x: Any, h: Any, c: Any, own: list[Any], bias: bool) -> tuple[Any, Any]:
    """One row's step, written from the papers' formulas."""
    w_ih, w_hh, *rest = own
    b_ih, b_hh = rest[:2] if bias else (0.0, 0.0)
    a_x, a_h = w_ih @ x + b_ih, w_hh @ h + b_hh
    if cell == "gru":
        (r_x, z_x, n_x), (r_h, z_h, n_h) = np.split(a_x, 3), np.split(a_h, 3)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        return (1 - z) * np.tanh(n_x + r * n_h) + z * h, None
    i, f, g, o = np.split(a_x + a_h, 4)
    p_i, p_f, p_o = rest[-1]
    c_new = sigmoid(f + p_f * c) * c + sigmoid(i + p_i * c) * np.tanh(g)
    return sigmoid(o + p_o * c_new) * np.tanh(c_new), c_new


def numpy_run(
    spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors,
    lengths: list[int] | None = None, resets: torch.Tensor | None = None,
) -> Tensors:  # fmt: skip
    """Output and final states, row by row and step by step."""
    below, per_slot = x.detach().numpy(), len(weights) // (spec.num_layers * spec.directions)
    own_all = [w.detach().numpy() for w in weights]
    T, B, _ = below.shape
    final: list[list[Any]] = [[] for _ in hx]
    for layer in range(spec.num_layers):
        outputs = []
        for direction in range(spec.directions):
            slot = layer * spec.directions + direction
            own = own_all[slot * per_slot : (slot + 1) * per_slot]
            first = [s[slot].detach().numpy() for s in hx]
            y, last = np.zeros((T, B, spec.hidden_size)), [s.copy() for s in first]
            for row in range(B):
                h, c = first[0][row], first[-1][row]
                times = range(T if lengths is None else lengths[row])
                for t in reversed(times) if direction else times:
                    if resets is not None and resets[t, row]:
                        h, c = first[0][row], first[-1][row]
                    h, c = numpy_step(spec.cell, below[t, row], h, c, own, spec.bias)
                    y[t, row] = h
                for state, value in zip(last, (h, c), strict=False):
                    state[row] = value
            outputs.append(y)
            for kept, state in zip(final, last, strict=True):
                kept.append(state)
        below = np.concatenate(outputs, 2)
    return [torch.from_numpy(a) for a in (below, *map(np.stack, final))]
