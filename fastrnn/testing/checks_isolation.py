"""What must not pass: NaN from row to row or back in time, unwritten memory, writes to inputs."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.backend import OutputGradients, Wanted
from fastrnn.options import Options
from fastrnn.testing.cases import (
    CELLS,
    Case,
    everything,
    forward,
    gradients,
    leaves_of,
    run_case,
    spec,
    upstream,
)
from fastrnn.testing.layer_cases import LayerCase, layer_for, tensors_of
from fastrnn.testing.subjects import Subject, assert_true

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

NAN = float("nan")
T, B, STEP, ROW = 6, 3, 2, 1


def _plain(cell: str, **how: Any) -> Case:
    return Case(spec(cell, **how), T, B, needs_grad=False)


def _assert_nan_at(tensor: Tensor, want: Tensor, what: str) -> None:
    got = tensor.isnan()
    if torch.equal(got, want.to(got.device)):
        return
    too_many, missing = got & ~want.to(got.device), want.to(got.device) & ~got
    where = "in other rows or at other times" if too_many.any() else "nowhere near it"
    index = (too_many if too_many.any() else missing).nonzero()[0].tolist()
    raise AssertionError(f"{what}: NaN {where}, first difference at {tuple(index)}")


def _nan_in_x(subject: Subject, cell: str) -> None:
    """It is in its row from its step on; in the backward direction up to its step."""
    for both in (False, True):
        case = _plain(cell, bidirectional=both)
        subject.must_claim(case)
        problem = subject.problem(case)
        problem.x[STEP, ROW, 0] = NAN
        made = forward(case, problem, subject.name).tensors
        later = torch.zeros(T, B, dtype=torch.bool)
        later[STEP:, ROW] = True
        earlier = torch.zeros(T, B, dtype=torch.bool)
        earlier[: STEP + 1, ROW] = True
        times = [later, earlier] if both else [later]
        want = torch.cat([each.unsqueeze(2).expand(T, B, 5) for each in times], 2)
        _assert_nan_at(made["output"], want, f"output, NaN in x at {STEP, ROW}")
        row = torch.zeros(len(times), B, 5, dtype=torch.bool)
        row[:, ROW] = True
        for name in made.keys() - {"output"}:
            _assert_nan_at(made[name], row, f"{name}, NaN in x at {STEP, ROW}")


def _nan_in_h0(subject: Subject, cell: str) -> None:
    case = _plain(cell)
    subject.must_claim(case)
    problem = subject.problem(case)
    assert problem.hx is not None
    problem.hx[0][0, ROW, 0] = NAN
    want = torch.zeros(T, B, 5, dtype=torch.bool)
    want[:, ROW] = True
    output = forward(case, problem, subject.name).tensors["output"]
    _assert_nan_at(output, want, f"output, NaN in h0 of row {ROW}")


def _nan_in_a_gradient(subject: Subject, cell: str) -> None:
    """It reaches its own row, at its step and those before."""
    case = replace(_plain(cell), needs_grad=True)
    subject.must_claim(case)
    own, leaves = leaves_of(subject.problem(case), lambda name: name in ("x", "h0"))
    # of a relu unit that is off no gradient passes
    own.x.detach().abs_()
    made = {"output": forward(case, own, subject.name).tensors["output"]}
    given = upstream(made, subject.dtype)
    given[0][STEP, ROW] = NAN
    found = gradients(made, leaves, given)
    over = torch.ones(T, B, dtype=torch.bool)
    over[: STEP + 1, ROW] = False
    wrong = found["x"].isnan().any(2).cpu() & over
    assert not wrong.any(), f"d x: NaN at {tuple(wrong.nonzero()[0].tolist())}, later or elsewhere"
    rows = found["h0"].isnan().any(2)[0].tolist()
    assert not any(rows[:ROW] + rows[ROW + 1 :]), "d h0: NaN in other rows"


def _nan_in_padding(subject: Subject, cell: str) -> None:
    """What is past a row's length is looked at by nobody."""
    case = Case(spec(cell, num_layers=2, bidirectional=True), T, 4, lengths=True)
    subject.must_claim(case)
    problem = subject.problem(case)
    dirty = problem.x.clone()
    for row, length in enumerate(case.row_lengths):
        dirty[length:, row] = NAN
    pairs = {}
    for kind in (replace(case, needs_grad=False, training=False), case):
        clean = run_case(kind, problem, subject.name, subject.dtype)
        got = run_case(kind, problem._replace(x=dirty), subject.name, subject.dtype)
        how = "" if kind.needs_grad else " without gradients"
        pairs[f"output{how}"] = (got.output, clean.output)
        for i, (state, other) in enumerate(zip(got.states, clean.states, strict=True)):
            pairs[f"state[{i}]{how}"] = (state, other)
        pairs |= {f"d {n}": (g, clean.gradients[n]) for n, g in got.gradients.items()}
    for name, (g, want) in pairs.items():
        assert torch.equal(g, want), f"{name} is another one with NaN past the rows' lengths"
    for row, length in enumerate(case.row_lengths):
        assert (got.output[length:, row] == 0).all(), "output is not zero past a row's length"
        assert (got.gradients["x"][length:, row] == 0).all(), "d x is not zero past a row's length"


def _nan_before_a_reset(subject: Subject, cell: str) -> None:
    """It does not pass to the step that starts over."""
    case = replace(_plain(cell), resets=True)
    subject.must_claim(case)
    resets = case.reset_steps("cpu")
    step, row = next((t, b) for t, b in resets.nonzero().tolist() if t > 0)
    problem = subject.problem(case)
    clean = forward(case, problem, subject.name).tensors["output"].clone()
    problem.x[:step, row] = NAN
    got = forward(case, problem, subject.name).tensors["output"]
    assert got[step - 1, row].isnan().all(), f"output at {step - 1, row}: no NaN"
    assert torch.equal(got[step:, row], clean[step:, row]), f"NaN passed the reset at {step, row}"


@contextmanager
def poisoned() -> Iterator[None]:
    """Uninitialised memory is NaN, or the largest integer."""
    utilities: Any = torch.utils.deterministic
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        utilities.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    utilities.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        utilities.fill_uninitialized_memory = before[2]


def _unwritten_memory(subject: Subject, case: Case) -> None:
    """Every element that is returned, or read, was written."""
    with poisoned():
        assert_true(subject, case)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().cpu().view(torch.uint8).clone()


def _assert_untouched(before: dict[str, tuple[Tensor, int]], after: dict[str, Tensor]) -> None:
    for name, (content, version) in before.items():
        assert torch.equal(_bytes(after[name]), content), f"{name} was written to"
        assert after[name]._version == version, f"{name} was written to, if to what it had"


def _as_they_are(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, int]]:
    return {name: (_bytes(tensor), tensor._version) for name, tensor in tensors.items()}


def _inputs(subject: Subject, case: Case) -> None:
    """Nobody writes to inputs, states, weights, gradients that come in, or results."""
    subject.must_claim(case)
    own, leaves = leaves_of(subject.problem(case), everything)
    before = _as_they_are(leaves)
    made = forward(case, own, subject.name).tensors
    _assert_untouched(before, leaves)
    given = upstream(made, subject.dtype)
    names = dict(zip((f"gradient of {name}" for name in made), given, strict=True))
    before |= _as_they_are(names | made)
    gradients(made, leaves, given)
    _assert_untouched(before, leaves | names | made)


def _layers(subject: Subject, case: LayerCase) -> None:
    """Nobody writes to a `Layer`, nor to what was saved unless that is allowed."""
    backend, layer = subject.layers(), layer_for(subject, case)
    given = tensors_of(layer)
    before = _as_they_are(given)
    output, h_n, c_n, saved, *rest = backend.layer_forward(layer)
    _assert_untouched(before, given)
    assert isinstance(saved, tuple | list), f"saved is {type(saved).__name__}, expected a tuple"
    cells: Any = rest[0] if rest else None
    made = {"output": output, "h_n": h_n, "c_n": c_n, "cells": cells}
    made |= {f"saved[{i}]": tensor for i, tensor in enumerate(saved)}
    made = {name: tensor for name, tensor in made.items() if tensor is not None}
    grads = [None if t is None else torch.ones_like(t) for t in (output, h_n, c_n, cells)]
    incoming = {f"gradient {i}": grad for i, grad in enumerate(grads) if grad is not None}
    wanted = Wanted(*(name in given for name in Wanted._fields))
    kept = (*([] if cells is None else [cells]), *saved)
    padding = [output.new_empty(0) for _ in range(3 - len(saved))]
    before |= _as_they_are(made | incoming)
    backend.layer_backward(OutputGradients(*grads), layer, output, (*kept, *padding), wanted)
    _assert_untouched(before, given | made | incoming)


def _checks() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {}
    for cell in CELLS:
        found[f"nan-in-x-{cell}"] = partial(_nan_in_x, cell=cell)
        found[f"nan-in-h0-{cell}"] = partial(_nan_in_h0, cell=cell)
        found[f"nan-in-a-gradient-{cell}"] = partial(_nan_in_a_gradient, cell=cell)
        found[f"nan-in-padding-{cell}"] = partial(_nan_in_padding, cell=cell)
        found[f"nan-before-a-reset-{cell}"] = partial(_nan_before_a_reset, cell=cell)
        plain = Case(spec(cell, 5, num_layers=2, bidirectional=True), 7, 4)
        kinds = {
            "": plain,
            "-lengths": replace(plain, lengths=True),
            "-resets": replace(plain, resets=True),
            "-all_states": replace(plain, lengths=True, options=Options(all_states=True)),
            "-packed": replace(plain, form="packed"),
        }
        for name, case in kinds.items():
            found[f"unwritten-memory-{cell}{name}"] = partial(_unwritten_memory, case=case)
            found[f"inputs-stay-{cell}{name}"] = partial(_inputs, case=case)
        layer = LayerCase(cell)
        layers = {
            "": layer,
            "-lengths-resets": replace(layer, lengths=True, resets=True),
            "-all_states": replace(layer, options=Options(all_states=True)),
        }
        for name, own in layers.items():
            found[f"layer-stays-{cell}{name}"] = partial(_layers, case=own)
    return found


CHECKS = _checks()
