"""Plans of layers that run at the same time: no GPU, no compiler."""

import itertools
import re
from dataclasses import replace

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")

from fastrnn_kernels.configs import INTERPRETER_LIMITS, MIN_DOT, TARGET_LIMITS, Problem
from fastrnn_kernels.model import Rates, estimate
from fastrnn_kernels.onchip import MAX_PIECES, GridConfig
from fastrnn_kernels.plan import candidates, plan, reason_against

H200 = TARGET_LIMITS["sm_90"]
ALONE = Problem("forward", K=4, H=512, B=16, G=2, itemsize=2)
LAYERS = replace(ALONE, chained=True)
GRID = GridConfig(block_b=16, block_h=8, block_k=64, lanes=1, ahead=1)
OTHERS = "the other group's product"
directions = pytest.mark.parametrize("direction", ["forward", "backward"])


def of(direction, problem=LAYERS, **changes):
    return replace(problem, direction=direction, **changes)


def config_of(direction):
    """One with the least columns, whose product is short."""
    return replace(GRID, block_h=4 if direction == "forward" else MIN_DOT)


@directions
def test_layers_have_the_grid_regime_only(direction):
    problem = of(direction)
    found = plan(problem, H200)
    assert {config.regime for config in candidates(problem, H200)} == {"grid"}
    assert found.config.regime == "grid"
    for regime in ("resident", "step"):
        reason = "layers are run at the same time in the grid regime only"
        assert list(candidates(problem, H200, regime)) == []
        assert found.against[regime] == reason_against(regime, problem, H200) == reason
        with pytest.raises(ValueError, match=f"regime: '{regime}' cannot run: {reason}"):
            plan(problem, H200, regime)
    assert plan(problem, H200, "grid").config == found.config
    assert plan(problem, H200, steps=1).config.regime == "grid"  # which one layer would not have


@directions
def test_a_plan_fits_and_is_the_least_estimate(direction):
    for K, H, B, G, itemsize in itertools.product((1, 4), (5, 33, 200), (1, 40), (2, 4), (2, 4)):
        problem = Problem(direction, K, H, B, G, itemsize, cell_state=K == 4, chained=True)
        found = plan(problem, H200)
        found.config.check(problem, H200)
        steps = [estimate(each, problem, H200, Rates()) for each in candidates(problem, H200)]
        assert found.estimate.seconds(128) == min(each.seconds(128) for each in steps)
        threads = 32 * found.config.num_warps
        room = H200.resident_programs(threads, found.config.shared_memory(problem))
        assert found.config.programs(problem) <= room


@directions
def test_weights_count_twice(direction):
    # Of 1,024 units two layers with two matrices each take 33.6 MB; 132 processors have 30.7 MB.
    alone, layers = of(direction, ALONE, H=1024), of(direction, H=1024)
    plan(alone, H200, "grid")
    limit = r"(programs of this size that are certain to run at the same time|bytes of shared memo)"
    reason = reason_against("grid", layers, H200)
    assert re.match(rf"H100/H200 has [1-9][\d,]* {limit}.*, [\d,]+ are needed$", reason)
    with pytest.raises(ValueError, match=f"^regime: 'grid' cannot run: {re.escape(reason)}$"):
        plan(layers, H200)

    config = replace(GRID, block_h=32)
    assert config.weights(layers) == 2 * config.weights(alone)
    more = config.shared_memory(layers) - config.shared_memory(alone)
    assert more == config.weights(alone)


@directions
def test_a_program_that_fits_one_layer_may_not_fit_two_matrices(direction):
    alone, layers = of(direction, ALONE), of(direction)
    config = config_of(direction)
    memory = config.shared_memory(alone)
    own = {"shared_memory": memory, "multiprocessor_memory": memory + 1024}
    limits = replace(H200, multiprocessors=1000, **own)
    config.check(alone, limits)
    with pytest.raises(ValueError, match=r"at the same time|bytes of shared memory"):
        config.check(layers, limits)


@directions
def test_pieces_of_both_products_count(direction):
    config = config_of(direction)
    H = 17 * 4 * 64 // (1 if direction == "forward" else 4)  # 17 pieces of 64, one a warp
    alone, layers = of(direction, ALONE, H=H), of(direction, H=H)
    limits = replace(H200, multiprocessors=10_000)
    config.check(alone, limits)
    # 16 for the sums, and 2 for each of 34 pieces
    with pytest.raises(ValueError, match=r"has 80 values in a thread of two .* needs 84$"):
        config.check(layers, limits)
    smaller = of(direction, H=700, B=64)
    assert all(2 * each.pieces(smaller) <= MAX_PIECES for each in candidates(smaller, H200))


@directions
def test_the_other_groups_product_costs_what_the_wait_does_not_hide(direction):
    alone, layers, config = of(direction, ALONE), of(direction), config_of(direction)

    def cost(problem, exchange):
        return estimate(config, problem, H200, Rates(exchange=exchange, exchange_of_one=0.0))

    long = cost(layers, 10e-6)
    assert long.parts[OTHERS] == 0
    assert long.step == cost(alone, 10e-6).step
    short, shorter = cost(layers, 0.2e-6), cost(layers, 0.1e-6)
    assert 0 < short.parts[OTHERS] < shorter.parts[OTHERS]
    # The product is begun when the step before is done, and takes longer than what it waits for.
    assert short.step == pytest.approx(shorter.step)
    more = (short.step - cost(alone, 0.2e-6).step) * 1e6
    assert short.parts[OTHERS] == pytest.approx(more)
    assert OTHERS not in cost(alone, 0.2e-6).parts


@directions
def test_a_program_with_several_batch_tiles_hides_no_product(direction):
    config = config_of(direction)

    def cost(problem, B, exchange):
        rates = Rates(exchange=exchange, exchange_of_one=0.0)
        return estimate(config, of(direction, problem, B=B), H200, rates)

    # Its time is all work, and each of four tiles pays for the product that no wait hides.
    unhidden = cost(LAYERS, 16, 0.0).parts[OTHERS] * 1e-6
    more = cost(LAYERS, 64, 0.7e-6).step - cost(ALONE, 64, 0.7e-6).step
    assert more == pytest.approx(4 * unhidden)


@directions
def test_explain_names_the_other_groups_product_where_it_shows(direction):
    shown = plan(of(direction), H200, rates=Rates(exchange=0.05e-6)).explain()
    assert re.match(rf"grid: \d\.\d\d us a step \(exchange .*{OTHERS} \d\.\d\d, .*\)$", shown)
    assert OTHERS not in plan(of(direction), H200, rates=Rates(exchange=20e-6)).explain()
    assert OTHERS not in plan(of(direction, ALONE), H200).explain()


@pytest.mark.parametrize(
    ("changes", "target", "reason"),
    [
        ({}, "gfx942", "programs of one launch cannot wait for each other on MI300X"),
        ({"H": 4096}, "sm_90", "H100/H200 has "),
        ({"G": 200}, "sm_90", "certain to run at the same time, "),
        ({"fma": True, "itemsize": 4}, "sm_90", "ordinary cores"),
    ],
)
@directions
def test_no_plan_is_an_error_that_names_the_reason(direction, changes, target, reason):
    with pytest.raises(ValueError, match=f"^regime: 'grid' cannot run: .*{reason}"):
        plan(of(direction, **changes), TARGET_LIMITS[target])


@directions
def test_two_layers_at_the_same_time_cost_less_than_one_after_the_other(direction):
    one = plan(of(direction, ALONE, G=1), H200)
    two = plan(of(direction), H200)
    # More than half of a step is waiting, or the same for any work, and is paid once.
    waits = ("exchange", "L2 latency", "exchange of sums", "barriers")
    once = sum(one.estimate.parts.get(name, 0.0) for name in waits)
    assert once * 1e-6 > one.estimate.step / 2
    assert two.estimate.step < 1.5 * one.estimate.step


def test_the_interpreter_runs_layers():
    for direction, G, fma in itertools.product(("forward", "backward"), (2, 3, 8), (False, True)):
        problem = of(direction, H=70, G=G, itemsize=4)
        assert plan(problem, INTERPRETER_LIMITS).config.regime == "grid"
        assert (
            reason_against("grid", replace(problem, fma=fma), INTERPRETER_LIMITS) is None
        ) != fma
