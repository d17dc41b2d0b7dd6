"""Stateless recurrent layers: torch's calling conventions in, one time-major call out."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, masks, stack
from fastrnn.backend import StackBackend, StackCall
from fastrnn.dispatch import AUTO, current_override, decide, decide_constant
from fastrnn.plugins import registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.request import Request, Spec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.masks import Lengths

_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu", "sigmoid": "rnn_sigmoid"}


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    backend: str = AUTO,
    final_only: bool = False,
    recompute: bool | int = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor | PackedSequence | None, tuple[Tensor, Tensor]]:
    """LSTM without a module.

    The equations are those of `fastrnn.LSTM`; T, B, I, H, P, D stand for steps, batch, inputs,
    hidden units, width of h (H, or the projection's) and directions.

    Args:
        input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        hx: h0 (num_layers * D, B, P) and c0 (num_layers * D, B, H), without B if unbatched;
            zeros if None.
        weights: flat, in torch's order: per layer and direction w_ih (4H, I or D * P), w_hh
            (4H, P), then b_ih (4H) and b_hh (4H) if `bias`, then w_hr (P, H) if projected.
            Rows are in gate order i, f, g, o.
        num_layers: layers stacked.
        bias: whether `weights` holds biases.
        batch_first: whether `input` and output are (B, T, ...).
        dropout: probability between layers, applied if `training`.
        training: whether dropout applies.
        bidirectional: whether every layer also runs backwards in time.
        backend: `auto`, or the name of a backend, or several separated by commas.
        final_only: whether only the final states are of use; the output is then None.
        recompute: whether training saves memory: True, or the number of steps between the states
            it keeps; see `fastrnn.LSTM`.
        lengths: (B,) integers, the steps of each row of a padded input; see `fastrnn.LSTM.forward`.
        resets: (T, B) bool, where rows start over; see `fastrnn.LSTM.forward`.

    Returns:
        output (T, B, D * P), shaped as `input` is, or None if `final_only`, and (h_n, c_n), shaped
        as `hx` is.

    Raises:
        ValueError, RuntimeError: as torch.nn.LSTM raises for wrong inputs or states, and for
            weights that do not belong together; ValueError too for a `recompute` below 1, and as
            `fastrnn.LSTM.forward` raises for `lengths` and `resets`.
        TypeError: `final_only` is no bool, `recompute` neither a bool nor an int, `lengths` no
            integers, or `resets` no bool tensor.
        BackendError: `backend` names none that can run this call.
    """
    checks.check_type("final_only", final_only, bool)
    spec = checks.spec_of_weights("lstm", weights, num_layers, bias, bidirectional)
    output, states = run(
        spec, input, hx, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, final_only=final_only, recompute=checks.recompute_steps(recompute),
        lengths=lengths, resets=resets,
    )  # fmt: skip
    return output, cast("tuple[Tensor, Tensor]", states)


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    backend: str = AUTO,
    final_only: bool = False,
    recompute: bool | int = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor | PackedSequence | None, Tensor]:
    """Elman RNN without a module; `lstm`'s arguments, but for these.

    Args:
        input: as for `lstm`.
        hx: h0 (num_layers * D, B, H), without B if unbatched; zeros if None.
        weights: flat, in torch's order: per layer and direction w_ih (H, I or D * H), w_hh
            (H, H), then b_ih (H) and b_hh (H) if `bias`.
        nonlinearity: `tanh`, `relu` or `sigmoid`.
        num_layers: as for `lstm`.
        bias: as for `lstm`.
        batch_first: as for `lstm`.
        dropout: as for `lstm`.
        training: as for `lstm`.
        bidirectional: as for `lstm`.
        backend: as for `lstm`.
        final_only: as for `lstm`.
        recompute: as for `lstm`.
        lengths: as for `lstm`.
        resets: as for `lstm`.

    Returns:
        output (T, B, D * H), shaped as `input` is, or None if `final_only`, and h_n, shaped as
        `hx` is.

    Raises:
        ValueError, RuntimeError: as torch.nn.RNN raises for wrong inputs or states, for an
            unknown nonlinearity, and for weights that do not belong together; ValueError too
            for a `recompute` below 1, `lengths` and `resets`, as for `lstm`.
        TypeError: as for `lstm`.
        BackendError: `backend` names none that can run this call.
    """
    if nonlinearity not in _CELLS:
        raise ValueError(
            f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'."
        )
    cell = _CELLS[nonlinearity]
    checks.check_type("final_only", final_only, bool)
    spec = checks.spec_of_weights(cell, weights, num_layers, bias, bidirectional)
    output, state = run(
        spec, input, hx, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, final_only=final_only, recompute=checks.recompute_steps(recompute),
        lengths=lengths, resets=resets,
    )  # fmt: skip
    return output, cast("Tensor", state)


def run(
    spec: Spec,
    input: Tensor | PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    batch_first: bool,
    dropout: float,
    training: bool,
    backend: str,
    final_only: bool = False,
    recompute: int = 0,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
) -> tuple[Tensor | PackedSequence | None, Tensor | tuple[Tensor, Tensor]]:
    """What `lstm`, `rnn` and the modules share; `weights` must fit `spec`.

    `recompute` is in steps, 0 for none.

    Raises:
        ValueError, RuntimeError: as torch.nn raises for wrong inputs or states.
        ValueError, TypeError: as `fastrnn.masks` raises for wrong `lengths` or `resets`.
        BackendError: `backend` names none that can run this call.
    """
    packed = isinstance(input, PackedSequence)
    if lengths is not None or resets is not None:
        masks.check_combination(lengths, resets, packed=packed, recompute=recompute)
    if isinstance(input, PackedSequence):
        return _run_packed(
            spec, input, hx, weights, dropout, training, backend, final_only, recompute
        )
    dims = input.dim()
    unbatched = dims == 2
    if dims != 3 and not unbatched:
        raise checks.wrong_input_dims(spec, dims)
    if unbatched:
        input = input.unsqueeze(0 if batch_first else 1)
    steps, batch = input.shape[:2]
    if batch_first:
        steps, batch = batch, steps
    states = None if hx is None else checks.as_states(spec, hx, unbatched)
    checks.check_input(spec, input, weights[0], 3)
    if states is None:
        states = _zero_states(spec, input, batch)
    else:
        checks.check_states(spec, states, batch)
    if lengths is not None:
        lengths = masks.as_lengths(lengths, steps, batch, input.device, unbatched=unbatched)
    if resets is not None:
        resets = masks.as_resets(
            resets, steps, batch, input.device, batch_first=batch_first, unbatched=unbatched
        )
    output, *final = _dispatch(
        spec, input, None, states, weights, batch_first, dropout, training, backend, final_only,
        recompute, lengths, resets,
    )  # fmt: skip
    if unbatched:
        final = [state.squeeze(1) for state in final]
        output = None if output is None else output.squeeze(0 if batch_first else 1)
    return output, (final[0], final[1]) if spec.cell == "lstm" else final[0]


def _run_packed(
    spec: Spec,
    input: PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    dropout: float,
    training: bool,
    backend: str,
    final_only: bool,
    recompute: int,
) -> tuple[PackedSequence | None, Tensor | tuple[Tensor, Tensor]]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    batch = int(batch_sizes[0])
    checks.check_input(spec, data, weights[0], 2)
    if hx is None:
        states = _zero_states(spec, data, batch)
    else:
        states = cast("tuple[Tensor, ...]", hx if spec.has_cell_state else (hx,))
        checks.check_states(spec, states, batch)
        if sorted_indices is not None:
            states = tuple(state.index_select(1, sorted_indices) for state in states)
    output, *final = _dispatch(
        spec, data, batch_sizes, states, weights, False, dropout, training, backend, final_only,
        recompute,
    )  # fmt: skip
    if unsorted_indices is not None:
        final = [state.index_select(1, unsorted_indices) for state in final]
    packed = None
    if output is not None:
        packed = PackedSequence(output, batch_sizes, sorted_indices, unsorted_indices)
    return packed, (final[0], final[1]) if spec.has_cell_state else final[0]


def _zero_states(spec: Spec, like: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Zero states in the input's dtype; h0 and c0 may be one tensor, since nobody writes to it."""
    cell, _, hidden_size, proj_size, num_layers, _, bidirectional = spec
    rows = 2 * num_layers if bidirectional else num_layers
    h0 = like.new_zeros(rows, batch, proj_size or hidden_size)
    if cell != "lstm":
        return (h0,)
    return (h0, h0 if not proj_size else like.new_zeros(rows, batch, hidden_size))


def make_request(
    spec: Spec,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: Sequence[Tensor],
    weights: Sequence[Tensor],
    batch_first: bool,
    dropout: float,
    training: bool,
    recompute: int = 0,
    padded: bool = False,
    resets: bool = False,
) -> Request:
    """The metadata of one call; `input` is three-dimensional, or a PackedSequence's data."""
    cell, input_size, hidden_size, proj_size, num_layers, bias, bidirectional = spec
    device = input.device
    kind = device.type
    compiling = torch.compiler.is_compiling()
    if compiling:
        seq_len = batch = None
    elif batch_sizes is not None:
        seq_len, batch = batch_sizes.shape[0], states[0].shape[1]
    else:
        seq_len, batch = input.shape[0], input.shape[1]
        if batch_first:
            seq_len, batch = batch, seq_len
    needs_grad = torch.is_grad_enabled() and _any_requires_grad(weights, states, (input,))
    on_cpu = kind == "cpu"
    return Request(
        cell,
        seq_len,
        batch,
        input_size,
        hidden_size,
        proj_size,
        num_layers,
        bidirectional,
        bias,
        dropout if training and num_layers > 1 else 0.0,
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype,
        kind,
        arch_of(device) if kind == "cuda" else "",
        "ieee" if on_cpu else float32_precision(),
        needs_grad,
        training,
        padded or batch_sizes is not None,
        compiling,
        torch.get_num_threads() if on_cpu and not compiling else 0,
        recompute if needs_grad else 0,
        padded,
        resets,
    )


def _as_constant(field: object) -> object:
    """A request's field for `decide_constant`; torch.compile may have made a symbol of a number."""
    if isinstance(field, float):
        numerator, denominator = field.as_integer_ratio()  # Dynamo keeps float(field) a symbol
        return numerator / denominator
    if isinstance(field, int) and not isinstance(field, bool):
        return operator.index(field)
    return field


def _any_requires_grad(*groups: Sequence[Tensor]) -> bool:
    for group in groups:
        for tensor in group:
            if tensor.requires_grad:
                return True
    return False


def _dispatch(
    spec: Spec,
    input: Tensor,
    batch_sizes: Tensor | None,
    states: tuple[Tensor, ...],
    weights: Sequence[Tensor],
    batch_first: bool,
    dropout: float,
    training: bool,
    backend: str,
    final_only: bool,
    recompute: int,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
) -> tuple[Any, ...]:
    """Output, or None if `final_only`, and final states, from the backend that is chosen."""
    request = make_request(
        spec, input, batch_sizes, states, weights, batch_first, dropout, training, recompute,
        lengths is not None, resets is not None,
    )  # fmt: skip
    if request.compiling:
        name, at_once = decide_constant(backend, current_override(), *map(_as_constant, request))
    else:
        decision = decide(request, backend)
        name, at_once = decision.backend, decision.layers_at_once
    chosen = registry().backends[name]
    call = StackCall(request, input, batch_sizes, states, weights, batch_first)
    if isinstance(chosen, StackBackend):
        made = chosen.run(call)
        return (None, *made[1:]) if final_only else made
    return stack.run_call(
        spec, call, name, at_once=at_once, lengths=lengths, resets=resets, final_only=final_only
    )
