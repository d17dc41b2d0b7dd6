"""Public functions: a whole recurrence forward, and backward through time.

Layout, for T time steps, batch B, H hidden units, K gates per unit and G groups (independent
recurrences, each with weights and a time direction of its own; a bidirectional layer is G = 2):
activations (T, B, G, features), states (G, B, H). Gates are ordered as torch orders them: all units
of i, then of f, g and o.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from .arguments import (
    cell_of,
    chain,
    expect,
    expect_cell_weight,
    expect_ends,
    expect_noise,
    sizes,
    supported,
)
from .arguments import directions as all_directions
from .cells import Cell
from .configs import LaunchConfig, Regime
from .enqueue import Launch, enqueue
from .matmul_configs import Precision
from .regularisers import QUIET, Noise
from .sweep import accumulation_dtype


class ForwardResult(NamedTuple):
    """What `forward` returns.

    Attributes:
        output: (T, B, G, H), h of every step, at its position in time; (0, B, G, H) if not kept.
        h_n: (G, B, H), h after the last step of each group.
        c_n: (G, B, H), c after it; None for a cell without cell state.
        gates: (T, B, G, K*H), activated gates; None unless saved.
        cells: (T, B, G, H), c of every step; None unless saved.
        made: (T, B, G, H), what the cell made before zoneout kept some of it back: c, with
            zoneout_c, of a cell with cell state; h, with zoneout_h, of one without. None unless
            saved.
    """

    output: Tensor
    h_n: Tensor
    c_n: Tensor | None
    gates: Tensor | None
    cells: Tensor | None
    made: Tensor | None = None


class BackwardResult(NamedTuple):
    """What `backward` returns.

    Attributes:
        d_gates: (T, B, G, K*H), gradient of gates_x.
        d_c0: (G, B, H), gradient of c0; None for a cell without cell state.
        d_h0_kept: (G, B, H), with zoneout_h that part of h0's gradient which does not come through
            W_hh; else None.
    """

    d_gates: Tensor
    d_c0: Tensor | None
    d_h0_kept: Tensor | None = None


def forward(
    cell: str | Cell,
    gates_x: Tensor,
    weight_hh: Tensor,
    h0: Tensor,
    c0: Tensor | None = None,
    *,
    cell_weight: Tensor | None = None,
    weight_chain: Tensor | None = None,
    bias_chain: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    noise: Noise = QUIET,
    reverse: Sequence[bool] | None = None,
    save: bool = False,
    keep_output: bool = True,
    overwrite: bool = False,
    precision: Precision = "ieee",
    regime: Regime | Literal["auto"] = "auto",
    config: LaunchConfig | None = None,
    launch: Launch = "auto",
) -> ForwardResult:
    """Run a recurrence over a sequence.

    Elman: ``h = f(gates_x[t] + W_hh h)``. LSTM, with ``i, f, g, o = gates_x[t] + W_hh h``:
    ``c = sigmoid(f) c + sigmoid(i) tanh(g)``, ``h = sigmoid(o) tanh(c)``, as `torch.nn.LSTM`.
    Sums, and c from step to step, are float32 (float64 for float64 tensors).

    With ``weight_chain`` the groups are the layers of a stack, which run at the same time, each one
    step behind the one below: for g > 0, gates_x of group g is ``weight_chain[g-1] h[g-1] +
    bias_chain[g-1]``, with h of the same step.

    Args:
        cell: a `Cell`, or its name in `CELLS`.
        gates_x: (T, B, G, K*H), or (T, B, 1, K*H), of group 0, if groups are chained; float16,
            bfloat16, float32 or float64: the input projection with all biases added. Any strides,
            but the last dimension contiguous.
        weight_hh: (G, K*H, H), contiguous.
        h0: (G, B, H), the state before the first step.
        c0: (G, B, H) for a cell with cell state, else None.
        cell_weight: (G, Q, H) for a cell with weights of its own, else None.
        weight_chain: (G-1, K*H, H), contiguous, G at least 2, to chain the groups.
        bias_chain: (G-1, K*H), all biases of groups 1 and up; None for zeros.
        lengths: (B,) int64, steps of each row, within 0 and T; None: all have T. The output is zero
            past a row's end, final states are those of its last step, and a group that runs from
            the last position starts at the row's own.
        resets: (T, B) bool of any strides: where the state before a step is h0 and c0 once more.
        noise: masks of recurrent dropout and zoneout; none for chained groups.
        reverse: for each group, whether it runs from the last position to the first; chained
            groups have one direction.
        save: also return what `backward` needs.
        keep_output: return h of every step; needed with ``save`` and by chained groups. Without it,
            memory for h is that of two steps.
        overwrite: gates_x is not needed any more: ``gates`` may take its memory, if it is as large.
        precision: how float32 matrices are multiplied: "ieee", "tf32" or "tf32x3" (NVIDIA only).
        regime: "resident" and "grid" are one launch with the weights on chip, "step" is one launch
            a step; "auto" takes the one with the least estimate among those that can run here.
            Chained groups have the grid regime only.
        config: launch configuration, and with it the regime; by default `plan` chooses.
        launch: how the step regime is launched: "direct" from Python, "graph" by CUDA graphs,
            "auto" by graphs where they work and pay. Any but "auto" asks for that regime.

    Returns:
        A `ForwardResult`, in the dtype of gates_x.

    Raises:
        ValueError: an argument does not fit the others, the device or what is offered; the message
            names it, what came and what was expected.
    """
    cell = cell_of(cell)
    chained = weight_chain is not None
    T, B, G, H = sizes(cell, gates_x, weight_hh, chained)
    expect("h0", h0, (G, B, H), gates_x)
    if cell.has_cell_state:
        expect("c0", c0, (G, B, H), gates_x)
    elif c0 is not None:
        raise ValueError(f"c0: expected None, {cell.name} has no cell state")
    expect_cell_weight(cell, cell_weight, G, H, gates_x, chained)
    expect_noise(cell, noise, (T, B, G, H), gates_x, chained)
    directions = all_directions(reverse, G)
    expect_ends(lengths, resets, T, B, gates_x.device)
    links: tuple[Tensor, ...] = ()
    if weight_chain is not None:
        chain(weight_chain, directions, G, cell.gates * H, H, gates_x)
        if bias_chain is None:
            bias_chain = gates_x.new_zeros(G - 1, cell.gates * H)
        expect("bias_chain", bias_chain, (G - 1, cell.gates * H), gates_x, contiguous=True)
        links = (weight_chain, bias_chain)
    elif bias_chain is not None:
        raise ValueError("bias_chain: expected None without weight_chain, got a tensor")

    if save and not keep_output:
        raise ValueError("keep_output: expected True with save, whose backward pass needs it")
    if chained and not keep_output:
        raise ValueError("keep_output: expected True for chained groups, which read it")
    output = gates_x.new_empty(T if keep_output else 2, B, G, H)
    # Rows of no steps end as they begin.
    h0 = h0.contiguous()
    h_n = torch.empty_like(h0) if lengths is None else h0.clone()
    c_n = carry = gates = cells = None
    if cell.has_cell_state:
        assert c0 is not None
        c0 = c0.contiguous()
        c_n = torch.empty_like(c0) if lengths is None else c0.clone()
        carry = torch.empty_like(h_n, dtype=accumulation_dtype(h_n.dtype))
        if save:
            cells = torch.empty_like(output)
            reuse = overwrite and gates_x.is_contiguous() and not chained
            gates = gates_x if reuse else gates_x.new_empty(T, B, G, cell.gates * H)
    made = torch.empty_like(output) if save and noise.keeps_back(cell) else None
    mask, *zoneout = noise.contiguous()
    enqueue(
        cell,
        "forward",
        (T, B, G, H),
        gates_x,
        (gates_x, weight_hh, h0, c0, carry, output, h_n, c_n, cells, gates),
        directions,
        links,
        (lengths, resets),
        (cell_weight, mask, noise.seen(h0), *zoneout, made),
        {"save": save, "keep": keep_output, **noise.flags()},
        precision,
        regime,
        config,
        launch,
    )
    return ForwardResult(output if keep_output else output[:0], h_n, c_n, gates, cells, made)


def backward(
    cell: str | Cell,
    weight_hh: Tensor,
    output: Tensor,
    gates: Tensor | None = None,
    cells: Tensor | None = None,
    c0: Tensor | None = None,
    *,
    cell_weight: Tensor | None = None,
    weight_chain: Tensor | None = None,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    noise: Noise = QUIET,
    made: Tensor | None = None,
    d_output: Tensor | None = None,
    d_h_n: Tensor | None = None,
    d_c_n: Tensor | None = None,
    d_cells: Tensor | None = None,
    error_clip: float = 0.0,
    reverse: Sequence[bool] | None = None,
    overwrite: bool = False,
    precision: Precision = "ieee",
    regime: Regime | Literal["auto"] = "auto",
    config: LaunchConfig | None = None,
    launch: Launch = "auto",
) -> BackwardResult:
    """Backpropagate through time.

    From the last step to the first: ``dh = d_output[t] + d_gates[t+1] W_hh`` (``d_h_n`` at the last
    step), and dc gets ``d_cells[t]``; then the gradient of the cell's step gives ``d_gates[t]`` and
    dc of the step before. The gradients of weights, biases and inputs are matrix products of
    d_gates, left to the caller. Of chained groups the last has d_output, and ``dh[g]`` gets
    ``d_gates[g+1] weight_chain[g]`` of the same step.

    Args:
        cell: as in `forward`, and so are reverse, precision, regime, config and launch.
        weight_hh: (G, K*H, H), as given to `forward`.
        output: (T, B, G, H), from `forward`.
        gates: (T, B, G, K*H), from `forward`; None for a cell without cell state.
        cells: (T, B, G, H), from `forward`; None for a cell without cell state.
        c0: (G, B, H), as given to `forward`.
        cell_weight: (G, Q, H), as given to `forward`. Its gradient is left to the caller, like that
            of other weights: see `Cell.weight_grad`.
        weight_chain: (G-1, K*H, H), as given to `forward`, and so are the next three.
        lengths: see `forward`.
        resets: see `forward`.
        noise: see `forward`.
        made: (T, B, G, H), from `forward`; None where it was.
        d_output: (T, B, G, H) of any strides, or None for zeros; (T, B, 1, H), of the last group,
            if groups are chained.
        d_h_n: (G, B, H), or None for zeros.
        d_c_n: (G, B, H), or None for zeros.
        d_cells: (T, B, G, H), gradient of every c, of any strides, or None for zeros; not for
            chained groups. Not read past a row's end.
        error_clip: bound on every gate gradient, which is cut to within it before it goes anywhere;
            0 for none. A compile-time constant: each value compiles a kernel.
        reverse: see `forward`.
        overwrite: gates are not needed any more: ``d_gates`` takes their memory.
        precision: see `forward`.
        regime: see `forward`.
        config: see `forward`.
        launch: see `forward`.

    Returns:
        A `BackwardResult`, in the dtype of output.

    Raises:
        ValueError: as `forward`.
    """
    cell = cell_of(cell)
    if output.dim() != 4:
        raise ValueError(f"output: expected (T, B, G, H), got {tuple(output.shape)}")
    T, B, G, H = output.shape
    if min(T, G, H) < 1:
        raise ValueError(f"output: T, G and H must be at least 1, got {tuple(output.shape)}")
    expect("output", output, (T, B, G, H), output, contiguous=True)
    expect("weight_hh", weight_hh, (G, cell.gates * H, H), output, contiguous=True)
    supported(output, "output")
    states = {"gates": gates, "cells": cells, "c0": c0, "d_c_n": d_c_n, "d_cells": d_cells}
    if cell.has_cell_state:
        expect("gates", gates, (T, B, G, cell.gates * H), output, contiguous=True)
        expect("cells", cells, (T, B, G, H), output, contiguous=True)
        expect("c0", c0, (G, B, H), output)
    elif given := [name for name, value in states.items() if value is not None]:
        raise ValueError(f"{', '.join(given)}: expected None, {cell.name} has no cell state")
    for name, value, shape in (
        ("d_output", d_output, (T, B, G if weight_chain is None else 1, H)),
        ("d_h_n", d_h_n, (G, B, H)),
        ("d_c_n", d_c_n, (G, B, H)),
        ("d_cells", d_cells, (T, B, G, H)),
    ):
        if value is not None:
            expect(name, value, shape, output)
    expect_cell_weight(cell, cell_weight, G, H, output, weight_chain is not None)
    expect_noise(cell, noise, (T, B, G, H), output, weight_chain is not None)
    if noise.keeps_back(cell):
        expect("made", made, (T, B, G, H), output, contiguous=True)
    elif made is not None:
        raise ValueError("made: expected None where nothing of it was kept back, got a tensor")
    directions = all_directions(reverse, G)
    expect_ends(lengths, resets, T, B, output.device)
    if weight_chain is not None:
        chain(weight_chain, directions, G, cell.gates * H, H, output)
        if d_cells is not None:
            raise ValueError("d_cells: expected None for chained groups, got a tensor")
    if not error_clip >= 0:  # NaN is neither
        raise ValueError(f"error_clip: expected a bound, or 0 for none, got {error_clip}")

    d_gates = gates if overwrite and gates is not None else None
    if d_gates is None:
        d_gates = output.new_empty(T, B, G, cell.gates * H)
    marked = lengths is not None or resets is not None
    # Contiguous copies, for the kernels to work on in place.
    carry = carry_h = None
    if cell.has_cell_state:
        carry = _carried(d_c_n, output, lengths, marked)
    if noise.zoneout_h is not None:
        carry_h, d_h_n = _carried(d_h_n, output, lengths, marked), None
    # Autograd hands over expanded and transposed gradients; one copy beats strided reads per step.
    if d_output is not None and d_output.stride(-1) != 1:
        d_output = d_output.contiguous()
    h_made = made if made is not None and not cell.has_cell_state else output
    enqueue(
        cell,
        "backward",
        (T, B, G, H),
        d_output,
        (
            d_output,
            None if d_h_n is None else d_h_n.contiguous(),
            weight_hh,
            gates,
            cells,
            h_made,
            None if c0 is None else c0.contiguous(),
            carry,
            None if d_cells is None else d_cells.contiguous(),
            d_gates,
        ),
        directions,
        () if weight_chain is None else (weight_chain,),
        (lengths, resets),
        (cell_weight, *noise.contiguous(), made, carry_h),
        {
            **noise.flags(),
            "has_d_output": d_output is not None,
            "has_d_h_n": d_h_n is not None,
            "has_d_cells": d_cells is not None,
            "clip": float(error_clip),
        },
        precision,
        regime,
        config,
        launch,
    )
    d_h0_kept, d_c0 = (
        # Of its own memory, not a view that keeps all of the carry.
        None if each is None else each[1 if marked else 0].to(output.dtype, copy=marked)
        for each in (carry_h, carry)
    )
    return BackwardResult(d_gates, d_c0, d_h0_kept)


def _carried(d_final: Tensor | None, like: Tensor, lengths: Tensor | None, marked: bool) -> Tensor:
    """The gradient of a final state, (G, B, H), where kernels carry on with it; see `step.py`."""
    _, B, G, H = like.shape
    dtype = accumulation_dtype(like.dtype)
    carry = torch.zeros(3 if marked else 1, G, B, H, dtype=dtype, device=like.device)
    if d_final is not None:
        carry[-1].copy_(d_final)
        if lengths is not None:  # rows of no steps hand it on
            torch.mul(carry[2], (lengths == 0)[:, None], out=carry[1])
    return carry
