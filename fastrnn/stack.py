"""Layers x directions x dropout over a backend that runs one layer, or several at the same time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, masks, regularisers
from fastrnn.backend import Layer
from fastrnn.cell import Cell, cell_of
from fastrnn.ops import layer_forward
from fastrnn.precision import returned

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import StackCall
    from fastrnn.options import Options
    from fastrnn.request import Spec


class Made(NamedTuple):
    """What a call makes."""

    output: Tensor | None
    """In the form of the input; None if nobody reads it."""
    final: tuple[Tensor, ...]
    """(h_n,) or (h_n, c_n), each (num_layers * directions, B, P or H)."""
    every: tuple[Tensor, ...] | None
    """(h,) or (h, c) of every step, each (num_layers * directions, T, B, P or H), zero past a
    row's length; None unless asked for."""


def run_call(spec: Spec, call: StackCall, backend: str, *, at_once: int, options: Options) -> Made:
    """Bring a call into the one form that a layer backend knows: padded, time-major, one dtype.

    An autocast region changes the dtype of the arithmetic; the casts are differentiable, so
    gradients come back in the dtype of what was passed in.

    Args:
        spec: the stack's static shape.
        call: as a stack backend takes it.
        backend: as for `run`.
        at_once: as for `run`.
        options: of the call.
    """
    request, x, batch_sizes, states, weights, batch_first, lengths, resets = call
    time = 1 if batch_first and batch_sizes is None else 0
    checks.check_tensors(x, states, weights, x.shape[time])
    if batch_sizes is not None:
        x, lengths = torch.nn.utils.rnn.pad_packed_sequence(PackedSequence(x, batch_sizes))
        lengths = lengths.to(x.device)
    else:
        x = x.transpose(0, 1) if batch_first else x
        if lengths is not None and (request.needs_grad or request.transformed):
            x = masks.zero_past(x, lengths)  # NaN there would reach dW: 0 * NaN
    given = states[0].dtype
    if any(each.dtype != request.dtype for each in (x, states[0], weights[0])):
        x = x.to(request.dtype)
        states = tuple(state.to(request.dtype) for state in states)
        weights = [weight.to(request.dtype) for weight in weights]
    output, final, every = run(
        spec, x, states, weights, lengths=lengths, dropout=request.dropout,
        precision=request.precision, save=request.needs_grad, backend=backend,
        training=request.training, options=options, at_once=at_once, resets=resets,
    )  # fmt: skip
    kind = returned(spec.cell, request.device, request.dtype, given)
    if kind != request.dtype:
        final = tuple(state.to(kind) for state in final)
        every = every and tuple(state.to(kind) for state in every)
        output = None if output is None else output.to(kind)
    if options.final_only:
        return Made(None, final, every)
    assert output is not None
    if batch_sizes is not None:
        assert lengths is not None
        output = torch.nn.utils.rnn.pack_padded_sequence(output, lengths.cpu()).data
    elif batch_first:
        output = output.transpose(0, 1)
    return Made(output, final, every)


def run(
    spec: Spec,
    x: Tensor,
    hx: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    *,
    lengths: Tensor | None,
    dropout: float,
    precision: str,
    save: bool,
    backend: str,
    training: bool,
    options: Options,
    at_once: int = 1,
    resets: Tensor | None = None,
) -> Made:
    """Run every layer in turn; the directions of a layer are one call with G = 2.

    With `at_once` that many layers are one call, chained, unless some of their weights are frozen
    and others not: then one by one, so that gradients that nobody wants are not computed.

    Args:
        spec: the stack's static shape.
        x: (T, B, I).
        hx: (h0,) or (h0, c0), each (num_layers * directions, B, P or H).
        weights: flat, in torch's order.
        lengths: (B,) int64, or None; see `Layer.lengths` for x past them.
        dropout: probability applied to every layer's output but the last's; 0 in eval mode.
        precision: `ieee`, `tf32` or `tf32x3`.
        save: whether a backward pass may follow.
        backend: the name of a `LayerBackend`.
        training: whether what is drawn at random is.
        options: of the call.
        at_once: layers of a call; see `LayerBackend.layers_at_once`.
        resets: (T, B) bool, or None; every layer starts over at the same steps.

    Returns:
        The output is (T, B, directions * P); with `final_only` it is whatever the last layer
        returns there.
    """
    cell = cell_of(spec.cell)
    per_group = len(weights) // (spec.num_layers * spec.directions)
    if at_once > 1 and save and not _alike(weights, per_group):
        at_once = 1
    h_n, c_n, every_h, every_c = [], [], [], []
    for first_layer in range(0, spec.num_layers, at_once):
        layers = min(at_once, spec.num_layers - first_layer)
        first, groups = first_layer * spec.directions, layers * spec.directions
        own = weights[first * per_group : (first + groups) * per_group]
        # the same kind of weight of every group
        weights_ih, weights_hh, biases = zip(
            *(
                _as_layer(cell, own[slot : slot + per_group], spec.bias)
                for slot in range(0, len(own), per_group)
            ),
            strict=True,
        )
        states = [state[first : first + groups] for state in hx]
        reverse = (False, True) if spec.bidirectional else (False,) * layers
        is_last = first_layer + layers == spec.num_layers
        noise = regularisers.draw(options, x, states, len(reverse), training=training)
        output, h_last, c_last, cells = layer_forward(
            Layer(
                cell=spec.cell,
                x=x,
                weight_ih=_stack(weights_ih[:1] if layers > 1 else weights_ih),
                weight_hh=_stack(weights_hh),
                bias=_stack(biases) if spec.bias else None,
                h0=states[0],
                c0=states[-1] if cell.has_cell_state else None,
                weight_hr=_stack(own[per_group - 1 :: per_group]) if spec.proj_size else None,
                lengths=lengths,
                reverse=reverse,
                precision=precision,
                save=save,
                final_only=options.final_only and is_last and not options.all_states,
                recompute=options.recompute if save else 0,
                weight_chain=_stack(weights_ih[1:]) if layers > 1 else None,
                resets=resets,
                recurrent_mask=noise.recurrent_mask,
                zoneout_h=noise.zoneout_h,
                zoneout_c=noise.zoneout_h if cell.c_is_h else noise.zoneout_c,
                error_clip=options.error_clip,
                all_states=options.all_states and not cell.c_is_h,
                cell_weight=_stack(own[per_group - 1 :: per_group]) if cell.weights else None,
            ),
            backend,
        )
        x = output.flatten(2)
        if dropout and not is_last:
            x = torch.nn.functional.dropout(x, dropout, training=True)
        h_n.append(h_last)
        if c_last is not None and not cell.c_is_h:
            c_n.append(c_last)
        if options.all_states:
            every_h.append(output.permute(2, 0, 1, 3))
        if cells is not None:
            every_c.append(cells.permute(2, 0, 1, 3))
    every = _states(every_h, every_c) if options.all_states else None
    return Made(x, _states(h_n, c_n), every)


def _states(h: list[Tensor], c: list[Tensor]) -> tuple[Tensor, ...]:
    """(h,) or (h, c) of all layers."""
    return (_join(h), _join(c)) if c else (_join(h),)


def _alike(weights: Sequence[Tensor], per_group: int) -> bool:
    """Whether of each kind of weight all layers' have a gradient, or none."""
    wanted = [weight.requires_grad for weight in weights]
    return all(len(set(wanted[kind::per_group])) == 1 for kind in range(per_group))


def _as_layer(
    cell: Cell, own: Sequence[Tensor], bias: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """W_ih (K*H, I), W_hh (K*H, P) and b_ih + b_hh (K*H,) of one layer and direction.

    The biases are added before they are stacked: the gradients of a sum of stacked biases would be
    two views of one memory, and whoever scales or clips gradients in place would do so twice.
    """
    b_ih, b_hh = own[2:4] if bias else (None, None)
    return cell.as_layer(own[0], own[1], b_ih, b_hh)


def _stack(per_group: Sequence[Any]) -> Tensor:
    return per_group[0].unsqueeze(0) if len(per_group) == 1 else torch.stack(tuple(per_group))


def _join(per_layer: list[Tensor]) -> Tensor:
    return per_layer[0] if len(per_layer) == 1 else torch.cat(per_layer)
