"""Which regime and configuration runs a problem: the least estimate among those that fit.

A pure function of sizes and limits, with no GPU and no Triton: the same choice on every run, and
testable with devices made up on the spot.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from .configs import DeviceLimits, LaunchConfig, Problem, Regime, power_of_two, step_heuristic
from .model import Estimate, Rates, estimate
from .onchip import (
    grid_candidates,
    reason_against_grid,
    reason_against_resident,
    resident_candidates,
)

REGIMES: tuple[Regime, ...] = ("resident", "grid", "step")
TYPICAL_STEPS = 128


@dataclass(frozen=True)
class Plan:
    """What was chosen, what it is expected to cost, and why the other regimes were not.

    Attributes:
        config: the configuration; its class says the regime.
        estimate: of `model.estimate`.
        against: for each other regime, why it cannot run or what it would cost.
    """

    config: LaunchConfig
    estimate: Estimate
    against: dict[Regime, str]

    def explain(self) -> str:
        """One line: regime, programs, microseconds a step by part."""
        parts = ", ".join(
            f"{name} {value:.2f}" for name, value in self.estimate.parts.items() if value >= 0.005
        )
        return f"{self.config.regime}: {self.estimate.step * 1e6:.2f} us a step ({parts})"


def candidates(
    problem: Problem, limits: DeviceLimits, regime: Regime | None = None
) -> Iterator[LaunchConfig]:
    """Every configuration that can run, of one regime or of all."""
    found: list[LaunchConfig] = []
    if problem.chained:  # programs of several groups that wait for each other: there is one regime
        if regime not in (None, "grid"):
            return
        regime = "grid"
    if regime in (None, "resident"):
        found += resident_candidates(problem)
    if regime in (None, "grid") and limits.exchange:
        found += grid_candidates(problem, limits)
    for config in found:
        if all(needed <= limit for _, needed, limit in config.needs(problem, limits)):
            yield config
    if regime in (None, "step"):
        yield step_heuristic(problem, limits)


def reason_against(regime: Regime, problem: Problem, limits: DeviceLimits) -> str | None:
    """Why a regime cannot run a problem on a device; None if it can."""
    if problem.chained and regime != "grid":
        return "layers are run at the same time in the grid regime only"
    if regime == "step":
        return None
    if regime == "resident":
        return reason_against_resident(problem, limits)
    return reason_against_grid(problem, limits)


def steps_class(T: int) -> int:
    """T as far as a plan depends on it: a power of two, so that few plans are made for many T."""
    return min(power_of_two(T), TYPICAL_STEPS)


@lru_cache(maxsize=1024)
def plan(
    problem: Problem,
    limits: DeviceLimits,
    regime: Regime | Literal["auto"] = "auto",
    steps: int = TYPICAL_STEPS,
    rates: Rates | None = None,
) -> Plan:
    """Choose a configuration.

    Args:
        problem: sizes.
        limits: of the device.
        regime: one to choose within; "auto" for the cheapest.
        steps: T, as far as it matters: the number of steps over which a start is spread.
        rates: of the device; by default those of `model.Rates`.

    Raises:
        ValueError: the regime cannot run the problem on the device; the message says why.
    """
    rates = rates or Rates()
    best: dict[Regime, tuple[LaunchConfig, Estimate]] = {}
    for config in candidates(problem, limits, None if regime == "auto" else regime):
        found = estimate(config, problem, limits, rates)
        own = best.get(config.regime)
        if own is None or found.seconds(steps) < own[1].seconds(steps):
            best[config.regime] = config, found
    if not best:
        if regime == "auto":
            assert problem.chained  # else the step regime runs everything or raises
            regime = "grid"
        reason = reason_against(regime, problem, limits)
        raise ValueError(f"regime: {regime!r} cannot run: {reason}")
    chosen = min(best, key=lambda name: best[name][1].seconds(steps))
    against: dict[Regime, str] = {}
    for other in REGIMES if regime == "auto" else ():
        if other == chosen:
            continue
        reason = reason_against(other, problem, limits)
        if reason is None:
            reason = f"estimated at {best[other][1].step * 1e6:.2f} us a step"
        against[other] = reason
    return Plan(*best[chosen], against)
