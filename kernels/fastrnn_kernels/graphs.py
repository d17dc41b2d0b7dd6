"""Sweeps through CUDA graphs: what a step costs in Python is paid once per shape, not per step.

A graph is STEPS_PER_GRAPH launches of a step kernel and one that moves the step counter on. The
kernels find their arguments in a table on the device (`table.py`), so a graph depends neither on T
nor on any address, and barely on B: only on the number of programs. A sweep fills the table and
replays the graph ceil(T / STEPS_PER_GRAPH) times; nodes past the end return at once.

Each graph has its own table and belongs to one stream, where fills and replays queue up in order:
two streams share neither, and two threads on one stream are kept apart by a lock that is held from
a fill to the last replay. Tensors need no more care than with plain launches: all work is enqueued
before `run` returns, on the stream that was current, as the caching allocator expects.

While a caller captures a graph, the same kernels become nodes of that one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache

import torch

from . import table as kernels
from .sweep import INTERPRETED, TRITON_DTYPES, Sweep

# A guess, not measured: longer graphs waste more empty nodes past the end, shorter ones replays.
STEPS_PER_GRAPH = 32
# Graphs hold driver memory; how much has not been measured.
MAX_GRAPHS = 64
# Vector loads in kernels that take their pointers from a table rely on this many bytes.
POINTER_ALIGNMENT = 16


@dataclass(frozen=True)
class _Graph:
    table: torch.Tensor
    replay: Callable[[], None]
    stream: torch.cuda.Stream | None


_graphs: OrderedDict[Hashable, _Graph] = OrderedDict()
_lock = threading.Lock()


def reason_against(sweep: Sweep) -> str | None:
    """Why this sweep cannot go through a graph, or None if it can."""
    if any(pointer % POINTER_ALIGNMENT for pointer in _pointers(sweep)):
        return f"a tensor does not start at a multiple of {POINTER_ALIGNMENT} bytes"
    if INTERPRETED:
        return None
    return "CUDA graphs are not used on ROCm" if torch.version.hip is not None else None


def run(sweep: Sweep) -> None:
    """Enqueue all steps of a sweep on the current stream. The interpreter replays node by node."""
    device = sweep.tensors[0].device
    if _is_captured():
        # A kernel's first launch loads it, which older drivers refuse while a stream is captured.
        # These are loaded: a call before the capture, which every capture needs, launched them.
        table = torch.empty(kernels.TABLE_SIZE, dtype=torch.int64, device=device)
        _fill(table, sweep)
        _enqueue(sweep, table, sweep.T)
        return
    stream = None if INTERPRETED else torch.cuda.current_stream(device)
    with _lock:
        graph = _find_or_capture(sweep, stream)
        _fill(graph.table, sweep)
        for _ in range(-(-sweep.T // STEPS_PER_GRAPH)):
            graph.replay()


def _is_captured() -> bool:
    """Whether the current stream is being captured."""
    return not INTERPRETED and torch.cuda.is_current_stream_capturing()


def _fill(table: torch.Tensor, sweep: Sweep) -> None:
    """Enqueue what writes a sweep's arguments to a table."""
    kernels.fill_table[(1,)](
        table,
        sweep.T,
        sweep.problem.B,
        sweep.problem.G,
        sweep.reverse,
        *sweep.strides,
        *_pointers(sweep),
        num_warps=1,
    )


def _enqueue(sweep: Sweep, table: torch.Tensor, steps: int) -> None:
    """Enqueue steps by kernels that find their arguments in a table, from where that stands."""
    kernel = (
        kernels.forward_from_table
        if sweep.problem.direction == "forward"
        else kernels.backward_from_table
    )
    dtype = TRITON_DTYPES[sweep.tensors[0].dtype]
    for index in range(steps):
        kernel[sweep.grid](table, index, dtype, **sweep.constants, **sweep.options)


def _pointers(sweep: Sweep) -> list[int]:
    """The addresses of a step kernel's tensors, in its order."""
    given = (*sweep.tensors, *sweep.optional)
    return [0 if tensor is None else tensor.data_ptr() for tensor in given]


def clear() -> None:
    """Forget all graphs, once the work on their streams is done."""
    with _lock:
        while _graphs:
            _drop(next(iter(_graphs)))


def _find_or_capture(sweep: Sweep, stream: torch.cuda.Stream | None) -> _Graph:
    key = (
        sweep.tensors[0].device,
        stream and stream.cuda_stream,
        sweep.problem.direction,
        sweep.tensors[0].dtype,
        sweep.grid,
        sweep.config,
        tuple(sweep.constants.items()),
        STEPS_PER_GRAPH,
    )
    graph = _graphs.get(key)
    if graph is not None:
        _graphs.move_to_end(key)
        return graph
    # Zeros say T = 0: with such a table every node returns at once.
    table = torch.zeros(kernels.TABLE_SIZE, dtype=torch.int64, device=sweep.tensors[0].device)
    graph = _Graph(table, _capture(sweep, table), stream)
    _graphs[key] = graph
    while len(_graphs) > MAX_GRAPHS:
        _drop(next(iter(_graphs)))
    return graph


def _drop(key: Hashable) -> None:
    graph = _graphs.pop(key)
    if graph.stream is not None:
        graph.stream.synchronize()  # a replay of it may still be running


def _capture(sweep: Sweep, table: torch.Tensor) -> Callable[[], None]:
    def enqueue() -> None:
        _enqueue(sweep, table, STEPS_PER_GRAPH)
        kernels.advance_table[(1,)](table, STEPS_PER_GRAPH, num_warps=1)

    if INTERPRETED:
        return enqueue
    # Kernels are compiled and loaded at their first launch, which must not be a captured one.
    enqueue()
    graph = torch.cuda.CUDAGraph()
    # What torch.cuda.graph does, on a stream of this device and not of the one that it was first
    # used on, without waiting for the device and giving all cached memory back to it.
    with torch.cuda.stream(_capture_stream(table.device)):
        # Other threads' work goes on in the meantime.
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            enqueue()
        finally:
            graph.capture_end()
    return graph.replay


@lru_cache(maxsize=64)
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Not the one that replays are enqueued on, which may be the default: that cannot capture."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
