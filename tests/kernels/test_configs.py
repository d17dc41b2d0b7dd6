"""Plans, heuristics and limit checks, with devices made up on the spot: no GPU, no compiler."""

import itertools
import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")

from fastrnn_kernels import sweep
from fastrnn_kernels.cells import CELLS
from fastrnn_kernels.configs import (
    INTERPRETER_LIMITS,
    TARGET_LIMITS,
    DeviceLimits,
    Problem,
    StepConfig,
)
from fastrnn_kernels.configs import step_heuristic as heuristic
from fastrnn_kernels.model import Rates, estimate
from fastrnn_kernels.onchip import GridConfig, ResidentConfig
from fastrnn_kernels.plan import candidates, plan, reason_against, steps_class

H200 = TARGET_LIMITS["sm_90"]
LSTM = Problem("forward", K=4, H=512, B=16, G=1, itemsize=2)
BACK = replace(LSTM, direction="backward")
GOOD = StepConfig(block_b=16, block_h=8, block_k=64)


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


def test_programs_that_are_certain_to_run_together():
    # 255 registers for 128 threads leave room for two programs on a multiprocessor, not three.
    assert H200.resident_programs(128, 1024) == 2 * 132
    assert H200.resident_programs(256, 1024) == 132
    assert H200.resident_programs(128, 120 * 1024) == 132
    # Two of 113 KiB and the driver's 1 KiB each are all of 228 KiB.
    assert H200.resident_programs(128, 113 * 1024) == 2 * 132
    assert H200.resident_programs(128, 228 * 1024) == 0


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


WIDE = replace(LSTM, H=1024)
GRID = GridConfig(block_b=16, block_h=8, block_k=256, lanes=1, ahead=1)


def planned(H, *, B=16, K=4, G=1, itemsize=2, limits=H200, **changes):
    return plan(Problem("forward", K, H, B, G, itemsize, cell_state=K == 4, **changes), limits)


@pytest.mark.parametrize(
    ("H", "K", "itemsize", "regime"),
    [
        (16, 4, 2, "resident"),
        (64, 4, 2, "grid"),  # a resident LSTM's step has seven times as many barriers
        (256, 1, 2, "resident"),
        (256, 4, 2, "grid"),
        (1024, 4, 2, "grid"),
        (1024, 4, 4, "grid"),
        (1536, 4, 2, "grid"),
        (3000, 1, 2, "grid"),
        (2048, 4, 2, "step"),
        (1536, 4, 4, "step"),
    ],
)
def test_regimes_by_size(H, K, itemsize, regime):
    found = planned(H, K=K, itemsize=itemsize)
    assert found.config.regime == regime
    assert set(found.against) == {"resident", "grid", "step"} - {regime}
    assert found.explain().startswith(f"{regime}: ")


def test_a_plan_fits_and_is_the_least_estimate():
    for K, H, B, G, itemsize in itertools.product(
        (1, 4), (1, 33, 200, 1000, 1536), (1, 17, 300), (1, 2), (2, 4)
    ):
        problem = Problem("forward", K, H, B, G, itemsize, cell_state=K == 4)
        found = plan(problem, H200)
        found.config.check(problem, H200)
        for other in candidates(problem, H200):
            other.check(problem, H200)
            assert estimate(other, problem, H200, Rates()).seconds(128) >= found.estimate.seconds(
                128
            )


def test_grid_never_has_more_programs_than_run_together():
    for direction, H, B, G, itemsize in itertools.product(
        ("forward", "backward"), (130, 512, 1024), (1, 64, 1000), (1, 2, 40), (2, 4)
    ):
        problem = Problem(direction, 4, H, B, G, itemsize)
        for config in candidates(problem, H200, "grid"):
            threads = 32 * config.num_warps
            room = H200.resident_programs(threads, config.shared_memory(problem))
            assert config.programs(problem) <= room
    together = r"264 programs of this size that are certain to run at the same time.* needs 384$"
    with pytest.raises(ValueError, match=together):
        replace(GRID, lanes=3).check(WIDE, H200)
    replace(GRID, lanes=2).check(WIDE, H200)
    # The directions of a layer need programs each.
    with pytest.raises(ValueError, match=together):
        GRID.check(replace(WIDE, G=3), H200)


def test_both_directions_cost_little_more_than_one_while_both_fit():
    for direction, H in itertools.product(("forward", "backward"), (192, 256, 512)):
        one, two = (plan(replace(LSTM, direction=direction, H=H, G=G), H200) for G in (1, 2))
        assert two.config.regime == one.config.regime == "grid"
        assert two.estimate.step <= 1.15 * one.estimate.step


def test_a_contraction_is_shared_where_reading_gate_gradients_costs_more_than_a_wait():
    def splits(**changes):
        config = plan(replace(BACK, **changes), H200, "grid").config
        assert isinstance(config, GridConfig)
        return config.splits

    assert splits(H=256) == 1
    assert splits(H=1024) > 1
    assert splits(H=1024, K=1, cell_state=False) == 1
    assert splits(H=1024, B=64) > 1
    # an odd number of gate gradients cannot be shared, nor one whose parts no tile divides
    assert splits(H=333, K=1, cell_state=False) == 1
    assert splits(H=1030) == 1


def test_a_shared_contraction_must_be_divisible():
    with pytest.raises(ValueError, match=r"config.splits: expected a divisor of 333, got 2"):
        replace(GRID, block_h=8, splits=2).check(replace(BACK, K=1, H=333), H200)


@pytest.mark.parametrize(
    ("regime", "problem", "limits", "reason"),
    [
        ("resident", WIDE, H200, "has 232,448 bytes of shared memory in a program, 8,"),
        ("grid", replace(WIDE, H=4096), H200, "shared memory|at the same time"),
        ("grid", replace(WIDE, G=200), H200, "certain to run at the same time"),
        ("grid", replace(WIDE, fma=True, itemsize=4), H200, "ordinary cores"),
        ("resident", replace(WIDE, H=64, fma=True, itemsize=4), H200, "for ordinary cores"),
        ("grid", WIDE, TARGET_LIMITS["gfx942"], "cannot wait for each other on MI300X"),
        ("grid", replace(WIDE, H=4096, direction="backward"), H200, "H100/H200 has"),
        ("resident", replace(WIDE, direction="backward"), H200, "bytes of shared memory"),
        ("grid", replace(WIDE, itemsize=4, terms=3), H200, "H100/H200 has"),
    ],
)
def test_reasons_against_a_regime(regime, problem, limits, reason):
    found = reason_against(regime, problem, limits)
    assert re.search(reason, found)
    with pytest.raises(ValueError, match=f"regime: '{regime}' cannot run: "):
        plan(problem, limits, regime)
    assert plan(problem, limits).against[regime] == found


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("regime", ["resident", "grid", "step"])
def test_nothing_speaks_against_a_regime_that_has_a_candidate(regime, direction):
    for K, H, B, itemsize, fma in itertools.product(
        (1, 4), (1, 32, 70, 256, 900, 1800), (1, 100), (2, 4), (False, True)
    ):
        problem = Problem(direction, K, H, B, 1, itemsize, fma)
        some = next(iter(candidates(problem, H200, regime)), None)
        assert (some is None) == (reason_against(regime, problem, H200) is not None)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (replace(GRID, block_h=12), "config.block_h: expected a power of two, got 12"),
        (replace(GRID, block_b=128), "sums in a thread.* needs 128$"),
        (replace(GRID, block_k=16, num_warps=1), "pieces of a contraction.* needs 64$"),
        (replace(GRID, block_k=8), "block_k is 8, tl.dot needs at least 16"),
        (replace(GRID, num_warps=16), "8 warps that share a contraction.* needs 16$"),
        (replace(GRID, block_h=2), "columns of a tile is 8, tl.dot needs at least 16"),
        (replace(GRID, splits=2), "config.splits: expected 1 in a forward pass, got 2"),
        (ResidentConfig(16, 1024), "gates and states in a thread|bytes of shared memory"),
        (ResidentConfig(8, 1024), "block_b is 8, tl.dot needs at least 16"),
        (ResidentConfig(16, 128), "has 128 hidden units"),
    ],
)
def test_check_of_on_chip_configurations(config, message):
    with pytest.raises(ValueError, match=message):
        config.check(WIDE, H200)


def test_lengths_and_batches_make_few_kernels():
    """T and B are no arguments of the compiler: only tiles are, and lanes are not among them."""
    for H in (64, 256, 1024):
        kernels = set()
        for T, B in itertools.product((1, 2, 3, 17, 100, 1000, 70_000), range(1, 300, 7)):
            found = plan(replace(LSTM, H=H, B=B), H200, steps=steps_class(T)).config
            kernels.add((found.regime, tuple(found.blocks("forward").items()), found.num_warps))
            assert "lanes" not in found.blocks("forward")
        assert len(kernels) <= 12
    assert {steps_class(T) for T in range(1, 5000)} == {1, 2, 4, 8, 16, 32, 64, 128}


def test_one_step_is_not_worth_loading_weights_on_chip():
    assert plan(WIDE, H200, steps=1).config.regime == "step"


def test_slower_exchange_turns_the_choice():
    slow = Rates(exchange=20e-6)
    assert plan(WIDE, H200, rates=slow).config.regime == "step"
    assert "grid" in plan(WIDE, H200, rates=slow).against


def test_estimates_grow_with_the_work():
    steps = [planned(H).estimate.step for H in (256, 512, 768, 1024, 1536)]
    assert steps == sorted(steps)
    assert planned(1024, B=64).estimate.step > planned(1024, B=16).estimate.step
    assert planned(1024, itemsize=4).estimate.step > planned(1024).estimate.step
    assert planned(512, itemsize=4, terms=3).estimate.step > planned(512, itemsize=4).estimate.step


def test_interpreter_has_every_regime():
    for regime in ("resident", "grid", "step"):
        assert reason_against(regime, replace(LSTM, H=70), INTERPRETER_LIMITS) is None
