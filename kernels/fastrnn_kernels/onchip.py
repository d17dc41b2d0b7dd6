"""Configurations of the regimes that keep W_hh on chip, and every reason why one cannot run.

What fits, for H hidden units of an LSTM in 16 bits on a GPU with 227 KiB of shared memory a program
and 132 multiprocessors: `resident` up to 128, `grid` up to about 1,700, in either direction. Elman
networks have a quarter of the weights. Float32 as "tf32" takes twice the memory, as "tf32x3" four
times.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from .configs import (
    MIN_DOT,
    DeviceLimits,
    Direction,
    LaunchConfig,
    Problem,
    power_of_two,
    tiles,
)

# Columns of a product: 16 is tl.dot's least; beyond 128 no program has the registers.
GRID_COLUMNS = (16, 32, 64, 128)
# Programs that share a tile of columns on the way back, and hidden units that each must have.
GRID_SPLITS = (1, 2, 4, 8)
MIN_OWN_UNITS = 4
GRID_WARPS = (4, 8)
BLOCK_B = (16, 32, 64)
# What a thread may hold before the compiler spills, found by compiling: sums of a grid's tile times
# bytes of an operand (twice as many if all of h is loaded at once), gates and h of a resident one.
MAX_SUMS = 64
MAX_VALUES = 40
MAX_FMA_UNITS = 32
# Bytes of a row that are fetched from memory at once.
LINE = 128
# Unrolled pieces of a contraction: more take minutes to compile.
MAX_PIECES = 32
# Chained groups have two contractions. What their pieces take beside the sums, and on the way back
# the saved values of each hidden unit after the second of a thread; found as MAX_SUMS, in its unit.
MAX_CHAINED = 80
CHAINED_PIECE = 2
CHAINED_UNIT = 11
# Parts that `grid.sum_of_parts` can add up.
MAX_PARTS = 8


@dataclass(frozen=True)
class ResidentConfig(LaunchConfig):
    """Each program has all of W_hh; block_h covers all hidden units."""

    regime = "resident"

    def programs(self, problem: Problem) -> int:
        """One for each batch tile of each group."""
        return tiles(problem.B, self.block_b) * problem.G

    def shared_memory(self, problem: Problem) -> int:
        """W_hh, and the tile of gates and one of h once, for changes of layout."""
        weights = _split(problem) * problem.K * self.block_h**2 * problem.itemsize
        return weights + self.block_b * self.block_h * (problem.K + 1) * problem.itemsize

    def dots(self, problem: Problem) -> dict[str, int]:
        """As the base class, and the other two dimensions."""
        return {**super().dots(problem), "block_h": self.block_h}

    def options(self, limits: DeviceLimits) -> dict[str, int | bool]:
        """As the base class, all registers, and no software pipelining: nothing to load ahead."""
        return {**super().options(limits), **all_registers(self, limits), "num_stages": 1}

    def needs(self, problem: Problem, limits: DeviceLimits) -> list[tuple[str, int, int]]:
        """As the base class, and registers for the gates of a step."""
        values = self.block_b * self.block_h * (problem.K + 1)
        held = values // (self.num_warps * limits.warp_size)
        return [
            ("hidden units", problem.H, self.block_h),
            ("gates and states in a thread", held, MAX_VALUES // problem.terms),
            # Ordinary cores hold a product's operands in registers, all of W_hh among them.
            ("hidden units for ordinary cores", self.block_h * problem.fma, MAX_FMA_UNITS),
            *super().needs(problem, limits),
        ]


@dataclass(frozen=True)
class GridConfig(LaunchConfig):
    """W_hh split over programs by hidden units; each warp contracts one part of what is exchanged.

    Forward a tile has the K * block_h gates of block_h units, and h is exchanged. On the way back
    `splits` programs share a tile of splits * block_h units, and gate gradients are exchanged.

    Attributes:
        block_k: length of a piece of one part of the contraction.
        lanes: programs that share the batch tiles of a group between them.
        ahead: pieces of the operand asked for before the first is multiplied.
        splits: programs that share the contraction of a tile; 1 forward.
    """

    regime = "grid"
    counts = ("lanes", "ahead")

    block_k: int
    lanes: int
    ahead: int
    splits: int = 1

    def columns(self, problem: Problem) -> int:
        """Columns of a product."""
        return problem.width(self.block_h * self.splits)

    def pieces(self, problem: Problem) -> int:
        """Pieces of the contraction, num_warps * block_k long."""
        return tiles(problem.depth // self.splits, self.num_warps * self.block_k)

    def tiles_h(self, problem: Problem) -> int:
        """Tiles of hidden units."""
        return tiles(problem.H, self.block_h * self.splits)

    def programs(self, problem: Problem) -> int:
        """All of them wait for each other."""
        return problem.G * self.lanes * self.tiles_h(problem) * self.splits

    def weights(self, problem: Problem) -> int:
        """Bytes of its part of W_hh, and of the weights of h of the group below."""
        depth = self.pieces(problem) * self.num_warps * self.block_k * problem.matrices
        return _split(problem) * depth * self.columns(problem) * problem.itemsize

    def piece(self, problem: Problem) -> int:
        """Bytes of a piece of the operand, of all parts."""
        return self.block_b * self.num_warps * self.block_k * problem.itemsize

    def shared_memory(self, problem: Problem) -> int:
        """Its part of W_hh, and either the pieces on their way or the parts to be summed."""
        parts = self.num_warps * self.block_b * self.columns(problem) * 4
        return self.weights(problem) + max(self.ahead * self.piece(problem), parts)

    def blocks(self, direction: Direction) -> dict[str, int]:
        """As the base class, and how the contraction is cut."""
        cut = {"BLOCK_K": self.block_k, "PARTS": self.num_warps, "AHEAD": self.ahead}
        if direction == "backward":
            cut["SPLITS"] = self.splits
        return {**super().blocks(direction), **cut}

    def dots(self, problem: Problem) -> dict[str, int]:
        """As the base class, and the other two dimensions."""
        columns = {"block_k": self.block_k, "columns of a tile": self.columns(problem)}
        return {**super().dots(problem), **columns}

    def check(self, problem: Problem, limits: DeviceLimits) -> None:
        """As the base class, and that the contraction can be shared."""
        super().check(problem, limits)
        if problem.direction == "forward" and self.splits != 1:
            raise ValueError(f"config.splits: expected 1 in a forward pass, got {self.splits}")
        if problem.depth % self.splits:
            raise ValueError(
                f"config.splits: expected a divisor of {problem.depth}, got {self.splits}"
            )

    def options(self, limits: DeviceLimits) -> dict[str, int | bool]:
        """Cooperative: the driver refuses what cannot run at the same time.

        Software pipelining (num_stages > 1) would load what the others have not stored yet.
        """
        options = {**super().options(limits), **all_registers(self, limits), "num_stages": 1}
        return {**options, "launch_cooperative_grid": True}

    def needs(self, problem: Problem, limits: DeviceLimits) -> list[tuple[str, int, int]]:
        """As the base class, registers for the sums, and room for all programs at once."""
        threads = self.num_warps * limits.warp_size
        sums = self.block_b * self.columns(problem) // limits.warp_size
        # A chained group holds what the first of its two products came to beside the second.
        at_once = self.ahead == self.pieces(problem) and not problem.chained
        most_sums = MAX_SUMS * (2 if at_once else 1)
        operand = problem.itemsize * _split(problem)
        two = self._of_two_contractions(problem, sums * operand, threads)
        together = limits.resident_programs(threads, self.shared_memory(problem))
        return [
            ("sums in a thread", sums, most_sums // operand),
            ("registers left by products on ordinary cores", int(problem.fma), 0),
            ("values in a thread of two contractions", two, MAX_CHAINED),
            ("pieces of a contraction", self.pieces(problem) * problem.matrices, MAX_PIECES),
            ("warps that share a contraction", self.num_warps, MAX_PARTS),
            (
                "programs of this size that are certain to run at the same time",
                self.programs(problem),
                together if limits.exchange else 0,
            ),
            *super().needs(problem, limits),
        ]

    def _of_two_contractions(self, problem: Problem, sums: int, threads: int) -> int:
        """What chained groups keep in registers, in the unit of `MAX_SUMS`."""
        if not problem.chained:
            return 0
        found = sums + CHAINED_PIECE * self.pieces(problem) * problem.matrices
        if problem.direction == "backward" and problem.cell_state:
            found += CHAINED_UNIT * max(0, self.block_b * self.block_h // threads - 2)
        return found


def all_registers(config: LaunchConfig, limits: DeviceLimits) -> dict[str, int | bool]:
    """Let NVIDIA's compiler use every register a thread can have.

    Left alone it spills a few bytes to fit more programs on a multiprocessor, where shared memory
    leaves room for one. Kernels that compute on ordinary cores fare better without.
    """
    threads = config.num_warps * limits.warp_size
    if limits.warp_size != 32:
        return {}
    return {"maxnreg": min(255, limits.registers // threads // 8 * 8)}


def resident_candidates(problem: Problem) -> Iterator[ResidentConfig]:
    """Every configuration of the `resident` regime worth a look."""
    block_h = max(MIN_DOT, power_of_two(problem.H))
    for block_b, num_warps in itertools.product(_batch_blocks(problem), GRID_WARPS):
        yield ResidentConfig(block_b, block_h, num_warps=num_warps)


def grid_candidates(problem: Problem, limits: DeviceLimits) -> Iterator[GridConfig]:
    """Every configuration of the `grid` regime worth a look, those that cannot run among them."""
    for columns, num_warps, block_b, splits in itertools.product(
        GRID_COLUMNS, GRID_WARPS, _batch_blocks(problem), _splits(problem)
    ):
        block_h = columns // problem.width(splits)
        tile = block_h * splits
        if block_h < MIN_OWN_UNITS:
            continue
        if columns > MIN_DOT and tiles(problem.H, tile) == tiles(problem.H, tile // 2):
            continue  # as many programs with half the work each
        for block_k in _piece_lengths(problem.depth // splits, num_warps, problem.itemsize):
            one = GridConfig(block_b, block_h, block_k, 1, 1, splits, num_warps=num_warps)
            for ahead in _aheads(one, problem, limits):
                config = replace(one, ahead=ahead)
                threads = num_warps * limits.warp_size
                room = limits.resident_programs(threads, config.shared_memory(problem))
                lanes = min(tiles(problem.B, block_b), room // config.programs(problem))
                yield replace(config, lanes=max(lanes, 1))


def reason_against_resident(problem: Problem, limits: DeviceLimits) -> str | None:
    """Why no configuration of the `resident` regime can run; None if one can."""
    return _reason(resident_candidates(problem), problem, limits)


def reason_against_grid(problem: Problem, limits: DeviceLimits) -> str | None:
    """Why no configuration of the `grid` regime can run; None if one can."""
    if not limits.exchange:
        return f"programs of one launch cannot wait for each other on {limits.name}"
    return _reason(grid_candidates(problem, limits), problem, limits)


def _reason(
    candidates: Iterator[ResidentConfig] | Iterator[GridConfig],
    problem: Problem,
    limits: DeviceLimits,
) -> str | None:
    """None if a candidate can run; else what the nearest one lacks."""
    nearest, found = float("inf"), ""
    for config in candidates:
        excess, text = 1.0, ""
        for what, needed, limit in config.needs(problem, limits):
            if needed > limit * excess:
                excess = needed / limit if limit else float("inf")
                text = f"{limits.name} has {limit:,} {what}, {needed:,} are needed"
        if not text:
            return None
        if excess <= nearest:
            nearest, found = excess, text
    return found


def _split(problem: Problem) -> int:
    """Copies of an operand: "tf32x3" keeps its leading and its trailing bits."""
    return 2 if problem.terms == 3 else 1


def _splits(problem: Problem) -> list[int]:
    """Of a contraction on the way back, into parts that start at a multiple of MIN_DOT."""
    if problem.direction == "forward":
        return [1]
    return [n for n in GRID_SPLITS if n == 1 or problem.depth % (n * MIN_DOT) == 0]


def _batch_blocks(problem: Problem) -> list[int]:
    """Rows of a tile, none of which would be more than half empty if a smaller one covers B."""
    return [b for b in BLOCK_B if b == MIN_DOT or b < 2 * problem.B]


def _aheads(config: GridConfig, problem: Problem, limits: DeviceLimits) -> list[int]:
    """As many pieces on their way as fit, with one program a multiprocessor and with two."""
    room = (limits.shared_memory, limits.multiprocessor_memory // 2 - 1024)
    counts = ((memory - config.weights(problem)) // config.piece(problem) for memory in room)
    fit = {min(config.pieces(problem), count) for count in counts if count > 0}
    return sorted(fit, reverse=True) or [1]


def _piece_lengths(depth: int, parts: int, itemsize: int) -> list[int]:
    """Lengths that pad the contraction least, the longest first.

    No longer than what memory gives at once: the compiler has the fewer values to keep in registers
    the shorter pieces are, and their latency shows only as far as they are not on their way.
    """
    lengths = [k for k in (64, 32, 16) if k * itemsize <= LINE]
    lengths = [k for k in lengths if tiles(depth, parts * k) <= MAX_PIECES]
    padded = {k: tiles(depth, parts * k) * parts * k for k in lengths}
    least = min(padded.values(), default=0)
    return [k for k in lengths if padded[k] <= 1.1 * least]
