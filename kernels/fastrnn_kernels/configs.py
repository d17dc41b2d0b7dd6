"""Launch configurations: what a device can hold, and the configuration of the `step` regime.

Those of the on-chip regimes are in `onchip.py`; `plan.py` chooses.

Nothing here touches a GPU or Triton: `DeviceLimits` can be read off a device, taken from
`TARGET_LIMITS` for a target that is only compiled for, or made up in a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import ClassVar, Literal

import torch

Direction = Literal["forward", "backward"]
Regime = Literal["resident", "grid", "step"]

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
        registers: 32-bit registers of a multiprocessor.
        multiprocessor_memory: bytes of shared memory of a multiprocessor, over all its programs.
        exchange: whether programs of one launch may wait for each other.
    """

    name: str
    multiprocessors: int
    shared_memory: int
    threads: int = 1024
    warp_size: int = 32
    grid: int = 2**31 - 1
    registers: int = 65_536
    multiprocessor_memory: int = 0
    exchange: bool = True

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
            registers=getattr(found, "regs_per_multiprocessor", 65_536),
            multiprocessor_memory=getattr(found, "shared_memory_per_multiprocessor", 0),
            # The order of stores and loads across programs is PTX's; AMD's has not been worked out.
            exchange=torch.version.hip is None,
        )

    def resident_programs(self, threads: int, shared_memory: int) -> int:
        """Programs that are certain to run at the same time, if nothing else runs.

        Counts 255 registers a thread, the most there can be, so that the compiler's figure need
        not be known; the driver keeps 1 KiB of shared memory a program for itself.
        """
        memory = max(self.multiprocessor_memory, self.shared_memory + 1024)
        of_one = min(memory // (shared_memory + 1024), self.registers // (256 * threads))
        return self.multiprocessors * of_one


# One program after another: the fewer the better, and nothing to fill but one core. Any number may
# take part in an exchange, which there is a launch a step.
INTERPRETER_LIMITS = DeviceLimits(
    "Triton interpreter", 1, shared_memory=2**20, registers=2**40, multiprocessor_memory=2**50
)

TARGET_LIMITS: Mapping[str, DeviceLimits] = MappingProxyType(
    {
        "sm_80": DeviceLimits("A100", 108, shared_memory=166_912, multiprocessor_memory=167_936),
        "sm_90": DeviceLimits("H100/H200", 132, 232_448, multiprocessor_memory=233_472),
        "sm_100": DeviceLimits("B200", 148, shared_memory=232_448, multiprocessor_memory=233_472),
        "gfx942": DeviceLimits("MI300X", 304, 65_536, warp_size=64, exchange=False),
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
        terms: tensor-core products per product: 3 for "tf32x3", which splits each operand in two.
        cell_state: the cell carries c.
        chained: the groups are layers, each of which takes h of the one below as its input.
    """

    direction: Direction
    K: int
    H: int
    B: int
    G: int
    itemsize: int
    fma: bool = False
    terms: int = 1
    cell_state: bool = True
    chained: bool = False

    @classmethod
    def of(
        cls,
        direction: Direction,
        K: int,
        H: int,
        B: int,
        G: int,
        dtype: torch.dtype,
        precision: str,
        cell_state: bool,
        chained: bool = False,
    ) -> Problem:
        """With what follows from a dtype and a precision."""
        float32 = dtype == torch.float32
        fma = dtype == torch.float64 or (float32 and precision == "ieee")
        terms = 3 if float32 and precision == "tf32x3" else 1
        return cls(direction, K, H, B, G, dtype.itemsize, fma, terms, cell_state, chained)

    @property
    def matrices(self) -> int:
        """Weight matrices of a group that are multiplied within a step."""
        return 2 if self.chained else 1

    @property
    def depth(self) -> int:
        """Length of the dot products of a step: that of h forward, of all gate gradients back."""
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
    """How a launch is cut into programs; each regime has a subclass.

    Attributes:
        block_b: batch rows of a program.
        block_h: hidden units of a program (all K gates of each).
        num_warps: warps of a program.
    """

    regime: ClassVar[Regime]

    block_b: int
    block_h: int
    num_warps: int = field(default=4, kw_only=True)

    def programs(self, problem: Problem) -> int:
        """Programs of a launch."""
        raise NotImplementedError

    def shared_memory(self, problem: Problem) -> int:
        """Upper bound in bytes of what a program takes."""
        raise NotImplementedError

    def blocks(self, direction: Direction) -> dict[str, int]:
        """Its compile-time arguments."""
        return {"BLOCK_B": self.block_b, "BLOCK_H": self.block_h}

    def options(self, limits: DeviceLimits) -> dict[str, int | bool]:
        """Its launch options."""
        return {"num_warps": self.num_warps}

    def check(self, problem: Problem, limits: DeviceLimits) -> None:
        """Refuse a configuration that cannot run, before it is compiled or launched.

        Raises:
            ValueError: says which limit, its value and what would be needed.
        """
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            if name not in self.counts and (value < 1 or value & (value - 1)):
                raise ValueError(f"config.{name}: expected a power of two, got {value}")
        for name, value in self.dots(problem).items():
            if value < MIN_DOT:
                raise ValueError(f"config: {name} is {value}, tl.dot needs at least {MIN_DOT}")
        for what, needed, limit in self.needs(problem, limits):
            if needed > limit:
                raise ValueError(f"{limits.name} has {limit:,} {what}, {self} needs {needed:,}")

    counts: ClassVar[tuple[str, ...]] = ()
    """Fields that are counts, not sizes of tiles: no powers of two."""

    def dots(self, problem: Problem) -> dict[str, int]:
        """Sizes of its products, by name."""
        return {"block_b": self.block_b}

    def needs(self, problem: Problem, limits: DeviceLimits) -> list[tuple[str, int, int]]:
        """(what, how much of it is needed, how much there is)."""
        return [
            ("threads in a program", self.num_warps * limits.warp_size, limits.threads),
            (
                "bytes of shared memory in a program",
                self.shared_memory(problem),
                limits.shared_memory,
            ),
            ("programs in a launch", self.programs(problem), limits.grid),
        ]


@dataclass(frozen=True)
class StepConfig(LaunchConfig):
    """How one step is cut into programs that stream W_hh.

    Attributes:
        block_k: length of the pieces in which dot products are streamed.
        num_stages: pieces in flight at a time.
    """

    regime = "step"
    counts = ("num_stages",)

    block_k: int
    num_stages: int = 3

    def programs(self, problem: Problem) -> int:
        """Programs of a launch."""
        return tiles(problem.B, self.block_b) * tiles(problem.H, self.block_h) * problem.G

    def shared_memory(self, problem: Problem) -> int:
        """Upper bound in bytes: the pieces in flight, and one change of layout of the tile."""
        width = problem.width(self.block_h)
        piece = (self.block_b + width) * self.block_k * problem.itemsize
        # The gates are regrouped by unit through shared memory, in the accumulation dtype.
        regroup = self.block_b * self.block_h * problem.K * max(problem.itemsize, 4)
        return piece * max(self.num_stages, 1) + regroup

    def blocks(self, direction: Direction) -> dict[str, int]:
        """As the base class, and the length of a piece."""
        return {**super().blocks(direction), "BLOCK_K": self.block_k}

    def options(self, limits: DeviceLimits) -> dict[str, int | bool]:
        """As the base class, and the pieces in flight."""
        return {**super().options(limits), "num_stages": self.num_stages}

    def dots(self, problem: Problem) -> dict[str, int]:
        """As the base class, and the other two dimensions."""
        columns = {"block_k": self.block_k, "columns of a tile": problem.width(self.block_h)}
        return {**super().dots(problem), **columns}

    def needs(self, problem: Problem, limits: DeviceLimits) -> list[tuple[str, int, int]]:
        """As the base class, and registers for the accumulators."""
        sums = self.block_b * problem.width(self.block_h) * max(problem.itemsize // 4, 1)
        held = -(-sums // (self.num_warps * limits.warp_size))
        limit = ("accumulators in a thread", held, MAX_ACCUMULATORS_PER_THREAD)
        return [limit, *super().needs(problem, limits)]


def step_heuristic(problem: Problem, limits: DeviceLimits) -> StepConfig:
    """Choose a configuration from sizes alone: no measurement, the same choice on every run.

    A step is too short to be bound by arithmetic: what counts is how many multiprocessors pull the
    weights out of L2 and how many bytes each has in flight.

    * block_b covers the batch up to 64 rows: a larger tile reads the weights fewer times.
    * block_h starts at 128 gates and is halved until every multiprocessor has a program.
    * block_k is 256 bytes of a row, so that small H is one piece; num_stages keeps three in flight.
      Ordinary cores get 128 bytes and 64 gates: twice either spills at large H and B.
    * num_warps is 4, and 8 where that many would have to keep 64 gates a thread, or, on ordinary
      cores, 8 sums: beyond that the compiler spills.
    * What does not fit the shared memory is shrunk: first stages, then block_k, then block_h.

    Raises:
        ValueError: nothing fits the device; the message is that of `LaunchConfig.check`.
    """
    smallest = problem.smallest_block_h
    row_bytes, gate_columns = (128, 64) if problem.fma else (256, 128)
    config = StepConfig(
        block_b=min(64, max(MIN_DOT, power_of_two(problem.B))),
        block_h=max(smallest, min(gate_columns // problem.K, power_of_two(problem.H))),
        block_k=max(MIN_DOT, min(row_bytes // problem.itemsize, power_of_two(problem.depth))),
    )
    while config.block_h > smallest and config.programs(problem) < limits.multiprocessors:
        config = replace(config, block_h=config.block_h // 2)
    gates = config.block_b * config.block_h * problem.K
    sums = config.block_b * problem.width(config.block_h)
    if gates >= 8192 or (problem.fma and sums >= 1024):
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


def tiles(size: int, block: int) -> int:
    """Blocks that cover size."""
    return -(-size // block)


def power_of_two(size: int) -> int:
    """The smallest power of two that is not below size."""
    return 1 << max(size - 1, 0).bit_length()
