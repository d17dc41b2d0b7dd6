"""How a matrix product is cut up, with devices made up on the spot: no GPU, no compiler."""

import itertools
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")

from fastrnn_kernels.configs import TARGET_LIMITS, DeviceLimits
from fastrnn_kernels.matmul_configs import (
    LARGEST,
    MIN_DEPTH,
    PRECISIONS,
    MatmulConfig,
    MatmulProblem,
    heuristic,
)

H200 = TARGET_LIMITS["sm_90"]
GOOD = MatmulConfig(64, 64, 32, num_warps=4)
PROBLEM = MatmulProblem(1, 1000, 300, 5000, "tf32")


@pytest.mark.parametrize("target", TARGET_LIMITS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_heuristic_finds_something_that_fits(target, precision):
    limits = TARGET_LIMITS[target]
    for G, M, N, K in itertools.product((1, 2), (1, 33, 4096, 2**27), (1, 70, 8192), (1, 2**20)):
        problem = MatmulProblem(G, M, N, K, precision)
        config = heuristic(problem, limits)
        config.check(problem, limits)
        assert config.used_splits(problem) <= config.splits


@pytest.mark.parametrize("precision", PRECISIONS)
def test_splits_cover_the_sum_once_and_none_is_empty(precision):
    for K, splits in itertools.product((1, 15, 16, 17, 1000, 4097), (1, 2, 3, 7, 100)):
        problem = replace(PROBLEM, K=K, precision=precision)
        config = replace(LARGEST[precision], splits=splits)
        used, depth = config.used_splits(problem), config.pieces(problem) * config.block_k
        assert 1 <= used <= splits
        assert (used - 1) * depth < K <= used * depth


def test_long_sums_are_split_and_short_ones_cut_into_smaller_tiles():
    weight_gradient = heuristic(MatmulProblem(1, 2048, 512, 16384, "tf32"), H200)
    assert (weight_gradient.block_m, weight_gradient.block_n) == (128, 128)
    assert weight_gradient.splits == 4
    projection = heuristic(MatmulProblem(1, 2048, 512, 512, "tf32"), H200)
    assert (projection.block_m, projection.block_n, projection.splits) == (64, 64, 1)
    large = heuristic(MatmulProblem(1, 16384, 2048, 512, "tf32"), H200)
    assert large == LARGEST["tf32"]


def test_no_split_is_shorter_than_pays():
    for K in (1, MIN_DEPTH, 2 * MIN_DEPTH - 1):
        assert heuristic(MatmulProblem(1, 32, 32, K, "ieee"), H200).splits == 1
    assert heuristic(MatmulProblem(1, 32, 32, 2 * MIN_DEPTH, "ieee"), H200).splits == 2
    assert heuristic(MatmulProblem(1, 32, 32, 2**20, "ieee"), H200).splits == 2 * 132


@pytest.mark.parametrize("precision", PRECISIONS)
def test_lengths_and_batches_meet_few_kernels(precision):
    """The rows of a projection and the length of dW's sums are T * B."""
    kernels = set()
    for rows in range(1, 20_000, 7):
        for problem in (
            MatmulProblem(1, rows, 2048, 512, precision),
            MatmulProblem(1, 2048, 512, rows, precision),
        ):
            kernels.add(replace(heuristic(problem, H200), splits=1))
    assert len(kernels) <= 5


def test_short_sequences_of_a_small_layer_are_one_kernel():
    kernels = {heuristic(MatmulProblem(1, M, 48, 8, "tf32"), H200) for M in range(1, 1600)}
    assert len(kernels) == 1


def test_heuristic_shrinks_stages_then_pieces():
    chosen = [
        heuristic(MatmulProblem(1, 10**5, 512, 512, "tf32"), replace(H200, shared_memory=kib << 10))
        for kib in (227, 100, 80, 40)
    ]
    assert [c.num_stages for c in chosen] == [3, 3, 2, 2]
    assert [c.block_k for c in chosen] == [32, 32, 32, 16]


def test_heuristic_says_when_nothing_fits():
    tiny = DeviceLimits("tiny", multiprocessors=1, shared_memory=1024)
    with pytest.raises(ValueError, match=r"tiny has 1,024 bytes of shared memory in a program"):
        heuristic(PROBLEM, tiny)


@pytest.mark.parametrize(
    ("config", "limits", "message"),
    [
        (replace(GOOD, num_stages=40), H200, r"bytes of shared memory .* needs 655,424$"),
        (replace(GOOD, num_warps=64), H200, r"1,024 threads in a program.* needs 2,048$"),
        (replace(GOOD, block_m=1024), H200, r"128 accumulators in a thread.* needs 512$"),
        (GOOD, replace(H200, grid=79), r"79 programs in a launch.* needs 80$"),
        (replace(GOOD, splits=2), replace(H200, grid=80), r"80 programs .* needs 160$"),
        (replace(GOOD, block_n=48), H200, r"config.block_n: expected a power of two, got 48"),
        (replace(GOOD, num_warps=0), H200, r"config.num_warps: expected a power of two, got 0"),
        (replace(GOOD, block_k=8), H200, r"config.block_k: tl.dot needs at least 16, got 8"),
        (replace(GOOD, splits=0), H200, r"config.splits: expected at least 1, got 0"),
    ],
)
def test_check_names_the_limit_its_value_and_the_need(config, limits, message):
    GOOD.check(PROBLEM, H200)
    with pytest.raises(ValueError, match=message):
        config.check(PROBLEM, limits)
