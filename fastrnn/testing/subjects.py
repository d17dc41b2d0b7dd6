"""A backend under test: what it claims, and whether a case gives the true numbers."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.backend import LayerBackend
from fastrnn.dispatch import decide
from fastrnn.plugins import registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.request import Request
from fastrnn.testing.cases import CELLS, DTYPES, Case, run_case, spec, true_result
from fastrnn.testing.problems import Problem, assert_close
from fastrnn.testing.tolerances import Tolerance, tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrnn.backend import Backend


class NotClaimed(Exception):
    """The backend does not say that it can do what a check needs."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


@dataclass(frozen=True)
class Subject:
    """A backend under test, and where."""

    name: str
    device: str = "cpu"
    _claims: dict[Request, tuple[str, ...]] = field(default_factory=dict, compare=False)

    @property
    def backend(self) -> Backend:
        """The backend itself."""
        return registry().backends[self.name]

    @cached_property
    def dtype(self) -> torch.dtype:
        """The most exact dtype that it runs some cell in."""
        for dtype in DTYPES:
            if any(not self.reasons(Case(spec(cell), dtype=dtype)) for cell in CELLS):
                return dtype
        return torch.float32

    def precision(self) -> str:
        """How float32 products are formed there."""
        return "ieee" if self.device == "cpu" else float32_precision()

    def request(self, case: Case) -> Request:
        """What the backend is told about a case."""
        on_cpu, asked = self.device == "cpu", case.options
        shape = case.spec._asdict()
        return Request(
            **shape,
            seq_len=case.T,
            batch=1 if case.form == "unbatched" else case.B,
            dropout=case.dropout if case.training and case.spec.num_layers > 1 else 0.0,
            dtype=case.dtype or self.dtype,
            device=torch.device(self.device).type,
            arch=arch_of(torch.device(self.device)) if self.device.startswith("cuda") else "",
            precision=self.precision(),
            needs_grad=case.needs_grad,
            training=case.training,
            varlen=case.lengths or case.form == "packed",
            compiling=False,
            threads=torch.get_num_threads() if on_cpu else 0,
            recompute=asked.recompute if case.needs_grad else 0,
            padded=case.lengths,
            resets=case.resets,
            all_states=asked.all_states,
            recurrent_dropout=case.training and asked.recurrent_dropout > 0,
            zoneout=asked.zoneout != (0.0, 0.0),
            error_clip=case.needs_grad and asked.error_clip > 0,
        )

    def reasons(self, case: Case | Request) -> tuple[str, ...]:
        """Why it cannot run a call; empty if it can."""
        request = case if isinstance(case, Request) else self.request(case)
        if request not in self._claims:
            asked = decide(request, f"{self.name},reference")
            (own,) = (c for c in asked.candidates if c.name == self.name)
            self._claims[request] = own.reasons
        return self._claims[request]

    def must_claim(self, case: Case | Request) -> None:
        """Leave the check if the backend cannot run a call.

        Raises:
            NotClaimed: with its reasons.
        """
        reasons = self.reasons(case)
        if reasons:
            raise NotClaimed(reasons)

    def nearest(self, case: Case) -> Case:
        """The case; if it is not claimed, in one direction, or in one layer of that, if that is."""
        one = replace(case, spec=case.spec._replace(bidirectional=False))
        for each in (case, one, replace(one, spec=one.spec._replace(num_layers=1))):
            if not self.reasons(each):
                return each
        return case

    def layers(self) -> LayerBackend:
        """The backend as one of layers.

        Raises:
            NotClaimed: it takes whole stacks.
        """
        if not isinstance(self.backend, LayerBackend):
            raise NotClaimed(["it takes whole stacks, not layers"])
        return self.backend

    def allowed(self, case: Case) -> Tolerance:
        """How far from the truth its results may be."""
        return tolerance(case.dtype or self.dtype, case.T, self.precision())

    def problem(self, case: Case) -> Problem:
        """The case's tensors."""
        return case.problem(case.dtype or self.dtype, self.device)


def assert_true(subject: Subject, case: Case, **how: Any) -> None:
    """Run a case and compare it with the truth; `how` as for `run_case`.

    Raises:
        NotClaimed: the backend cannot run it.
        AssertionError: something is out of tolerance.
    """
    case = subject.nearest(case)
    subject.must_claim(case)
    problem, dtype = subject.problem(case), case.dtype or subject.dtype
    got = run_case(case, problem, subject.name, dtype, **how)
    for tensor in (got.output, *got.states, *got.gradients.values()):
        assert tensor.dtype == dtype, f"dtype is {tensor.dtype}, expected {dtype}"
    assert_close(got, true_result(case, problem, dtype, **how), subject.allowed(case))
