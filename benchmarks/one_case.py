"""One case of `benchmarks/regimes.py`: every implementation checked, timed and predicted.

A result is checked before it is timed, for at most CHECKED rows of the batch (the first, the last,
some between) in all steps, against the reference backend in float64 on the GPU, which
`tests/test_gpu.py` compares with the CPU: no error may be beyond the dtype's tolerance, nor their
root mean square far beyond torch.nn's own. In training only those rows get a gradient from above,
so that every other row's must be exactly zero and the weights' are those of the checked rows; the
call is otherwise the one that is timed, where all rows get one. All of that must be finite.

Calls go round as many inputs as fill L2 twice, so that none finds its own there; torch.nn and ours
take turns in random order, and figures are medians by CUDA events (`fastrnn.bench`). Peak
memory is what a call takes on top of weights and inputs, its results among it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

import fastrnn_kernels
from benchmarks import peer
from benchmarks.outlook import AUTO, DIRECTIONS, LAYERS, candidates, chosen, floor, outlook
from fastrnn import bench, stack, testing
from fastrnn.bench_cases import BASELINE, baseline, layer
from fastrnn.bench_memory import peak_bytes
from fastrnn.benchmark import Case
from fastrnn.discovery import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from fastrnn.request import Spec
    from fastrnn_kernels.model import Rates

CHECKED = 8
"""Rows of the batch that are compared with float64."""
COLD_BYTES = 120_000_000
"""Twice the 60 MB that an H200's L2 holds at the most."""
PRODUCTS = "products"
"""Those around the steps alone, which every implementation does beside them: W_ih x + b, and in
training dx, dW_ih, dW_hh and db, of every layer."""
FEWER = "products of layers at once"
"""Those beside the steps of all layers at once, timed on their own: W_ih x + b and dx are of the
first layer, those of the others being made within the steps; dW_ih, dW_hh and db are of every layer
as ever."""
FURTHER = 4
"""How many times torch.nn's root mean square error is still right: it sums in another order, and
may round where we do not. Twice is what `tests/kernels/test_gpu_accuracy.py` asks for."""


@dataclass
class Row(bench.Row):
    """One implementation of one case."""

    rms: dict[str, float] = field(default_factory=dict)
    """Root mean square errors: of output and states, and of gradients relative to the gradient's
    own root mean square."""


class Truth(NamedTuple):
    """What is right for some rows of the batch."""

    rows: Tensor
    result: testing.Result
    """In float64, on the CPU."""
    allowed: testing.Tolerance
    roundoff: float
    """A root mean square that is right whatever torch.nn's: cuDNN may use no TF32."""


@contextlib.contextmanager
def only(name: str) -> Iterator[None]:
    """Within it, the `triton` backend runs this regime layer by layer, or all layers at once.

    Its public interface chooses by itself, and so does the dispatcher, for `stack.run`. Entered in
    every timed call, hence by hand: `unittest.mock` takes several microseconds.
    """
    from fastrnn_kernels import launch

    whole = name == LAYERS
    run = stack.run

    def run_layers(spec: Spec, *arguments: Any, **options: Any) -> stack.Made:
        options["at_once"] = spec.num_layers if whole else 1
        return run(spec, *arguments, **options)

    names = vars(fastrnn_kernels)
    before = {each: names.pop(each, None) for each in ("forward", "backward")}
    regime = AUTO if whole else name
    for each in before:
        names[each] = functools.partial(getattr(launch, each), regime=regime)
    vars(stack)["run"] = run_layers
    try:
        yield
    finally:
        vars(stack)["run"] = run
        for each, value in before.items():
            del names[each]
            if value is not None:
                names[each] = value


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
    bench.compare_rows([row for row in rows if row.implementation not in (PRODUCTS, FEWER)])
    medians = {row.implementation: row.median for row in rows}
    records = []
    for row in rows:
        record = {**row.record(), "samples_s": row.samples}
        record = {name: value for name, value in record.items() if name not in case._fields}
        record["auto"] = row.implementation == chosen(case)
        if row.implementation in candidates(case):
            expected = outlook(case, row.implementation, rates)
            if expected.passes:
                around = medians[FEWER if row.implementation == LAYERS else PRODUCTS]
                assert around is not None
                record["passes"] = [
                    {"direction": direction, "config": str(config), "parts_us": found.parts}
                    for direction, (config, found) in zip(
                        DIRECTIONS[case.mode], expected.passes, strict=True
                    )
                ]
                record["predicted_s"] = around + expected.seconds()
                record["floor_s"] = around + floor(expected, case)
        records.append(record)
    return records


def timed(case: Case, repeats: int) -> list[Row]:
    """Every implementation that can run a case, checked and timed."""
    torch.manual_seed(0)
    theirs = baseline(case)
    weights = [weight.detach() for weight in theirs.parameters()]
    sets, upstream = input_sets(case), upstream_of(case)
    truth = exact(case, weights, sets[0], upstream)
    rows: list[Row] = []
    turns: list[tuple[Row, Callable[[], object]]] = []
    for name in (BASELINE, *candidates(case), *[peer.PEER] * peer.takes(case)):
        row = Row(case, name)
        rows.append(row)
        if reason := reason_against(case, name):
            row.status, row.reason = "cannot run", reason
            continue
        try:
            call = caller(implementation(case, name, weights, theirs), name)
            check(row, call(sets[0], some_rows(upstream, truth.rows)), truth, rows[0].rms)
            call_in_turn = in_turn(call, sets, upstream)
            row.peak_bytes = whole(row, call_in_turn, case.device)
            if row.status == "ok":
                turns.append((row, call_in_turn))
        except Exception as error:  # a regime's bug is a line of the table
            row.status, row.reason = "failed", f"raised {describe(error)}"
    d_gates = None
    if upstream is not None:
        d_gates = torch.randn(case.T * case.B, case.spec.gates * case.H).to(sets[0])
    fewer = LAYERS in candidates(case) and not reason_against(case, LAYERS)
    for name in (PRODUCTS, FEWER) if fewer else (PRODUCTS,):
        row = Row(case, name)
        rows.append(row)
        products = functools.partial(products_around, case, weights, name == FEWER)
        turns.append((row, in_turn(products, sets, d_gates)))
    for _, call_in_turn in turns:
        for _ in range(bench.WARM_UP):
            call_in_turn()
    bench.take_samples(turns, repeats, case.device)
    return rows


def reason_against(case: Case, name: str) -> str:
    """Why an implementation cannot run a case; empty if it can."""
    if name == BASELINE:
        return ""
    return peer.absent() or "" if name == peer.PEER else outlook(case, name).against


def implementation(
    case: Case, name: str, weights: Sequence[Tensor], theirs: nn.Module
) -> nn.Module:
    """The layer of that name, with torch.nn's weights."""
    if name == BASELINE:
        return theirs
    module = peer.FlashRNN(case) if name == peer.PEER else layer(case, "triton")
    bench.load_weights(module, weights)
    return module


def input_sets(case: Case) -> list[Tensor]:
    """As many inputs as are larger than L2, so that a call finds none of its own in it."""
    size = case.T * case.B * case.I * case.torch_dtype.itemsize
    count = max(2, math.ceil(COLD_BYTES / size))
    shape = (count, case.T, case.B, case.I)
    sets = torch.randn(shape, dtype=case.torch_dtype, device=case.device).unbind()
    return [x.requires_grad_(case.mode == "train") for x in sets]


def upstream_of(case: Case) -> Tensor | None:
    """A gradient of the output for training: that of a loss which looks at every step."""
    if case.mode == "forward":
        return None
    shape = (case.T, case.B, case.spec.directions * case.H)
    return torch.randn(shape, dtype=case.torch_dtype, device=case.device)


def some_rows(upstream: Tensor | None, rows: Tensor) -> Tensor | None:
    """The gradient with zeros in all rows of the batch but these."""
    if upstream is None:
        return None
    kept = torch.zeros_like(upstream)
    kept[:, rows] = upstream[:, rows]
    return kept


def caller(module: nn.Module, name: str) -> Callable[[Tensor, Tensor | None], testing.Result]:
    """A forward pass without gradients, or with an upstream gradient a step of training.

    As `only` has it of that name, if it is one of ours.
    """
    leaves = dict(module.named_parameters())
    ours = name not in (BASELINE, peer.PEER)

    def call(x: Tensor, upstream: Tensor | None) -> testing.Result:
        with only(name) if ours else contextlib.nullcontext():
            if upstream is None:
                with torch.no_grad():
                    return result_of(*module(x))
            output, states = module(x)
            found = torch.autograd.grad(output, [x, *leaves.values()], upstream)
        return result_of(output, states, dict(zip(["x", *leaves], found, strict=True)))

    return call


def result_of(
    output: Tensor, states: Any, gradients: dict[str, Tensor] | None = None
) -> testing.Result:
    """What a module returned, LSTM or RNN, and the gradients."""
    finals = states if isinstance(states, tuple) else (states,)
    detached = tuple(state.detach() for state in finals)
    return testing.Result(output.detach(), detached, gradients or {})


def in_turn(
    call: Callable[[Tensor, Tensor | None], Any], sets: Sequence[Tensor], second: Tensor | None
) -> Callable[[], Any]:
    """Calls with one input after another."""
    inputs = itertools.cycle(sets)
    return lambda: call(next(inputs), second)


def products_around(
    case: Case, weights: Sequence[Tensor], fewer: bool, x: Tensor, d_gates: Tensor | None
) -> None:
    """The products of every layer and direction; all inputs are as wide as x, and so is h.

    Or with ``fewer`` those beside layers at once; see `FEWER`.
    """
    with torch.no_grad():
        for slot in range(case.layers * case.spec.directions):
            W_ih, _, b_ih, _ = weights[4 * slot : 4 * slot + 4]
            within = fewer and slot > 0
            if not within:
                nn.functional.linear(x, W_ih, b_ih)
            if d_gates is not None:
                if not within:
                    d_gates @ W_ih
                d_gates.T @ x.flatten(0, 1)
                d_gates.T @ x.flatten(0, 1)
                d_gates.sum(0)


def exact(case: Case, weights: Sequence[Tensor], x: Tensor, upstream: Tensor | None) -> Truth:
    """Outputs, states and gradients of some rows in float64."""
    rows = torch.linspace(0, case.B - 1, min(CHECKED, case.B)).round().long().to(x.device)
    module = layer(case._replace(dtype="float64"), "reference")
    bench.load_weights(module, weights)
    part = x.detach()[:, rows].double().requires_grad_(upstream is not None)
    found = caller(module, BASELINE)(part, None if upstream is None else upstream[:, rows].double())
    result = testing.Result(
        found.output.cpu(),
        tuple(state.cpu() for state in found.states),
        {name: each.cpu() for name, each in found.gradients.items()},
    )
    allowed = testing.tolerance(case.torch_dtype, case.T, "tf32")
    is_float32 = case.torch_dtype == torch.float32
    # W_hh is rounded to TF32, h is not: the tensor core cuts it off, by up to twice as much.
    roundoff = 2 * testing.TF32_ROUNDOFF if is_float32 else testing.UNIT_ROUNDOFF[case.torch_dtype]
    return Truth(rows, result, allowed, roundoff)


def check(row: Row, got: testing.Result, truth: Truth, theirs: dict[str, float]) -> None:
    """Compare some rows with the truth and with torch.nn's errors."""
    gradients = got.gradients
    if gradients:
        others = torch.ones(got.output.shape[1], dtype=torch.bool, device=got.output.device)
        others[truth.rows] = False
        if gradients["x"][:, others].count_nonzero():  # NaN is not zero
            row.status = "wrong"
            row.reason = "d x is not zero in a row that no gradient reaches"
            return
        # names are the reference's, in the same order
        values = [gradients["x"][:, truth.rows], *list(gradients.values())[1:]]
        gradients = dict(zip(truth.result.gradients, values, strict=True))
    part = testing.Result(
        got.output[:, truth.rows].cpu(),
        tuple(state[:, truth.rows].cpu() for state in got.states),
        {name: each.cpu() for name, each in gradients.items()},
    )
    bench.check_row(row, part, truth.result, truth.allowed)
    if row.status != "ok":
        return
    row.rms = distances(part, truth.result)
    for name, other in theirs.items():
        own = row.rms[name]
        if own > max(FURTHER * other, truth.roundoff):
            row.status = "wrong"
            row.reason = f"{name}: root mean square error {own:.1e}, torch.nn's {other:.1e}"


def distances(got: testing.Result, want: testing.Result) -> dict[str, float]:
    """Root mean square errors by name; those of gradients relative to the gradient."""

    def size(tensor: Tensor) -> float:
        return float(tensor.double().square().mean().sqrt())

    found = {"output": size(got.output - want.output)}
    for index, (state, right) in enumerate(zip(got.states, want.states, strict=True)):
        found[f"state[{index}]"] = size(state - right)
    for name, right in want.gradients.items():
        found[f"d {name}"] = size(got.gradients[name] - right) / max(size(right), 1e-300)
    return found


def whole(row: Row, call: Callable[[], testing.Result], device: str) -> int | None:
    """A call as it is timed: its peak memory in bytes, if it is a GPU's. All of it is finite."""
    results: list[testing.Result] = []

    def run() -> None:
        results.append(call())

    peak = None
    if torch.device(device).type == "cuda":
        peak = peak_bytes(run, device)
    else:
        run()
    (found,) = results
    everything = (found.output, *found.states, *found.gradients.values())
    if row.status == "ok" and not all(bool(each.isfinite().all()) for each in everything):
        row.status, row.reason = "wrong", "a number in a row that is not compared is not finite"
    return peak
