"""What is expected of a case of `benchmarks/regimes.py`: what can run it, how long, the least time.

All of it comes from the cost model of `fastrnn_kernels`, and none of it needs a GPU.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from benchmarks import peer
from fastrnn import bench
from fastrnn_kernels.configs import TARGET_LIMITS, DeviceLimits, Direction, Problem, tiles
from fastrnn_kernels.model import Estimate, Rates, estimate
from fastrnn_kernels.onchip import GridConfig
from fastrnn_kernels.plan import REGIMES, plan, steps_class

if TYPE_CHECKING:
    from fastrnn.bench_cases import Case
    from fastrnn_kernels import LaunchConfig

AUTO = "auto"
DIRECTIONS: dict[str, tuple[Direction, ...]] = {
    "forward": ("forward",),
    "train": ("forward", "backward"),
}
"""Passes of a case, by its mode."""
FLOOR = ("exchange", "L2 latency", "operand from L2", "launch", "product")
"""Parts of the model's step that no kernel of that regime can do without."""
THROUGHPUT = ("operand from L2", "product")
"""Those that each batch tile of a program takes once more."""
TORCH_STEP = {"forward": 15e-6, "train": 45e-6}
"""Seconds of a step of torch.nn on such GPUs: forward as published, 7 to 15 us, in training about
three times that. For planning only."""
EXACT_STEP = {"forward": 100e-6, "train": 300e-6}
"""Seconds of a step of the reference backend: a dozen launches, and two dozen on the way back."""
SETUP = {"forward": 0.4, "train": 0.6}
"""Seconds of a case beside its calls: modules, inputs, kernels loaded from Triton's cache."""
PUBLISHED = Rates()


class Pass(NamedTuple):
    """One direction of a layer: what runs, and its estimate by the rates that were asked for."""

    config: LaunchConfig
    estimate: Estimate


class Outlook(NamedTuple):
    """What is expected of one regime on one case."""

    against: str
    """Why it cannot run; empty if it can."""
    passes: tuple[Pass, ...]
    """Of each layer, in the order of `DIRECTIONS`; none if it cannot run."""

    def seconds(self, T: int) -> float:
        """Seconds of all passes of one layer."""
        return sum(each.estimate.seconds(T) for each in self.passes)


@functools.cache
def outlook(case: Case, regime: Any, rates: Rates = PUBLISHED) -> Outlook:
    """What runs in a regime ("auto": the cheapest), and the time that the rates give to just that.

    Configurations are chosen by the rates that `launch.py` goes by, whatever ``rates`` are.
    """
    limits = limits_of(case.device)
    passes = []
    for direction in DIRECTIONS[case.mode]:
        problem = Problem.of(
            direction, case.spec.gates, case.H, case.B, case.spec.directions, case.torch_dtype,
            "tf32", case.spec.has_cell_state,
        )  # fmt: skip
        try:
            config = plan(problem, limits, regime, steps_class(case.T)).config
        except ValueError as error:
            return Outlook(f"{direction}: {error}", ())
        passes.append(Pass(config, estimate(config, problem, limits, rates)))
    return Outlook("", tuple(passes))


@functools.lru_cache
def limits_of(device: str) -> DeviceLimits:
    """The device's limits; those of an H100 or H200 where there is no GPU, for plans."""
    if device == "cuda" and not torch.cuda.is_available():
        return TARGET_LIMITS["sm_90"]
    return DeviceLimits.of(torch.device(device))


def chosen(case: Case) -> str:
    """What `auto` takes: a regime, or "auto" where its passes run in different ones."""
    regimes = {each.config.regime for each in outlook(case, AUTO).passes}
    return regimes.pop() if len(regimes) == 1 else AUTO


def candidates(case: Case) -> tuple[str, ...]:
    """Every regime, and `auto` where it is none of them."""
    return REGIMES if chosen(case) in REGIMES else (*REGIMES, AUTO)


def floor(expected: Outlook, case: Case) -> float:
    """Seconds of a layer's steps that no kernel of the regime could do without."""
    return sum(_floor(config, found.parts, case) for config, found in expected.passes)


def _floor(config: LaunchConfig, parts: dict[str, float], case: Case) -> float:
    one = sum(parts.get(name, 0.0) for name in FLOOR)
    turns = 1
    if isinstance(config, GridConfig):
        turns = tiles(tiles(case.B, config.block_b), config.lanes)
    several = turns * sum(parts.get(name, 0.0) for name in THROUGHPUT)
    return 1e-6 * case.T * max(one, several)


def expected_seconds(case: Case, repeats: int) -> float:
    """How long measuring a case is expected to take, kernels compiled before."""
    layers = case.layers * case.spec.directions
    calls = [TORCH_STEP[case.mode] * case.T * layers]
    for name in candidates(case):
        expected = outlook(case, name)
        if expected.passes:
            calls.append(case.layers * expected.seconds(case.T))
    total = SETUP[case.mode] + EXACT_STEP[case.mode] * case.T * layers
    if peer.takes(case) and peer.absent() is None:
        total += peer.BUILD_SECONDS
    for seconds in calls:
        count = math.ceil(bench.SAMPLE_SECONDS / seconds)
        # checked; as it is timed, for its memory; warmed up; timed twice to see how long it takes
        total += seconds * (2 + bench.WARM_UP + 2 + repeats * (1 + count))
    return total
