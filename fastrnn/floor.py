"""The least time that a case can take on this machine: the largest of three bounds.

* arithmetic: the operations of all matrix products, at the rate of a large product;
* memory: what a caller hands over and gets, once a pass, at the bandwidth of a copy;
* steps: those that wait for one another, at the least that a step takes.

What the machine attains is measured when it is asked for, in about a second, once per process. On
a GPU the time of a step is not measured but assumed: that of the kernels' cost model
(`fastrnn_kernels.model`), which has the layer of one multiprocessor go without an exchange.

The floor is one for all implementations of a case. That of `benchmarks.regimes` is higher: it asks
for the least of one kind of kernel, with the parts that such a kernel cannot do without.
"""

from __future__ import annotations

import functools
import math
import time
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from fastrnn.precision import float32_precision

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastrnn.benchmark import Case

SIZES = {"cpu": (256, 512, 1024), "cuda": (2048, 8192)}
"""Rows and columns of the large products; on a busy machine only short ones are not interrupted."""
COPIES = {"cpu": (1 << 18, 1 << 22, 1 << 26), "cuda": (1 << 22, 1 << 25, 1 << 29)}
"""Bytes that a copy reads: what lies in a cache is faster than memory."""
STEPS = 1000
"""Dependent steps of a chain that is timed."""
SECONDS = 0.05
"""How long a thing is repeated, of which the best counts: a floor is that of an idle machine."""

REGISTERS = 65_536
"""Of a multiprocessor, of 4 bytes each."""


class Attained(NamedTuple):
    """What a device attains in one dtype."""

    operations_per_s: float
    """Multiplications and additions of a large matrix product."""
    bytes_per_s: tuple[tuple[int, float], ...]
    """(bytes, bandwidth) of copies that read and write so much, from the smallest."""
    step_s: float
    """Seconds of a step that waits for the one before."""
    exchange_s: float
    """Seconds more where W_hh is spread over multiprocessors, which have to exchange h."""
    on_chip_bytes: int | None
    """The largest W_hh of a layer that one multiprocessor holds; None if nothing is exchanged."""
    steps_are: str
    """`measured` or `assumed`."""

    def bandwidth(self, size: int) -> float:
        """Bytes a second for so many bytes; too high rather than too low between two sizes."""
        fitting = [rate for copied, rate in self.bytes_per_s if copied <= size]
        return fitting[-1] if fitting else self.bytes_per_s[0][1]


class Floor(NamedTuple):
    """Three bounds of a case, in seconds."""

    arithmetic: float
    memory: float
    steps: float

    @property
    def seconds(self) -> float:
        """The largest, which is the floor."""
        return max(self)


def floor_of(case: Case, attained: Attained) -> Floor:
    """The floor of a case on a device."""
    moved = bytes_of(case)
    step = attained.step_s
    spec = case.spec
    recurrent = spec.gates * case.H * case.H * case.torch_dtype.itemsize
    if attained.on_chip_bytes is not None and recurrent > attained.on_chip_bytes:
        step += attained.exchange_s
    return Floor(
        operations(case) / attained.operations_per_s,
        moved / attained.bandwidth(moved),
        dependent_steps(case) * step,
    )


def operations(case: Case) -> int:
    """Multiplications and additions of the matrix products; the cells' own are not counted.

    A backward pass has two products for each of the forward pass: of inputs and of weights.
    """
    passes = 3 if case.mode == "train" else 1
    return 2 * passes * case.T * case.B * sum(_products(case))


def bytes_of(case: Case) -> int:
    """Bytes of the tensors that a caller sees, each once a pass.

    Forward: x and the weights are read, the output and the final states are written. Backward: x,
    the output, its gradient and the weights are read, d x and the weights' gradients are written.
    """
    spec = case.spec
    x = case.T * case.B * case.I
    output = case.T * case.B * case.H * spec.directions
    states = (1 + spec.has_cell_state) * case.layers * spec.directions * case.B * case.H
    biases = 2 * spec.gates * case.H * case.layers * spec.directions
    weights = sum(_products(case)) + biases
    total = x + weights + output + states
    if case.mode == "train":
        total += 2 * x + 2 * output + 2 * weights
    return total * case.torch_dtype.itemsize


def dependent_steps(case: Case) -> int:
    """Steps that wait for one another, in all passes.

    A layer in one direction can follow the one below a step behind; one in two directions needs
    the last step below for its first.
    """
    steps = case.T * case.layers if case.bidirectional else case.T + case.layers - 1
    return steps * (2 if case.mode == "train" else 1)


def _products(case: Case) -> list[int]:
    """Elements of W_ih and W_hh, of every layer with all its directions."""
    spec = case.spec
    inputs = [case.I] + [case.H * spec.directions] * (case.layers - 1)
    return [spec.gates * case.H * (each + case.H) * spec.directions for each in inputs]


def attained_for(case: Case) -> Attained:
    """Measure what a case's device attains in its dtype, with the threads that torch now has."""
    return _attained(case.device, case.dtype, float32_precision(), torch.get_num_threads())


@functools.lru_cache
def _attained(device: str, dtype: str, precision: str, threads: int) -> Attained:
    kind: torch.dtype = getattr(torch, dtype)
    kinds = {kind}
    if device == "cpu" and kind.itemsize == 2:
        kinds.add(torch.float32)  # in which it may as well compute
    # a CPU's small copies are faster in one thread, and so may all be on a machine that is busy
    counts = (1, threads) if device == "cpu" and threads > 1 else (threads,)
    products, copies = [], dict.fromkeys(COPIES[device], 0.0)
    try:
        with torch.no_grad():
            for count in counts:
                torch.set_num_threads(count)
                products += [_operations(device, each, precision) for each in kinds]
                for size in copies:
                    copies[size] = max(copies[size], _copy(device, size))
            torch.set_num_threads(counts[0])
            steps = _steps() if device == "cpu" else _assumed_steps()
    finally:
        torch.set_num_threads(threads)
    bandwidths = tuple((2 * size, rate) for size, rate in copies.items())
    return Attained(max(products), bandwidths, *steps)


def _operations(device: str, dtype: torch.dtype, precision: str) -> float:
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        if device == "cuda":
            setting.fp32_precision = "tf32" if precision == "tf32" else "ieee"
        rates = []
        for size in SIZES[device]:
            a = torch.ones(size, size, dtype=dtype, device=device)
            rates.append(2 * size**3 / _best(functools.partial(torch.mm, a, a), device))
        return max(rates)
    finally:
        setting.fp32_precision = before


def _copy(device: str, size: int) -> float:
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / _best(lambda: target.copy_(source), device)


def _steps() -> tuple[float, float, None, str]:
    """The least of two chains of one number: torch.nn's LSTM, and addmm and tanh one by one."""
    lstm = nn.LSTM(1, 1).eval()
    x, h, weight, bias = torch.zeros(STEPS, 1, 1), *torch.zeros(3, 1, 1)

    def one_by_one() -> Tensor:
        h_t: Tensor = h
        for _ in range(STEPS):
            h_t = torch.addmm(bias, h_t, weight).tanh()
        return h_t

    seconds = min(_best(lambda: lstm(x), "cpu"), _best(one_by_one, "cpu"))
    return seconds / STEPS, 0.0, None, "measured"


def _assumed_steps() -> tuple[float, float, int, str]:
    """A step within a multiprocessor, an exchange among them, and what one of them holds."""
    from fastrnn_kernels.model import Rates, least_step

    rates = Rates()
    gpu = torch.cuda.get_device_properties("cuda")
    registers = getattr(gpu, "regs_per_multiprocessor", REGISTERS)  # not all of torch's say so
    held = gpu.shared_memory_per_multiprocessor + 4 * registers
    return least_step(rates), rates.exchange + rates.l2_latency, held, "assumed"


def _best(call: Callable[[], object], device: str) -> float:
    """Seconds of the fastest of some calls; the first, which prepares, does not count."""
    call()
    best, end = math.inf, time.perf_counter() + SECONDS
    while best == math.inf or time.perf_counter() < end:
        if device == "cuda":
            torch.cuda.synchronize()
        begin = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best
