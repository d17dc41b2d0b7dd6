"""One call of a stack: torch's calling conventions in, one time-major call of a backend out."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, masks, restarts, stack, traced
from fastrnn.backend import Backend, StackCall
from fastrnn.cell import cell_of
from fastrnn.dispatch import current_override, decide
from fastrnn.options import Options, as_constant, constants
from fastrnn.plugins import registry
from fastrnn.precision import arch_of, autocasts, float32_precision
from fastrnn.request import Request, Spec
from fastrnn.transforms import has_numbers, has_tangents, is_transformed, requires_grad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.backend import StackBackend
    from fastrnn.masks import Lengths

PLAIN = Options()


class Plan(NamedTuple):
    """What a call came to, for the next one that is like it."""

    request: Request
    name: str
    at_once: int
    backend: Backend
    whole: bool


Plans = dict[tuple[object, ...], Plan]
"""By what is asked of each call. Python that has not run for some milliseconds takes many times as
long as it does in a loop, since everything it touches has left the caches: so a layer that is
called as it was before touches little."""
PLANS = 64
"""Most of them that a layer keeps."""


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
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    reset_state: Any = None,
    options: Options = PLAIN,
    plans: Plans | None = None,
) -> tuple[Any, ...]:
    """What `fastrnn.functional` and the modules share; `weights` must fit `spec`.

    `plans` are of former calls with the same `spec`, `batch_first`, `dropout`, `training`,
    `backend` and `options`; more may be added.

    Returns:
        output, or None with `final_only`, and the final states, one tensor or a pair; then, with
        `all_states`, those of every step in the same form.

    Raises:
        ValueError, RuntimeError: as torch.nn raises for wrong inputs or states.
        ValueError, TypeError: as `fastrnn.masks` raises for wrong `lengths` or `resets`, and
            `fastrnn.restarts` for a wrong `reset_state`.
        BackendError: `backend` names none that can run this call.
    """
    key = None
    if torch.compiler.is_compiling():
        options, plans = constants(options), None
    elif reset_state is not None:
        plans = None
    elif plans is not None and type(input) is torch.Tensor:
        key = _key(input, hx, weights, marked=(lengths is not None, resets is not None))
        plan = plans.get(key) if key else None
        if plan is not None:
            return _run_again(spec, plan, input, hx, weights, batch_first, lengths, resets, options)
    packed = isinstance(input, PackedSequence)
    if lengths is not None or resets is not None or reset_state is not None:
        masks.check_combination(
            lengths, resets, packed=packed, recompute=options.recompute, reset_state=reset_state
        )
    if isinstance(input, PackedSequence):
        return _run_packed(
            spec, input, hx, weights, batch_first, dropout, training, backend, options, plans
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
    lengths, resets = masks.as_marks(
        lengths, resets, steps, batch, input.device, batch_first=batch_first, unbatched=unbatched
    )
    twice = None
    if reset_state is not None:
        assert resets is not None
        fresh = restarts.as_reset_states(spec, reset_state, batch, unbatched=unbatched)
        twice = restarts.Twice.of(input, states, fresh, lengths, resets, batch_first=batch_first)
        input, states, lengths, resets = twice[:4]
    request = make_request(
        spec, input, None, states, weights, batch_first, dropout, training, options,
        lengths is not None, resets is not None,
    )  # fmt: skip
    marks = [each for each in (lengths, resets) if each is not None]
    if not (request.compiling or all(map(has_numbers, marks))):
        request = request._replace(transformed=True)
    plan = _plan(request, backend, plans, key)
    call = StackCall(request, input, None, states, weights, batch_first, lengths, resets)
    made = _carry_out(spec, plan, call, options)
    made = made if twice is None else twice.merged(made)
    output, final = made.output, made.final
    if unbatched:
        final = tuple(state.squeeze(1) for state in final)
        output = None if output is None else output.squeeze(0 if batch_first else 1)
    if not options.all_states:
        return output, _paired(final)
    assert made.every is not None
    every = made.every
    if unbatched:
        every = tuple(state.squeeze(2) for state in every)
    elif batch_first:
        every = tuple(state.transpose(1, 2) for state in every)
    return output, _paired(final), _paired(every)


def _key(
    input: Tensor,
    hx: object,
    weights: Sequence[Tensor],
    packed: tuple[int, int] | None = None,
    marked: tuple[bool, bool] = (False, False),
) -> tuple[object, ...] | None:
    """What is asked of a call that a layer's attributes leave open; None of an unusual one.

    Args:
        input: three-dimensional, or of a PackedSequence its data.
        hx: as users give it.
        weights: flat.
        packed: T and B of a PackedSequence.
        marked: whether there are lengths, and resets.
    """
    if (
        type(input) is not torch.Tensor
        or input.dim() != (2 if packed else 3)
        or torch._C._is_any_autocast_enabled()
        or torch._C._are_functorch_transforms_active()
        or has_tangents()
    ):
        return None
    states: tuple[Tensor, ...] = ()
    if isinstance(hx, torch.Tensor):
        states = (hx,)
    elif isinstance(hx, tuple) and all(isinstance(state, torch.Tensor) for state in hx):
        states = hx
    elif hx is not None:
        return None
    on_cpu = input.is_cpu
    return (
        input.shape,
        packed,
        marked,
        input.dtype,
        weights[0].dtype,
        None if on_cpu else input.device,
        torch.get_num_threads() if on_cpu else float32_precision(),
        _gradients(input, states, weights),
        registry().generation,
        current_override(),
    )


def _run_again(
    spec: Spec,
    plan: Plan,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    batch_first: bool,
    lengths: Lengths | None,
    resets: Tensor | None,
    options: Options,
) -> tuple[Any, ...]:
    """A call like one that was checked and decided; only its states and marks may be wrong."""
    steps, batch = input.shape[:2]
    if batch_first:
        steps, batch = batch, steps
    if hx is None:
        states = _zero_states(spec, input, batch)
    else:
        states = checks.as_states(spec, hx, unbatched=False)
        checks.check_states(spec, states, batch)
    lengths, resets = masks.as_marks(
        lengths, resets, steps, batch, input.device, batch_first=batch_first, unbatched=False
    )
    call = StackCall(plan.request, input, None, states, weights, batch_first, lengths, resets)
    made = _carry_out(spec, plan, call, options)
    return made.output, _paired(made.final)


def _run_packed(
    spec: Spec,
    input: PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    batch_first: bool,
    dropout: float,
    training: bool,
    backend: str,
    options: Options,
    plans: Plans | None,
) -> tuple[Any, ...]:
    data, batch_sizes, sorted_indices, unsorted_indices = input
    batch = int(batch_sizes[0])
    key = plan = None
    if plans is not None:
        key = _key(data, hx, weights, (batch_sizes.shape[0], batch))
        plan = plans.get(key) if key else None
    if plan is None:
        checks.check_input(spec, data, weights[0], 2)
    if hx is None:
        states = _zero_states(spec, data, batch)
    else:
        states = cast("tuple[Tensor, ...]", hx if spec.has_cell_state else (hx,))
        if spec.has_cell_state and len(states) != 2:
            raise RuntimeError("lstm expects two hidden states")
        checks.check_states(spec, states, batch)
        if sorted_indices is not None:
            states = tuple(state.index_select(1, sorted_indices) for state in states)
    if plan is None:
        request = make_request(
            spec, data, batch_sizes, states, weights, False, dropout, training, options
        )
        plan = _plan(request, backend, plans, key)
    call = StackCall(plan.request, data, batch_sizes, states, weights, False)
    made = _carry_out(spec, plan, call, options)
    final, every = made.final, made.every
    if unsorted_indices is not None:
        final = tuple(state.index_select(1, unsorted_indices) for state in final)
        every = every and tuple(state.index_select(2, unsorted_indices) for state in every)
    packed = None
    if made.output is not None:
        packed = PackedSequence(made.output, batch_sizes, sorted_indices, unsorted_indices)
    if every is None:
        return packed, _paired(final)
    if batch_first:
        every = tuple(state.transpose(1, 2) for state in every)
    return packed, _paired(final), _paired(every)


def _paired(states: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """States as torch gives them: h, or (h, c) where there is c, as of an LSTM."""
    return states[0] if len(states) == 1 else states


def _zero_states(spec: Spec, like: Tensor, batch: int) -> tuple[Tensor, ...]:
    """Zero states in the input's dtype; h0 and c0 may be one tensor, since nobody writes to it."""
    _, _, hidden_size, proj_size, num_layers, _, bidirectional = spec
    rows = 2 * num_layers if bidirectional else num_layers
    h0 = like.new_zeros(rows, batch, proj_size or hidden_size)
    if not cell_of(spec.cell).has_pair:
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
    options: Options = PLAIN,
    padded: bool = False,
    resets: bool = False,
) -> Request:
    """The metadata of one call; `input` is three-dimensional, or a PackedSequence's data."""
    cell, input_size, hidden_size, proj_size, num_layers, bias, bidirectional = spec
    device = input.device
    kind = device.type
    compiling = torch.compiler.is_compiling() or _has_symbols(input)
    if not compiling:
        traced.check_no_jit()
    if compiling:
        seq_len = batch = None
    elif batch_sizes is not None:
        seq_len, batch = batch_sizes.shape[0], states[0].shape[1]
    elif batch_first:
        batch, seq_len, _ = input.shape
    else:
        seq_len, batch, _ = input.shape
    needs_grad, frozen = _gradients(input, states, weights)
    dtype = input.dtype
    if autocasts(kind) and dtype != torch.float64:  # which autocast leaves alone
        dtype = torch.get_autocast_dtype(kind)
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
        dtype,
        kind,
        arch_of(device) if kind == "cuda" else "",
        "ieee" if kind == "cpu" else float32_precision(),
        needs_grad,
        training,
        padded or batch_sizes is not None,
        compiling,
        torch.get_num_threads() if kind == "cpu" and not compiling else 0,
        options.recompute if needs_grad else 0,
        padded,
        resets,
        options.all_states,
        training and options.recurrent_dropout > 0,
        options.zoneout != (0.0, 0.0),
        needs_grad and options.error_clip > 0,
        not compiling and is_transformed(input, states, weights),
        frozen,
    )


def _has_symbols(input: Tensor) -> bool:
    """Whether sizes are symbols, as to whoever traces a function without Dynamo (`make_fx`)."""
    return any(isinstance(size, torch.SymInt) for size in input.shape)


def _as_constant(field: object) -> object:
    """A request's field for `decide_constant`; torch.compile may have made a symbol of a number."""
    if isinstance(field, float):
        return as_constant(field)
    if isinstance(field, int) and not isinstance(field, bool):
        return operator.index(field)
    return field


def _gradients(
    input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor]
) -> tuple[bool, bool]:
    """Whether one is needed, and whether that is none of a weight."""
    if not torch.is_grad_enabled():
        return False, False
    if torch._C._are_functorch_transforms_active():
        if any(map(requires_grad, weights)):
            return True, False
        needed = any(map(requires_grad, (input, *states)))
        return needed, needed
    for weight in weights:
        if weight.requires_grad:
            return True, False
    needed = input.requires_grad or any(state.requires_grad for state in states)
    return needed, needed


def _plan(
    request: Request, backend: str, plans: Plans | None, key: tuple[object, ...] | None
) -> Plan:
    """Who runs the call; kept if there is a key."""
    if request.compiling:
        from fastrnn.graph_decision import decide_constant  # imports Dynamo, which is here by now

        found = decide_constant(backend, current_override(), *map(_as_constant, request))
        name, at_once, whole = found
    else:
        decision = decide(request, backend)
        name, at_once, whole = decision.backend, decision.layers_at_once, decision.whole
    plan = Plan(request, name, at_once, registry().backends[name], whole)
    if plans is not None and key:
        if len(plans) >= PLANS:
            plans.clear()
        plans[key] = plan
    return plan


def _carry_out(spec: Spec, plan: Plan, call: StackCall, options: Options) -> stack.Made:
    """What the backend that is chosen makes of the call."""
    if plan.whole:
        output, *final = cast("StackBackend", plan.backend).run(call)
        return stack.Made(None if options.final_only else output, tuple(final), None)
    return stack.run_call(spec, call, plan.name, at_once=plan.at_once, options=options)
