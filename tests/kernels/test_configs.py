"""The heuristic and the limit checks, with devices made up on the spot: no GPU, no compiler."""

import itertools
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")

from fastrnn_kernels import sweep
from fastrnn_kernels.cells import CELLS
from fastrnn_kernels.configs import (
    TARGET_LIMITS,
    DeviceLimits,
    LaunchConfig,
    Problem,
    heuristic,
)

H200 = TARGET_LIMITS["sm_90"]
LSTM = Problem("forward", K=4, H=512, B=16, G=1, itemsize=2)
GOOD = LaunchConfig(block_b=16, block_h=8, block_k=64)


@pytest.mark.parametrize("target", TARGET_LIMITS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_heuristic_finds_something_that_fits(target, direction):
    for K, H, B, G, itemsize, fma in itertools.product(
        (1, 4), (1, 7, 64, 1000, 8192), (1, 16, 17, 4096), (1, 2, 3000), (2, 4, 8), (False, True)
    ):
        problem = Problem(direction, K, H, B, G, itemsize, fma)
        heuristic(problem, TARGET_LIMITS[target]).check(problem, TARGET_LIMITS[target])


def test_heuristic_gives_every_multiprocessor_a_program_if_it_can():
    for H, B in ((512, 256), (2048, 16), (1024, 1024)):
        problem = replace(LSTM, H=H, B=B)
        assert heuristic(problem, H200).programs(problem) >= H200.multiprocessors
    # H = 512, B = 16 is too small for that: the smallest tiles that are worth a store.
    assert heuristic(LSTM, H200).block_h == LSTM.smallest_block_h


def test_heuristic_prefers_few_programs_on_one_multiprocessor():
    assert heuristic(LSTM, replace(H200, multiprocessors=1)).block_h == 32


def test_heuristic_shrinks_stages_then_pieces_then_tiles():
    problem = replace(LSTM, B=64, H=4096)
    chosen = [
        heuristic(problem, replace(H200, shared_memory=kib * 1024))
        for kib in (227, 100, 48, 24, 14)
    ]
    assert [c.num_stages for c in chosen] == [3, 2, 2, 2, 2]
    assert [c.block_k for c in chosen] == [128, 128, 64, 16, 16]
    assert [c.block_h for c in chosen] == [16, 16, 16, 16, 8]


def test_heuristic_says_when_nothing_fits():
    with pytest.raises(ValueError, match=r"tiny has 1,024 bytes of shared memory in a program"):
        heuristic(LSTM, DeviceLimits("tiny", multiprocessors=1, shared_memory=1024))


def test_batch_changes_the_choice_at_few_sizes_only():
    chosen = {heuristic(replace(LSTM, B=B), H200) for B in range(1, 400)}
    assert len({c.block_b for c in chosen}) == 3
    assert len(chosen) <= 4


@pytest.mark.parametrize(
    ("config", "limits", "message"),
    [
        (replace(GOOD, num_stages=40), H200, r"232,448 bytes of shared memory .* needs 247,808$"),
        (replace(GOOD, num_warps=64), H200, r"1,024 threads in a program.* needs 2,048$"),
        (replace(GOOD, block_b=1024), H200, r"128 accumulators in a thread.* needs 256$"),
        (GOOD, replace(H200, grid=63), r"63 programs in a launch.* needs 64$"),
        (replace(GOOD, block_h=12), H200, r"config.block_h: expected a power of two, got 12"),
        (replace(GOOD, num_warps=0), H200, r"config.num_warps: expected a power of two, got 0"),
        (replace(GOOD, block_k=8), H200, r"block_k is 8, tl.dot needs at least 16"),
        (replace(GOOD, block_h=2), H200, r"columns of a tile is 8, tl.dot needs at least 16"),
    ],
)
def test_check_names_the_limit_its_value_and_the_need(config, limits, message):
    GOOD.check(LSTM, H200)
    with pytest.raises(ValueError, match=message):
        config.check(LSTM, limits)


def test_wavefronts_of_64_threads_count():
    config = replace(GOOD, num_warps=32)
    config.check(LSTM, H200)
    with pytest.raises(ValueError, match="needs 2,048"):
        config.check(LSTM, replace(H200, warp_size=64))


def test_limits_of_a_device_that_triton_does_not_run_on():
    with pytest.raises(ValueError, match=r"expected a cuda .* device, got mps"):
        DeviceLimits.of(torch.device("mps"))


@pytest.mark.parametrize("opt_in", [232_448, None], ids=["cuda", "rocm"])
def test_limits_are_read_off_the_device(monkeypatch, opt_in):
    class Properties:
        name = "made up"
        multi_processor_count = 7
        shared_memory_per_block = 49_152
        warp_size = 64

    if opt_in is not None:
        Properties.shared_memory_per_block_optin = opt_in
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    limits = DeviceLimits.of(torch.device("cuda", 1))
    assert limits == DeviceLimits("made up", 7, opt_in or 49_152, warp_size=64)


@pytest.mark.parametrize("width", [1, 20, 64, 70])
def test_contiguous_activations_of_any_length_and_batch_share_one_alignment(width):
    units = set()
    for T, B, G in itertools.product((1, 2, 1000), (1, 3, 64), (1, 2)):
        sizes, strides = (T, B, G), (B * G * width, G * width, width)
        used = [s if size > 1 else 0 for s, size in zip(strides, sizes, strict=True)]
        units.add(sweep.alignment(width, used))
    assert len(units) == 1
    assert sweep.alignment(64, [1024, 66, 64]) == 2


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_precision_makes_variants_of_float32_only(cell, direction):
    def constants(dtype, precision):
        return sweep.constants(CELLS[cell], 8, dtype, GOOD, direction, precision=precision)

    assert constants(torch.bfloat16, "ieee") == constants(torch.bfloat16, "tf32")
    assert constants(torch.float64, "ieee") == constants(torch.float64, "tf32x3")
    assert constants(torch.float32, "ieee") != constants(torch.float32, "tf32")
