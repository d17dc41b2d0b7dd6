"""Training that keeps less: one layer in chunks of k steps, around a backend that knows no chunks.

The forward pass saves the states at the start of every chunk, and nothing of the steps. The
backward pass takes the chunks from the last to the first: it runs each forward once more, this time
saving what backpropagation needs, and backpropagates through it. Gates and their gradients then
exist for k steps at a time, whatever T.

A chunk is k steps in the order in which they are processed, so that of T steps the first chunk is
the times 0 to k - 1 of a group that runs forwards and T - k to T - 1 of one that runs backwards.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, overload

import torch

from fastrnn.backend import LayerGradients, LayerOutput, OutputGradients

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from fastrnn.backend import Layer, LayerBackend, Wanted

STEPS = 128
"""k where the user leaves it open. The states between chunks are then 2 / 128 of what is kept
anyway, the output, so that a larger k would save next to nothing more. What a chunk needs while it
is processed, some ten values a step, row and unit, is little beside a sequence that is long enough
for any of this to matter, and a smaller k would only call the backend more often."""

Spans = tuple[tuple[int, int], ...]
"""The times of a chunk, from and up to, for each group."""

_SUMMED = ("weight_ih", "weight_hh", "bias", "weight_hr", "cell_weight")
"""The gradients to which every chunk adds."""


def forward(backend: LayerBackend, layer: Layer) -> LayerOutput:
    """Run one layer chunk by chunk; saves h (n, G, B, P) and c (n, G, B, H) before each of n."""
    steps, batch = layer.x.shape[:2]
    output = layer.x.new_empty((steps, batch, layer.groups, layer.h0.shape[-1]))
    cells = None
    if layer.all_states and layer.c0 is not None:
        cells = layer.x.new_empty((steps, batch, layer.groups, layer.hidden_size))
    made = []
    for groups, part in _parts(layer):
        own_cells = None if cells is None else cells[:, :, groups]
        made.append(_forward(backend, part, output[:, :, groups], own_cells))
    finals, starts = zip(*made, strict=True)
    final = [_join(parts, 0) for parts in zip(*finals, strict=True)]
    saved = tuple(_join(parts, 1) for parts in zip(*starts, strict=True))
    return LayerOutput(output, final[0], None if layer.c0 is None else final[1], saved, cells)


def saved_like(layer: Layer) -> tuple[Tensor, ...]:
    """Empty tensors shaped as `forward` would save them."""
    chunks = -(-layer.x.shape[0] // layer.recompute)
    return tuple(state.new_empty((chunks, *state.shape)) for state in _states(layer.h0, layer.c0))


def backward(
    backend: LayerBackend,
    grad: OutputGradients,
    layer: Layer,
    output: Tensor,
    saved: Sequence[Tensor],
    wanted: Wanted,
) -> LayerGradients:
    """Backpropagate through one layer chunk by chunk; arguments as for `LayerBackend`.

    Weight gradients are added up over the chunks in float32, or float64 for float64. Where a
    chunk's groups are at different times, what they pass to an x that they share is added up in
    the dtype of x.
    """
    d_x = torch.zeros_like(layer.x) if wanted.x else None
    d_output, d_h_n, d_c_n, d_cells = grad
    if layer.all_states and layer.c0 is not None:
        saved = saved[1:]  # what the replays make again
    found = []
    for groups, part in _parts(layer):
        own_grad = OutputGradients(
            None if d_output is None else d_output[:, :, groups],
            None if d_h_n is None else d_h_n[groups],
            None if d_c_n is None else d_c_n[groups],
            None if d_cells is None else d_cells[:, :, groups],
        )
        own_d_x = d_x if d_x is None or d_x.dim() == 3 else d_x[:, :, groups]
        starts = [states[:, groups] for states in saved[: 1 if layer.c0 is None else 2]]
        own_output = output[:, :, groups]
        found.append(_backward(backend, own_grad, part, own_output, starts, wanted, own_d_x))
    joined = {
        name: None if parts[0] is None else _join(parts, 0)
        for name, parts in zip(LayerGradients._fields, zip(*found, strict=True), strict=True)
    }
    return LayerGradients(**{**joined, "x": d_x})


def _forward(
    backend: LayerBackend, layer: Layer, output: Tensor, cells: Tensor | None
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Fill `output` and `cells`; return the final states, and those before every chunk."""
    states, starts = _states(layer.h0, layer.c0), []
    for spans in _chunks(layer):
        made = LayerOutput(*backend.layer_forward(_chunk_of(layer, spans, states, save=False)))
        for g, (start, stop) in enumerate(spans):
            output[start:stop, :, g] = made.output[:, :, g]
            if cells is not None and made.cells is not None:
                cells[start:stop, :, g] = made.cells[:, :, g]
        starts.append(states)
        states = _states(made.h_n, made.c_n)
    return states, tuple(torch.stack(before) for before in zip(*starts, strict=True))


def _backward(
    backend: LayerBackend,
    grad: OutputGradients,
    layer: Layer,
    output: Tensor,
    starts: Sequence[Tensor],
    wanted: Wanted,
    d_x: Tensor | None,
) -> LayerGradients:
    """Add to `d_x`; return the other gradients."""
    wide = torch.float64 if layer.x.dtype == torch.float64 else torch.float32
    sums: dict[str, Tensor] = {}
    d_states = (grad.h_n, grad.c_n)
    for index, spans in reversed(list(enumerate(_chunks(layer)))):
        chunk = _chunk_of(layer, spans, [states[index] for states in starts], save=True)
        found = _backward_of_chunk(
            backend,
            OutputGradients(_cut(grad.output, spans), *d_states, _cut(grad.cells, spans)),
            chunk,
            _cut(output, spans),
            wanted if index == 0 else wanted._replace(h0=True, c0=layer.c0 is not None),
        )
        d_states = (found.h0, found.c0)
        if d_x is not None and found.x is not None:
            _add(found.x, d_x, spans)
        for name in _SUMMED:
            gradient = getattr(found, name)
            if gradient is not None:
                sums[name] = gradient.to(wide) if name not in sums else sums[name].add_(gradient)
    rounded = {name: total.to(layer.x.dtype) for name, total in sums.items()}
    return LayerGradients(h0=d_states[0], c0=d_states[1], **rounded)


def _backward_of_chunk(
    backend: LayerBackend, grad: OutputGradients, chunk: Layer, output: Tensor, wanted: Wanted
) -> LayerGradients:
    """Replay one chunk, unless its output is all that its backward pass needs."""
    saved: tuple[Tensor, ...] = ()
    if backend.saved_like(replace(chunk, x=chunk.x[:1])):  # of one step: it only counts them
        output, _, _, saved, *_ = backend.layer_forward(chunk)
    padding = [chunk.x.new_empty(0) for _ in range(3 - len(saved))]
    chunk = replace(chunk, overwrite_saved=True)  # nobody else has seen what the replay saved
    return backend.layer_backward(grad, chunk, output.contiguous(), (*saved, *padding), wanted)


def _parts(layer: Layer) -> Iterator[tuple[slice, Layer]]:
    """The groups that can be run together, and the layer of each such set.

    All of them; but with lengths, which all groups of a layer share, not two directions, since the
    groups of a chunk are at different times and so have other numbers of steps to go.
    """
    if layer.lengths is None or len(set(layer.reverse)) == 1:
        yield slice(0, layer.groups), layer
        return
    for g in range(layer.groups):
        own = slice(g, g + 1)
        yield (
            own,
            replace(
                layer,
                x=layer.x if layer.x.dim() == 3 else layer.x[:, :, own],
                weight_ih=layer.weight_ih[own],
                weight_hh=layer.weight_hh[own],
                bias=None if layer.bias is None else layer.bias[own],
                h0=layer.h0[own],
                c0=None if layer.c0 is None else layer.c0[own],
                weight_hr=None if layer.weight_hr is None else layer.weight_hr[own],
                cell_weight=None if layer.cell_weight is None else layer.cell_weight[own],
                reverse=layer.reverse[own],
                recurrent_mask=None if layer.recurrent_mask is None else layer.recurrent_mask[own],
                zoneout_h=None if layer.zoneout_h is None else layer.zoneout_h[:, :, own],
                zoneout_c=None if layer.zoneout_c is None else layer.zoneout_c[:, :, own],
            ),
        )


def _chunks(layer: Layer) -> Iterator[Spans]:
    """The chunks in the order of processing."""
    steps = layer.x.shape[0]
    for first in range(0, steps, layer.recompute):
        last = min(first + layer.recompute, steps)
        yield tuple((steps - last, steps - first) if r else (first, last) for r in layer.reverse)


def _chunk_of(layer: Layer, spans: Spans, states: Sequence[Tensor], *, save: bool) -> Layer:
    """The layer of one chunk, which starts in `states`."""
    start, stop = spans[0]
    return replace(
        layer,
        x=_cut(layer.x, spans),
        h0=states[0],
        c0=None if layer.c0 is None else states[1],
        lengths=None if layer.lengths is None else (layer.lengths - start).clamp(0, stop - start),
        save=save,
        final_only=False,
        recompute=0,
        zoneout_h=_cut(layer.zoneout_h, spans),
        zoneout_c=_cut(layer.zoneout_c, spans),
        all_states=layer.all_states and not save,
    )


@overload
def _cut(sequence: Tensor, spans: Spans) -> Tensor: ...
@overload
def _cut(sequence: Tensor | None, spans: Spans) -> Tensor | None: ...
def _cut(sequence: Tensor | None, spans: Spans) -> Tensor | None:
    """A chunk of (T, B, G, N), or of a (T, B, N) that the groups share; a view if it can be one."""
    if sequence is None:
        return None
    start, stop = spans[0]
    if len(set(spans)) == 1:
        return sequence[start:stop]
    if sequence.dim() == 3:
        return torch.stack([sequence[start:stop] for start, stop in spans], 2)
    return torch.stack([sequence[start:stop, :, g] for g, (start, stop) in enumerate(spans)], 2)


def _add(chunk: Tensor, total: Tensor, spans: Spans) -> None:
    """Add a chunk's gradient to that of the sequence it was cut out of."""
    if chunk.dim() == 3:
        start, stop = spans[0]
        total[start:stop] += chunk
        return
    for g, (start, stop) in enumerate(spans):
        own = total[start:stop] if total.dim() == 3 else total[start:stop, :, g]
        own += chunk[:, :, g]


def _states(h: Tensor, c: Tensor | None) -> tuple[Tensor, ...]:
    return (h,) if c is None else (h, c)


def _join(parts: Sequence[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), dim)
