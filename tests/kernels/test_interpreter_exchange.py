"""The exchange between programs for real: one process a program, over shared memory.

The interpreter runs programs one after another, where a program that waits for another would wait
for ever. Here each program of a `grid` launch has an interpreter of its own, in a process of its
own, runs all time steps and waits for the others through the counters, as on a GPU. What this
cannot show is the order in which a GPU lets other multiprocessors see stores.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_exchange.py``; see test_interpreter.py.
"""

import math
import multiprocessing
import os
import time
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_exchange.py",
        allow_module_level=True,
    )

from triton.runtime import interpreter

import fastrnn_kernels as kernels
from fastrnn_kernels import enqueue
from fastrnn_kernels.sweep import exchanged

LIMIT = 120  # seconds after which waiting programs are taken to wait for ever


def run_program(sweep, tensors, program, delay):
    """Run one program of a launch over all time steps, in this process."""
    builder = interpreter.interpreter_builder
    builder.set_grid_dim(*sweep.grid, 1, 1)
    set_index = builder.set_grid_idx
    builder.set_grid_dim = lambda *sizes: None
    builder.set_grid_idx = lambda *index: set_index(program, 0, 0)
    add = builder.create_atomic_rmw

    def add_and_dawdle(operation, pointer, value, *rest):
        result = add(operation, pointer, value, *rest)
        if value.data.any():  # an arrival and no poll: what is stored after it comes late
            time.sleep(0.02)
        return result

    builder.create_atomic_rmw = add_and_dawdle
    # It copies arguments onto themselves at the end, over what other programs stored meanwhile.
    interpreter.GridExecutor._restore_args_dev = lambda *arguments: None
    time.sleep(delay)
    problem = sweep.problem
    sweep.kernel[(1,)](
        *tensors,
        sweep.T,
        problem.B,
        problem.G,
        0,
        sweep.rounds,
        sweep.reverse,
        *sweep.strides,
        **sweep.constants,
    )


def run_together(sweep, order):
    """Run all programs of a sweep at the same time; `order` says who starts first."""
    tensors = (*sweep.tensors, *sweep.optional, *exchanged(sweep))
    for tensor in tensors:
        if tensor is not None:
            tensor.share_memory_()
    context = multiprocessing.get_context("fork")
    programs = [
        context.Process(target=run_program, args=(sweep, tensors, program, 0.02 * position))
        for position, program in enumerate(order)
    ]
    for process in programs:
        process.start()
    end = time.monotonic() + LIMIT
    for process in programs:
        process.join(max(0.0, end - time.monotonic()))
    alive = [process for process in programs if process.is_alive()]
    for process in alive:
        process.kill()
        process.join()
    assert not alive, "programs wait for ever"
    assert [process.exitcode for process in programs] == [0] * len(programs)
    return tensors[-1]


@dataclass(frozen=True)
class Case:
    """A recurrence of T = 3 steps and H = 40 units, and how its programs share it."""

    cell: str
    B: int
    lanes: int
    reverse: tuple[bool, ...] = (False,)
    splits: int = 1
    T: int = 3
    H: int = 40


ONE_HAS_BOTH_TILES = Case("lstm", 20, 1, (False, True))  # of its group's batch
LANES = Case("rnn_tanh", 40, 2)  # three batch tiles over two lanes
together = pytest.mark.parametrize("backwards", [False, True], ids=["first-first", "last-first"])
pytestmark = [
    # h of a step that was not waited for is NaN
    pytest.mark.usefixtures("poisoned"),
    # Python 3.12 on: torch has threads, none of which holds a lock that a child needs
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def launched(monkeypatch, backwards):
    """Sweeps that were run, by all programs together, each with its counters."""
    swept = []

    def run(sweep):
        order = list(range(*sweep.grid))
        swept.append((sweep, run_together(sweep, order[::-1] if backwards else order)))

    monkeypatch.setattr(enqueue, "run", run)
    return swept


def draw(case):
    """Arguments of `forward` in float64, all groups' gates_x among them."""
    G, K = len(case.reverse), kernels.CELLS[case.cell].gates
    random = np.random.default_rng(0)
    bound = 1 / math.sqrt(case.H)
    shape = (G, case.B, case.H)
    c0 = random.standard_normal(shape) if case.cell == "lstm" else None
    gates_x = random.standard_normal((case.T, case.B, G, K * case.H))
    weight_hh = random.uniform(-bound, bound, (G, K * case.H, case.H))
    return gates_x, weight_hh, random.standard_normal(shape), c0


def single(*arrays):
    return [None if a is None else torch.from_numpy(a).float() for a in arrays]


def assert_close(case, got, want):
    limit = 3 * torch.finfo(torch.float32).eps * math.sqrt(case.T) * 4
    for name, expected in want._asdict().items():
        if expected is not None:
            value = getattr(got, name).double().numpy()
            np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


@together
@pytest.mark.parametrize("case", [ONE_HAS_BOTH_TILES, LANES], ids=["lstm-groups", "rnn-lanes"])
def test_programs_that_wait_for_each_other(case, launched, oracle):
    arguments = draw(case)
    want = oracle.forward(case.cell, *arguments, case.reverse)
    config = kernels.GridConfig(16, 16, 16, lanes=case.lanes, ahead=2, num_warps=2)
    options = {"reverse": case.reverse, "config": config}
    made = kernels.forward(case.cell, *single(*arguments), save=True, **options)
    ((sweep, counters),) = launched
    assert sweep.grid == (len(case.reverse) * case.lanes * 3,)
    assert (counters[..., 0] == 3 * case.T).all(), "each arrives once a step and batch tile"
    assert_close(case, made, want)


@together
def test_two_positions_of_h_are_enough(launched, oracle):
    arguments = draw(LANES)
    want = oracle.forward(LANES.cell, *arguments, LANES.reverse)
    config = kernels.GridConfig(16, 16, 16, lanes=2, ahead=2, num_warps=2)
    made = kernels.forward(LANES.cell, *single(*arguments), keep_output=False, config=config)
    assert_close(LANES, made, want._replace(output=None))


@together
@pytest.mark.parametrize(
    "case",
    [
        ONE_HAS_BOTH_TILES,
        LANES,
        replace(ONE_HAS_BOTH_TILES, splits=2),
        Case("rnn_tanh", 20, 1, splits=4),
    ],
    ids=["lstm-groups", "rnn-lanes", "lstm-shared", "rnn-shared"],
)
def test_programs_that_wait_for_each_other_on_the_way_back(case, launched, oracle):
    gates_x, weight_hh, h0, c0 = draw(case)
    made = oracle.forward(case.cell, gates_x, weight_hh, h0, c0, case.reverse)
    random = np.random.default_rng(1)
    d_output, d_h_n = random.standard_normal(made.output.shape), random.standard_normal(h0.shape)
    d_c_n = None if c0 is None else random.standard_normal(h0.shape)
    want = oracle.backward(case.cell, weight_hh, made, c0, d_output, d_h_n, d_c_n, case.reverse)
    config = kernels.GridConfig(
        16, 16 // case.splits, 16, lanes=case.lanes, ahead=2, splits=case.splits, num_warps=2
    )
    d_output, d_h_n, d_c_n = single(d_output, d_h_n, d_c_n)
    back = kernels.backward(
        case.cell,
        *single(weight_hh, made.output, made.gates, made.cells, c0),
        d_output=d_output,
        d_h_n=d_h_n,
        d_c_n=d_c_n,
        reverse=case.reverse,
        config=config,
    )
    ((sweep, counters),) = launched
    assert sweep.grid == (len(case.reverse) * case.lanes * 3 * case.splits,)
    assert (counters[:, :, 0, 0] == 3 * case.splits * case.T).all(), "once a step and batch tile"
    arrivals = case.T * case.splits if case.splits > 1 else 0
    assert (counters[:, :, 1:, 0] == arrivals).all(), "once more for each tile of units"
    assert_close(case, back, want)


# A group that waits for the wrong one of three reads what has not been stored yet.
CHAIN = Case("lstm", 3, 1, (True,) * 3, H=24)
CHAIN_OF_LANES = Case("rnn_tanh", 40, 2, (False,) * 2)


def draw_chain(case):
    """Arguments of `forward_chain` in float64, without directions."""
    gates_x, weight_hh, h0, c0 = draw(case)
    random = np.random.default_rng(2)
    bound = 1 / math.sqrt(case.H)
    weight_chain = random.uniform(-bound, bound, weight_hh[1:].shape)
    bias_chain = random.uniform(-bound, bound, weight_hh.shape[:2])[1:]
    return gates_x[:, :, :1], weight_hh, weight_chain, bias_chain, h0, c0


@together
@pytest.mark.parametrize("case", [CHAIN, CHAIN_OF_LANES], ids=["lstm", "rnn-lanes"])
def test_layers_that_wait_for_those_below(case, launched, oracle):
    arguments = draw_chain(case)
    want = oracle.forward_chain(case.cell, *arguments, case.reverse)
    units = 8 if case.cell == "lstm" else 16
    config = kernels.GridConfig(16, units, 16, lanes=case.lanes, ahead=2, num_warps=2)
    gates_x, weight_hh, weight_chain, bias_chain, h0, c0 = single(*arguments)
    made = kernels.forward(
        case.cell, gates_x, weight_hh, h0, c0, weight_chain=weight_chain, bias_chain=bias_chain,
        reverse=case.reverse, save=True, config=config,
    )  # fmt: skip
    ((sweep, counters),) = launched
    assert sweep.grid == (len(case.reverse) * case.lanes * 3,)
    assert (counters[..., 0] == 3 * case.T).all(), "each arrives once a step and batch tile"
    assert_close(case, made, want)


@together
@pytest.mark.parametrize(
    "case",
    [CHAIN, CHAIN_OF_LANES, replace(CHAIN, splits=2), replace(CHAIN_OF_LANES, splits=2)],
    ids=["lstm", "rnn-lanes", "lstm-shared", "rnn-lanes-shared"],
)
def test_layers_that_wait_for_those_above_on_the_way_back(case, launched, oracle):
    gates_x, weight_hh, weight_chain, bias_chain, h0, c0 = draw_chain(case)
    made = oracle.forward_chain(
        case.cell, gates_x, weight_hh, weight_chain, bias_chain, h0, c0, case.reverse
    )
    random = np.random.default_rng(1)
    grads = [random.standard_normal(shape) for shape in (made.output[:, :, :1].shape, h0.shape)]
    grads.append(None if c0 is None else random.standard_normal(h0.shape))
    want = oracle.backward_chain(
        case.cell, weight_hh, weight_chain, made, c0, *grads, case.reverse
    )  # fmt: skip
    config = kernels.GridConfig(
        16, 16 // case.splits, 16, lanes=case.lanes, ahead=2, splits=case.splits, num_warps=2
    )
    (weight_chain,) = single(weight_chain)
    names = ("d_output", "d_h_n", "d_c_n")
    back = kernels.backward(
        case.cell,
        *single(weight_hh, made.output, made.gates, made.cells, c0),
        weight_chain=weight_chain,
        **dict(zip(names, single(*grads), strict=True)),
        reverse=case.reverse,
        config=config,
    )
    ((sweep, counters),) = launched
    programs = config.tiles_h(sweep.problem) * case.splits
    assert sweep.grid == (len(case.reverse) * case.lanes * programs,)
    assert (counters[:, :, 0, 0] == programs * case.T).all(), "once a step and batch tile"
    arrivals = case.T * case.splits if case.splits > 1 else 0
    assert (counters[:, :, 1:, 0] == arrivals).all(), "once more for each tile of units"
    assert_close(case, back, want)
