"""One case of `benchmarks/forward_grid.py`: every regime checked, timed and predicted.

A result is checked before it is timed, for at most CHECKED rows of the batch (the first, the last,
some between) in all steps, against the reference backend in float64 on the GPU, which
`tests/test_gpu.py` compares with the CPU: no error may be beyond the dtype's tolerance, nor their
root mean square far beyond torch.nn's own. No other row may hold anything but finite numbers.

Calls go round as many inputs as fill L2 twice, so that none finds its own there; torch.nn and the
regimes take turns in random order, and figures are medians by CUDA events (`fastrnn.bench`).
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

import fastrnn_kernels
from fastrnn import bench, testing
from fastrnn.bench_cases import BASELINE, Case, baseline, layer
from fastrnn.discovery import describe
from fastrnn_kernels.configs import TARGET_LIMITS, DeviceLimits, Problem, tiles
from fastrnn_kernels.model import Estimate, Rates, estimate
from fastrnn_kernels.onchip import GridConfig
from fastrnn_kernels.plan import REGIMES, plan, steps_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from fastrnn_kernels import LaunchConfig

CHECKED = 8
"""Rows of the batch that are compared with float64."""
COLD_BYTES = 120_000_000
"""Twice the 60 MB that an H200's L2 holds at the most."""
PROJECTION = "projection"
"""W_ih x + b alone, which every implementation does beside its steps."""
FLOOR = ("exchange", "L2 latency", "operand from L2", "launch", "product")
"""Parts of the model's step that no kernel of that regime can do without."""
THROUGHPUT = ("operand from L2", "product")
"""Those that each batch tile of a program takes once more."""
FURTHER = 4
"""How many times torch.nn's root mean square error is still right: it sums in another order, and
may round where we do not. Twice is what `tests/kernels/test_gpu_regimes.py` asks for."""
TORCH_STEP = 15e-6
"""Seconds of a step of torch.nn on such GPUs, as published: 7 to 15 us. For planning only."""
EXACT_STEP = 100e-6
"""Seconds of a step of the reference backend: a dozen launches."""
PUBLISHED = Rates()
SETUP = 0.4
"""Seconds of a case beside its calls: modules, inputs, kernels loaded from Triton's cache."""


@dataclass
class Row(bench.Row):
    """One implementation of one case."""

    rms: list[float] = field(default_factory=list)
    """Root mean square errors of the output and of each final state, where they are finite."""


class Truth(NamedTuple):
    """What is right for some rows of the batch."""

    rows: Tensor
    result: testing.Result
    """In float64, on the CPU."""
    allowed: testing.Tolerance
    roundoff: float
    """A root mean square that is right whatever torch.nn's: cuDNN may use no TF32."""


@contextlib.contextmanager
def only(regime: Any) -> Iterator[None]:
    """Within it, the `triton` backend runs this regime; its public interface chooses by itself.

    Entered in every timed call, hence by hand: `unittest.mock` takes several microseconds.
    """
    from fastrnn_kernels import launch

    names = vars(fastrnn_kernels)
    before = names.pop("forward", None)
    names["forward"] = functools.partial(launch.forward, regime=regime)
    try:
        yield
    finally:
        del names["forward"]
        if before is not None:
            names["forward"] = before


@contextlib.contextmanager
def tf32() -> Iterator[None]:
    """TF32 for float32, in RNNs and in the products around them, as torch.nn and as fastrnn."""
    settings: tuple[Any, ...] = (torch.backends.cudnn.rnn, torch.backends.cuda.matmul)
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "tf32"
    try:
        yield
    finally:
        for each, value in zip(settings, before, strict=True):
            each.fp32_precision = value


class Outlook(NamedTuple):
    """What is expected of one regime on one case."""

    against: str
    """Why it cannot run; empty if it can."""
    config: LaunchConfig | None
    estimate: Estimate | None
    """Of each layer, by the rates that were asked for."""


@functools.lru_cache
def outlook(case: Case, regime: Any, rates: Rates = PUBLISHED) -> Outlook:
    """What runs in a regime ("auto": the cheapest), and the time that the rates give to just that.

    The configuration is chosen by the rates that `launch.py` goes by, whatever ``rates`` are.
    """
    problem = Problem.of(
        "forward", case.spec.gates, case.H, case.B, case.spec.directions, case.torch_dtype, "tf32",
        case.spec.has_cell_state,
    )  # fmt: skip
    limits = limits_of(case.device)
    try:
        config = plan(problem, limits, regime, steps_class(case.T)).config
    except ValueError as error:
        return Outlook(str(error), None, None)
    return Outlook("", config, estimate(config, problem, limits, rates))


@functools.lru_cache
def limits_of(device: str) -> DeviceLimits:
    """The device's limits; those of an H100 or H200 where there is no GPU, for plans."""
    if device == "cuda" and not torch.cuda.is_available():
        return TARGET_LIMITS["sm_90"]
    return DeviceLimits.of(torch.device(device))


def floor(expected: Outlook, case: Case) -> float:
    """Seconds of a layer's steps that no kernel of the regime could do without."""
    assert expected.estimate is not None
    parts, config = expected.estimate.parts, expected.config
    one = sum(parts.get(name, 0.0) for name in FLOOR)
    turns = 1
    if isinstance(config, GridConfig):
        turns = tiles(tiles(case.B, config.block_b), config.lanes)
    several = turns * sum(parts.get(name, 0.0) for name in THROUGHPUT)
    return 1e-6 * case.T * max(one, several)


def expected_seconds(case: Case, repeats: int) -> float:
    """How long `measure` is expected to take, kernels compiled before."""
    layers = case.layers * case.spec.directions
    calls = [TORCH_STEP * case.T * layers]
    for regime in REGIMES:
        found = outlook(case, regime).estimate
        if found is not None:
            calls.append(case.layers * found.seconds(case.T))
    total = SETUP + EXACT_STEP * case.T * layers
    for seconds in calls:
        count = math.ceil(bench.SAMPLE_SECONDS / seconds)
        total += seconds * (1 + bench.WARM_UP + 2 + repeats * (1 + count))
    return total


def measure(case: Case, repeats: int, rates: Rates) -> list[dict[str, Any]]:
    """Every implementation of a case: checked, timed, with the model's prediction and the floor.

    Args:
        case: on a CUDA device.
        repeats: samples of each implementation.
        rates: for predictions.

    Returns:
        A flat mapping per implementation, for JSON.
    """
    with tf32():
        rows = timed(case, repeats)
    layers = [row for row in rows if row.implementation != PROJECTION]
    bench.compare_rows(layers)
    projection = next(row.median for row in rows if row.implementation == PROJECTION)
    chosen = outlook(case, "auto").config
    assert chosen is not None
    assert projection is not None
    records = []
    for row in rows:
        record = {**row.record(), "samples_s": row.samples}
        record = {name: value for name, value in record.items() if name not in case._fields}
        if row.implementation in REGIMES:
            record["auto"] = row.implementation == chosen.regime
            expected = outlook(case, row.implementation, rates)
            if expected.estimate is not None:
                record["config"] = str(expected.config)
                record["parts_us"] = expected.estimate.parts
                record["predicted_s"] = projection + case.layers * expected.estimate.seconds(case.T)
                record["floor_s"] = projection + case.layers * floor(expected, case)
        records.append(record)
    return records


def timed(case: Case, repeats: int) -> list[Row]:
    """Every implementation that can run a case, checked and timed."""
    torch.manual_seed(0)
    theirs = baseline(case)
    weights = [weight.detach() for weight in theirs.parameters()]
    sets = input_sets(case)
    truth = exact(case, weights, sets[0])
    rows: list[Row] = []
    turns: list[tuple[Row, Callable[[], object]]] = []
    for name in (BASELINE, *REGIMES):
        row = Row(case, name)
        rows.append(row)
        if name != BASELINE and (against := outlook(case, name).against):
            row.status, row.reason = "cannot run", against
            continue
        try:
            call = caller(theirs if name == BASELINE else ours(case, weights), name)
            theirs_off = [] if name == BASELINE else rows[0].rms
            check(row, result_of(call(sets[0])), truth, theirs_off)
            if row.status == "ok":
                turns.append((row, in_turn(call, sets)))
        except Exception as error:  # a regime's bug is a line of the table
            row.status, row.reason = "failed", f"raised {describe(error)}"
    row = Row(case, PROJECTION)
    rows.append(row)
    turns.append((row, in_turn(functools.partial(project, case, weights), sets)))
    for _, call_in_turn in turns:
        for _ in range(bench.WARM_UP):
            call_in_turn()
    bench.take_samples(turns, repeats, case.device)
    return rows


def input_sets(case: Case) -> tuple[Tensor, ...]:
    """As many inputs as are larger than L2, so that a call finds none of its own in it."""
    size = case.T * case.B * case.I * case.torch_dtype.itemsize
    count = max(2, math.ceil(COLD_BYTES / size))
    return torch.randn(
        count, case.T, case.B, case.I, dtype=case.torch_dtype, device=case.device
    ).unbind()


def ours(case: Case, weights: Sequence[Tensor]) -> nn.Module:
    """The layer of fastrnn with these weights, on the `triton` backend."""
    module = layer(case, "triton")
    bench.load_weights(module, weights)
    return module


def caller(module: nn.Module, name: str) -> Callable[[Tensor], Any]:
    """A forward pass without gradients, in the regime of that name."""

    def call(x: Tensor) -> Any:
        with torch.no_grad(), only(name) if name in REGIMES else contextlib.nullcontext():
            return module(x)

    return call


def in_turn(call: Callable[[Tensor], Any], sets: Sequence[Tensor]) -> Callable[[], Any]:
    """Calls with one input after another."""
    inputs = itertools.cycle(sets)
    return lambda: call(next(inputs))


def project(case: Case, weights: Sequence[Tensor], x: Tensor) -> None:
    """W_ih x + b of every layer and direction; all inputs are as wide as x."""
    for slot in range(case.layers * case.spec.directions):
        W_ih, _, b_ih, _ = weights[4 * slot : 4 * slot + 4]
        torch.nn.functional.linear(x, W_ih, b_ih)


def exact(case: Case, weights: Sequence[Tensor], x: Tensor) -> Truth:
    """Outputs and states of some rows in float64."""
    rows = torch.linspace(0, case.B - 1, min(CHECKED, case.B)).round().long()
    module = layer(case._replace(dtype="float64"), "reference")
    bench.load_weights(module, weights)
    with torch.no_grad():
        found = result_of(module(x[:, rows.to(x.device)].double()))
    result = testing.Result(found.output.cpu(), tuple(state.cpu() for state in found.states), {})
    allowed = testing.tolerance(case.torch_dtype, case.T, "tf32")
    is_float32 = case.torch_dtype == torch.float32
    roundoff = testing.TF32_ROUNDOFF if is_float32 else testing.UNIT_ROUNDOFF[case.torch_dtype]
    return Truth(rows, result, allowed, roundoff)


def result_of(found: tuple[Tensor, Any]) -> testing.Result:
    """What a module returned, LSTM or RNN."""
    output, states = found
    return testing.Result(output, states if isinstance(states, tuple) else (states,), {})


def check(row: Row, got: testing.Result, truth: Truth, theirs: list[float]) -> None:
    """Compare some rows with the truth and with torch.nn's errors; the others must be finite."""
    everything = (got.output, *got.states)
    some = [each[:, truth.rows.to(each.device)].cpu() for each in everything]
    bench.check_row(row, testing.Result(some[0], tuple(some[1:]), {}), truth.result, truth.allowed)
    if row.status != "ok":
        return
    if not all(bool(each.isfinite().all()) for each in everything):
        row.status, row.reason = "wrong", "a number in a row that is not compared is not finite"
        return
    wanted = (truth.result.output, *truth.result.states)
    for each, want in zip(some, wanted, strict=True):
        row.rms.append(float((each.double() - want).square().mean().sqrt()))
    for own, other in zip(row.rms, theirs, strict=False):
        if own > max(FURTHER * other, truth.roundoff):
            row.status = "wrong"
            row.reason = f"root mean square error {own:.1e}, torch.nn's {other:.1e}"
