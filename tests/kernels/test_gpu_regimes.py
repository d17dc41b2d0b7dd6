"""Every regime, forward and back, on a real GPU, against NumPy in float64 (oracle.py).

What the interpreter cannot show: whether programs that wait for each other ever go on, whether they
see what the others stored, and what a cooperative launch does in a captured stream. A test that
hangs ends its process with a traceback, after LIMIT seconds. Run by `make gpu-check`.
"""

import contextlib
import faulthandler
import functools
import itertools
import math
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

import fastrnn_kernels as kernels
from fastrnn import bench_cases, testing
from fastrnn_kernels.plan import REGIMES, plan, reason_against, steps_class
from fastrnn_kernels.sweep import problem_of

pytestmark = [
    pytest.mark.gpu,
    # deterministic mode fills what is not initialised with NaN, and has an opinion on cuBLAS
    pytest.mark.filterwarnings("ignore:.*CUBLAS_WORKSPACE_CONFIG"),
]

DEVICE = "cuda"
LIMIT = 240
"""Seconds of a test, compiling included."""
REPEATS = 1000
BACK = 8
"""Roundings of the largest gradient: d_gates is rounded and multiplied in each step, and weights of
torch's initial size let an error of one step fade in the next."""
ROOT = Path(__file__).resolve().parents[2]

CELLS = ("lstm", "rnn_tanh", "rnn_relu", "rnn_sigmoid")
MODES = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
}
# (T, B, H, directions): nothing to divide by, masks in every dimension, several batch tiles, many
# programs, a warp's part of the contraction that is all padding, both directions side by side
SHAPES = [
    (1, 1, 1, (False,)),
    (3, 17, 33, (False, True)),
    (17, 2, 70, (True,)),
    (40, 33, 128, (False,)),
    (5, 130, 100, (True, False)),
    (9, 70, 512, (False, True)),
    (6, 16, 1000, (True,)),
]


@pytest.fixture(autouse=True)
def ends():
    """Give up on a test that hangs; nothing else can stop a kernel that waits for ever."""
    faulthandler.dump_traceback_later(LIMIT, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def _poison(poisoned):
    """Every torch.empty is NaN, so that an element nobody wrote shows."""


def make(cell, T, B, H, directions, dtype, seed=0):
    """Arguments of `forward`, weights of the size that torch initialises with."""
    random = np.random.default_rng(seed)
    G, K = len(directions), kernels.CELLS[cell].gates

    def place(values):
        return torch.from_numpy(values).to(DEVICE, dtype)

    bound = 1 / math.sqrt(H)
    return {
        "gates_x": place(random.standard_normal((T, B, G, K * H))),
        "weight_hh": place(random.uniform(-bound, bound, (G, K * H, H))),
        "h0": place(random.standard_normal((G, B, H))),
        "c0": place(random.standard_normal((G, B, H))) if cell == "lstm" else None,
        "reverse": directions,
    }


def expect(oracle, cell, a):
    x = {name: value.double().cpu().numpy() for name, value in a.items() if torch.is_tensor(value)}
    c0 = x.get("c0")
    return oracle.forward(cell, x["gates_x"], x["weight_hh"], x["h0"], c0, a["reverse"])


def assert_right(made, want, dtype, precision):
    T = want.output.shape[0]
    allowed = testing.tolerance(dtype, T, precision).output
    for name, expected in want._asdict().items():
        value = getattr(made, name)
        if expected is None or value is None:
            continue
        value = value.double().cpu().numpy()
        limit = allowed * max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


def make_back(oracle, cell, T, B, H, directions, dtype, grads="yhc", seed=0):
    """Arguments of `backward`: what the equations save, rounded, so that only it can be wrong."""
    a = make(cell, T, B, H, directions, dtype, seed)
    made = expect(oracle, cell, a)
    random = np.random.default_rng(seed + 1)

    def place(values):
        return None if values is None else torch.from_numpy(values).to(DEVICE, dtype)

    def draw(*shape):
        return place(random.standard_normal(shape))

    G, state = len(directions), cell == "lstm"
    return {
        "weight_hh": a["weight_hh"],
        "output": place(made.output),
        "gates": place(made.gates),
        "cells": place(made.cells),
        "c0": a["c0"],
        "d_output": draw(T, B, G, H) if "y" in grads else None,
        "d_h_n": draw(G, B, H) if "h" in grads else None,
        "d_c_n": draw(G, B, H) if "c" in grads and state else None,
        "reverse": directions,
    }


def expect_back(oracle, cell, b):
    x = {name: value.double().cpu().numpy() for name, value in b.items() if torch.is_tensor(value)}
    saved = SimpleNamespace(**{name: x.get(name) for name in ("output", "gates", "cells")})
    grads = [x.get(name) for name in ("d_output", "d_h_n", "d_c_n")]
    return oracle.backward(cell, x["weight_hh"], saved, x.get("c0"), *grads, b["reverse"])


def assert_back_right(made, want, dtype, precision):
    tf32 = dtype == torch.float32 and precision == "tf32"
    roundoff = testing.TF32_ROUNDOFF if tf32 else testing.UNIT_ROUNDOFF[dtype]
    for name, expected in want._asdict().items():
        value = getattr(made, name)
        if expected is None:
            assert value is None
            continue
        limit = BACK * roundoff * float(np.abs(expected).max())
        value = value.double().cpu().numpy()
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


def problem(cell, B, H, G, dtype, precision="ieee", direction="forward"):
    return problem_of(kernels.CELLS[cell], direction, H, B, G, dtype, precision)


def skip_where_impossible(regime, cell, B, H, G, dtype, precision="ieee", directions=("forward",)):
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))
    for direction in directions:
        what = problem(cell, B, H, G, dtype, precision, direction)
        reason = reason_against(regime, what, limits)
        if reason is not None:
            pytest.skip(f"{regime}, {direction}: {reason}")


def skip_if_refused(config, what):
    try:
        config.check(what, kernels.DeviceLimits.of(torch.device(DEVICE)))
    except ValueError as error:
        pytest.skip(str(error))


# Each shape with each cell, and each mode with each cell and shape, but not all three: a kernel
# takes seconds to compile.
PARITY = [
    (regime, CELLS[c], mode, shape)
    for regime in REGIMES
    for (s, shape), (m, mode) in itertools.product(enumerate(SHAPES), enumerate(MODES))
    for c in {0, (s + m) % 4}
    if (s + m + c) % 2 == 0 or c
]


@pytest.mark.parametrize(("regime", "cell", "mode", "shape"), PARITY, ids=str)
def test_parity(regime, cell, mode, shape, oracle):
    dtype, precision = MODES[mode]
    T, B, H, directions = shape
    skip_where_impossible(regime, cell, B, H, len(directions), dtype, precision)
    a = make(cell, T, B, H, directions, dtype)
    made = kernels.forward(cell, **a, save=cell == "lstm", regime=regime, precision=precision)
    assert_right(made, expect(oracle, cell, a), dtype, precision)


@pytest.mark.parametrize(("regime", "cell", "mode", "shape"), PARITY, ids=str)
def test_parity_back(regime, cell, mode, shape, oracle):
    dtype, precision = MODES[mode]
    T, B, H, directions = shape
    skip_where_impossible(regime, cell, B, H, len(directions), dtype, precision, ("backward",))
    # which gradients reach the outputs: all, that of the sequence, those of the final states
    grads = ("yhc", "y", "hc")[(SHAPES.index(shape) + list(MODES).index(mode)) % 3]
    b = make_back(oracle, cell, T, B, H, directions, dtype, grads)
    made = kernels.backward(cell, **b, regime=regime, precision=precision)
    assert_back_right(made, expect_back(oracle, cell, b), dtype, precision)


@pytest.mark.parametrize("regime", REGIMES)
def test_states_without_output(regime):
    """h of two steps takes turns in memory: nobody may overwrite what another still reads."""
    dtype = torch.bfloat16
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 40, H, 2, dtype)
    a = make("lstm", 33, 40, H, (False, True), dtype)
    want = kernels.forward("lstm", **a, regime=regime)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(100):
        made = kernels.forward("lstm", **a, regime=regime, keep_output=False)
        wrong += (made.h_n != want.h_n).any() + (made.c_n != want.c_n).any()
    assert wrong.item() == 0


@pytest.mark.parametrize("regime", REGIMES)
def test_gates_that_take_the_place_of_gates_x(regime):
    dtype = torch.bfloat16
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 40, H, 2, dtype)
    a = make("lstm", 33, 40, H, (False, True), dtype)
    want = kernels.forward("lstm", **a, regime=regime, save=True)
    given = a.pop("gates_x")
    for _ in range(20):
        gates_x = given.clone()
        made = kernels.forward("lstm", gates_x, **a, regime=regime, save=True, overwrite=True)
        assert made.gates.data_ptr() == gates_x.data_ptr()
        for name in ("output", "gates", "cells", "c_n"):
            assert torch.equal(getattr(made, name), getattr(want, name)), name


def grid_config(block_b=16, block_h=4, block_k=16, lanes=1, ahead=1, num_warps=4, splits=1):
    return kernels.GridConfig(block_b, block_h, block_k, lanes, ahead, splits, num_warps=num_warps)


@pytest.mark.parametrize("lanes", [1, 2, 3, 5])
def test_several_batch_tiles_in_several_lanes(lanes, oracle):
    """Five batch tiles: one program has all, or they are shared, evenly and unevenly."""
    dtype = torch.bfloat16
    skip_where_impossible("grid", "lstm", 70, 64, 2, dtype)
    a = make("lstm", 20, 70, 64, (False, True), dtype)
    made = kernels.forward("lstm", **a, save=True, config=grid_config(block_h=16, lanes=lanes))
    one = kernels.forward("lstm", **a, save=True, config=grid_config(block_h=16))
    assert torch.equal(made.output, one.output)
    assert_right(made, expect(oracle, "lstm", a), dtype, "ieee")


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize("lanes", [2, 3, 5])
def test_several_batch_tiles_in_several_lanes_back(lanes, splits, oracle):
    dtype = torch.bfloat16
    b = make_back(oracle, "lstm", 20, 70, 64, (False, True), dtype)
    config = grid_config(block_h=16 // splits, lanes=lanes, splits=splits)
    skip_if_refused(config, problem("lstm", 70, 64, 2, dtype, direction="backward"))
    made = kernels.backward("lstm", **b, config=config)
    one = kernels.backward("lstm", **b, config=grid_config(block_h=16 // splits, splits=splits))
    assert torch.equal(made.d_gates, one.d_gates)
    assert torch.equal(made.d_c0, one.d_c0)
    assert_back_right(made, expect_back(oracle, "lstm", b), dtype, "ieee")


CONFIGS = [
    grid_config(num_warps=1, block_k=64),
    grid_config(num_warps=2, ahead=2),
    grid_config(num_warps=4, ahead=3),
    grid_config(num_warps=8, ahead=2),
    grid_config(block_b=32, block_h=8, block_k=32, lanes=2),
    grid_config(block_b=64, block_h=8, block_k=64),
    grid_config(block_h=16, block_k=128, num_warps=8),
]


@pytest.mark.parametrize("mode", ["bf16", "tf32"])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_grid_configurations(config, mode, oracle):
    dtype, precision = MODES[mode]
    a = make("lstm", 12, 70, 150, (False,), dtype)
    skip_if_refused(config, problem("lstm", 70, 150, 1, dtype, precision))
    made = kernels.forward("lstm", **a, save=True, config=config, precision=precision)
    assert_right(made, expect(oracle, "lstm", a), dtype, precision)


CONFIGS_BACK = [
    grid_config(block_h=16, num_warps=1, block_k=64),
    grid_config(block_h=16, num_warps=8, ahead=3, splits=1),
    grid_config(block_h=8, num_warps=2, ahead=2, splits=2),
    grid_config(block_b=32, block_h=16, block_k=32, lanes=2, splits=2),
    grid_config(block_h=4, splits=4, ahead=2),
    grid_config(block_b=64, block_h=4, splits=4, num_warps=8),
    grid_config(block_h=8, block_k=32, splits=4, lanes=3),
    grid_config(block_h=4, splits=8),
    grid_config(block_b=32, block_h=2, splits=8, num_warps=2, ahead=3, lanes=2),
]


@pytest.mark.parametrize("mode", ["bf16", "tf32"])
@pytest.mark.parametrize("config", CONFIGS_BACK, ids=str)
def test_grid_configurations_back(config, mode, oracle):
    """600 gate gradients: a share of 75 to 300, whose rows no load can be aligned to."""
    dtype, precision = MODES[mode]
    skip_if_refused(config, problem("lstm", 70, 150, 1, dtype, precision, "backward"))
    b = make_back(oracle, "lstm", 12, 70, 150, (True,), dtype)
    made = kernels.backward("lstm", **b, config=config, precision=precision)
    assert_back_right(made, expect_back(oracle, "lstm", b), dtype, precision)


@pytest.mark.parametrize(("cell", "H", "lanes"), [("lstm", 512, 1), ("lstm", 100, 3),
                                                  ("rnn_tanh", 1024, 1)])  # fmt: skip
def test_the_grid_gives_the_same_bits_on_every_run(cell, H, lanes):
    """A program that reads h before another has stored it reads NaN, or shows as another result."""
    dtype = torch.bfloat16
    block_h = 4 if cell == "lstm" else 16
    skip_where_impossible("grid", cell, 40, H, 1, dtype)
    config = grid_config(block_h=block_h, block_k=32, lanes=lanes)
    a = make(cell, 24, 40, H, (False,), dtype)
    first = kernels.forward(cell, **a, save=True, config=config)
    assert first.output.isfinite().all()
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(REPEATS):
        again = kernels.forward(cell, **a, save=True, config=config)
        # NaN differs from everything; counted on the device, so that calls follow one another
        wrong += (again.output != first.output).any()
        if first.c_n is not None:
            wrong += (again.c_n != first.c_n).any() + (again.cells != first.cells).any()
            wrong += (again.gates != first.gates).any()
    assert wrong.item() == 0


BITS_BACK = {
    "resident": ("lstm", 64, {"regime": "resident"}),
    "one": ("lstm", 512, {"config": grid_config(block_h=16)}),
    "two, lanes": ("lstm", 100, {"config": grid_config(block_h=8, lanes=3, splits=2)}),
    "four": ("lstm", 512, {"config": grid_config(block_h=8, block_k=32, splits=4, ahead=2)}),
    "eight": ("rnn_tanh", 1024, {"config": grid_config(block_h=8, splits=8)}),
}


@pytest.mark.parametrize(("cell", "H", "how"), BITS_BACK.values(), ids=list(BITS_BACK))
def test_the_same_bits_on_every_run_back(cell, H, how, oracle):
    """Sums of others that are read before they are stored are NaN, or of another step."""
    dtype = torch.bfloat16
    what = problem(cell, 40, H, 1, dtype, direction="backward")
    if "config" in how:
        skip_if_refused(how["config"], what)
    b = make_back(oracle, cell, 24, 40, H, (False,), dtype)
    first = kernels.backward(cell, **b, **how)
    assert first.d_gates.isfinite().all()
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(REPEATS):
        again = kernels.backward(cell, **b, **how)
        wrong += (again.d_gates != first.d_gates).any()
        if first.d_c0 is not None:
            wrong += (again.d_c0 != first.d_c0).any()
    assert wrong.item() == 0


@pytest.mark.parametrize(("regime", "H"), [("resident", 16), ("grid", 64), ("step", 16)])
def test_70000_steps_back(regime, H, oracle):
    cell, dtype, precision = "rnn_tanh", torch.float32, "tf32"
    skip_where_impossible(regime, cell, 2, H, 1, dtype, precision, ("backward",))
    b = make_back(oracle, cell, 70_000, 2, H, (False,), dtype)
    made = kernels.backward(cell, **b, regime=regime, precision=precision)
    assert_back_right(made, expect_back(oracle, cell, b), dtype, precision)


@pytest.mark.parametrize(("regime", "H"), [("resident", 16), ("grid", 64)])
def test_70000_steps(regime, H, oracle):
    cell, dtype, precision = "rnn_tanh", torch.float32, "tf32"
    skip_where_impossible(regime, cell, 2, H, 1, dtype, precision)
    a = make(cell, 70_000, 2, H, (False,), dtype)
    made = kernels.forward(cell, **a, regime=regime, precision=precision)
    assert_right(made, expect(oracle, cell, a), dtype, precision)


@pytest.mark.parametrize(("regime", "H"), [("resident", 16), ("grid", 128), ("step", 16)])
def test_a_stored_value_keeps_its_gradient_for_5000_steps(regime, H):
    """Row S3: keep = 1, write = 0, read = 0."""
    T = 5000
    skip_where_impossible(regime, "lstm", 1, H, 1, torch.float32, "tf32", ("forward", "backward"))
    how = {"regime": regime, "precision": "tf32"}
    pre = torch.tensor([-100.0, 100.0, 0.5, -100.0], device=DEVICE).repeat_interleave(H)
    gates_x = pre.expand(T, 1, 1, 4 * H).contiguous()
    weight_hh, h0 = torch.zeros(1, 4 * H, H, device=DEVICE), torch.zeros(1, 1, H, device=DEVICE)
    c0 = torch.full_like(h0, 4.2)
    made = kernels.forward("lstm", gates_x, weight_hh, h0, c0, save=True, **how)
    assert torch.equal(made.c_n, c0)
    saved = (made.output, made.gates, made.cells, c0)
    back = kernels.backward("lstm", weight_hh, *saved, d_c_n=torch.ones_like(c0), **how)
    assert torch.equal(back.d_c0, torch.ones_like(c0))


@contextlib.contextmanager
def compilations():
    """What Triton compiles in the meantime."""
    from triton import knobs

    found = []
    before, knobs.compilation.listener = (
        knobs.compilation.listener,
        lambda *, src, **_: found.append(str(src)),
    )
    try:
        yield found
    finally:
        knobs.compilation.listener = before


def test_a_grid_that_cannot_run_at_once_is_refused_before_it_is_compiled():
    a = make("rnn_tanh", 3, 16 * 3000, 32, (False,), torch.float16)
    with compilations() as found, pytest.raises(ValueError, match="run at the same time"):
        kernels.forward("rnn_tanh", **a, config=grid_config(block_h=16, lanes=3000))
    assert found == []


def test_a_grid_whose_shares_cannot_run_at_once_is_refused_before_it_is_compiled(oracle):
    b = make_back(oracle, "rnn_tanh", 1, 16 * 3000, 32, (False,), torch.float16)
    with compilations() as found, pytest.raises(ValueError, match="run at the same time"):
        kernels.backward("rnn_tanh", **b, config=grid_config(block_h=8, lanes=3000, splits=2))
    assert found == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("regime", REGIMES)
def test_two_streams_at_once(regime, direction, oracle):
    """Launches that each want all of the GPU must not wait for each other's programs.

    Not even where one is more urgent than the other, and could take the places that it waits for.
    """
    H = 64 if regime == "resident" else 512
    dtype = torch.bfloat16
    skip_where_impossible(regime, "lstm", 16, H, 1, dtype, directions=(direction,))
    if direction == "forward":
        arguments = [make("lstm", 60, 16, H, (False,), dtype, seed) for seed in (1, 2)]
    else:
        sizes = (60, 16, H, (False,), dtype)
        arguments = [make_back(oracle, "lstm", *sizes, seed=seed) for seed in (1, 2)]

    def call(index):  # output or d_gates
        return getattr(kernels, direction)("lstm", **arguments[index], regime=regime)[0]

    wanted = [call(index) for index in (0, 1)]
    torch.cuda.synchronize()
    wrong = []

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream(priority=-index)):
            made = [call(index) for _ in range(100)]
            torch.cuda.current_stream().synchronize()
            wrong.extend(index for each in made if not torch.equal(each, wanted[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("regime", REGIMES)
def test_inside_a_users_cuda_graph(regime, direction, oracle):
    """A replay starts with counters at zero, like a call."""
    sizes = ("lstm", 20, 20, 64, (False,), torch.bfloat16)
    skip_where_impossible(regime, "lstm", 20, 64, 1, torch.bfloat16, directions=(direction,))
    a = make(*sizes) if direction == "forward" else make_back(oracle, *sizes)
    given = a["gates_x" if direction == "forward" else "d_output"]

    def call():  # output or d_gates
        return getattr(kernels, direction)("lstm", **a, regime=regime)[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        before = call().clone()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    given.neg_()
    changed = call().clone()
    for _ in range(3):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, changed)
    assert not torch.equal(before, changed)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("regime", REGIMES)
def test_a_hundred_lengths_and_batches_compile_nothing_new(regime, direction, oracle):
    """T and B are run-time values; B chooses among a few tiles, which are compiled beforehand."""
    H, dtype = 48, torch.bfloat16
    skip_where_impossible(regime, "lstm", 100, H, 1, dtype, directions=(direction,))
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))
    if direction == "forward":
        longest = make("lstm", 100, 100, H, (False,), dtype)
    else:
        longest = make_back(oracle, "lstm", 100, 100, H, (False,), dtype, "y")

    def cut(name, value, T, B):  # (T, B, G, ..) or (G, B, H)
        if not torch.is_tensor(value) or name == "weight_hh":
            return value
        return (value[:T, :B] if value.dim() == 4 else value[:, :B]).contiguous()

    def run(T, B):
        a = {name: cut(name, value, T, B) for name, value in longest.items()}
        getattr(kernels, direction)("lstm", **a, regime=regime)

    tile_sizes = {}
    for T, B in [(T, 16) for T in range(1, 101)] + [(40, B) for B in range(1, 101)]:
        what = problem("lstm", B, H, 1, dtype, direction=direction)
        config = plan(what, limits, regime, steps_class(T)).config
        tile_sizes.setdefault((tuple(config.blocks(direction).items()), config.num_warps), (T, B))
    assert len(tile_sizes) <= 4
    for T, B in tile_sizes.values():
        run(T, B)
        run(40, B)  # through a graph, where the regime has launches to put there
        run(3, B)
    with compilations() as found:
        for T in range(1, 101):
            run(T, 16)
        for B in range(1, 101):
            run(40, B)
    assert found == []


STUCK = """
import torch, triton
import triton.language as tl
from fastrnn_kernels import exchange

exchange.MAX_POLLS = tl.constexpr(100_000)


@triton.jit
def stuck(counter):
    exchange.wait(counter, 2, False)


counter = torch.ones(32, dtype=torch.int32, device="cuda")
stuck[(1,)](counter)
torch.cuda.synchronize()
"""


# the whole kernel: one program's share of the sums seems never to have been stored
STUCK_BACK = """
import torch
import triton.language as tl

import fastrnn_kernels as kernels
from fastrnn_kernels import exchange, sweep

exchange.MAX_POLLS = tl.constexpr(100_000)
exchanged = sweep.exchanged


def one_short(which):
    parts, counters = exchanged(which)
    counters[:, :, 1:] -= 1
    return parts, counters


sweep.exchanged = one_short
one = torch.ones(2, 3, 1, 32, dtype=torch.bfloat16, device="cuda")
config = kernels.GridConfig(16, 8, 16, 1, 1, 2, num_warps=4)
weight = torch.ones(1, 32, 32, dtype=torch.bfloat16, device="cuda")
kernels.backward("rnn_tanh", weight, one, d_output=one, config=config)
torch.cuda.synchronize()
"""


@pytest.mark.skipif(torch.version.hip is not None, reason="waits are written for NVIDIA's GPUs")
@pytest.mark.parametrize("text", [STUCK, STUCK_BACK], ids=["wait", "backward"])
def test_debug_mode_stops_a_wait_for_an_arrival_that_never_comes(text, tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(text)
    paths = os.pathsep.join(str(ROOT / part) for part in ("", "kernels", "plugins"))
    found = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "TRITON_DEBUG": "1", "PYTHONPATH": paths},
        capture_output=True, text=True, timeout=LIMIT - 60, check=False,
    )  # fmt: skip
    assert found.returncode != 0
    assert "a program waited too long for the others" in found.stdout + found.stderr


# T, dtype as torch names it, cell: whole layers of torch.nn and of fastrnn, and the truth
@functools.lru_cache(maxsize=1)
def layers(cell, dtype, T):
    case = bench_cases.Case(cell, "train", T, 4, 32, 64, 1, False, dtype, DEVICE)
    torch.manual_seed(0)
    theirs = bench_cases.baseline(case)
    x = torch.randn(T, 4, 32).to(DEVICE, case.torch_dtype)
    exact = bench_cases.layer(case._replace(dtype="float64", device="cpu"), "reference")
    exact.load_state_dict(theirs.state_dict())
    upstream = torch.randn(T, 4, 64).to(DEVICE, case.torch_dtype)
    return case, theirs, x, upstream, train(exact, x.cpu().double(), upstream.cpu().double())


def train(layer, x, upstream):
    """The output, and the gradients of x and of the weights."""
    x = x.clone().requires_grad_()
    output = layer(x)[0]
    found = torch.autograd.grad(output, [x, *layer.parameters()], upstream)
    names = ["x", *(name for name, _ in layer.named_parameters())]
    return output.detach(), dict(zip(names, found, strict=True))


def distance(got, truth):
    """Root mean square, which is less of a lottery than the largest error."""
    return float((got.double().cpu() - truth).square().mean().sqrt())


def ours_in(regime, case, theirs, monkeypatch):
    """fastrnn's layer with torch.nn's weights, in one regime."""
    from fastrnn_kernels import launch

    directions = ("forward", "backward")
    precision = "tf32" if case.torch_dtype == torch.float32 else "ieee"
    sizes = (case.cell, case.B, case.H, 1, case.torch_dtype, precision)
    skip_where_impossible(regime, *sizes, directions[: 1 + (case.mode == "train")])
    for name in directions:
        monkeypatch.setattr(kernels, name, functools.partial(getattr(launch, name), regime=regime))
    ours = bench_cases.layer(case, "triton")
    ours.load_state_dict(theirs.state_dict())
    # cuBLAS is not deterministic by torch's standards, and need not be here
    torch.use_deterministic_algorithms(False)
    return ours


@pytest.fixture
def tf32():
    settings = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = [each.fp32_precision for each in settings]
    for each in settings:
        each.fp32_precision = "tf32"
    yield
    for each, value in zip(settings, before, strict=True):
        each.fp32_precision = value


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("T", [16, 128, 1024, 8192])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_no_further_from_float64_than_twice_torch(cell, dtype, T, regime, monkeypatch):
    """float32 is multiplied as TF32; cuDNN may, and where it does not its errors set no limit."""
    case, theirs, x, _, (truth, _) = layers(cell, dtype, T)
    ours = ours_in(regime, case._replace(mode="forward"), theirs, monkeypatch)
    with torch.no_grad():
        theirs_off, ours_off = (distance(layer(x)[0], truth) for layer in (theirs, ours))
    roundoff = testing.TF32_ROUNDOFF if dtype == "float32" else 0.0
    assert ours_off <= max(2 * theirs_off, roundoff)


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("T", [16, 128, 1024, 8192])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_gradients_no_further_from_float64_than_twice_torchs(cell, dtype, T, regime, monkeypatch):
    """Of the input and of every weight, each by itself."""
    case, theirs, x, upstream, (_, truth) = layers(cell, dtype, T)
    ours = ours_in(regime, case, theirs, monkeypatch)
    found = [train(layer, x, upstream)[1] for layer in (theirs, ours)]
    further = {}
    for name, right in truth.items():
        theirs_off, ours_off = (distance(gradients[name], right) for gradients in found)
        # as for the output, but a gradient has any size
        size = float(right.square().mean().sqrt())
        roundoff = testing.TF32_ROUNDOFF * size if dtype == "float32" else 0.0
        if not ours_off <= max(2 * theirs_off, roundoff):
            further[name] = (ours_off, theirs_off)
    assert further == {}
