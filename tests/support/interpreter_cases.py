"""Problems for the kernels in Triton's interpreter, and how far from the equations they may be.

Imports the kernels: for test modules that have made sure of the interpreter before.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

import fastrnn_kernels as kernels

SMALL = kernels.StepConfig(block_b=16, block_h=16, block_k=16)  # H = 33 and 70 take several tiles
GRID = kernels.GridConfig(block_b=16, block_h=16, block_k=16, lanes=1, ahead=1, num_warps=2)
SHARED = replace(GRID, block_h=8, splits=2)  # two programs share a tile of 16 units on the way back
TILES = ("step", "graph", "resident", "grid")  # what the fixture `regime` knows
F32, F16, BF16, F64 = torch.float32, torch.float16, torch.bfloat16, torch.float64
STATEFUL = {"lstm"}


@dataclass(frozen=True)
class Case:
    cell: str
    T: int
    B: int
    H: int
    dtype: torch.dtype
    reverse: tuple[bool, ...] = (False,)
    grads: str = "yhc"  # which of d_output, d_h_n, d_c_n are given; s: d_cells, of every step
    strided: bool = False
    config: kernels.LaunchConfig | None = None
    launch: str = "direct"
    regime: str = "step"
    back: kernels.LaunchConfig | None = None  # of the backward pass; config is that of both in step
    clip: float = 0.0  # bound on gate gradients

    def __str__(self):
        directions = "".join("<" if r else ">" for r in self.reverse)
        name = f"{self.cell}-T{self.T}-B{self.B}-H{self.H}-{str(self.dtype).split('.')[1]}"
        extras = ["strided"] * self.strided
        extras += [f"clip{self.clip}"] * (self.clip > 0)
        extras += ["tiles"] * (self.config is not None or self.back is not None)
        how = self.launch if self.regime == "step" else self.regime
        return "-".join([name, directions, f"d{self.grads}", *extras, how])

    @property
    def forward_options(self):
        if self.regime == "step":
            return {"config": self.config, "launch": self.launch}
        return {"config": self.config, "regime": self.regime}

    @property
    def backward_options(self):
        if self.regime == "step":
            return {"config": self.config, "launch": self.launch}
        return {"config": self.back, "regime": self.regime}


# Each pair of values meets at least once; the full product would take an hour.
CASES = [
    Case("lstm", 1, 1, 1, F32),
    Case("lstm", 2, 3, 16, BF16, (False, True), grads="y"),
    Case("lstm", 3, 2, 20, F16, (True,), grads="hc", strided=True),
    Case("lstm", 3, 17, 33, F32, (False, True), config=SMALL),
    Case("lstm", 17, 1, 3, F32, (True,), strided=True),
    Case("lstm", 2, 3, 70, F64, (True, False), grads="yc", strided=True, config=SMALL),
    Case("lstm", 17, 2, 16, BF16, (True, False), grads="yh", launch="graph"),
    Case("lstm", 3, 3, 33, F16, grads="h", launch="graph"),
    Case("lstm", 1, 17, 20, F64, (True, True), grads="c"),
    Case("rnn_tanh", 17, 3, 20, F32, (False, True), grads="yh"),
    Case("rnn_tanh", 1, 2, 70, BF16, (True,), grads="h", config=SMALL, strided=True),
    Case("rnn_tanh", 3, 1, 1, F16, (False, True), grads="y", launch="graph"),
    Case("rnn_tanh", 2, 17, 3, F64, grads="yh", strided=True),
    Case("rnn_relu", 3, 3, 33, F32, (True,), grads="y", config=SMALL),
    Case("rnn_relu", 17, 2, 16, F16, (True, False), grads="yh", strided=True),
    Case("rnn_relu", 2, 1, 20, BF16, grads="h", launch="graph"),
    Case("rnn_relu", 1, 3, 3, F64, (False, True), grads="yh"),
    Case("rnn_sigmoid", 2, 2, 1, F32, (True, False), grads="h"),
    Case("rnn_sigmoid", 17, 17, 16, BF16, grads="yh"),
    Case("rnn_sigmoid", 3, 1, 70, F64, (True,), grads="y", launch="graph", config=SMALL),
    Case("rnn_sigmoid", 1, 3, 33, F16, (False, True), grads="yh", strided=True, config=SMALL),
    Case("lstm", 7, 3, 20, F32, (False, True), regime="resident"),
    Case("lstm", 3, 17, 33, BF16, (True,), strided=True, regime="resident"),
    Case("lstm", 2, 2, 16, F64, (True, False), regime="resident"),
    Case("lstm", 1, 1, 1, F16, regime="resident"),
    Case("rnn_tanh", 7, 17, 33, F16, (False, True), grads="yh", strided=True, regime="resident"),
    Case("rnn_relu", 3, 2, 70, F32, grads="y", regime="resident"),
    Case("rnn_sigmoid", 2, 3, 3, BF16, (True, True), grads="yh", regime="resident"),
    Case("lstm", 3, 3, 70, F32, (False, True), regime="grid"),
    Case("lstm", 2, 17, 33, BF16, (True,), strided=True, regime="grid", config=GRID, back=SHARED),
    Case(
        "lstm",
        3,
        40,
        20,
        F32,
        (True, False),
        grads="yc",
        regime="grid",
        config=replace(GRID, lanes=2),
        back=replace(GRID, lanes=2),
    ),
    Case("lstm", 1, 2, 130, F16, strided=True, regime="grid"),
    Case(
        "lstm",
        17,
        1,
        3,
        F32,
        grads="h",
        regime="grid",
        config=replace(GRID, num_warps=1, block_h=4),
        back=replace(SHARED, num_warps=1),
    ),
    Case(
        "lstm",
        2,
        3,
        70,
        F16,
        regime="grid",
        config=replace(GRID, num_warps=4, ahead=2),
        back=replace(SHARED, num_warps=4, ahead=2),
    ),
    Case(
        "lstm",
        2,
        20,
        64,
        F64,
        (True, False),
        grads="c",
        regime="grid",
        back=replace(SHARED, splits=4, lanes=2, ahead=2),
    ),
    Case("rnn_tanh", 5, 3, 70, F32, (False, True), grads="yh", regime="grid", config=GRID),
    Case("rnn_relu", 3, 17, 33, F16, (True,), grads="yh", strided=True, regime="grid"),
    Case("rnn_sigmoid", 2, 2, 200, BF16, grads="h", regime="grid", back=SHARED),
    Case(
        "rnn_tanh",
        3,
        1,
        300,
        F32,
        grads="yh",
        regime="grid",
        config=replace(GRID, num_warps=8, ahead=3),
        back=replace(SHARED, num_warps=8, ahead=3),
    ),
]


def make(case, scale=1.0, seed=0):
    """Arguments in the case's dtype; weights of the size torch initialises with."""
    random = np.random.default_rng(seed)
    G, K = len(case.reverse), kernels.CELLS[case.cell].gates

    def draw(*shape):
        return torch.from_numpy(random.standard_normal(shape)).to(case.dtype)

    bound = 1 / math.sqrt(case.H)
    weight = random.uniform(-bound, bound, (G, K * case.H, case.H))
    gates_x = draw(case.T, case.B, G, K * case.H) * scale
    d_output = draw(case.T, case.B, G, case.H)
    if case.strided:  # a view into something wider, with batch and time swapped
        wide = torch.full((case.B, case.T, G, K * case.H + 3), math.nan, dtype=case.dtype)
        wide[..., : K * case.H] = gates_x.transpose(0, 1)
        gates_x = wide.transpose(0, 1)[..., : K * case.H]
        d_output = d_output[..., :1].expand(d_output.shape)
    stateful = case.cell in STATEFUL
    made = {
        "gates_x": gates_x,
        "weight_hh": torch.from_numpy(weight).to(case.dtype),
        "h0": draw(G, case.B, case.H),
        "c0": draw(G, case.B, case.H) if stateful else None,
        "d_output": d_output if "y" in case.grads else None,
        "d_h_n": draw(G, case.B, case.H) if "h" in case.grads else None,
        "d_c_n": draw(G, case.B, case.H) if "c" in case.grads and stateful else None,
    }
    d_cells = draw(case.B, case.T, G, case.H).transpose(0, 1) if "s" in case.grads else None
    return made | {"d_cells": d_cells}


def tiles_of(regime, direction, layer):
    """The configuration of a layer in a regime, with tiles so small that several are needed."""
    depth = layer.weight_hh.shape[1]
    if regime == "resident":
        return kernels.ResidentConfig(16, 32)
    if regime != "grid":
        return SMALL
    if direction == "forward":
        return GRID if layer.gates == 1 else replace(GRID, block_h=8)
    return GRID if depth % 2 else SHARED


def ends(a):
    """Lengths and resets, if there are any."""
    return {name: a[name] for name in ("lengths", "resets") if name in a}


def run(case, a, save=True):
    common = {"reverse": case.reverse} | ends(a)
    made = kernels.forward(
        case.cell,
        a["gates_x"],
        a["weight_hh"],
        a["h0"],
        a["c0"],
        save=save,
        **common,
        **case.forward_options,
    )
    if not save:
        return made, None
    grads = {name: a[name] for name in ("d_output", "d_h_n", "d_c_n", "d_cells")}
    saved = (made.output, made.gates, made.cells, a["c0"])
    options = common | case.backward_options | {"error_clip": case.clip}
    return made, kernels.backward(case.cell, a["weight_hh"], *saved, **grads, **options)


def expect(oracle, case, a):
    rows = {name: None if v is None else v.numpy() for name, v in ends(a).items()}
    x = {name: None if v is None else v.double().numpy() for name, v in a.items()}
    options = {"d_cells": x["d_cells"], "clip": case.clip or math.inf}
    if rows:
        arguments = (x["gates_x"], x["weight_hh"], x["h0"], x["c0"], case.reverse)
        made = oracle.forward_rows(case.cell, *arguments, **rows)
        grads = (x["d_output"], x["d_h_n"], x["d_c_n"], case.reverse)
        arguments = (case.cell, x["weight_hh"], made, x["c0"], *grads)
        return made, oracle.backward_rows(*arguments, **rows, **options)
    made = oracle.forward(case.cell, x["gates_x"], x["weight_hh"], x["h0"], x["c0"], case.reverse)
    grads = (x["d_output"], x["d_h_n"], x["d_c_n"])
    arguments = (case.cell, x["weight_hh"], made, x["c0"], *grads, case.reverse)
    back = oracle.backward(*arguments, **options)
    return made, back


def assert_close(case, got, want, roundings):
    """Compare each field, NaN for NaN.

    Every step rounds h (forward) or d_gates (backward) to the dtype, by eps/2 of its size, and
    weights of torch's initial size pass an error on without growth: errors of T steps add up like
    a random walk. The sum, exp and division of a step are worth some more where they are no finer
    than the dtype (float32, float64). ``roundings`` counts eps per step, and the largest element
    sets the size. Errors seen: up to 0.6 of the limit in float64, 0.3 in float32 and 16 bits.
    """
    eps = torch.finfo(case.dtype).eps
    for name, expected in want._asdict().items():
        value = getattr(got, name)
        if expected is None:
            assert value is None, name
            continue
        assert value.dtype == case.dtype, name
        assert value.shape == expected.shape, name
        value = value.double().numpy()
        np.testing.assert_array_equal(np.isnan(value), np.isnan(expected), err_msg=name)
        size = max(1.0, float(np.nanmax(np.abs(expected), initial=0.0)))
        limit = roundings * eps * size * math.sqrt(case.T)
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)
