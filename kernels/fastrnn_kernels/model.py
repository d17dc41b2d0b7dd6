"""What a pass costs in each regime: an explained sum, from sizes and a device's rates.

A step is short (about a microsecond) and made of parts that follow one another, most of them
latencies. Each part is a line below. Nothing of it has been measured on a GPU by this project yet:
`Rates` holds published figures, to be replaced by those that `benchmarks/exchange.py` measures.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from .configs import (
    DeviceLimits,
    Direction,
    LaunchConfig,
    Problem,
    Regime,
    StepConfig,
    tiles,
)
from .onchip import GridConfig, ResidentConfig


@dataclass(frozen=True)
class Rates:
    """Rates of a GPU. Defaults: an H100 or H200 as published; sources beside each.

    Attributes:
        clock: cycles a second under load.
        exchange: seconds from the last program's store to all programs having seen its
            arrival (0.45 to 0.7 us published for a grid-wide exchange through L2, and a fence).
        exchange_of_one: further seconds per program that arrives at one counter.
        l2_latency: seconds of a load that hits L2 (about 270 cycles; far partition more).
        l2_bytes: bytes a cycle that one multiprocessor reads from L2.
        dram_bytes: bytes a second from device memory (3.35e12 published, three quarters attained).
        memory_bytes: bytes a cycle of a multiprocessor's shared memory.
        products: multiply-adds a cycle of a multiprocessor's tensor cores through mma.sync, by
            bytes of an operand (62 % of what wgmma reaches, by published micro-benchmarks).
        ordinary: multiply-adds a cycle of its ordinary cores.
        special: exp and reciprocals a cycle of its special-function units.
        chain: cycles from one dependent tensor-core product to the next.
        barrier: cycles of a barrier within a program, and of the way through shared memory that it
            guards (70 to 100, assumed).
        launch: seconds from one kernel of a CUDA graph to the next (1.2 to 1.3 us published).
        start: seconds of a call's first launch.
    """

    clock: float = 1.7e9
    exchange: float = 0.7e-6
    exchange_of_one: float = 1e-9
    l2_latency: float = 0.25e-6
    l2_bytes: float = 48.0
    dram_bytes: float = 2.5e12
    memory_bytes: float = 128.0
    products: tuple[tuple[int, float], ...] = ((2, 1270.0), (4, 635.0))
    ordinary: float = 128.0
    special: float = 16.0
    chain: float = 33.0
    barrier: float = 85.0
    launch: float = 1.3e-6
    start: float = 6e-6


# Depth of one tensor-core instruction, by bytes of an operand.
_MMA_DEPTH = {2: 16, 4: 8}

# `bar.sync` of a step in the PTX that Triton 3.7 makes for sm_90, of a cell of one gate and of one
# of four: nearly all stand around a change of layout. Counted at B = 16 in bfloat16, at H = 64
# (resident) and 512; those of an exchange are left out, being part of its rate. Larger tiles have
# more: a tanh network's resident ones from H = 128 on 4 forward and 8 back, those of a grid at
# B = 128 up to 6. An LSTM's step back has 18 to 38.
_BARRIERS: dict[tuple[Regime, Direction], tuple[int, int]] = {
    ("resident", "forward"): (6, 22),
    ("resident", "backward"): (10, 36),
    ("grid", "forward"): (3, 3),
    ("grid", "backward"): (3, 3),
    ("step", "forward"): (7, 7),
    ("step", "backward"): (10, 30),
}


def barriers(regime: Regime, problem: Problem) -> int:
    """Barriers of a step within a program, beside those of its exchanges."""
    one, four = _BARRIERS[regime, problem.direction]
    return one + (four - one) * (problem.K - 1) // 3


def least_step(rates: Rates) -> float:
    """Seconds of a step of which nothing is left but the barriers of a program."""
    return min(min(counts) for counts in _BARRIERS.values()) * rates.barrier / rates.clock


@dataclass(frozen=True)
class Estimate:
    """Seconds of one pass.

    Attributes:
        start: seconds beside the steps: launch, and reading W_hh once.
        step: seconds of a step.
        parts: the step's parts by name, in microseconds; some run at the same time as others.
    """

    start: float
    step: float
    parts: dict[str, float]

    def seconds(self, T: int) -> float:
        """Seconds of T steps."""
        return self.start + T * self.step


def estimate(
    config: LaunchConfig,
    problem: Problem,
    limits: DeviceLimits,
    rates: Rates,
) -> Estimate:
    """The cost of a configuration that `check` accepts."""
    if isinstance(config, ResidentConfig):
        found = _resident(config, problem, limits, rates)
    elif isinstance(config, GridConfig):
        found = _grid(config, problem, limits, rates)
    else:
        assert isinstance(config, StepConfig)
        found = _step(config, problem, limits, rates)
    # Beside all else, what comes from device memory and goes there comes and goes.
    dram = _traffic(problem) / rates.dram_bytes
    return replace(found, step=max(found.step, dram), parts={**found.parts, "DRAM": dram * 1e6})


def _traffic(problem: Problem) -> int:
    """Bytes of a step that no cache holds: forward gates_x and output, back what was saved."""
    if problem.direction == "forward":
        values = problem.K + 1
    else:  # gates, c and d_output, or h and d_output; and the gate gradients, which are written
        values = 2 * problem.K + 2 if problem.cell_state else problem.K + 2
    return values * problem.G * problem.B * problem.H * problem.itemsize


def _tile(
    regime: Regime,
    rows: int,
    units: int,
    columns: int,
    depth: int,
    parts: int,
    problem: Problem,
    rates: Rates,
) -> dict[str, float]:
    """Cycles of one program for one tile of one step, by part."""
    multiply_adds = rows * columns * depth * problem.terms
    if problem.fma:
        product = multiply_adds / rates.ordinary
    else:
        rate = multiply_adds / dict(rates.products).get(problem.itemsize, rates.ordinary)
        # Each warp's chain: its depth in instructions, as far as its tiles do not fill the wait.
        instructions = depth / parts / _MMA_DEPTH.get(problem.itemsize, 8) * problem.terms
        product = max(rate, instructions * rates.chain)
    weights = columns * depth * problem.itemsize / rates.memory_bytes
    state = 2 * rows * depth * problem.itemsize / rates.memory_bytes
    sums = 2 * parts * rows * columns * 4 / rates.memory_bytes if parts > 1 else 0.0
    # sigmoid and tanh are an exp and a reciprocal each: five of an LSTM's unit, one on the way back
    functions = 5 if problem.cell_state else 1
    if problem.direction == "backward":
        functions = int(problem.cell_state)
    point_wise = 2 * functions * rows * units / rates.special
    return {
        "product": max(product, weights + state),
        "sum of parts": sums,
        "cell": point_wise,
        "barriers": barriers(regime, problem) * rates.barrier,
    }


def _resident(
    config: ResidentConfig, problem: Problem, limits: DeviceLimits, rates: Rates
) -> Estimate:
    H = config.block_h
    # Back, each gate's product has a sum of its own: as many, and as deep, as forward.
    cycles = _tile("resident", config.block_b, H, problem.K * H, H, 1, problem, rates)
    waves = tiles(config.programs(problem), limits.multiprocessors)
    return _sum(cycles, {}, waves, problem.K * H * H * problem.itemsize, rates)


def _grid(config: GridConfig, problem: Problem, limits: DeviceLimits, rates: Rates) -> Estimate:
    piece = config.num_warps * config.block_k
    depth = config.pieces(problem) * piece
    rows, columns = config.block_b, config.columns(problem)
    cycles = _tile("grid", rows, config.block_h, columns, depth, config.num_warps, problem, rates)
    # Programs beyond one a multiprocessor share its units.
    shared = tiles(config.programs(problem), limits.multiprocessors)
    cycles["operand from L2"] = rows * depth * problem.itemsize / rates.l2_bytes
    # The first pieces' latency shows; that of later ones does as far as they are not ahead.
    loads = tiles(config.pieces(problem), config.ahead)
    arriving = config.tiles_h(problem) * config.splits * rates.exchange_of_one
    latency = loads * rates.l2_latency
    waits = {"exchange": rates.exchange + arriving, "L2 latency": latency}
    within = {}
    if config.splits > 1:
        cycles["sums to L2 and back"] = 2 * rows * columns * 4 / rates.l2_bytes
        within = {"exchange of sums": rates.exchange + rates.l2_latency}
    turns = tiles(tiles(problem.B, config.block_b), config.lanes)
    work = {name: value * shared for name, value in cycles.items()}
    before = 0.0
    if problem.chained:
        # A look at the other group's counter, and the product with what it made: they fall into
        # the wait for one's own group, as far as that is long enough.
        parts = ("product", "sum of parts", "operand from L2", "barriers")
        product = sum(work[name] for name in parts)
        before = rates.l2_latency + latency + product / rates.clock
        waits["the other group's product"] = max(0.0, before - waits["exchange"])
    busy = turns * (sum(work.values()) / rates.clock + sum(within.values()) + before)
    weights = columns * depth * problem.itemsize * problem.matrices
    one = _sum(work, {**waits, **within}, 1, weights, rates)
    # The counters are set to zero first; and while the first exchange of one batch tile is on its
    # way a program works on its others.
    return Estimate(one.start + rates.launch, max(one.step, busy), one.parts)


def _step(config: StepConfig, problem: Problem, limits: DeviceLimits, rates: Rates) -> Estimate:
    depth = tiles(problem.depth, config.block_k) * config.block_k
    width = problem.width(config.block_h)
    cycles = _tile("step", config.block_b, config.block_h, width, depth, 1, problem, rates)
    waves = tiles(config.programs(problem), limits.multiprocessors)
    streamed = (config.block_b + width) * depth * problem.itemsize
    # Both are streamed while products are formed.
    cycles["product"] = waves * max(cycles["product"], streamed / rates.l2_bytes)
    pieces = depth // config.block_k
    waits = {
        "launch": rates.launch,
        "L2 latency": rates.l2_latency * (1 + tiles(pieces, config.num_stages)),
    }
    return _sum(cycles, waits, 1, 0, rates)


def _sum(
    cycles: dict[str, float],
    waits: dict[str, float],
    waves: int,
    weights: int,
    rates: Rates,
) -> Estimate:
    """A step that does its parts one after another; ``weights``: bytes read before the first."""
    parts = {name: seconds * 1e6 for name, seconds in waits.items()}
    parts |= {name: value * waves / rates.clock * 1e6 for name, value in cycles.items()}
    start = rates.start + waves * weights / rates.l2_bytes / rates.clock
    return Estimate(start, sum(parts.values()) * 1e-6, parts)
