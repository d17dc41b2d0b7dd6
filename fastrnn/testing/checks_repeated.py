"""The same bits in every run, whatever ran in between and whoever runs at the same time."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.testing.cases import (
    CELLS,
    Case,
    everything,
    forward,
    gradients,
    leaves_of,
    run_case,
    spec,
    true_result,
    upstream,
)
from fastrnn.testing.problems import Result, assert_close
from fastrnn.testing.subjects import Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

RUNS = 5
THREADS = 4
ROUNDS = 6


def _case(cell: str, *, lengths: bool = False, needs_grad: bool = True) -> Case:
    shape = spec(cell, 33, input_size=8, num_layers=2, bidirectional=True)
    return Case(shape, 17, 9, lengths=lengths, needs_grad=needs_grad, training=needs_grad)


def _run(subject: Subject, case: Case) -> Result:
    return run_case(case, subject.problem(case), subject.name, subject.dtype)


def _named(result: Result) -> dict[str, Tensor]:
    states = {f"state[{i}]": state for i, state in enumerate(result.states)}
    return {"output": result.output, **states} | {
        f"d {name}": gradient for name, gradient in result.gradients.items()
    }


def _copy(result: Result) -> Result:
    return Result(
        result.output.clone(),
        tuple(state.clone() for state in result.states),
        {name: gradient.clone() for name, gradient in result.gradients.items()},
    )


def _assert_same_bits(got: Result, want: Result, when: str) -> None:
    wanted = _named(want)
    different = [name for name, t in _named(got).items() if not torch.equal(t, wanted[name])]
    assert not different, f"{', '.join(different)}: other bits {when}"


def _same_bits(subject: Subject, case: Case) -> None:
    """Several runs of one call."""
    subject.must_claim(case)
    first = _copy(_run(subject, case))
    for _ in range(RUNS):
        _assert_same_bits(_run(subject, case), first, "in another run of the same call")


def _others(case: Case) -> list[Case]:
    """Calls of other sizes and values."""
    return [
        replace(case, T=case.T + 5, B=case.B + 3, seed=1),
        replace(case, T=3, B=2, seed=2),
        replace(case, spec=case.spec._replace(hidden_size=64), seed=3),
        replace(case, lengths=False, seed=4),
    ]


def _nothing_left_over(subject: Subject, case: Case) -> None:
    """Other sizes and values in between change nothing."""
    subject.must_claim(case)
    first = _copy(_run(subject, case))
    for other in _others(case):
        if not subject.reasons(other):
            _run(subject, other)
        _assert_same_bits(_run(subject, case), first, "after a call of another size or content")


def _results_stay(subject: Subject, case: Case) -> None:
    """What a call returned is not written to by later ones."""
    subject.must_claim(case)
    kept = _run(subject, case)
    as_returned = _copy(kept)
    for other in [replace(case, seed=5), *_others(case)]:
        if not subject.reasons(other):
            _run(subject, other)
    _assert_same_bits(kept, as_returned, "in a result that a later call has written to")


def _graphs_stay(subject: Subject, case: Case) -> None:
    """Backward passes of two calls that were both run before either."""
    subject.must_claim(case)
    cases = [case, replace(case, seed=5)]
    alone = [_copy(_run(subject, each)) for each in cases]
    opened = []
    for each in cases:
        own, leaves = leaves_of(subject.problem(each), everything)
        opened.append((forward(each, own, subject.name).tensors, leaves))
    for each, (made, leaves), want in zip(cases, opened, alone, strict=True):
        given = upstream(made, subject.dtype, each.seed + 1)
        found = gradients(made, leaves, given)
        _assert_same_bits(
            want._replace(gradients=found), want, "where another call ran before its backward pass"
        )


def _threads(subject: Subject, case: Case) -> None:
    """Several threads, each with a problem of its own."""
    subject.must_claim(case)
    cases = [replace(case, seed=seed) for seed in range(THREADS)]
    problems = [subject.problem(each) for each in cases]
    truths = [
        true_result(each, problem, subject.dtype)
        for each, problem in zip(cases, problems, strict=True)
    ]
    start = threading.Barrier(THREADS)
    wrong: list[Any] = []

    def work(number: int) -> None:
        start.wait()
        for _ in range(ROUNDS):
            try:
                got = run_case(cases[number], problems[number], subject.name, subject.dtype)
                assert_close(got, truths[number], subject.allowed(case))
            except Exception as error:
                wrong.append(error)
                return

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        workers = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert not wrong, f"{len(wrong)} of {THREADS} threads at once, the first: {wrong[0]}"


def _checks() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {}
    for cell in CELLS:
        kinds = {
            cell: _case(cell),
            f"{cell}-lengths": _case(cell, lengths=True),
            f"{cell}-forward": _case(cell, needs_grad=False),
        }
        for name, case in kinds.items():
            found[f"same-bits-{name}"] = partial(_same_bits, case=case)
            found[f"nothing-left-over-{name}"] = partial(_nothing_left_over, case=case)
            found[f"results-stay-{name}"] = partial(_results_stay, case=case)
        found[f"graphs-stay-{cell}"] = partial(_graphs_stay, case=_case(cell))
        small = Case(spec(cell, 8, num_layers=2), 9, 4)
        found[f"threads-{cell}"] = partial(_threads, case=small)
    return found


CHECKS = _checks()
