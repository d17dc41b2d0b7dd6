"""Every regime of the forward pass on a real GPU, against NumPy in float64 (oracle.py).

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


def problem(cell, B, H, G, dtype, precision="ieee"):
    return problem_of(kernels.CELLS[cell], "forward", H, B, G, dtype, precision)


def skip_where_impossible(regime, cell, B, H, G, dtype, precision="ieee"):
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))
    reason = reason_against(regime, problem(cell, B, H, G, dtype, precision), limits)
    if reason is not None:
        pytest.skip(f"{regime}: {reason}")


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


def grid_config(block_b=16, block_h=4, block_k=16, lanes=1, ahead=1, num_warps=4):
    return kernels.GridConfig(block_b, block_h, block_k, lanes, ahead, num_warps=num_warps)


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
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))
    try:
        config.check(problem("lstm", 70, 150, 1, dtype, precision), limits)
    except ValueError as error:
        pytest.skip(str(error))
    made = kernels.forward("lstm", **a, save=True, config=config, precision=precision)
    assert_right(made, expect(oracle, "lstm", a), dtype, precision)


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


@pytest.mark.parametrize(("regime", "H"), [("resident", 16), ("grid", 64)])
def test_70000_steps(regime, H, oracle):
    cell, dtype, precision = "rnn_tanh", torch.float32, "tf32"
    skip_where_impossible(regime, cell, 2, H, 1, dtype, precision)
    a = make(cell, 70_000, 2, H, (False,), dtype)
    made = kernels.forward(cell, **a, regime=regime, precision=precision)
    assert_right(made, expect(oracle, cell, a), dtype, precision)


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


@pytest.mark.parametrize("regime", REGIMES)
def test_two_streams_at_once(regime):
    """Launches that each want all of the GPU must not wait for each other's programs.

    Not even where one is more urgent than the other, and could take the places that it waits for.
    """
    H = 64 if regime == "resident" else 512
    skip_where_impossible(regime, "lstm", 16, H, 1, torch.bfloat16)
    arguments = [make("lstm", 60, 16, H, (False,), torch.bfloat16, seed) for seed in (1, 2)]
    wanted = [kernels.forward("lstm", **a, regime=regime).output for a in arguments]
    torch.cuda.synchronize()
    wrong = []

    def work(index):
        with torch.cuda.stream(torch.cuda.Stream(priority=-index)):
            made = [kernels.forward("lstm", **arguments[index], regime=regime) for _ in range(100)]
            torch.cuda.current_stream().synchronize()
            wrong.extend(index for each in made if not torch.equal(each.output, wanted[index]))

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize("regime", REGIMES)
def test_inside_a_users_cuda_graph(regime):
    """A replay starts with counters at zero, like a call."""
    skip_where_impossible(regime, "lstm", 20, 64, 1, torch.bfloat16)
    a = make("lstm", 20, 20, 64, (False,), torch.bfloat16)
    call = functools.partial(kernels.forward, "lstm", **a, regime=regime)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        before = call().output.clone()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call().output
    a["gates_x"].neg_()
    changed = call().output.clone()
    for _ in range(3):
        captured.zero_()
        graph.replay()
        assert torch.equal(captured, changed)
    assert not torch.equal(before, changed)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_hundred_lengths_and_batches_compile_nothing_new(regime):
    """T and B are run-time values; B chooses among a few tiles, which are compiled beforehand."""
    H, dtype = 48, torch.bfloat16
    skip_where_impossible(regime, "lstm", 100, H, 1, dtype)
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))

    def run(T, B):
        kernels.forward("lstm", **make("lstm", T, B, H, (False,), dtype), regime=regime)

    tile_sizes = {}
    for T, B in [(T, 16) for T in range(1, 101)] + [(40, B) for B in range(1, 101)]:
        config = plan(problem("lstm", B, H, 1, dtype), limits, regime, steps_class(T)).config
        tile_sizes.setdefault((tuple(config.blocks("forward").items()), config.num_warps), (T, B))
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


@pytest.mark.skipif(torch.version.hip is not None, reason="waits are written for NVIDIA's GPUs")
def test_debug_mode_stops_a_wait_for_an_arrival_that_never_comes(tmp_path):
    script = tmp_path / "stuck.py"
    script.write_text(STUCK)
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
    case = bench_cases.Case(cell, "forward", T, 4, 32, 64, 1, False, dtype, DEVICE)
    torch.manual_seed(0)
    theirs = bench_cases.baseline(case)
    x = torch.randn(T, 4, 32).to(DEVICE, case.torch_dtype)
    exact = bench_cases.layer(case._replace(dtype="float64", device="cpu"), "reference")
    exact.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        return case, theirs, x, exact(x.cpu().double())[0]


def distance(got, truth):
    """Root mean square, which is less of a lottery than the largest error."""
    return float((got.double().cpu() - truth).square().mean().sqrt())


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
    case, theirs, x, truth = layers(cell, dtype, T)
    precision = "tf32" if dtype == "float32" else "ieee"
    skip_where_impossible(regime, cell, case.B, case.H, 1, case.torch_dtype, precision)
    from fastrnn_kernels import launch

    forward = functools.partial(launch.forward, regime=regime)
    monkeypatch.setattr(kernels, "forward", forward)
    ours = bench_cases.layer(case, "triton")
    ours.load_state_dict(theirs.state_dict())
    # cuBLAS is not deterministic by torch's standards, and need not be here
    torch.use_deterministic_algorithms(False)
    with torch.no_grad():
        theirs_off, ours_off = (distance(layer(x)[0], truth) for layer in (theirs, ours))
    roundoff = testing.TF32_ROUNDOFF if dtype == "float32" else 0.0
    assert ours_off <= max(2 * theirs_off, roundoff)
