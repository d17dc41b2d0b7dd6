"""Gradients other than all of them at once: to one kind of leaf, of a part, twice, strided."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from fastrnn.backend import StackBackend
from fastrnn.testing.cases import (
    CELLS,
    Case,
    everything,
    exact,
    forward,
    gradients,
    leaves_of,
    run_case,
    spec,
    true_result,
    upstream,
)
from fastrnn.testing.problems import Problem, assert_close
from fastrnn.testing.subjects import NotClaimed, Subject, assert_true

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TO = {
    "x": ("x",),
    "h0": ("h0",),
    "c0": ("c0",),
    "weight_ih": ("weight_ih",),
    "weight_hh": ("weight_hh",),
    "biases": ("bias",),
    "weight_hr": ("weight_hr",),
    "states": ("h0", "c0"),
    "weights": ("weight", "bias"),
    "all-but-x": ("h0", "c0", "weight", "bias"),
    "all-but-weights": ("x", "h0", "c0"),
}
"""Kinds of leaves that have gradients while the others have none, by the start of their names."""
OF: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
    "output": lambda made: {"part": made["output"]},
    "h_n": lambda made: {"part": made["h_n"]},
    "c_n": lambda made: {"part": made["c_n"]},
    "one-step": lambda made: {"part": made["output"][2]},
    "one-row": lambda made: {"part": made["output"][:, 1]},
    "one-number": lambda made: {"part": made["output"][1, 2, 0]},
    "sum": lambda made: {name: tensor.sum() for name, tensor in made.items()},
    "transposed": lambda made: {name: t.transpose(0, 1) * 1 for name, t in made.items()},
}
"""Of what was made, what gradients come in by; `sum` gives them strides of 0."""


def _case(cell: str) -> Case:
    # not with a projection, which few backends claim
    return Case(spec(cell, 5, num_layers=2, bidirectional=True))


def _to(subject: Subject, cell: str, starts: tuple[str, ...]) -> None:
    case = _case(cell)
    if starts == ("weight_hr",):
        case = replace(case, spec=spec(cell, proj_size=2))
    assert_true(subject, case, to=lambda name: name.startswith(starts))


def _of(subject: Subject, cell: str, through: str) -> None:
    assert_true(subject, _case(cell), through=OF[through])


def _with_lengths(subject: Subject, cell: str, through: str) -> None:
    assert_true(subject, replace(_case(cell), lengths=True), through=OF[through])


def _strided(tensor: Tensor) -> Tensor:
    """The same numbers, two apart and the first two dims the other way round."""
    wide = torch.stack((tensor.detach(), torch.full_like(tensor, float("nan"))), -1)
    wide = wide.transpose(0, 1).contiguous().transpose(0, 1) if tensor.dim() > 1 else wide
    return wide[..., 0]


def _strided_inputs(subject: Subject, cell: str) -> None:
    """Inputs, states, weights and the gradients that come in need not be contiguous."""
    case = _case(cell)
    subject.must_claim(case)
    plain = subject.problem(case)
    assert plain.hx is not None
    leaves = [t.requires_grad_() for t in map(_strided, (plain.x, *plain.hx, *plain.weights))]
    states = len(plain.hx)
    own = Problem(plain.spec, leaves[0], tuple(leaves[1 : 1 + states]), tuple(leaves[1 + states :]))
    made = forward(case, own, subject.name).tensors
    given = [_strided(gradient) for gradient in upstream(made, subject.dtype, 1)]
    found = torch.autograd.grad(list(made.values()), leaves, given)
    want = true_result(case, plain, subject.dtype)
    output = made.pop("output").detach()
    states_made = tuple(state.detach() for state in made.values())
    names = dict(zip(want.gradients, found, strict=True))
    got = type(want)(output, states_made, names)
    assert_close(got, want, subject.allowed(case))


def _twice(subject: Subject, cell: str) -> None:
    """A retained graph gives the same bits again, and after a pass through a part of it."""
    for lengths in (False, True):
        case = replace(_case(cell), lengths=lengths)
        if subject.reasons(case):
            case = _case(cell)
        subject.must_claim(case)
        own, leaves = leaves_of(subject.problem(case), everything)
        made = forward(case, own, subject.name).tensors
        given = upstream(made, subject.dtype)
        first = gradients(made, leaves, given, retain_graph=True)
        first = {name: gradient.clone() for name, gradient in first.items()}
        second = gradients(made, leaves, given, retain_graph=True)
        part = {"part": made["output"][0]}
        gradients(part, leaves, upstream(part, subject.dtype), retain_graph=True)
        for again in (second, gradients(made, leaves, given)):
            for name, gradient in again.items():
                same = torch.equal(first[name], gradient)
                assert same, f"d {name} is another one in a second backward pass of one graph"


def _create_graph(subject: Subject, cell: str) -> None:
    """The gradient that may be differentiated further is the same, and so are its derivatives."""
    case = Case(spec(cell, 3), T=4, B=2)
    subject.must_claim(case)
    problem = subject.problem(case)

    def penalty(own: Problem, leaves: dict[str, Tensor], backend: str) -> dict[str, Tensor]:
        made = forward(case, own, backend).tensors
        first = gradients(made, leaves, upstream(made, subject.dtype), create_graph=True)
        squares = {name: gradient.square() for name, gradient in first.items()}
        second = gradients(squares, leaves, upstream(squares, subject.dtype))
        return first | {f"second {name}": gradient for name, gradient in second.items()}

    try:
        found = penalty(*leaves_of(problem, everything), subject.name)
    except RuntimeError as error:
        if isinstance(subject.backend, StackBackend) and "not implemented" in str(error):
            raise NotClaimed([f"torch cannot differentiate it twice ({error})"]) from error
        raise
    true = penalty(*leaves_of(exact(problem), everything), "reference")
    want = run_case(case, exact(problem), "reference", subject.dtype)._replace(gradients=true)
    allowed = subject.allowed(case)
    # a second derivative passes every step four times instead of twice
    assert_close(
        want._replace(gradients={name: gradient.detach() for name, gradient in found.items()}),
        want._replace(gradients={name: gradient.detach() for name, gradient in true.items()}),
        allowed._replace(gradient=2 * allowed.gradient),
    )


def _checks() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {}
    for cell in CELLS:
        names = {name for name in OF if name != "c_n" or spec(cell).has_cell_state}
        for part in OF:
            if part in names:
                found[f"{cell}-of-{part}"] = partial(_of, cell=cell, through=part)
                if part in ("output", "h_n", "c_n"):
                    name = f"{cell}-of-{part}-lengths"
                    found[name] = partial(_with_lengths, cell=cell, through=part)
        for kind, starts in TO.items():
            if spec(cell).has_cell_state or kind not in ("c0", "weight_hr"):
                found[f"{cell}-to-{kind}"] = partial(_to, cell=cell, starts=starts)
        found[f"{cell}-strided"] = partial(_strided_inputs, cell=cell)
        found[f"{cell}-retained-graph"] = partial(_twice, cell=cell)
        found[f"{cell}-create_graph"] = partial(_create_graph, cell=cell)
    return found


CHECKS = _checks()
