"""One layer in all its directions, for calls that cannot come as a whole stack.

Its groups are run one after another, each as a stack's layer in one direction is. Weights come in a
layer's form (`fastrnn.layer`), of which only a GRU's differs from torch's: either matrix has rows
for r, z and both halves of n, and is zero in those of the other's half; see `fastrnn_cells.gru`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from fastrnn.backend import LayerGradients, LayerOutput, OutputGradients
from fastrnn.direction import Weights, sums
from fastrnn.request import Request
from fastrnn.roofline import HALVES
from fastrnn_numba import cost, loops
from fastrnn_numba.direction import How
from fastrnn_numba.steps import Steps

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, Wanted


def forward(layer: Layer) -> LayerOutput:
    """All steps of all groups; of 16 bits in float32, in which it is saved, too."""
    if layer.x.dtype not in HALVES:
        return _forward(layer)
    kind, made = layer.x.dtype, _forward(_widened(layer))
    c_n, cells = _cast(made.c_n, kind), _cast(made.cells, kind)
    return LayerOutput(made.output.to(kind), made.h_n.to(kind), c_n, made.saved, cells)


def _widened(layer: Layer) -> Layer:
    return replace(
        layer, x=layer.x.float(), weight_ih=layer.weight_ih.float(), bias=_cast(layer.bias),
        weight_hh=layer.weight_hh.float(), h0=layer.h0.float(), c0=_cast(layer.c0),
    )  # fmt: skip


def _cast(tensor: Tensor | None, kind: torch.dtype = torch.float32) -> Tensor | None:
    return None if tensor is None else tensor.to(kind)


def _forward(layer: Layer) -> LayerOutput:
    with_cells, found = layer.cell == "lstm" and layer.all_states, []
    hows = _hows(layer)
    for g, how in enumerate(hows):
        weights = _of_torch(layer, g)
        save = layer.save or with_cells
        found.append(loops.forward(how, _input(layer, g), _states(layer, g), weights, save=save))
    output = _side_by_side(layer, [made.output for made in found])
    h_n, *c_n = map(_by_group, zip(*(made.final for made in found), strict=True))
    saved = tuple(map(_by_group, zip(*(made.saved for made in found), strict=True)))
    if hows[0].steps.has_gaps:
        for each in saved:  # operators' results are to be the same in every run, all of them
            each[:, hows[0].steps.gaps] = 0
    cells = None
    if with_cells:
        kept, *saved_gates = saved
        saved, cells = tuple(saved_gates), _side_by_side(layer, list(kept))
    if layer.cell == "gru":
        c_n = [h_n.clone()]
    return LayerOutput(output, h_n, c_n[0] if c_n else None, saved if layer.save else (), cells)


def saved_like(layer: Layer) -> tuple[Tensor, ...]:
    """Of every place, group after group: c, or of a GRU W_hn h + b_hn; and the activated gates."""
    if not layer.save or layer.c0 is None:
        return ()
    shape = (layer.groups, layer.x.shape[0] * layer.x.shape[1])
    gates = 3 if layer.cell == "gru" else 4
    widths = [gates * layer.hidden_size]
    if not layer.all_states:
        widths.insert(0, layer.hidden_size)
    kind = torch.float32 if layer.x.dtype in HALVES else layer.x.dtype
    return tuple(layer.x.new_empty((*shape, width), dtype=kind) for width in widths)


def backward(
    grad: OutputGradients, layer: Layer, output: Tensor, saved: Sequence[Tensor], wanted: Wanted
) -> LayerGradients:
    """All steps of all groups, from the last to the first, and the sums over them."""
    kind = layer.x.dtype
    if kind not in HALVES:
        return _backward(grad, layer, output, saved, wanted)
    wide = OutputGradients(*map(_cast, grad))
    saved = [each.float() for each in saved]  # of which c of every step is a result, if asked for
    made = _backward(wide, _widened(layer), output.float(), saved, wanted)
    return LayerGradients(*(_cast(each, kind) for each in made))


def _backward(
    grad: OutputGradients, layer: Layer, output: Tensor, saved: Sequence[Tensor], wanted: Wanted
) -> LayerGradients:
    found = [
        _backward_of(how, grad, layer, output, saved, wanted, g)
        for g, how in enumerate(_hows(layer))
    ]
    shared = layer.x.dim() == 3
    ones = [one.x for one in found if one.x is not None]
    d_x = None
    if ones:
        d_x = sum(ones[1:], ones[0]).view_as(layer.x) if shared else _side_by_side(layer, ones)
    rest = {
        name: _by_group([getattr(one, name) for one in found])
        for name in ("weight_ih", "weight_hh", "bias", "h0", "c0")
        if getattr(wanted, name)
    }
    return LayerGradients(x=d_x, **rest)


def _backward_of(
    how: How, grad: OutputGradients, layer: Layer, output: Tensor, saved: Sequence[Tensor],
    wanted: Wanted, g: int,
) -> LayerGradients:  # fmt: skip
    """Those of one group, without its dimension; of x (N, I)."""
    x, hx, own = _input(layer, g), _states(layer, g), _of_torch(layer, g)
    h, d_h_n, d_c_n = _group(output, g), grad.h_n, grad.c_n
    if layer.cell == "gru" and d_c_n is not None:  # c is h
        d_h_n = d_c_n if d_h_n is None else d_h_n + d_c_n
    grads = [None if each is None else each[g] for each in (d_h_n, d_c_n)]
    d_output = None if grad.output is None else _group(grad.output, g)
    kept: list[Tensor] = []
    if layer.c0 is not None:
        first = _group(saved[0], g) if layer.all_states and layer.cell == "lstm" else saved[0][g]
        kept = [first, saved[1][g]]
    made = loops.backward(
        how, (d_output, *grads[: len(hx)]), h, kept, hx, own,
        d_cells=None if grad.cells is None else _group(grad.cells, g),
    )  # fmt: skip
    of_h = made.d_gates_h
    d_hh = of_h.mT @ loops.entering(how, h, hx[0]) if wanted.weight_hh else None
    is_gru = layer.cell == "gru"
    needed = (wanted.x, wanted.weight_ih, wanted.bias, wanted.bias and is_gru)
    around = sums(x, own, made.d_gates_x, of_h, needed)
    d_ih, d_bias, d_c0 = around.ih, around.bias_ih, made.d_c0
    if is_gru:
        hidden = layer.hidden_size
        d_ih = None if d_ih is None else functional.pad(d_ih, (0, 0, 0, hidden))
        if d_hh is not None:
            d_hh = torch.cat((d_hh[:-hidden], torch.zeros_like(d_hh[:hidden]), d_hh[-hidden:]))
        if d_bias is not None and around.bias_hh is not None:
            d_bias = torch.cat((d_bias, around.bias_hh[-hidden:]))
        d_c0 = torch.zeros_like(made.d_h0)  # it is h0, which has all of it
    return LayerGradients(around.x, d_ih, d_hh, d_bias, made.d_h0, d_c0)


def _hows(layer: Layer) -> list[How]:
    """Of each group; which steps its rows have is the same for all."""
    steps, batch, inputs = layer.x.shape[0], layer.x.shape[1], layer.x.shape[-1]
    asked = Request(
        cell=layer.cell, seq_len=steps, batch=batch, input_size=inputs,
        hidden_size=layer.hidden_size, proj_size=0, num_layers=1, bidirectional=False,
        bias=layer.bias is not None, dropout=0.0, dtype=layer.x.dtype, device="cpu", arch="",
        precision=layer.precision, needs_grad=layer.save, training=layer.save,
        varlen=layer.lengths is not None, compiling=False, threads=torch.get_num_threads(),
    )  # fmt: skip
    known, threads = Steps(steps, batch, layer.lengths, layer.resets), cost.threads(asked)
    return [How(layer.cell, known, reverse, threads) for reverse in layer.reverse]


def _input(layer: Layer, g: int) -> Tensor:
    """(N, I), time after time."""
    return layer.x.flatten(0, 1) if layer.x.dim() == 3 else _group(layer.x, g)


def _states(layer: Layer, g: int) -> tuple[Tensor, ...]:
    """(h0,), or of an LSTM (h0, c0); (B, H) each."""
    h0 = layer.h0[g]
    return (h0, layer.c0[g]) if layer.cell == "lstm" and layer.c0 is not None else (h0,)


def _of_torch(layer: Layer, g: int) -> Weights:
    """Those of a group as torch has them."""
    ih, hh, hidden = layer.weight_ih[g], layer.weight_hh[g], layer.hidden_size
    bias = None if layer.bias is None else layer.bias[g]
    if layer.cell != "gru":
        return Weights(ih, hh, bias, None if bias is None else torch.zeros_like(bias))
    of_h = None
    if bias is not None:
        of_h = torch.cat((torch.zeros_like(bias[: 2 * hidden]), bias[3 * hidden :]))
        bias = bias[: 3 * hidden]
    return Weights(ih[: 3 * hidden], torch.cat((hh[: 2 * hidden], hh[3 * hidden :])), bias, of_h)


def _group(sequence: Tensor, g: int) -> Tensor:
    """(N, width) of (T, B, G, width)."""
    return sequence[:, :, g].flatten(0, 1)


def _by_group(parts: Sequence[Tensor]) -> Tensor:
    """(G, ...); no copy of a single one."""
    return parts[0].unsqueeze(0) if len(parts) == 1 else torch.stack(tuple(parts))


def _side_by_side(layer: Layer, parts: list[Tensor]) -> Tensor:
    """(T, B, G, width) of G times (N, width)."""
    sizes = (*layer.x.shape[:2], layer.groups, parts[0].shape[1])
    return (parts[0] if len(parts) == 1 else torch.stack(parts, 1)).view(sizes)
