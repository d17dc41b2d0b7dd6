"""Launches on a real GPU: what is refused, two streams, a user's graph, and what is compiled.

See test_gpu_regimes.py. Run by `make gpu-check`.
"""

import contextlib
import os
import threading

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

import fastrnn_kernels as kernels
from fastrnn_kernels.plan import REGIMES, plan, steps_class
from gpu_cases import DEVICE, grid_config, make, make_back, on_gpu, problem, skip_where_impossible

pytestmark = on_gpu


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
