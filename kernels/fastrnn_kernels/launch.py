"""Public functions: a whole recurrence forward, and backward through time.

Layout, for T time steps, batch B, H hidden units, K gates per unit and G groups (independent
recurrences, each with weights and a time direction of its own; a bidirectional layer is G = 2):
activations (T, B, G, features), states (G, B, H). With K = 4 the features of gates are interleaved:
column ``j*4 + q`` is gate q of unit j, q in order i, f, g, o.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from . import graphs
from .cells import CELLS, Cell
from .configs import DeviceLimits, Direction, LaunchConfig, heuristic
from .sweep import (
    INTERPRETED,
    TRITON_DTYPES,
    Sweep,
    accumulation_dtype,
    alignment,
    constants,
    problem_of,
    run,
)

Precision = Literal["ieee", "tf32", "tf32x3"]
Launch = Literal["auto", "direct", "graph"]
PRECISIONS: tuple[Precision, ...] = ("ieee", "tf32", "tf32x3")
LAUNCHES: tuple[Launch, ...] = ("auto", "direct", "graph")

# A guess, not measured: below it, filling a table and replaying 32 nodes is taken not to pay.
MIN_STEPS_FOR_GRAPH = 8
# Directions travel as the bits of an int64; the last bit speaks for all further groups.
MAX_MIXED_GROUPS = 63


class ForwardResult(NamedTuple):
    """What `forward` returns.

    Attributes:
        output: (T, B, G, H), h of every step, at its position in time.
        h_n: (G, B, H), h after the last step of each group.
        c_n: (G, B, H), c after it; None for a cell without cell state.
        gates: (T, B, G, K*H), activated gates; None unless saved.
        cells: (T, B, G, H), c of every step; None unless saved.
    """

    output: Tensor
    h_n: Tensor
    c_n: Tensor | None
    gates: Tensor | None
    cells: Tensor | None


class BackwardResult(NamedTuple):
    """What `backward` returns.

    Attributes:
        d_gates: (T, B, G, K*H), gradient of gates_x.
        d_h0: (G, B, H), gradient of h0.
        d_c0: (G, B, H), gradient of c0; None for a cell without cell state.
    """

    d_gates: Tensor
    d_h0: Tensor
    d_c0: Tensor | None


def forward(
    cell: str | Cell,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    *,
    reverse: Sequence[bool] | None = None,
    save: bool = False,
    precision: Precision = "ieee",
    config: LaunchConfig | None = None,
    launch: Launch = "auto",
) -> ForwardResult:
    """Run a recurrence over a sequence, one launch per time step.

    Elman: ``h = f(gates_x[t] + W_hh h)``. LSTM, with ``i, f, g, o = gates_x[t] + W_hh h``:
    ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``, as `torch.nn.LSTM`.
    Sums, and c from step to step, are float32 (float64 for float64 tensors).

    Args:
        cell: a `Cell`, or its name in `CELLS`.
        gates_x: (T, B, G, K*H), float16, bfloat16, float32 or float64: the input projection with
            all biases added. Any strides, but the last dimension contiguous.
        weight_hh: (G, K*H, H), contiguous, its rows interleaved like the columns of gates_x.
        h0: (G, B, H), the state before the first step.
        c0: (G, B, H) for a cell with cell state, else None.
        reverse: for each group, whether it runs from the last position to the first.
        save: also return what `backward` needs.
        precision: how float32 matrices are multiplied: "ieee", "tf32" or "tf32x3" (NVIDIA only).
        config: launch configuration; by default `configs.heuristic` chooses.
        launch: "direct" launches each step from Python, "graph" replays CUDA graphs, "auto" takes
            graphs where they work and pay.

    Returns:
        A `ForwardResult`, in the dtype of gates_x.

    Raises:
        ValueError: an argument does not fit the others, the device or what is offered; the message
            names it, what came and what was expected.
    """
    cell = _cell(cell)
    T, B, G, H = _sizes(cell, gates_x, weight_hh)
    _expect("h0", h0, (G, B, H), gates_x)
    if cell.has_cell_state:
        _expect("c0", c0, (G, B, H), gates_x)
    elif c0 is not None:
        raise ValueError(f"c0: expected None, {cell.name} has no cell state")
    directions = _directions(reverse, G)

    output = gates_x.new_empty(T, B, G, H)
    carry = gates = cells = None
    if cell.has_cell_state:
        assert c0 is not None
        carry = _carry(c0)
        if save:
            cells = torch.empty_like(output)
            gates = gates_x.new_empty(T, B, G, cell.gates * H)
    _launch(
        cell,
        "forward",
        gates_x,
        (gates_x, weight_hh, h0.contiguous(), carry, output, cells, gates),
        directions,
        {"save": save},
        precision,
        config,
        launch,
    )
    ends = [output[0 if backwards else -1, :, g] for g, backwards in enumerate(directions)]
    c_n = None if carry is None else carry.to(gates_x.dtype)
    return ForwardResult(output, torch.stack(ends), c_n, gates, cells)


def backward(
    cell: str | Cell,
    weight_hh: Tensor,
    output: Tensor,
    gates: Tensor | None = None,
    cells: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    d_output: Tensor | None = None,
    d_h_n: Tensor | None = None,
    d_c_n: Tensor | None = None,
    reverse: Sequence[bool] | None = None,
    precision: Precision = "ieee",
    config: LaunchConfig | None = None,
    launch: Launch = "auto",
) -> BackwardResult:
    """Backpropagate through time, one launch per time step.

    From the last step to the first: ``dh = d_output[t] + d_gates[t+1] W_hh`` (``d_h_n`` at the last
    step), then the gradient of the cell's step gives ``d_gates[t]`` and dc. The gradients of
    weights, biases and inputs are matrix products of d_gates, left to the caller.

    Args:
        cell: as in `forward`, and so are reverse, precision, config and launch.
        weight_hh: (G, K*H, H), as given to `forward`.
        output: (T, B, G, H), from `forward`.
        gates: (T, B, G, K*H), from `forward`; None for a cell without cell state.
        cells: (T, B, G, H), from `forward`; None for a cell without cell state.
        c0: (G, B, H), as given to `forward`.
        d_output: (T, B, G, H) of any strides, or None for zeros.
        d_h_n: (G, B, H), or None for zeros.
        d_c_n: (G, B, H), or None for zeros.
        reverse: see `forward`.
        precision: see `forward`.
        config: see `forward`.
        launch: see `forward`.

    Returns:
        A `BackwardResult`, in the dtype of output.

    Raises:
        ValueError: as `forward`.
    """
    cell = _cell(cell)
    if output.dim() != 4:
        raise ValueError(f"output: expected (T, B, G, H), got {tuple(output.shape)}")
    T, B, G, H = output.shape
    _expect("output", output, (T, B, G, H), output, contiguous=True)
    _expect("weight_hh", weight_hh, (G, cell.gates * H, H), output, contiguous=True)
    _supported(output, "output")
    states = {"gates": gates, "cells": cells, "c0": c0, "d_c_n": d_c_n}
    if cell.has_cell_state:
        _expect("gates", gates, (T, B, G, cell.gates * H), output, contiguous=True)
        _expect("cells", cells, (T, B, G, H), output, contiguous=True)
        _expect("c0", c0, (G, B, H), output)
    elif given := [name for name, value in states.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: expected None, {cell.name} has no cell state")
    for name, value, shape in (
        ("d_output", d_output, (T, B, G, H)),
        ("d_h_n", d_h_n, (G, B, H)),
        ("d_c_n", d_c_n, (G, B, H)),
    ):
        if value is not None:
            _expect(name, value, shape, output)
    directions = _directions(reverse, G)

    d_gates = output.new_empty(T, B, G, cell.gates * H)
    carry = None
    if cell.has_cell_state:
        carry = _carry(output.new_zeros(G, B, H) if d_c_n is None else d_c_n)
    # Autograd hands over expanded and transposed gradients; one copy beats strided reads per step.
    if d_output is not None and d_output.stride(-1) != 1:
        d_output = d_output.contiguous()
    _launch(
        cell,
        "backward",
        d_output,
        (
            d_output,
            None if d_h_n is None else d_h_n.contiguous(),
            weight_hh,
            gates,
            cells,
            output,
            None if c0 is None else c0.contiguous(),
            carry,
            d_gates,
        ),
        directions,
        {"has_d_output": d_output is not None, "has_d_h_n": d_h_n is not None},
        precision,
        config,
        launch,
    )
    firsts = [d_gates[-1 if backwards else 0, :, g] for g, backwards in enumerate(directions)]
    d_h0 = torch.bmm(torch.stack(firsts), weight_hh)
    return BackwardResult(d_gates, d_h0, None if carry is None else carry.to(output.dtype))


def _launch(
    cell: Cell,
    direction: Direction,
    strided: Tensor | None,
    tensors: tuple[Tensor | None, ...],
    directions: Sequence[bool],
    flags: dict[str, bool],
    precision: Precision,
    config: LaunchConfig | None,
    launch: Launch,
) -> None:
    """Make a sweep of checked tensors and run it. ``strided``: the one with strides of its own."""
    output = tensors[4 if direction == "forward" else 5]
    assert output is not None
    T, B, G, H = output.shape
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {PRECISIONS}, got {precision!r}")
    if precision == "tf32x3" and torch.version.hip is not None:
        raise ValueError("precision: 'tf32x3' exists on NVIDIA GPUs only, got a ROCm device")
    if launch not in LAUNCHES:
        raise ValueError(f"launch: expected one of {LAUNCHES}, got {launch!r}")
    problem = problem_of(cell, direction, H, B, G, output.dtype, precision)
    limits = DeviceLimits.of(output.device)
    if B == 0:
        return
    if config is None:
        config = heuristic(problem, limits)
    else:
        config.check(problem, limits)

    # The stride of a dimension of size 1 is arbitrary, and multiplies nothing but 0.
    strides = [0, 0, 0]
    if strided is not None:
        strides = [
            stride if size > 1 else 0
            for stride, size in zip(strided.stride()[:3], strided.shape[:3], strict=True)
        ]
    width = cell.gates * H if direction == "forward" else H
    align = alignment(width, strides)
    sweep = Sweep(
        problem,
        T,
        # A kernel never follows the pointers of arguments that its constants say it has not.
        tuple(output if tensor is None else tensor for tensor in tensors),
        _direction_bits(directions),
        (strides[0] // align, strides[1] // align, strides[2] // align),
        constants(
            cell, H, output.dtype, config, direction, precision=precision, align=align, **flags
        ),
        config,
    )
    against = graphs.reason_against(sweep)
    if launch == "graph" and against is not None:
        raise ValueError(f"launch: 'graph' is impossible here: {against}")
    worthwhile = T >= MIN_STEPS_FOR_GRAPH and not INTERPRETED
    use_graph = launch == "graph" or (launch == "auto" and worthwhile and against is None)
    # Triton launches on the current device, which need not be that of the tensors.
    on_gpu = output.device.type == "cuda"
    with torch.cuda.device(output.device) if on_gpu else contextlib.nullcontext():
        (graphs.run if use_graph else run)(sweep)


def _carry(state: Tensor) -> Tensor:
    """A contiguous copy in the accumulation dtype, for the kernels to work on in place."""
    dtype = accumulation_dtype(state.dtype)
    return state.to(dtype, memory_format=torch.contiguous_format, copy=True)


def _cell(cell: str | Cell) -> Cell:
    if isinstance(cell, Cell):
        return cell
    if cell not in CELLS:
        raise ValueError(f"cell: expected one of {sorted(CELLS)}, got {cell!r}")
    return CELLS[cell]


def _sizes(cell: Cell, gates_x: Tensor, weight_hh: Tensor) -> tuple[int, int, int, int]:
    if gates_x.dim() != 4 or gates_x.shape[3] % cell.gates:
        raise ValueError(f"gates_x: expected (T, B, G, {cell.gates}*H), got {tuple(gates_x.shape)}")
    T, B, G, width = gates_x.shape
    H = width // cell.gates
    if min(T, G, H) < 1:
        raise ValueError(f"gates_x: T, G and H must be at least 1, got {tuple(gates_x.shape)}")
    if gates_x.stride(3) != 1 and width > 1:
        raise ValueError(
            f"gates_x: the last dimension must be contiguous, got strides {gates_x.stride()}"
        )
    _supported(gates_x, "gates_x")
    _expect("weight_hh", weight_hh, (G, width, H), gates_x, contiguous=True)
    return T, B, G, H


def _supported(tensor: Tensor, name: str) -> None:
    if tensor.dtype not in TRITON_DTYPES:
        raise ValueError(f"{name}: expected one of {list(TRITON_DTYPES)}, got {tensor.dtype}")
    if tensor.device.type == "cpu" and not INTERPRETED:
        raise ValueError(
            f"{name}: expected a GPU tensor, got one on the CPU, where kernels run in the "
            "interpreter only (TRITON_INTERPRET=1, set before Triton is imported)"
        )


def _expect(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...],
    like: Tensor,
    *,
    contiguous: bool = False,
) -> None:
    if tensor is None:
        raise ValueError(f"{name}: expected a tensor of shape {shape}, got None")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.dtype != like.dtype or tensor.device != like.device:
        raise ValueError(
            f"{name}: expected {like.dtype} on {like.device}, got {tensor.dtype} on {tensor.device}"
        )
    if contiguous and not tensor.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {tensor.stride()}")


def _directions(reverse: Sequence[bool] | None, G: int) -> Sequence[bool]:
    directions = [False] * G if reverse is None else [bool(r) for r in reverse]
    if len(directions) != G:
        raise ValueError(f"reverse: expected {G} directions, one a group, got {len(directions)}")
    if G > MAX_MIXED_GROUPS and any(directions) and not all(directions):
        raise ValueError(
            f"reverse: expected one direction for all of more than {MAX_MIXED_GROUPS} groups, "
            f"got both among {G}"
        )
    return directions


def _direction_bits(directions: Sequence[bool]) -> int:
    if all(directions):
        return -1
    return sum(1 << g for g, backwards in enumerate(directions) if backwards)
