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
from fastrnn_kernels import exchange, launch
from fastrnn_kernels.configs import tiles

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
        sweep.T,
        sweep.reverse,
        *sweep.strides,
        **sweep.constants,
    )


def run_together(sweep, order):
    """Run all programs of a sweep at the same time; `order` says who starts first."""
    shape = (sweep.problem.G, tiles(sweep.problem.B, sweep.config.block_b), 32)
    assert shape[-1] == exchange.COUNTER_STRIDE.value
    counters = torch.zeros(shape, dtype=torch.int32).share_memory_()
    tensors = (*sweep.tensors, counters)
    for tensor in tensors:
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
    return counters


@pytest.fixture(autouse=True)
def _poison():
    """Fill every torch.empty with NaN: h of a step that was not waited for is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.filterwarnings(
    # Python 3.12 on: torch has threads, none of which holds a lock that a child needs
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)
@pytest.mark.parametrize("backwards", [False, True], ids=["first-first", "last-first"])
@pytest.mark.parametrize(
    ("cell", "B", "lanes", "reverse"),
    [
        ("lstm", 20, 1, (False, True)),  # one program has both batch tiles of its group
        ("rnn_tanh", 40, 2, (False,)),  # three batch tiles over two lanes
    ],
    ids=["lstm-groups", "rnn-lanes"],
)
def test_programs_that_wait_for_each_other(cell, B, lanes, reverse, backwards, monkeypatch, oracle):
    T, H, G, K = 5, 40, len(reverse), kernels.CELLS[cell].gates
    random = np.random.default_rng(0)
    bound = 1 / math.sqrt(H)
    gates_x = random.standard_normal((T, B, G, K * H))
    weight_hh = random.uniform(-bound, bound, (G, K * H, H))
    h0 = random.standard_normal((G, B, H))
    c0 = random.standard_normal((G, B, H)) if cell == "lstm" else None
    want = oracle.forward(cell, gates_x, weight_hh, h0, c0, reverse)

    swept = []

    def together(sweep):
        order = list(range(*sweep.grid))
        counters = run_together(sweep, order[::-1] if backwards else order)
        swept.append((sweep, counters))

    monkeypatch.setattr(launch, "run", together)
    config = kernels.GridConfig(16, 16, 16, lanes=lanes, ahead=2, num_warps=2)
    made = kernels.forward(
        cell,
        *(torch.from_numpy(a).float() for a in (gates_x, weight_hh, h0)),
        None if c0 is None else torch.from_numpy(c0).float(),
        reverse=reverse,
        save=True,
        config=config,
    )
    ((sweep, counters),) = swept
    assert sweep.grid == (G * lanes * 3,)
    assert (counters[..., 0] == 3 * T).all(), "each program arrives once a step and batch tile"
    limit = 3 * torch.finfo(torch.float32).eps * math.sqrt(T) * 4
    for name, expected in want._asdict().items():
        if expected is not None:
            value = getattr(made, name).double().numpy()
            np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)
