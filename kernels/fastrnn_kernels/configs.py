"""Launch configurations: an explained heuristic, and a check against the device before a launch.

Nothing here touches a GPU or Triton: `DeviceLimits` can be read off a device, taken from
`TARGET_LIMITS` for a target that is only compiled for, or made up in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

import torch

Direction = Literal["forward", "backward"]

# Registers hold 255 values a thread; half of them are left to operands, addresses and the cell.
MAX_ACCUMULATORS_PER_THREAD = 128
# tl.dot's smallest operand on every target, in each of its three dimensions.
MIN_DOT = 16


@dataclass(frozen=True)
class DeviceLimits:
    """What a device can give one program, and how many it runs at a time.

    Attributes:
        name: for messages.
        multiprocessors: programs that run side by side, at least.
        shared_memory: bytes of shared memory (LDS) one program may have.
        threads: threads one program may have.
        warp_size: threads in a warp (a wavefront).
        grid: programs in the first dimension of a grid.
    """

    name: str
    multiprocessors: int
    shared_memory: int
    threads: int = 1024
    warp_size: int = 32
    grid: int = 2**31 - 1

    @classmethod
    def of(cls, device: torch.device) -> DeviceLimits:
        """Read the limits of a device; a CPU gets those of the interpreter.

        Raises:
            ValueError: a device type that Triton kernels do not run on.
        """
        if device.type == "cpu":
            return INTERPRETER_LIMITS
        if device.type != "cuda":
            raise ValueError(f"device: expected a cuda (CUDA or ROCm) device, got {device}")
        found = torch.cuda.get_device_properties(device)
        # Above 48 KiB shared memory is opt-in, and Triton opts in. ROCm has the plain figure only.
        opt_in = getattr(found, "shared_memory_per_block_optin", 0)
        return cls(
            name=found.name,
            multiprocessors=found.multi_processor_count,
            shared_memory=opt_in or found.shared_memory_per_block,
            warp_size=found.warp_size,
        )


# One program after another: the fewer the better, and nothing to fill but one core.
INTERPRETER_LIMITS = DeviceLimits("Triton interpreter", multiprocessors=1, shared_memory=2**20)

TARGET_LIMITS: Mapping[str, DeviceLimits] = MappingProxyType(
    {
        "sm_80": DeviceLimits("A100", multiprocessors=108, shared_memory=166_912),
        "sm_90": DeviceLimits("H100/H200", multiprocessors=132, shared_memory=232_448),
        "sm_100": DeviceLimits("B200", multiprocessors=148, shared_memory=232_448),
        "gfx942": DeviceLimits("MI300X", multiprocessors=304, shared_memory=65_536, warp_size=64),
    }
)


@dataclass(frozen=True)
class Problem:
    """One sweep as far as its configuration depends on it.

    Attributes:
        direction: "forward" or "backward".
        K: gates per hidden unit.
        H: hidden units.
        B: batch rows.
        G: groups.
        itemsize: bytes of a number in memory.
        fma: products run on the ordinary cores, as float32 in "ieee" precision and float64 do;
            their operands take more registers than those of tensor cores.
    """

    direction: Direction
    K: int
    H: int
    B: int
    G: int
    itemsize: int
    fma: bool = False

    @property
    def depth(self) -> int:
        """Length of the dot products of a step: h forward, the gate gradients backward."""
        return self.H if self.direction == "forward" else self.K * self.H

    def width(self, block_h: int) -> int:
        """Columns of the product that a tile of block_h hidden units needs."""
        return block_h * self.K if self.direction == "forward" else block_h

    @property
    def smallest_block_h(self) -> int:
        """8 hidden units make a store of h worth a memory sector; tl.dot wants MIN_DOT columns."""
        return 8 if self.width(8) >= MIN_DOT else MIN_DOT


@dataclass(frozen=True)
class LaunchConfig:
    """How one step is cut into programs.

    Attributes:
        block_b: batch rows of a program.
        block_h: hidden units of a program (all K gates of each).
        block_k: length of the pieces in which dot products are streamed.
        num_warps: warps of a program.
        num_stages: pieces in flight at a time.
    """

    block_b: int
    block_h: int
    block_k: int
    num_warps: int = 4
    num_stages: int = 3

    def programs(self, problem: Problem) -> int:
        """Programs of a launch."""
        return _tiles(problem.B, self.block_b) * _tiles(problem.H, self.block_h) * problem.G

    def shared_memory(self, problem: Problem) -> int:
        """Upper bound in bytes: the pieces in flight, and one change of layout of the tile."""
        width = problem.width(self.block_h)
        piece = (self.block_b + width) * self.block_k * problem.itemsize
        # The gates are regrouped by unit through shared memory, in the accumulation dtype.
        regroup = self.block_b * self.block_h * problem.K * max(problem.itemsize, 4)
        return piece * max(self.num_stages, 1) + regroup

    def check(self, problem: Problem, limits: DeviceLimits) -> None:
        """Refuse a configuration that cannot run, before it is compiled or launched.

        Raises:
            ValueError: says which limit, its value and what would be needed.
        """
        width = problem.width(self.block_h)
        blocks = {
            "block_b": self.block_b,
            "block_h": self.block_h,
            "block_k": self.block_k,
            "num_warps": self.num_warps,
        }
        for name, value in blocks.items():
            if value < 1 or value & (value - 1):
                raise ValueError(f"config.{name}: expected a power of two, got {value}")
        for name, value in (
            ("block_b", self.block_b),
            ("block_k", self.block_k),
            ("columns of a tile", width),
        ):
            if value < MIN_DOT:
                raise ValueError(f"config: {name} is {value}, tl.dot needs at least {MIN_DOT}")
        shared_memory = self.shared_memory(problem)
        threads = self.num_warps * limits.warp_size
        accumulators = -(-self.block_b * width * max(problem.itemsize // 4, 1) // threads)
        for what, needed, limit in (
            ("threads in a program", threads, limits.threads),
            ("accumulators in a thread", accumulators, MAX_ACCUMULATORS_PER_THREAD),
            ("bytes of shared memory in a program", shared_memory, limits.shared_memory),
            ("programs in a launch", self.programs(problem), limits.grid),
        ):
            if needed > limit:
                raise ValueError(f"{limits.name} has {limit:,} {what}, {self} needs {needed:,}")


def heuristic(problem: Problem, limits: DeviceLimits) -> LaunchConfig:
    """Choose a configuration from sizes alone: no measurement, the same choice on every run.

    A step is too short to be bound by arithmetic: what counts is how many multiprocessors pull the
    weights out of L2 and how many bytes each has in flight.

    * block_b covers the batch up to 64 rows: a larger tile reads the weights fewer times.
    * block_h starts at 128 gates and is halved until every multiprocessor has a program.
    * block_k is 256 bytes of a row, so that small H is one piece; num_stages keeps three in flight.
      Ordinary cores get 128 bytes and 64 gates: twice either spills at large H and B.
    * num_warps is 4, and 8 where that many would have to keep 64 gates a thread, or, on ordinary
      cores, 16 sums: beyond that the compiler spills.
    * What does not fit the shared memory is shrunk: first stages, then block_k, then block_h.

    Raises:
        ValueError: nothing fits the device; the message is that of `LaunchConfig.check`.
    """
    smallest = problem.smallest_block_h
    row_bytes, gate_columns = (128, 64) if problem.fma else (256, 128)
    config = LaunchConfig(
        block_b=min(64, max(MIN_DOT, _power_of_two(problem.B))),
        block_h=max(smallest, min(gate_columns // problem.K, _power_of_two(problem.H))),
        block_k=max(MIN_DOT, min(row_bytes // problem.itemsize, _power_of_two(problem.depth))),
    )
    while config.block_h > smallest and config.programs(problem) < limits.multiprocessors:
        config = replace(config, block_h=config.block_h // 2)
    gates = config.block_b * config.block_h * problem.K
    sums = config.block_b * problem.width(config.block_h)
    if gates >= 8192 or (problem.fma and sums >= 2048):
        config = replace(config, num_warps=8)
    while config.shared_memory(problem) > limits.shared_memory:
        if config.num_stages > 2:
            config = replace(config, num_stages=config.num_stages - 1)
        elif config.block_k > MIN_DOT:
            config = replace(config, block_k=config.block_k // 2)
        elif config.block_h > smallest:
            config = replace(config, block_h=config.block_h // 2)
        else:
            break
    config.check(problem, limits)
    return config


def _tiles(size: int, block: int) -> int:
    return -(-size // block)


def _power_of_two(size: int) -> int:
    """The smallest power of two that is not below size."""
    return 1 << max(size - 1, 0).bit_length()
