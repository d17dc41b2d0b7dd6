"""Inference step by step, in buffers that are made once."""

# mypy: allow-untyped-calls
# (some methods of torch's tensors are not annotated)

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fastrnn import checks
from fastrnn.cell import cell_of
from fastrnn.streaming import one_direction
from fastrnn.weight_drop import undropped

if TYPE_CHECKING:
    from fastrnn.cell_modules import GRU
    from fastrnn.modules import LSTM, RNN


APART = 1 << 20
"""Bytes of a GRU's weights from which reading the zeros among them, a quarter of all, takes longer
than two more products."""


class _Level(NamedTuple):
    """The buffers of one layer; many are views of a few of them."""

    row: Tensor
    """(B, W + P): x and h side by side; W is the width of x."""
    h: Tensor
    """(B, P), in `row`."""
    c: Tensor
    """(B, H); LSTM only, else (0,)."""
    gates: Tensor
    """(B, K*H), as a layer has them (`Cell.as_layer`), but of an LSTM in the order i, f, o, g."""
    logistic: Tensor
    """(B, S*H), the first gates, which are sigmoids: i, f and o of an LSTM, r and z of a GRU."""
    split: tuple[Tensor, ...]
    """(B, H) each: the gates by themselves."""
    weight: Tensor
    """(W + P, K*H): W_ih above W_hh, both transposed."""
    bias: Tensor
    """(K*H,): both biases."""
    products: tuple[tuple[Tensor, Tensor, Tensor, Tensor], ...]
    """Of which the gates are made: bias + row weight = gates, or parts of all four, views."""
    weight_hr: Tensor | None
    """(H, P), transposed."""
    h_new: Tensor
    """(B, P): what zoneout mixes with h."""


class Stepper:
    """Inference step by step: a call takes x(t), returns the output h(t), and allocates nothing.

    For control loops and for generation, where the work of a step is small beside what a call of a
    layer costs. It holds the state and all work buffers. A step of a layer is one product, [x h]
    with [W_ih W_hh] (three of a large GRU), and one to eight operations in place, plain torch
    whatever the `backend`. The layer is run as in eval mode: there is no dropout, zoneout mixes.

    Weights are copied when it is made; after they have changed, call `refresh`.

    Nothing in a step waits for a device and no address changes, so that a CUDA graph can capture
    it, with x in a tensor of your own that you fill before each replay (not yet run on a GPU).

    B, I, L stand for `batch`, `input_size` and `num_layers`, H for `hidden_size` and P for the
    width of h: H, or `proj_size`.

    Args:
        layer: a `fastrnn.LSTM`, `GRU` or `RNN`, not bidirectional. The stepper has its dtype and
            device.
        batch: B, rows that step together.

    Raises:
        TypeError: `layer` is none of these, or `batch` no int.
        ValueError: `layer` is bidirectional, or `batch` is below 1.

    Example:
        >>> stepper = fastrnn.Stepper(fastrnn.LSTM(10, 20), batch=3)
        >>> stepper(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(self, layer: LSTM | GRU | RNN, batch: int = 1) -> None:
        spec = one_direction(layer, "and there are none yet")
        if spec.cell not in _STEPS:
            got = type(layer).__name__
            raise TypeError(f"layer should be a fastrnn.RNN, LSTM or GRU, got: {got}")
        if not isinstance(batch, int) or isinstance(batch, bool):
            raise TypeError(f"batch should be of type int, got: {type(batch).__name__}")
        if batch < 1:
            raise ValueError(f"batch: got {batch}, expected 1 or more rows")
        self._layer, self._spec, self._batch = layer, spec, batch
        self._step = _STEPS[spec.cell]
        # tensors that are made in inference mode could not be written to outside of it
        with torch.inference_mode(False), undropped(layer):
            self._make_buffers(layer._weights()[0])
        self.refresh()

    def _make_buffers(self, like: Tensor) -> None:
        """Lay x and every layer's h side by side.

        What a layer multiplies its weights with is its input and its own h, which are neighbours
        in [x, h of layer 0, h of layer 1, ...]: the new h of one layer is written where the next
        one reads it.
        """
        spec, batch = self._spec, self._batch
        _, inputs, H, _, layers, _, _ = spec
        P, rows = spec.state_size, cell_of(spec.cell).gates * H
        logistic = _LOGISTIC.get(spec.cell, 0) * H

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=like.dtype, device=like.device)

        line = zeros(batch, inputs + layers * P)
        h = line[:, inputs:].unflatten(1, (layers, P)).transpose(0, 1)
        c = zeros(layers, batch, H) if spec.has_cell_state else zeros(layers, 0)
        levels, begin = [], 0
        for layer in range(layers):
            width = P if layer else inputs
            row = line[:, begin : begin + width + P]
            gates, weight, bias = zeros(batch, rows), zeros(width + P, rows), zeros(rows)
            parts = [(slice(None), slice(None))]
            if spec.cell == "gru" and weight.nbytes >= APART:
                # of n's halves one is of x alone, the other one of h: the rest of W is zero
                parts = [(slice(None), slice(2 * H)), (slice(width), slice(2 * H, 3 * H)),
                         (slice(width, None), slice(3 * H, None))]  # fmt: skip
            levels.append(
                _Level(
                    row=row,
                    h=h[layer],
                    c=c[layer],
                    gates=gates,
                    logistic=gates[:, :logistic],
                    split=gates.split(H, 1),
                    weight=weight,
                    bias=bias,
                    products=tuple(
                        (bias[of], row[:, by], weight[by, of], gates[:, of]) for by, of in parts
                    ),
                    weight_hr=zeros(H, P) if spec.proj_size else None,
                    h_new=zeros(batch, P),
                )
            )
            begin += width
        self._input, self._output, self._levels = line[:, :inputs], h[-1], levels
        self._states = [h, c] if spec.has_cell_state else [h]
        self._shapes: dict[torch.Size, tuple[Tensor, Tensor]] = {
            self._input.shape: (self._input, self._output)
        }
        if batch == 1:
            self._shapes[self._input[0].shape] = (self._input[0], self._output[0])

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the layer's weights again, to the same addresses; the state stays."""
        shares = self._layer.zoneout
        pair = (shares, shares) if isinstance(shares, float | int) else (shares[0], shares[1])
        self._zoneout = pair if any(pair) else None
        with undropped(self._layer):
            weights = self._layer._weights()
        size = len(weights) // len(self._levels)
        cell = cell_of(self._spec.cell)
        order = _ORDER.get(cell.name, range(cell.gates))
        for index, level in enumerate(self._levels):
            own = weights[index * size : (index + 1) * size]
            b_ih, b_hh = own[2:4] if self._spec.bias else (None, None)
            weight_ih, weight_hh, bias = cell.as_layer(own[0], own[1], b_ih, b_hh)

            def ordered(weight: Tensor) -> Tensor:
                return torch.cat([weight.chunk(cell.gates)[gate] for gate in order])

            width = own[0].shape[1]
            level.weight[:width].copy_(ordered(weight_ih).t())
            level.weight[width:].copy_(ordered(weight_hh).t())
            if bias is not None:
                level.bias.copy_(ordered(bias))
            if level.weight_hr is not None:
                level.weight_hr.copy_(own[-1].t())

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """Make one step.

        Args:
            x: (B, I); (I,) too if B is 1. In the dtype and on the device of the stepper.

        Returns:
            h of the last layer, (B, P), or (P,) if `x` was (I,): a view of the state, which the
            next step writes over, so clone what you keep. Of several rows it is not contiguous.

        Raises:
            ValueError: wrong shape, dtype or device of `x`.
        """
        try:
            input, output = self._shapes[x.shape]
        except KeyError:
            raise self._wrong_input(x) from None
        if x.dtype != input.dtype or x.device != input.device:
            raise self._wrong_input(x)
        input.copy_(x)
        for level in self._levels:
            self._step(level, self._zoneout)
        return output

    def _wrong_input(self, x: Tensor) -> ValueError:
        own = self._input
        alone = f" or ({own.shape[1]},)" if self._batch == 1 else ""
        return ValueError(
            f"x: got {x.dtype} {tuple(x.shape)} on {x.device}, expected {own.dtype} "
            f"{tuple(own.shape)}{alone} on {own.device}"
        )

    @property
    def state(self) -> Tensor | tuple[Tensor, Tensor]:
        """The state as the layer returns it: h (L, B, P), of an LSTM (h, c) with c (L, B, H).

        Views, which the next step writes over: clone what you keep.
        """
        h, *c = self._states
        return (h, c[0]) if c else h

    @torch.no_grad()
    def reset(self, rows: Tensor | None = None) -> None:
        """Set the state to zero, as before the first step.

        Args:
            rows: (B,) bool, the rows that start over; None for all.

        Raises:
            TypeError: `rows` is no bool tensor.
            ValueError: it has another shape.
        """
        chosen = self._chosen(rows)
        for own in self._states:
            if chosen is None:
                own.zero_()
            else:
                own.masked_fill_(chosen, 0)

    @torch.no_grad()
    def load_state(self, hx: Tensor | tuple[Tensor, Tensor], rows: Tensor | None = None) -> None:
        """Take over a state, such as what a layer returned for the beginning of a sequence.

        Args:
            hx: shaped as `state`, or as the layer's without a batch where B is 1. Copied, to the
                stepper's dtype and device.
            rows: (B,) bool, the rows to take; None for all.

        Raises:
            ValueError, RuntimeError: as the layer raises for an `hx` of wrong dims or sizes.
            TypeError, ValueError: as `reset` raises for `rows`.
        """
        chosen = self._chosen(rows)
        unbatched = self._batch == 1 and hx[0].dim() == (2 if self._spec.has_cell_state else 1)
        states = checks.as_states(self._spec, hx, unbatched)
        checks.check_states(self._spec, states, self._batch)
        for own, new in zip(self._states, states, strict=True):
            own.copy_(new if chosen is None else torch.where(chosen, new.to(own), own))

    def _chosen(self, rows: Tensor | None) -> Tensor | None:
        """Rows as a (B, 1) mask."""
        if rows is None:
            return None
        if not isinstance(rows, torch.Tensor) or rows.dtype != torch.bool:
            got = rows.dtype if isinstance(rows, torch.Tensor) else type(rows).__name__
            raise TypeError(f"rows should be a tensor of torch.bool, got: {got}")
        if rows.shape != (self._batch,):
            raise ValueError(f"rows: got shape {tuple(rows.shape)}, expected ({self._batch},)")
        return rows.to(self._output.device).unsqueeze(1)


def _form_gates(level: _Level) -> None:
    for bias, row, weight, gates in level.products:
        torch.addmm(bias, row, weight, out=gates)


def _lstm(level: _Level, zoneout: tuple[float, float] | None) -> None:
    i, f, o, g = level.split
    _form_gates(level)
    level.logistic.sigmoid_()
    g.tanh_()
    if zoneout is None:
        level.c.mul_(f).addcmul_(i, g)
        torch.tanh(level.c, out=g)
    else:
        g.mul_(i).addcmul_(f, level.c)
        level.c.lerp_(g, 1 - zoneout[1])
        g.tanh_()
    h = level.h if zoneout is None else level.h_new
    if level.weight_hr is None:
        torch.mul(o, g, out=h)
    else:
        torch.mm(g.mul_(o), level.weight_hr, out=h)
    if zoneout is not None:
        level.h.lerp_(level.h_new, 1 - zoneout[0])


def _gru(level: _Level, zoneout: tuple[float, float] | None) -> None:
    r, z, n_x, n_h = level.split
    _form_gates(level)
    level.logistic.sigmoid_()
    n = n_x.addcmul_(r, n_h).tanh_()
    if zoneout is None:
        torch.lerp(n, level.h, z, out=level.h)
    else:
        level.h.lerp_(torch.lerp(n, level.h, z, out=level.h_new), 1 - zoneout[0])


def _elman(
    activation: Callable[..., Tensor], level: _Level, zoneout: tuple[float, float] | None
) -> None:
    _form_gates(level)
    if zoneout is None:
        activation(level.gates, out=level.h)
    else:
        level.h.lerp_(activation(level.gates, out=level.h_new), 1 - zoneout[0])


_STEPS: dict[str, Callable[[_Level, tuple[float, float] | None], None]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": partial(_elman, torch.tanh),
    "rnn_relu": partial(_elman, partial(torch.clamp_min, min=0)),
    "rnn_sigmoid": partial(_elman, torch.sigmoid),
}
_LOGISTIC = {"lstm": 3, "gru": 2}
"""S of a cell that has more gates than one."""
_ORDER = {"lstm": (0, 1, 3, 2)}
"""The gates of a layer as a stepper has them, of a cell where they are others."""
