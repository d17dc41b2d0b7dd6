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
from fastrnn.bench_cases import request_for
from fastrnn.precision import arch_of
from fastrnn_kernels.configs import TARGET_LIMITS, DeviceLimits, Direction, Problem, tiles
from fastrnn_kernels.model import Estimate, Rates, estimate
from fastrnn_kernels.onchip import GridConfig
from fastrnn_kernels.plan import REGIMES, plan, steps_class
from fastrnn_triton.cost import layers_at_once

if TYPE_CHECKING:
    from fastrnn.benchmark import Case
    from fastrnn_kernels import LaunchConfig

AUTO = "auto"
"""The kernels' own choice, which runs a stack layer by layer as the regimes do."""
LAYERS = "layers at once"
"""All layers of a stack in one launch, each a step behind the one below."""
DIRECTIONS: dict[str, tuple[Direction, ...]] = {
    "forward": ("forward",),
    "train": ("forward", "backward"),
}
"""Passes of a case, by its mode."""
FLOOR = ("exchange", "L2 latency", "operand from L2", "launch", "product")
"""Parts of the model's step that no kernel of that kind can do without."""
THROUGHPUT = ("operand from L2", "product")
"""Those that each batch tile of a program takes once more, and layers at once twice."""
OTHER = "the other group's product"
"""A part that only layers at once have: as far as it takes longer than the wait it falls into."""
ARCH = "sm_90"
"""Where there is no GPU, plans are for this one: an H100 or H200."""
TORCH_STEP = {"forward": 15e-6, "train": 45e-6}
"""Seconds of a step of torch.nn on such GPUs: forward as published, 7 to 15 us, in training about
three times that. For planning only."""
EXACT_STEP = {"forward": 100e-6, "train": 300e-6}
"""Seconds of a step of the reference backend: a dozen launches, and two dozen on the way back."""
SETUP = {"forward": 0.4, "train": 0.6}
"""Seconds of a case beside its calls: modules, inputs, kernels loaded from Triton's cache."""
PUBLISHED = Rates()


class Pass(NamedTuple):
    """One direction of a launch: what runs, and its estimate by the rates that were asked for."""

    config: LaunchConfig
    estimate: Estimate


class Outlook(NamedTuple):
    """What is expected of one implementation on one case."""

    against: str
    """Why it cannot run; empty if it can."""
    passes: tuple[Pass, ...] = ()
    """Of each launch, in the order of `DIRECTIONS`; none if it cannot run."""
    launches: int = 0
    """Of a pass: one a layer, or one for all layers at once."""
    steps: int = 0
    """Of a launch: T, and as many more as its last layer is behind its first."""

    def seconds(self) -> float:
        """Seconds of all passes of the whole stack, without the products around the steps."""
        return self.launches * sum(each.estimate.seconds(self.steps) for each in self.passes)


@functools.cache
def outlook(case: Case, name: Any, rates: Rates = PUBLISHED) -> Outlook:
    """What runs in a regime ("auto": the cheapest), and the time that the rates give to just that.

    Or with all layers at once (`LAYERS`), which takes a case of several layers in one direction.
    Configurations are chosen by the rates that `launch.py` goes by, whatever ``rates`` are.
    """
    limits = limits_of(case.device)
    chained = name == LAYERS
    passes = []
    for direction in DIRECTIONS[case.mode]:
        problem = Problem.of(
            direction, case.spec.gates, case.H, case.B,
            case.layers if chained else case.spec.directions, case.torch_dtype, "tf32",
            case.spec.has_cell_state, chained,
        )  # fmt: skip
        try:
            config = plan(problem, limits, AUTO if chained else name, steps_class(case.T)).config
        except ValueError as error:
            return Outlook(f"{direction}: {error}")
        passes.append(Pass(config, estimate(config, problem, limits, rates)))
    if chained:
        return Outlook("", tuple(passes), 1, case.T + case.layers - 1)
    return Outlook("", tuple(passes), case.layers, case.T)


@functools.lru_cache
def limits_of(device: str) -> DeviceLimits:
    """The device's limits; those of an H100 or H200 where there is no GPU, for plans."""
    if device == "cuda" and not torch.cuda.is_available():
        return TARGET_LIMITS[ARCH]
    return DeviceLimits.of(torch.device(device))


def at_once(case: Case) -> int:
    """How many layers the `triton` backend would run at once, where it may choose."""
    request = request_for(case._replace(device="cpu"))  # a GPU need not be there
    if case.device == "cuda":
        there = torch.cuda.is_available()
        arch = arch_of(torch.device("cuda")) if there else ARCH
        request = request._replace(device="cuda", arch=arch, precision="tf32", threads=0)
    return layers_at_once(request)


def chosen(case: Case) -> str:
    """What the `triton` backend takes: all layers at once, a regime, or `AUTO`.

    `AUTO` where the passes of a layer run in different regimes. Empty where it takes some of the
    layers at once, but not all: no implementation does that.
    """
    count = at_once(case)
    if count > 1:
        return LAYERS if count == case.layers else ""
    return _layer_by_layer(case)


def _layer_by_layer(case: Case) -> str:
    """What `AUTO` takes: a regime, or "auto" where its passes run in different ones."""
    regimes = {each.config.regime for each in outlook(case, AUTO).passes}
    return regimes.pop() if len(regimes) == 1 else AUTO


def candidates(case: Case) -> tuple[str, ...]:
    """Every regime, `AUTO` where it is none of them, and a stack's layers at once."""
    names: list[str] = [*REGIMES]
    if _layer_by_layer(case) == AUTO:
        names.append(AUTO)
    if case.layers > 1 and not case.bidirectional:
        names.append(LAYERS)
    return tuple(names)


def floor(expected: Outlook, case: Case) -> float:
    """Seconds of all steps of the stack that no kernel of its kind could do without."""
    steps = sum(_floor(config, found.parts, case) for config, found in expected.passes)
    return expected.launches * expected.steps * steps


def _floor(config: LaunchConfig, parts: dict[str, float], case: Case) -> float:
    """Of one step.

    Layers at once have two products. That with h of the layer below is made while a program waits
    for its own layer: what of it takes longer than this exchange comes on top.
    """
    one = sum(parts.get(name, 0.0) for name in FLOOR)
    turns = 1
    if isinstance(config, GridConfig):
        turns = tiles(tiles(case.B, config.block_b), config.lanes)
    throughput = sum(parts.get(name, 0.0) for name in THROUGHPUT)
    if OTHER in parts:
        one += max(0.0, throughput + parts["L2 latency"] - parts["exchange"])
        throughput *= 2
    return 1e-6 * max(one, turns * throughput)


def expected_seconds(case: Case, repeats: int) -> float:
    """How long measuring a case is expected to take, kernels compiled before."""
    layers = case.layers * case.spec.directions
    calls = [TORCH_STEP[case.mode] * case.T * layers]
    for name in candidates(case):
        expected = outlook(case, name)
        if expected.passes:
            calls.append(expected.seconds())
    total = SETUP[case.mode] + EXACT_STEP[case.mode] * case.T * layers
    if peer.takes(case) and peer.absent() is None:
        total += peer.BUILD_SECONDS
    for seconds in calls:
        count = math.ceil(bench.SAMPLE_SECONDS / seconds)
        # checked; as it is timed, for its memory; warmed up; timed twice to see how long it takes
        total += seconds * (2 + bench.WARM_UP + 2 + repeats * (1 + count))
    return total
