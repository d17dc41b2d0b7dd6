"""How a float32 product is cut into programs: an explained heuristic, checked against the device.

As `configs.py` does for recurrences; nothing here touches a GPU or Triton.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, get_args

from .configs import MAX_ACCUMULATORS_PER_THREAD, MIN_DOT, DeviceLimits

Precision = Literal["ieee", "tf32", "tf32x3"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

# Bytes of a float32.
ITEMSIZE = 4
# Length of a split at least: a tile of 128 x 128 then reads 1 MiB of operands, and its part, which
# is written, read again and summed, is a fifth of that.
MIN_DEPTH = 1024
# Neither a small product nor a wish for more programs makes a tile smaller: every size of M and N
# would compile its own kernel, and what is saved is arithmetic on zeros.
SMALLEST_BLOCK = 32
# Of a program on Blackwell, beside its tiles: what waits for the tensor cores.
BARRIER_BYTES = 64


@dataclass(frozen=True)
class MatmulProblem:
    """One product as far as its configuration depends on it: (G, M, K) @ (G, K, N).

    Attributes:
        G: products side by side.
        M: rows of each.
        N: columns.
        K: length of the sums.
        precision: "ieee", "tf32" or "tf32x3".
    """

    G: int
    M: int
    N: int
    K: int
    precision: Precision


@dataclass(frozen=True)
class MatmulConfig:
    """How a product is cut into programs.

    Attributes:
        block_m: rows of a tile.
        block_n: columns of a tile.
        block_k: length of the pieces in which the sums are streamed.
        num_warps: warps of a program.
        num_stages: pieces in flight at a time.
        splits: parts that the sums are cut into, at most.
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 3
    splits: int = 1

    def tiles(self, problem: MatmulProblem) -> int:
        """Tiles of all products: programs of a split."""
        rows, cols = -(-problem.M // self.block_m), -(-problem.N // self.block_n)
        return problem.G * rows * cols

    def pieces(self, problem: MatmulProblem) -> int:
        """Pieces of a split; the last split may have fewer."""
        return -(-problem.K // (self.splits * self.block_k))

    def used_splits(self, problem: MatmulProblem) -> int:
        """Splits that have anything to sum."""
        return -(-problem.K // (self.pieces(problem) * self.block_k))

    def shared_memory(self) -> int:
        """Upper bound in bytes: the pieces in flight."""
        piece = (self.block_m + self.block_n) * self.block_k * ITEMSIZE
        return piece * max(self.num_stages, 1) + BARRIER_BYTES

    def check(self, problem: MatmulProblem, limits: DeviceLimits) -> None:
        """Refuse a configuration that cannot run, before it is compiled or launched.

        Raises:
            ValueError: says which limit, its value and what would be needed.
        """
        for name in ("block_m", "block_n", "block_k", "num_warps"):
            value, least = getattr(self, name), 1 if name == "num_warps" else MIN_DOT
            if value < 1 or value & (value - 1):
                raise ValueError(f"config.{name}: expected a power of two, got {value}")
            if value < least:
                raise ValueError(f"config.{name}: tl.dot needs at least {least}, got {value}")
        if self.splits < 1:
            raise ValueError(f"config.splits: expected at least 1, got {self.splits}")
        threads = self.num_warps * limits.warp_size
        accumulators = -(-self.block_m * self.block_n // threads)
        programs = self.tiles(problem) * self.used_splits(problem)
        for what, needed, limit in (
            ("threads in a program", threads, limits.threads),
            ("accumulators in a thread", accumulators, MAX_ACCUMULATORS_PER_THREAD),
            ("bytes of shared memory in a program", self.shared_memory(), limits.shared_memory),
            ("programs in a launch", programs, limits.grid),
        ):
            if needed > limit:
                raise ValueError(f"{limits.name} has {limit:,} {what}, {self} needs {needed:,}")


LARGEST: Mapping[Precision, MatmulConfig] = MappingProxyType(
    {
        # Ordinary cores: 32 sums a thread, so that two programs share the registers of a
        # multiprocessor; 128 columns take up to 252 registers, and pieces of 32 all of them.
        "ieee": MatmulConfig(128, 64, 16, num_warps=8),
        "tf32": MatmulConfig(128, 128, 32, num_warps=8),
        # Three products of one piece keep its halves in registers: 128 columns spill on sm_80.
        "tf32x3": MatmulConfig(128, 64, 32, num_warps=8),
    }
)


def heuristic(problem: MatmulProblem, limits: DeviceLimits) -> MatmulConfig:
    """Choose a configuration from sizes alone: no measurement, the same choice on every run.

    * The largest tile of the precision, no larger than M and N need.
    * Halved (columns first: tensor cores want 64 rows) while not every multiprocessor gets a
      program, counting the splits that K allows: a split costs less than small tiles do.
    * As many splits as fill every multiprocessor twice, none shorter than `MIN_DEPTH`.
    * num_warps is 8 for tiles of 8192 elements or more, else 4.
    * What does not fit the shared memory is shrunk: first stages, then block_k.

    Raises:
        ValueError: nothing fits the device; the message is that of `MatmulConfig.check`.
    """
    config = LARGEST[problem.precision]
    block_m = min(config.block_m, max(SMALLEST_BLOCK, _power_of_two(problem.M)))
    block_n = min(config.block_n, max(SMALLEST_BLOCK, _power_of_two(problem.N)))
    config = replace(config, block_m=block_m, block_n=block_n)
    most_splits = max(1, problem.K // MIN_DEPTH)
    while config.tiles(problem) * most_splits < limits.multiprocessors:
        if config.block_n > SMALLEST_BLOCK and config.block_n >= config.block_m:
            config = replace(config, block_n=config.block_n // 2)
        elif config.block_m > SMALLEST_BLOCK:
            config = replace(config, block_m=config.block_m // 2)
        else:
            break
    wanted = 2 * limits.multiprocessors // config.tiles(problem)
    config = replace(
        config,
        splits=max(1, min(most_splits, wanted)),
        num_warps=8 if config.block_m * config.block_n >= 8192 else 4,
    )
    while config.shared_memory() > limits.shared_memory:
        if config.num_stages > 2:
            config = replace(config, num_stages=config.num_stages - 1)
        elif config.block_k > MIN_DOT:
            config = replace(config, block_k=config.block_k // 2)
        else:
            break
    config.check(problem, limits)
    return config


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not below size."""
    return 1 << max(size - 1, 0).bit_length()
