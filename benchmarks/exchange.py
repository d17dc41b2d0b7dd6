"""What the parts of a time step cost on this GPU: the figures of `fastrnn_kernels.model.Rates`.

    python -m benchmarks.exchange --out FILE

* barrier: every program arrives and waits for all others, in a cooperative launch, one counter;
* exchange: the same, with a store of h before and a load of all of h after (2 KiB of h for every 16
  programs: that of an LSTM of 16 rows in 16 bits at 4 hidden units a program);
* a load from L2 that waits for the one before; bytes a cycle that a multiprocessor reads from L2;
* one node of a CUDA graph after another; one launch from Python after another;
* tensor-core products that wait for one another, and as many as fit.

Medians by CUDA events over launches that repeat a part many times. A barrier that let a program
through too early is an error, not a figure. Half a minute, compile time included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.bench import cuda_seconds
from fastrnn.doctor import environment
from fastrnn.tables import table
from fastrnn_kernels.model import Rates

if TYPE_CHECKING:
    from collections.abc import Callable

PROGRAMS = (8, 16, 32, 64, 128, 132)
REPEATS = 9
ROUNDS = 10_000
"""Barriers of a launch: some milliseconds, beside which the launch itself is nothing."""
SHARE = 32
"""Float32 numbers of a program in an exchange."""
CHAIN_BYTES = 4 << 20
"""A chain of loads through this much memory: beyond any first-level cache, within L2."""
LINE = 128
"""Bytes of a cache line."""
BLOCK, CHUNKS = 8192, 4
"""Float32 numbers of a load, and loads of a program: 128 KiB a program, 17 MB for 132 of them."""
NODES = 64
MMA_DEPTH = {"bfloat16": 16, "tf32": 8}
"""Depth of one tensor-core instruction."""
CHAIN_TILE = (16, 16, 512)
"""(rows, columns, depth) of a product of one warp: the depth is one chain of instructions."""
RATE_TILE, RATE_WARPS, RATE_PROGRAMS = (64, 128, 64), 2, 4
"""A tile of a program, its warps, and programs of a multiprocessor. Tiles of a warp are large, or
reading operands from shared memory would take longer than multiplying; two warps, because Triton
multiplies by wgmma from four on."""

Figures = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; returns the exit code."""
    parser = argparse.ArgumentParser(prog="exchange", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="also write the figures and rates, as JSON")
    parser.add_argument("--repeats", type=positive, default=REPEATS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available() or torch.version.hip is not None:
        print("exchange: torch sees no CUDA GPU here", file=sys.stderr)
        return 1
    try:
        figures = measure("cuda", options.repeats)
    except BarrierError as error:
        print(f"exchange: {error}", file=sys.stderr)
        return 1
    rates = rates_of(figures)
    print(report(figures, rates))
    if options.out:
        content = {"environment": environment(), "figures": figures, "rates": vars(rates)}
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


def positive(text: str) -> int:
    """An argument that counts something."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return value


class BarrierError(RuntimeError):
    """A program was let through before the others had arrived."""


def measure(device: str, repeats: int) -> Figures:
    """Every figure, by name; seconds, bytes a cycle, multiply-adds a cycle.

    Args:
        device: a CUDA device; on the CPU kernels must run in Triton's interpreter.
        repeats: launches of each kind, of which the median counts.

    Raises:
        BarrierError: a barrier does not do what it is for.
    """
    on_gpu = device != "cpu"
    bench = Bench(device, repeats, ROUNDS if on_gpu else 2)
    multiprocessors = bench.multiprocessors
    # One program is no exchange, but all that the interpreter can run.
    counts = [count for count in PROGRAMS if count <= multiprocessors] if on_gpu else [1]
    latency, clock = bench.l2_latency()
    readers = {
        "one": (1, CHUNKS), "all": (multiprocessors, CHUNKS), "all_same": (multiprocessors, 0),
    }  # fmt: skip
    return {
        "multiprocessors": multiprocessors,
        "clock": clock,
        "barrier": {str(count): bench.barrier(count) for count in counts},
        "exchange": {str(count): bench.exchange(count) for count in counts},
        "l2_latency": latency,
        "l2_bytes": {name: bench.l2_bytes(*who, clock) for name, who in readers.items()},
        "node": {str(count): bench.node(count) for count in (1, multiprocessors)},
        "launch": bench.launch(),
        "chain": {name: bench.product(name, CHAIN_TILE, 1, 1, clock) for name in MMA_DEPTH},
        "products": {name: bench.products(name, clock) for name in MMA_DEPTH},
    }


class Bench:
    """The kernels of `exchange_kernels.py`, launched and timed."""

    def __init__(self, device: str, repeats: int, rounds: int) -> None:
        """See `measure`; ``rounds``: repetitions within a launch."""
        from benchmarks import exchange_kernels

        self.kernels: Any = exchange_kernels
        self.device, self.repeats, self.rounds = device, repeats, rounds
        self.interpreted = device == "cpu"
        self.multiprocessors = (
            1
            if self.interpreted
            else torch.cuda.get_device_properties(device).multi_processor_count
        )

    def median(self, call: Callable[[], object], count: int = 1) -> float:
        """Seconds of a call, after one that compiles; the interpreter's are not worth knowing."""
        call()
        if self.interpreted:
            return 1.0
        return statistics.median(cuda_seconds(call, count) for _ in range(self.repeats))

    def zeros(self, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Zeros on the device."""
        return torch.zeros(shape, dtype=dtype, device=self.device)

    def barrier(self, programs: int) -> float:
        """Seconds of one barrier."""
        counter = self.zeros(32, dtype=torch.int32)

        def call() -> None:
            counter.zero_()
            self.kernels.barriers[(programs,)](
                counter, self.rounds, INTERPRETED=self.interpreted, **self.together
            )

        seconds = self.median(call) / self.rounds
        arrived = int(counter[0])
        if arrived != programs * self.rounds:
            raise BarrierError(
                f"{programs} programs arrived {arrived} times in {self.rounds} rounds"
            )
        return seconds

    def exchange(self, programs: int) -> float:
        """Seconds of one barrier with the exchange of h that it is for."""
        size = 1 << (programs * SHARE - 1).bit_length()
        h, counter = self.zeros(2, size), self.zeros(32, dtype=torch.int32)

        def call() -> None:
            h.zero_()
            counter.zero_()
            self.kernels.exchanges[(programs,)](
                h, counter, self.rounds, SHARE, size, INTERPRETED=self.interpreted, **self.together
            )

        seconds = self.median(call) / self.rounds
        got = h[(self.rounds - 1) % 2, : programs * SHARE]
        if not bool((got == self.rounds).all()):
            raise BarrierError(f"{programs} programs: one read h before another had stored it")
        return seconds

    @property
    def together(self) -> dict[str, Any]:
        """Launch options of programs that wait for each other."""
        return {"num_warps": 4, "num_stages": 1, "launch_cooperative_grid": True}

    def l2_latency(self) -> tuple[float, float]:
        """Seconds of a load that hits L2, and cycles a second while it was measured."""
        step = LINE // 8
        lines = CHAIN_BYTES // LINE
        order = torch.randperm(lines, generator=torch.Generator().manual_seed(0)) * step
        chain = torch.zeros(lines * step, dtype=torch.int64)
        chain[order] = order.roll(-1)
        chain = chain.to(self.device)
        # A load takes less than a barrier. One launch goes round the chain, and the first is not
        # timed: from then on it is in L2.
        out, rounds = self.zeros(2, dtype=torch.int64), 8 * self.rounds

        def call() -> None:
            self.kernels.chase[(1,)](chain, out, rounds, INTERPRETED=self.interpreted, num_warps=1)

        seconds = self.median(call)
        took = int(out[1]) or 1
        return seconds / rounds, took / seconds

    def l2_bytes(self, programs: int, stride: int, clock: float) -> float:
        """Bytes a cycle that each program reads from L2; ``stride``: see the kernel."""
        data = torch.ones(programs * BLOCK * CHUNKS, device=self.device)
        out = self.zeros(programs, BLOCK)

        def call() -> None:
            self.kernels.stream[(programs,)](
                data, out, self.rounds, stride, CHUNKS, BLOCK, num_warps=8
            )

        seconds = self.median(call)
        return 4 * BLOCK * CHUNKS * self.rounds / seconds / clock

    def node(self, programs: int) -> float:
        """Seconds from one node of a CUDA graph to the next."""
        out = self.zeros(programs, dtype=torch.int32)

        def nodes() -> None:
            for _ in range(NODES):
                self.kernels.node[(programs,)](out, num_warps=4)

        if self.interpreted:
            return self.median(nodes) / NODES
        nodes()  # compiled and loaded before the capture
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            nodes()
        # Replays follow one another with a gap of their own: the difference is that of nodes.
        twice = torch.cuda.CUDAGraph()
        with torch.cuda.graph(twice):
            nodes()
            nodes()
        difference = self.median(twice.replay, 20) - self.median(graph.replay, 20)
        return max(difference, 0.0) / NODES

    def launch(self) -> float:
        """Seconds from one cooperative launch from Python to the next."""
        counter = self.zeros(32, dtype=torch.int32)

        def call() -> None:
            self.kernels.barriers[(1,)](counter, 1, INTERPRETED=self.interpreted, **self.together)

        return self.median(call, 200)

    def products(self, name: str, clock: float) -> float:
        """Multiply-adds a cycle of a multiprocessor that has enough to multiply."""
        programs = RATE_PROGRAMS * self.multiprocessors
        return RATE_PROGRAMS * self.product(name, RATE_TILE, RATE_WARPS, programs, clock)

    def product(
        self, name: str, tile: tuple[int, int, int], warps: int, programs: int, clock: float
    ) -> float:
        """Multiply-adds a cycle of one program, each product added to the one before."""
        rows, cols, depth = tile
        # the interpreter cannot multiply bfloat16
        dtype = torch.bfloat16 if name == "bfloat16" and not self.interpreted else torch.float32
        a, b = (torch.ones(n, depth, dtype=dtype, device=self.device) for n in (rows, cols))
        out = self.zeros(programs, rows, cols)
        precision = "tf32" if name == "tf32" else "ieee"

        def call() -> None:
            self.kernels.products[(programs,)](
                a, b, out, self.rounds, *tile, precision, num_warps=warps, num_stages=1
            )

        seconds = self.median(call)
        return rows * cols * depth * self.rounds / seconds / clock


def rates_of(figures: Figures) -> Rates:
    """`model.Rates` from what `measure` returns; what is not measured keeps its published figure.

    An exchange is the model's exchange, a load's latency and the bytes of h. Over program counts,
    what is left after the last two is a straight line: `exchange` and `exchange_of_one`. Bytes from
    L2 are those of the case where every multiprocessor reads, and `chain` the cycles from one
    instruction of a dependent chain to the next.
    """
    clock, latency = figures["clock"], figures["l2_latency"]
    l2_bytes = min(figures["l2_bytes"]["all"], figures["l2_bytes"]["all_same"])
    points = []
    for count, seconds in figures["exchange"].items():
        loading = latency + int(count) * SHARE * 4 / l2_bytes / clock
        points.append((int(count), max(seconds - loading, figures["barrier"][count])))
    base, of_one = line(points)
    rows, columns, depth = CHAIN_TILE
    name = "bfloat16"
    cycles = rows * columns * depth / figures["chain"][name]
    return Rates(
        clock=clock,
        exchange=base,
        exchange_of_one=of_one,
        l2_latency=latency,
        l2_bytes=l2_bytes,
        products=((2, figures["products"]["bfloat16"]), (4, figures["products"]["tf32"])),
        chain=cycles / (depth / MMA_DEPTH[name]),
        launch=max(figures["node"].values()),
        start=figures["launch"],
    )


def line(points: list[tuple[int, float]]) -> tuple[float, float]:
    """(value at 0, slope) of the least-squares line; neither below 0."""
    mean_x = statistics.fmean(x for x, _ in points)
    mean_y = statistics.fmean(y for _, y in points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
    slope = max(slope, 0.0)
    return max(mean_y - slope * mean_x, 0.0), slope


def report(figures: Figures, rates: Rates) -> str:
    """The figures for a person, and each rate beside what the model assumes without them."""
    waits = [
        [count, f"{1e6 * seconds:.3f}", f"{1e6 * figures['exchange'][count]:.3f}"]
        for count, seconds in figures["barrier"].items()
    ]
    assumed = vars(Rates())
    rows = [[name, f"{assumed[name]}", show(value)] for name, value in vars(rates).items()]
    return "\n".join(
        [
            table(["programs", "barrier us", "with h us"], waits, "rrr"),
            "L2: " + ", ".join(f"{k} {v:.1f}" for k, v in figures["l2_bytes"].items())
            + " bytes a cycle and multiprocessor",
            "graph node: " + ", ".join(f"{k}: {1e6 * v:.2f}" for k, v in figures["node"].items())
            + " us, by programs",
            table(["rate", "assumed", "measured"], rows, "lrr"),
        ]
    )  # fmt: skip


def show(value: object) -> str:
    """A rate, or pairs of them, to four digits."""
    if isinstance(value, tuple):
        return ", ".join(f"{size}: {rate:.4g}" for size, rate in value)
    return f"{value:.4g}"


if __name__ == "__main__":
    raise SystemExit(main())
