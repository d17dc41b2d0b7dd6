"""Calls to ask a backend for: small ones of every kind, whose tensors are the same every time."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from fastrnn import calls
from fastrnn.options import Options
from fastrnn.request import GATES, Spec
from fastrnn.testing.problems import Problem, Result, random_problem
from fastrnn.testing.tolerances import UNIT_ROUNDOFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


CELLS = tuple(GATES)
DTYPES = tuple(UNIT_ROUNDOFF)
FORMS = ("time_major", "batch_first", "unbatched", "packed")
PLAIN = Options()


@dataclass(frozen=True)
class Case:
    """One call."""

    spec: Spec
    T: int = 5
    B: int = 3
    dtype: torch.dtype | None = None
    """None for the most exact one that the backend runs."""
    form: str = "time_major"
    """One of `FORMS`."""
    hx: bool = True
    """Whether initial states are given."""
    lengths: bool = False
    resets: bool = False
    options: Options = PLAIN
    needs_grad: bool = True
    training: bool = True
    dropout: float = 0.0
    """Between layers; 1 hides all, so that the truth is no matter of chance."""
    seed: int = 0

    @property
    def row_lengths(self) -> list[int]:
        """Steps of each row: all of them, some, one, none; of packed rows at least one."""
        some = [self.T, (self.T + 1) // 2, 1, 0, self.T - 1]
        least = 1 if self.form == "packed" else 0
        return [max(some[row % len(some)], least) for row in range(self.B)]

    def reset_steps(self, device: str) -> Tensor:
        """(T, B) bool, about a third of them true."""
        generator = torch.Generator().manual_seed(self.seed)
        return (torch.rand(self.T, self.B, generator=generator) < 0.3).to(device)

    def problem(self, dtype: torch.dtype, device: str) -> Problem:
        """Inputs, states and weights."""
        return random_problem(
            self.spec, self.T, self.B, dtype=dtype, device=device, hx=self.hx, seed=self.seed
        )


def spec(cell: str = "lstm", hidden: int = 5, **how: Any) -> Spec:
    """A small stack; `how` are other fields of `Spec`."""
    return Spec(cell, **{"input_size": 4, "hidden_size": hidden, **how})


def exact(problem: Problem) -> Problem:
    """The same numbers in float64 on the CPU."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    shape, x, hx, weights = problem
    states = None if hx is None else tuple(map(convert, hx))
    return Problem(shape, convert(x), states, tuple(map(convert, weights)))


def leaves_of(
    problem: Problem, needs_grad: Callable[[str], bool]
) -> tuple[Problem, dict[str, Tensor]]:
    """Copies of the tensors, those whose name is wanted with gradients; and these by name.

    Names are `x`, `h0`, `c0` and, of weights, torch's, such as `weight_ih` or `bias_hh`, with the
    slot of layer and direction behind them.
    """

    def copy(name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(needs_grad(name))

    shape, x, hx, weights = problem
    names = ["x", *(("h0", "c0")[: len(hx or ())])]
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if shape.bias else []
    kinds += ["weight_hr"] if shape.proj_size else []
    names += [f"{kinds[i % len(kinds)]}[{i // len(kinds)}]" for i in range(len(weights))]
    made = [copy(name, t) for name, t in zip(names, (x, *(hx or ()), *weights), strict=True)]
    states = None if hx is None else tuple(made[1 : 1 + len(hx)])
    own = Problem(shape, made[0], states, tuple(made[1 + len(hx or ()) :]))
    wanted = {n: t for n, t in zip(names, made, strict=True) if t.requires_grad}
    return own, wanted


class Made(NamedTuple):
    """What a call returns, by name, in the call's own form."""

    output: Tensor | None
    states: dict[str, Tensor]
    """h_n and c_n, then `every h` and `every c` if they were asked for."""

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of it."""
        return ({} if self.output is None else {"output": self.output}) | self.states


def forward(case: Case, problem: Problem, backend: str) -> Made:
    """Make the call."""
    shape, x, hx, weights = problem
    given: Tensor | PackedSequence = x
    resets = case.reset_steps(str(x.device)) if case.resets else None
    lengths: Any = case.row_lengths if case.lengths else None
    if case.form == "batch_first":
        given = x.transpose(0, 1)
        resets = None if resets is None else resets.mT
    elif case.form == "unbatched":
        given = x[:, 0]
        hx = None if hx is None else tuple(state[:, 0] for state in hx)
        resets = None if resets is None else resets[:, 0]
        lengths = None if lengths is None else lengths[:1]
    elif case.form == "packed":
        given = pack_padded_sequence(x, torch.tensor(case.row_lengths), enforce_sorted=False)
    states: Any = hx if hx is None or shape.has_cell_state else hx[0]
    output, *rest = calls.run(
        shape, given, states, weights, batch_first=case.form == "batch_first",
        dropout=case.dropout, training=case.training, backend=backend, lengths=lengths,
        resets=resets, options=case.options,
    )  # fmt: skip
    names = (("h_n", "c_n"), ("every h", "every c"))
    found: dict[str, Tensor] = {}
    for kinds, made in zip(names, rest, strict=False):
        found |= zip(kinds, made if isinstance(made, tuple) else (made,), strict=False)
    return Made(output.data if isinstance(output, PackedSequence) else output, found)


def upstream(made: dict[str, Tensor], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    """A gradient for every tensor, with numbers that `dtype` has."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(t.shape, generator=generator, dtype=torch.float64).to(dtype).to(t)
        for t in made.values()
    ]


def gradients(
    made: dict[str, Tensor], leaves: dict[str, Tensor], given: list[Tensor], **how: Any
) -> dict[str, Tensor]:
    """Those of the leaves, by name; zeros where nothing leads to one."""
    found = torch.autograd.grad(
        list(made.values()), list(leaves.values()), given,
        allow_unused=True, materialize_grads=True, **how,
    )  # fmt: skip
    return dict(zip(leaves, found, strict=True))


def everything(name: str) -> bool:
    """Every leaf has a gradient."""
    return True


def run_case(
    case: Case,
    problem: Problem,
    backend: str,
    dtype: torch.dtype,
    *,
    to: Callable[[str], bool] = everything,
    through: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda made: made,
) -> Result:
    """Outputs, states and, if the case has gradients, those of what `to` names.

    Args:
        case: the call.
        problem: its tensors.
        backend: the backend's name.
        dtype: that the gradients which come in are rounded to.
        to: of a leaf's name: whether it has a gradient.
        through: picks, or makes, of what was returned what gradients come in by.
    """
    own, leaves = leaves_of(problem, to if case.needs_grad else lambda name: False)
    made = forward(case, own, backend).tensors
    found = {}
    if case.needs_grad:
        used = through(made)
        found = gradients(used, leaves, upstream(used, dtype, case.seed + 1))
    output = made.pop("output", own.x.new_empty(0))
    return Result(output.detach(), tuple(state.detach() for state in made.values()), found)


def true_result(case: Case, problem: Problem, dtype: torch.dtype, **how: Any) -> Result:
    """What a case gives in float64, through the reference."""
    return run_case(replace(case, dtype=torch.float64), exact(problem), "reference", dtype, **how)
