"""`fastrnn bench`: is every backend right on this machine, and how fast is it?

A result is compared with float64 before it is timed, and one that is out of tolerance gets no
time. The implementations of a case take turns in random order, one sample each, so that a machine
that becomes slower or faster does so for all of them.
"""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import math
import os
import random
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastrnn import measured, testing
from fastrnn.bench_cases import BASELINE, PEERS, backend_as_peer, gradients, layer, request_of
from fastrnn.bench_memory import peak_bytes
from fastrnn.bench_report import report as report  # beside what it reports on
from fastrnn.discovery import describe
from fastrnn.dispatch import checked_reasons, clear_decisions, decide
from fastrnn.doctor import environment
from fastrnn.floor import Floor, floor_of, operations
from fastrnn.machine import CACHE_VARIABLE
from fastrnn.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor, nn

    from fastrnn.benchmark import Case, Peer
    from fastrnn.floor import Attained

REPEATS = 15
"""Samples per implementation and case, unless told otherwise."""
WARM_UP = 2
"""Calls before the first sample; Triton compiles, and oneDNN and cuDNN plan, in the first."""
SAMPLE_SECONDS = 5e-3
"""Least length of a sample; calls shorter than this are repeated within one."""


@dataclass
class Row:
    """One implementation of one case: a line of the table, the CSV file and the JSON file."""

    case: Case
    implementation: str
    status: str = "ok"
    """`ok`; `wrong` (out of tolerance); `failed` (raised); `cannot run`."""
    reason: str = ""
    auto: bool = False
    """Whether `backend="auto"` chooses it."""
    error: float | None = None
    """Largest error against float64 of any output, state or gradient, relative to what is
    allowed for it: at most 1 is right."""
    samples: list[float] = field(default_factory=list)
    """Seconds per call."""
    speedup: float | None = None
    """The median over rounds of torch.nn's time divided by this one's in the same round."""
    is_backend: bool = True
    """Whether it is a backend of fastrnn, and not what they are compared with."""
    floor: Floor | None = None
    """The least that the case takes on this machine; None where nobody asked."""
    peak_bytes: int | None = None
    """Memory of a call beside its input and weights; None where nobody asked, or counts."""

    def quantiles(self) -> tuple[float, float, float] | None:
        """Seconds at 20 %, 50 % and 80 % of the samples."""
        if not self.samples:
            return None
        if len(self.samples) == 1:
            return (self.samples[0],) * 3
        tenths = statistics.quantiles(self.samples, n=10, method="inclusive")
        return tenths[1], tenths[4], tenths[7]

    @property
    def median(self) -> float | None:
        """Seconds of a call; None if it was not timed."""
        quantiles = self.quantiles()
        return None if quantiles is None else quantiles[1]

    def figures(self) -> dict[str, float]:
        """What follows from the median, as far as there is one, and the floor."""
        median, floor = self.median, self.floor
        found = {}
        if floor is not None:
            found["floor_s"] = floor.seconds
            found |= {f"floor_{name}_s": value for name, value in floor._asdict().items()}
        if median is not None:
            found["us_per_step"] = 1e6 * median / self.case.T
            found["gflops"] = 1e-9 * operations(self.case) / median
            if floor is not None:
                found["floor_share"] = floor.seconds / median
        return found

    def record(self) -> dict[str, object]:
        """A flat mapping: the case's fields, then this row's."""
        apart = ("case", "samples", "floor")
        rest = {key: value for key, value in asdict(self).items() if key not in apart}
        low, middle, high = self.quantiles() or (None, None, None)
        times = {"median_s": middle, "q20_s": low, "q80_s": high}
        shares = ("floor_share",) if self.floor is not None else ()
        times |= {**dict.fromkeys(("us_per_step", "gflops", *shares)), **self.figures()}
        if self.error is not None and not math.isfinite(self.error):
            rest["error"] = None  # JSON has no NaN; status and reason say what happened
        return {**self.case._asdict(), **rest, **times}


@contextlib.contextmanager
def as_installed() -> Iterator[None]:
    """Within it, and in processes started there, nothing counts that `fastrnn tune` has stored.

    Figures that are handed on are those of a fresh install. For commands: what a backend has
    already read in this process, it may go on to use.
    """
    before = os.environ.get(CACHE_VARIABLE)
    with tempfile.TemporaryDirectory(prefix="fastrnn-") as empty:
        try:
            os.environ[CACHE_VARIABLE] = empty
            _read_anew()
            yield
        finally:
            os.environ.pop(CACHE_VARIABLE)
            if before is not None:
                os.environ[CACHE_VARIABLE] = before
            _read_anew()


def _read_anew() -> None:
    measured.reset()
    clear_decisions()


def measure(
    cases: Sequence[Case],
    *,
    backends: Sequence[str] | None = None,
    peers: Sequence[Peer] = PEERS,
    repeats: int = REPEATS,
    attained: Mapping[str, Attained] | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Iterator[Row]:
    """Check and time every implementation of every case.

    The rows of a case come as soon as it is measured, so that whoever keeps them has them when a
    later case, or the user, puts an end to it.

    Args:
        cases: see `bench_cases.cases`.
        backends: names; None for all.
        peers: what they are compared with; torch.nn's layer must be among them.
        repeats: samples per implementation.
        attained: by dtype, for floors; with them each call's memory is measured, too.
        progress: called with a line before each case.

    Raises:
        BackendError: FASTRNN_BACKEND names none that can run a case.
    """
    names = tuple(registry().backends) if backends is None else backends
    for case in cases:
        progress(str(case))
        yield from _measure(case, names, peers, repeats, (attained or {}).get(case.dtype))


def _measure(
    case: Case,
    backends: Sequence[str],
    peers: Sequence[Peer],
    repeats: int,
    attained: Attained | None,
) -> list[Row]:
    torch.manual_seed(0)
    source = layer(case, "reference")
    weights = [weight.detach() for weight in source.parameters()]
    x = torch.randn(case.T, case.B, case.I).to(case.device, case.torch_dtype)
    request = request_of(case, x, list(source.parameters()))
    decision = decide(request)
    reasons = {c.name: c.reasons for c in decision.candidates}
    truth = _run(_exact(case, weights), x.cpu().double(), case.mode)
    allowed = testing.tolerance(case.torch_dtype, case.T, request.precision)
    own = [backend_as_peer(name, reasons.get(name, ())) for name in backends]
    rows = [Row(case, peer.name, is_backend=False) for peer in peers]
    rows += [Row(case, peer.name, auto=peer.name == decision.backend) for peer in own]
    if attained is not None:
        floor = floor_of(case, attained)
        rows = [replace(row, floor=floor) for row in rows]
    timed: list[tuple[Row, Callable[[], object]]] = []
    for row, peer in zip(rows, (*peers, *own), strict=True):
        try:
            if against := checked_reasons(peer.can_run(case)):
                row.status, row.reason = "cannot run", "; ".join(against)
                continue
            module = peer.build(case)
            load_weights(module, weights)
            check_row(row, _run(module, x, case.mode), truth, allowed)
            if row.status == "ok":
                call = _call(module, x, case.mode)
                for _ in range(WARM_UP):
                    call()
                if attained is not None:
                    row.peak_bytes = peak_bytes(call, case.device)
                timed.append((row, call))
        except (Exception, SystemExit) as error:  # anybody's bug is a line of the table
            row.status, row.reason = "failed", f"raised {describe(error)}"
    take_samples(timed, repeats, case.device)
    compare_rows(rows)
    return rows


def _exact(case: Case, weights: Sequence[Tensor]) -> nn.Module:
    """The truth: the reference backend in float64 on the CPU."""
    module = layer(case._replace(dtype="float64", device="cpu"), "reference")
    load_weights(module, weights)
    return module


def load_weights(module: nn.Module, weights: Sequence[Tensor]) -> None:
    """Copy `weights`; every implementation has its parameters in torch's order."""
    with torch.no_grad():
        for parameter, weight in zip(module.parameters(), weights, strict=True):
            parameter.copy_(weight)


def _run(module: nn.Module, x: Tensor, mode: str) -> testing.Result:
    """Outputs, states and, in training, the gradients of all of them by x and the weights."""
    x = x.clone().requires_grad_(mode == "train")
    with gradients(mode):
        output, states = module(x)
    finals = states if isinstance(states, tuple) else (states,)
    found: dict[str, Tensor] = {}
    if mode == "train":
        leaves = {"x": x, **dict(module.named_parameters())}
        generator = torch.Generator().manual_seed(1)
        upstream = [
            torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o)
            for o in (output, *finals)
        ]
        got = torch.autograd.grad((output, *finals), list(leaves.values()), upstream)
        found = {str(index): each for index, each in enumerate(got)}
    return testing.Result(output.detach(), tuple(final.detach() for final in finals), found)


def check_row(
    row: Row, got: testing.Result, want: testing.Result, allowed: testing.Tolerance
) -> None:
    """Compare with the truth; a row that is out of tolerance says so and gets no time."""
    try:
        differences = testing.compare(got, want, allowed)
    except AssertionError as error:
        row.status, row.reason = "wrong", str(error)
        return
    row.error = max(_relative(difference) for difference in differences)
    wrong = [d for d in differences if not d.within]
    if wrong:
        row.status = "wrong"
        row.reason = ", ".join(f"{d.name} off by {d.error:.1e} of {d.allowed:.1e}" for d in wrong)


def _relative(difference: testing.Difference) -> float:
    if math.isnan(difference.error):
        return math.inf  # so that the largest is found whatever the order
    if difference.allowed == 0:
        return 0.0 if difference.error == 0 else math.inf
    return difference.error / difference.allowed


def _call(module: nn.Module, x: Tensor, mode: str) -> Callable[[], object]:
    """What is timed: the forward pass, or forward and backward from a gradient of the output."""
    if mode != "train":

        def forward() -> object:
            with gradients(mode):
                return module(x)

        return forward
    x = x.clone().requires_grad_()
    leaves = [x, *module.parameters()]
    # of a call in training, since a compiled module would be compiled once more for another
    upstream = torch.randn_like(module(x)[0].detach())

    def train() -> object:
        return torch.autograd.grad(module(x)[0], leaves, upstream)

    return train


def take_samples(
    timed: Sequence[tuple[Row, Callable[[], object]]], repeats: int, device: str
) -> None:
    """Time each call `repeats` times, in turns; samples go to the rows.

    Args:
        timed: rows, and what is timed for each.
        repeats: samples of each.
        device: where they run: CUDA events time a GPU.
    """
    clock = cuda_seconds if torch.device(device).type == "cuda" else _seconds
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()  # a collection would fall into somebody's sample
    try:
        counts = []
        for _, call in timed:
            once = min(clock(call, 1) for _ in range(2))
            counts.append(max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-9))))
        turns = list(zip(timed, counts, strict=True))
        order = random.Random(0)
        for _ in range(repeats):
            # whoever follows a like implementation finds its code in the caches: nobody always
            # does, and the first call of a sample, which pays for the others', is not counted
            order.shuffle(turns)
            for (row, call), count in turns:
                call()
                row.samples.append(clock(call, count))
    finally:
        if collecting:
            gc.enable()


def _seconds(call: Callable[[], object], count: int) -> float:
    begin = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - begin) / count


def cuda_seconds(call: Callable[[], object], count: int) -> float:
    """Seconds per call of `count` calls in a row, by events of the current CUDA stream."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / count


def compare_rows(rows: Iterable[Row]) -> None:
    """Set the speed-up of each row, of one case, over torch.nn."""
    (baseline,) = [row.samples for row in rows if row.implementation == BASELINE]
    for row in rows:
        if baseline and row.samples:
            pairs = zip(baseline, row.samples, strict=True)
            row.speedup = statistics.median(theirs / own for theirs, own in pairs)


def failures(rows: Sequence[Row], named: Sequence[str] | None) -> list[str]:
    """Why the exit code must not be 0: wrong or failed backends, and named ones that never ran."""
    found = [
        f"{row.implementation} {row.status} on {row.case}: {row.reason}"
        for row in rows
        if row.is_backend and row.status in ("wrong", "failed")
    ]
    for name in named or ():
        own = [row for row in rows if row.implementation == name]
        if own and all(row.status == "cannot run" for row in own):
            found.append(f"{name} could run no case: {own[0].reason}")
    return found


def write_json(
    path: Path,
    rows: Sequence[Row],
    settings: dict[str, object],
    attained: Mapping[str, Attained] | None = None,
) -> None:
    """Every row with its samples, what was asked for, and what it was measured on."""
    results = [{**row.record(), "samples_s": row.samples} for row in rows]
    rates = {dtype: each._asdict() for dtype, each in (attained or {}).items()}
    content = {
        "environment": environment(), "settings": settings, "attained": rates, "results": results,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Every row without its samples."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0].record()))
        writer.writeheader()
        writer.writerows(row.record() for row in rows)
