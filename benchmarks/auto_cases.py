"""The grid of `auto_cpu`: which cases, in which order, and the two implementations of each."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import bench_cases, benchmark, testing
from fastrnn.bench import load_weights
from fastrnn.dispatch import AUTO

CELLS = bench_cases.OF_TORCH
MODES = ("forward", "train", "step")
STEPS = (1, 20, 100, 512)
BATCHES = (1, 8, 32, 128)
SIZES = (32, 64, 256, 512, 1024)
KINDS = {"forward": ("padded", "packed"), "train": ("padded", "packed"),
         "step": ("layer", "stepper", "stepper-cell")}  # fmt: skip

Call = Callable[[], object]


class Case(NamedTuple):
    """One comparison; T steps, B rows of the batch, H inputs and hidden units."""

    cell: str
    mode: str
    """`forward` (no gradients), `train` (forward and backward), or `step` (one step of one row,
    no gradients, the state carried on from call to call)."""
    kind: str
    """`padded`: all rows are T long. `packed`: a PackedSequence, lengths spread evenly up to T.
    Of a step, what is compared: `layer` with layer, `stepper`, which is fastrnn.Stepper, with
    torch.nn's layer, or `stepper-cell`, the same with torch.nn's cell."""
    T: int
    B: int
    H: int

    def __str__(self) -> str:
        return f"{self.cell} {self.mode} {self.kind} T={self.T} B={self.B} H={self.H}"


class Pair(NamedTuple):
    """What is compared: each makes a module, with the same values in weights of its own."""

    theirs: Callable[[], Call]
    ours: Callable[[], Call]
    backend: str
    """What `auto` chose, or `stepper`."""


def grid() -> list[Case]:
    """Every case, from cheap to expensive: a run that is cut short has seen the most."""
    found = [
        Case(cell, mode, kind, T, B, H)
        for cell, mode, H in itertools.product(CELLS, MODES, SIZES)
        for kind in KINDS[mode]
        for T, B in ([(1, 1)] if mode == "step" else itertools.product(STEPS, BATCHES))
        if not (kind == "packed" and T == 1)  # all rows are as long then
    ]
    return sorted(found, key=expected_seconds)


def expected_seconds(case: Case) -> float:
    """About what a call of torch.nn takes, by one core of a server of 2020 to 2025.

    For the order, for what is left out as too long, which must be the same in every run, and to
    say how long a run takes.
    """
    gates, overhead = {"lstm": (4, 2e-6), "gru": (3, 20e-6)}.get(case.cell, (1, 8e-6))
    passes, steps = 3.0 if case.mode == "train" else 1.0, float(case.T * case.B)
    if case.kind == "packed":  # half as many steps; torch.nn makes them one by one
        overhead, steps = 30e-6, steps * (1 + 1 / case.T) / 2
        if case.mode == "train":
            passes *= {"lstm": 3, "gru": 2}.get(case.cell, 1.3)
    arithmetic = 2 * gates * case.H * 2 * case.H * steps / 65e9
    weights = 4 * gates * case.H**2 * case.T / 10e9
    return passes * (60e-6 + case.T * overhead + arithmetic + weights)


def pair(case: Case, dtype: torch.dtype = torch.float32, backend: str = AUTO) -> Pair:
    """The implementations of a case; `backend` runs ours."""
    torch.manual_seed(0)
    weights = [weight.detach() for weight in their_layer(case).parameters()]
    training = case.mode == "train"

    def make(build: Callable[[Case], Any]) -> Any:
        module = build(case)
        load_weights(module, weights)
        return module.to(dtype).train(training)

    def our_layer(case: Case) -> Any:
        return bench_cases.layer(_as_benchmark(case), backend)

    x = input_of(case).to(dtype)
    if case.mode != "step":
        with torch.set_grad_enabled(training):
            chosen = fastrnn.explain(make(our_layer), x).backend
        data = x.data if isinstance(x, PackedSequence) else x
        upstream = torch.randn(*data.shape[:-1], case.H).to(dtype) if training else None
        return Pair(
            lambda: layer_call(make(their_layer), x, upstream),
            lambda: layer_call(make(our_layer), x, upstream),
            chosen,
        )
    assert isinstance(x, Tensor)
    if case.kind == "layer":
        with torch.no_grad():
            chosen = fastrnn.explain(make(our_layer), x, make(their_layer)(x)[1]).backend
        return Pair(
            lambda: carried(make(their_layer), x), lambda: carried(make(our_layer), x), chosen
        )

    def ours() -> Call:
        stepper = fastrnn.Stepper(make(our_layer))
        return lambda: stepper(x[0])

    if case.kind == "stepper":
        return Pair(lambda: carried(make(their_layer), x), ours, "stepper")
    return Pair(lambda: carried_cell(make(their_cell), x[0]), ours, "stepper")


def their_layer(case: Case) -> nn.Module:
    """torch.nn's layer."""
    return bench_cases.baseline(_as_benchmark(case))


def their_cell(case: Case) -> nn.Module:
    """torch.nn's cell, which makes one step."""
    (cell,) = bench_cases.CellLoop(_as_benchmark(case)).cells
    return cell


def _as_benchmark(case: Case) -> benchmark.Case:
    """The case as `fastrnn bench` has it, which says nothing of packing."""
    T, B, H = case.T, case.B, case.H
    return benchmark.Case(case.cell, case.mode, T, B, H, H, 1, False, "float32", "cpu")


def input_of(case: Case) -> Tensor | PackedSequence:
    """Input (T, B, H), of packed cases with lengths from T, spread evenly, down to 1."""
    x = torch.randn(case.T, case.B, case.H)
    if case.kind != "packed":
        return x
    lengths = torch.linspace(case.T, 1, case.B).round().long()
    return pack_padded_sequence(x, lengths, enforce_sorted=True)


def assert_right(case: Case, backend: str, theirs: object, ours: object) -> None:
    """Raise an AssertionError unless both computed the same; see `assert_agree`.

    A gradient of relu jumps where a pre-activation passes 0, and of millions some are so near that
    they round to either side. In float64 none is: so there such a case is compared again.
    """
    try:
        assert_agree(case, theirs, ours)
    except AssertionError:
        if (case.cell, case.mode) != ("rnn_relu", "train"):
            raise
        exact = pair(case, torch.float64, backend)
        assert_agree(case, exact.theirs()(), exact.ours()())


def assert_agree(case: Case, theirs: object, ours: object) -> None:
    """Raise an AssertionError unless both computed the same, each within its dtype's tolerance.

    Args:
        case: what was computed.
        theirs: what its first call returned.
        ours: the same; of a step the output, of which torch.nn's layer returns more.
    """
    want, got = tensors(theirs), tensors(ours)
    if case.mode == "step":
        want, got = want[:1], got[:1]
    assert len(want) == len(got), f"{len(got)} results, expected {len(want)}"
    got = [each.reshape(one.shape) for each, one in zip(got, want, strict=True)]
    allowed = testing.Tolerance(*(2 * each for each in testing.tolerance(want[0].dtype, case.T)))
    differences = testing.compare(_as_result(case, got), _as_result(case, want), allowed)
    wrong = [each for each in differences if not each.within]
    assert not wrong, "; ".join(
        f"{each.name} is off by {each.error:.2g}, {each.allowed:.2g} allowed" for each in wrong
    )


def _as_result(case: Case, made: list[Tensor]) -> testing.Result:
    if case.mode == "train":
        return testing.Result(torch.empty(0), (), {str(n): each for n, each in enumerate(made)})
    return testing.Result(made[0], tuple(made[1:]), {})


def tensors(made: Any) -> list[Tensor]:
    """Those of a call's result, outputs before states."""
    if isinstance(made, Tensor):
        return [made]
    if isinstance(made, PackedSequence):
        return [made.data]
    return [each for part in made for each in tensors(part)]


def layer_call(module: nn.Module, x: Tensor | PackedSequence, upstream: Tensor | None) -> Call:
    """The forward pass without gradients, or with an upstream gradient forward and backward."""
    if upstream is None:

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return forward
    leaves = list(module.parameters())
    packed = isinstance(x, PackedSequence)

    def train() -> object:
        output, _ = module(x)
        return torch.autograd.grad(output.data if packed else output, leaves, upstream)

    return train


def carried(layer: nn.Module, x: Tensor) -> Call:
    """A step of a layer, which goes on from the state that the last one left."""
    state = None

    def step() -> object:
        nonlocal state
        with torch.no_grad():
            output, state = layer(x, state)
        return output

    return step


def carried_cell(cell: nn.Module, x: Tensor) -> Call:
    """A step of a cell, which goes on from the state that the last one left."""
    state = None

    def step() -> object:
        nonlocal state
        with torch.no_grad():
            state = cell(x, state)
        return state

    return step
