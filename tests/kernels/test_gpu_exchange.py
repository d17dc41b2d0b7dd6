"""Programs that wait for each other on a real GPU: shared work, the same bits, many steps.

See test_gpu_regimes.py. Run by `make gpu-check`.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

import fastrnn_kernels as kernels
from gpu_cases import (
    DEVICE,
    LIMIT,
    MODES,
    assert_back_right,
    assert_right,
    expect,
    expect_back,
    grid_config,
    make,
    make_back,
    make_back_chain,
    make_chain,
    on_gpu,
    problem,
    skip_if_refused,
    skip_where_impossible,
)

pytestmark = on_gpu

REPEATS = 1000
ROOT = Path(__file__).resolve().parents[2]


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


CHAIN_REPEATS = 200
# (cell, T, B, H, layers, configuration): the plan's, and several batch tiles to a program
BITS_OF_LAYERS = {
    "lstm": ("lstm", 128, 16, 512, 4, None),
    "lstm, deep": ("lstm", 17, 40, 256, 3, None),
    "lstm, tiles": ("lstm", 24, 40, 70, 2, {"block_h": 8}),
    "rnn, lanes": ("rnn_tanh", 24, 40, 256, 4, {"block_h": 16, "lanes": 2}),
}


@pytest.mark.parametrize(
    ("cell", "T", "B", "H", "layers", "how"), BITS_OF_LAYERS.values(), ids=list(BITS_OF_LAYERS)
)
def test_the_same_bits_of_layers_on_every_run(cell, T, B, H, layers, how):
    """h of a group below that is read before it is stored is NaN."""
    dtype = torch.bfloat16
    what = problem(cell, B, H, layers, dtype, chained=True)
    config = None if how is None else grid_config(**how)
    skip_where_impossible("grid", cell, B, H, layers, dtype, chained=True)
    if config is not None:
        skip_if_refused(config, what)
    a = make_chain(cell, T, B, H, layers, dtype)
    first = kernels.forward(cell, **a, save=True, config=config)
    assert first.output.isfinite().all()
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(CHAIN_REPEATS):
        again = kernels.forward(cell, **a, save=True, config=config)
        for one, other in zip(again, first, strict=True):
            if other is not None:
                wrong += (one != other).any()
    assert wrong.item() == 0


@pytest.mark.parametrize("splits", [None, 1, 2, 4])
@pytest.mark.parametrize(
    ("cell", "T", "B", "H", "layers", "how"), BITS_OF_LAYERS.values(), ids=list(BITS_OF_LAYERS)
)
def test_the_same_bits_of_layers_on_every_run_back(cell, T, B, H, layers, how, splits, oracle):
    dtype = torch.bfloat16
    skip_where_impossible("grid", cell, B, H, layers, dtype, "ieee", ("backward",), chained=True)
    config = None
    if splits is not None:
        lanes = 1 if how is None else how.get("lanes", 1)
        config = grid_config(block_h=16 // splits, block_k=64, lanes=lanes, splits=splits)
        skip_if_refused(config, problem(cell, B, H, layers, dtype, "ieee", "backward", True))
    b = make_back_chain(oracle, cell, T, B, H, layers, dtype)
    first = kernels.backward(cell, **b, config=config)
    assert first.d_gates.isfinite().all()
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)
    for _ in range(CHAIN_REPEATS):
        again = kernels.backward(cell, **b, config=config)
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
    *others, counters = exchanged(which)
    counters[:, :, 1:] -= 1
    return *others, counters


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
