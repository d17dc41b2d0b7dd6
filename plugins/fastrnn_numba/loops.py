"""Tensors as the arrays that the loops of a cell take, and their rows in as many parts as threads.

Rows depend on none but themselves, so each thread takes all steps of its own, and none waits for
another before the last step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from fastrnn_numba import along, cost, elman, gru, lstm, products, team

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from fastrnn.direction import Weights
    from fastrnn_numba.direction import How

ACTIVATIONS = {
    "rnn_tanh": elman.TANH,
    "rnn_relu": elman.RELU,
    "rnn_sigmoid": elman.SIGMOID,
}


class Made(NamedTuple):
    """Of the forward loop."""

    output: Tensor
    """(N, H)"""
    final: tuple[Tensor, ...]
    """(h_n,) or (h_n, c_n), (B, H) each."""
    saved: tuple[Tensor, ...]
    """For the way back, beside the output; none unless asked for."""


class Gradients(NamedTuple):
    """Of the loop back through time."""

    d_gates_x: Tensor
    """(N, K*H): of W_ih x + b_ih; of a GRU in the order n, r, z."""
    d_gates_h: Tensor
    """(N, K*H): of W_hh h + b_hh, in torch's order; the same tensor for all cells but a GRU."""
    d_h0: Tensor
    """(B, H)"""
    d_c0: Tensor | None = None
    """(B, H)"""


def forward(how: How, x: Tensor, hx: Sequence[Tensor], weights: Weights, *, save: bool) -> Made:
    """All steps; x is (N, I)."""
    steps, hidden = how.steps, hx[0].shape[1]
    initial = [_array(state) for state in hx]
    states = [state.copy() for state in initial]
    final = tuple(torch.from_numpy(state) for state in states)
    output = steps.new(x, hidden)
    bias, bias_hn = _biases(how.cell, weights, initial[0].dtype)
    inputs, by_x = x, np.empty((0, 0, 0), bias.dtype)
    if cost.forms_inputs(weights.ih.numel(), x.itemsize, steps.batch, x.shape[0]):
        by_x = products.panels_turned(_array(weights.ih))
    else:
        inputs = x @ weights.ih.mT
    by = products.panels_turned(_array(weights.hh))
    weighed = _array(inputs), by_x, bias, by
    if how.cell in ACTIVATIONS:
        before: tuple[Any, ...] = (ACTIVATIONS[how.cell], *weighed, *states, *initial)
        _each(how, elman.forward, before, (_array(output),))
        return Made(output, final, ())
    loop, before = lstm.forward, (*weighed, *states, *initial)
    if how.cell == "gru":
        loop, before = gru.forward, (*weighed, bias_hn, *states, *initial)
    if not save:
        nothing = np.empty((0, 0), bias.dtype)
        _each(how, loop, before, (_array(output), nothing, nothing))
        return Made(output, final, ())
    gates = x.new_empty(x.shape[0], bias.shape[1]) if inputs is x else inputs
    kept = x.new_empty(x.shape[0], hidden)
    _each(how, loop, before, (_array(output), _array(gates), _array(kept)))
    return Made(output, final, (kept, gates))


def _biases(cell: str, weights: Weights, dtype: Any) -> tuple[Any, Any]:
    """What is added to W_ih x, (1, K*H), and of a GRU b_hn, (1, H)."""
    number, hidden = weights.hh.shape
    if weights.bias_ih is None or weights.bias_hh is None:
        return np.zeros((1, number), dtype), np.zeros((1, hidden), dtype)
    both, of_h = _array(weights.bias_ih).copy(), _array(weights.bias_hh)
    common = number - hidden if cell == "gru" else number
    both[:common] += of_h[:common]
    return both[None], of_h[None, common:]


def backward(
    how: How, grads: Sequence[Tensor | None], output: Tensor, saved: Sequence[Tensor],
    hx: Sequence[Tensor], weights: Weights, d_cells: Tensor | None = None,
) -> Gradients:  # fmt: skip
    """All steps; grads are dL/doutput, dL/dh_n and dL/dc_n, or None; d_cells is (N, H)."""
    steps, hidden = how.steps, output.shape[1]
    by = products.panels(_array(weights.hh))
    d_output = output.new_zeros(output.shape) if grads[0] is None else grads[0]
    d_states = [
        state.new_zeros(state.shape) if grad is None else _copy(grad)
        for grad, state in zip(grads[1:], hx, strict=True)
    ]
    d_initial = [state.new_zeros(state.shape) for state in hx]
    own = [_array(each) for each in (*d_states, *d_initial)]
    if how.cell == "lstm":
        cells, gates = saved
        d_gates = steps.new(output, 4 * hidden)
        of_cells = output.new_empty(0, 0) if d_cells is None else d_cells
        before: tuple[Any, ...] = (
            _array(d_output), _array(of_cells), _array(gates), _array(cells), by, _array(hx[1]),
            *own,
        )  # fmt: skip
        _each(how, lstm.backward, before, (_array(d_gates),))
        d_h0, d_c0 = (a.add_(b) for a, b in zip(d_states, d_initial, strict=True))
        return Gradients(d_gates, d_gates, d_h0, d_c0)
    if how.cell == "gru":
        m, gates = saved
        d_gates = steps.new(output, 4 * hidden)
        before = (
            _array(d_output), _array(gates), _array(m), _array(output), by, _array(hx[0]), *own,
        )  # fmt: skip
        _each(how, gru.backward, before, (_array(d_gates),))
        of_x, of_h = d_gates[:, : 3 * hidden], d_gates[:, hidden:]
        return Gradients(of_x, of_h, d_states[0].add_(d_initial[0]))
    d_gates = steps.new(output, hidden)
    before = (ACTIVATIONS[how.cell], _array(d_output), _array(output), by, *own)
    _each(how, elman.backward, before, (_array(d_gates),))
    return Gradients(d_gates, d_gates, d_states[0].add_(d_initial[0]))


def entering(how: How, states: Tensor, initial: Tensor) -> Tensor:
    """(N, H): the states that enter each step, of those that leave them."""
    made = how.steps.new(states, states.shape[1])
    one = how._replace(threads=1)  # rows are only copied, which several threads do no faster
    _each(one, along.entering, (_array(made), _array(states), _array(initial)), ())
    return made


def _array(tensor: Tensor) -> Any:
    """A tensor's numbers as an array without gaps: a copy only if there are some."""
    return tensor.contiguous().numpy(force=True)


def _copy(tensor: Tensor) -> Tensor:
    """To be written over, as an array: without gaps, whatever strides the tensor has."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _each(
    how: How, loop: Callable[..., None], before: tuple[Any, ...], after: tuple[Any, ...]
) -> None:
    """Run a loop over all rows, part by part; its arguments but the rows come before and after."""
    steps = how.steps
    calls = [
        (*before, steps.offsets, order, counts, steps.resets, how.reverse, *after)
        for order, counts in steps.shares(how.threads)
    ]
    team.run(loop, calls)
