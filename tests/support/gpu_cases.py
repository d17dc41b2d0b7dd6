"""Problems for the kernels on a GPU, and how far from the equations their results may be.

Imports the kernels: for test modules that have made sure of Triton's compiler before.
"""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import fastrnn_kernels as kernels
from fastrnn import testing
from fastrnn_kernels.arguments import cell_of
from fastrnn_kernels.plan import reason_against
from fastrnn_kernels.sweep import problem_of

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.usefixtures("ends", "poisoned"),
]
"""The marks of every test that launches them."""

DEVICE = "cuda"
LIMIT = 240
"""Seconds of a test, compiling included."""
BACK = 8
"""Roundings of the largest gradient: d_gates is rounded and multiplied in each step, and weights of
torch's initial size let an error of one step fade in the next."""
BACK_CHAINED = BACK * math.sqrt(2)
"""The same of chained groups. Products with such weights pass a third of an error's variance on, to
the step before and to the group below: 1 / (1 - 2/3) adds up, for 1 / (1 - 1/3) of one group."""
MODES = {
    "fp32": (torch.float32, "ieee"),
    "tf32": (torch.float32, "tf32"),
    "tf32x3": (torch.float32, "tf32x3"),
    "bf16": (torch.bfloat16, "ieee"),
    "fp16": (torch.float16, "ieee"),
}


def make(cell, T, B, H, directions, dtype, seed=0):
    """Arguments of `forward`, weights of the size that torch initialises with."""
    random = np.random.default_rng(seed)
    G, K = len(directions), kernels.CELLS[cell].gates

    def place(values):
        return torch.from_numpy(values).to(DEVICE, dtype)

    bound = 1 / math.sqrt(H)
    return {
        "gates_x": place(random.standard_normal((T, B, G, K * H))),
        "weight_hh": place(random.uniform(-bound, bound, (G, K * H, H))),
        "h0": place(random.standard_normal((G, B, H))),
        "c0": place(random.standard_normal((G, B, H))) if cell == "lstm" else None,
        "reverse": directions,
    }


def expect(oracle, cell, a):
    x = {name: value.double().cpu().numpy() for name, value in a.items() if torch.is_tensor(value)}
    c0 = x.get("c0")
    return oracle.forward(cell, x["gates_x"], x["weight_hh"], x["h0"], c0, a["reverse"])


def make_chain(cell, T, B, H, layers, dtype, reverse=False, seed=0):
    """Arguments of `forward` for layers that run at the same time."""
    a = make(cell, T, B, H, (reverse,) * layers, dtype, seed)
    random = np.random.default_rng(seed + 2)
    bound = 1 / math.sqrt(H)
    for name, shape in (
        ("weight_chain", a["weight_hh"].shape),
        ("bias_chain", a["weight_hh"].shape[:2]),
    ):
        values = random.uniform(-bound, bound, (layers - 1, *shape[1:]))
        a[name] = torch.from_numpy(values).to(DEVICE, dtype)
    return a | {"gates_x": a["gates_x"][:, :, :1].contiguous()}


CHAIN = ("gates_x", "weight_hh", "weight_chain", "bias_chain", "h0", "c0")


def expect_chain(oracle, cell, a):
    x = {name: value.double().cpu().numpy() for name, value in a.items() if torch.is_tensor(value)}
    return oracle.forward_chain(cell, *(x.get(name) for name in CHAIN), a["reverse"])


def assert_right(made, want, dtype, precision, layers=1):
    T = want.output.shape[0] * layers  # roundings of every step of every layer, a random walk
    allowed = testing.tolerance(dtype, T, precision).output
    for name, expected in want._asdict().items():
        value = getattr(made, name)
        if expected is None or value is None:
            continue
        value = value.double().cpu().numpy()
        limit = allowed * max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


def make_back(oracle, cell, T, B, H, directions, dtype, grads="yhc", seed=0):
    """Arguments of `backward`: what the equations save, rounded, so that only it can be wrong."""
    a = make(cell, T, B, H, directions, dtype, seed)
    made = expect(oracle, cell, a)
    random = np.random.default_rng(seed + 1)

    def place(values):
        return None if values is None else torch.from_numpy(values).to(DEVICE, dtype)

    def draw(*shape):
        return place(random.standard_normal(shape))

    G, state = len(directions), cell == "lstm"
    return {
        "weight_hh": a["weight_hh"],
        "output": place(made.output),
        "gates": place(made.gates),
        "cells": place(made.cells),
        "c0": a["c0"],
        "d_output": draw(T, B, G, H) if "y" in grads else None,
        "d_h_n": draw(G, B, H) if "h" in grads else None,
        "d_c_n": draw(G, B, H) if "c" in grads and state else None,
        "reverse": directions,
    }


def expect_back(oracle, cell, b):
    x = {name: value.double().cpu().numpy() for name, value in b.items() if torch.is_tensor(value)}
    saved = SimpleNamespace(**{name: x.get(name) for name in ("output", "gates", "cells")})
    grads = [x.get(name) for name in ("d_output", "d_h_n", "d_c_n")]
    return oracle.backward(cell, x["weight_hh"], saved, x.get("c0"), *grads, b["reverse"])


def make_back_chain(oracle, cell, T, B, H, layers, dtype, grads="yhc", reverse=False):
    """Arguments of `backward` for layers that run at the same time; see `make_back`."""
    a = make_chain(cell, T, B, H, layers, dtype, reverse)
    made = expect_chain(oracle, cell, a)
    b = {name: a[name] for name in ("weight_hh", "weight_chain", "c0", "reverse")}
    for name in ("output", "gates", "cells"):
        value = getattr(made, name)
        b[name] = None if value is None else torch.from_numpy(value).to(DEVICE, dtype)
    random = np.random.default_rng(1)
    shapes = {"d_output": (T, B, 1, H), "d_h_n": (layers, B, H), "d_c_n": (layers, B, H)}
    for letter, (name, shape) in zip("yhc", shapes.items(), strict=True):
        values = torch.from_numpy(random.standard_normal(shape)).to(DEVICE, dtype)
        given = letter in grads and (letter != "c" or cell == "lstm")
        b[name] = values if given else None
    return b


def expect_back_chain(oracle, cell, b, clip=math.inf):
    x = {name: value.double().cpu().numpy() for name, value in b.items() if torch.is_tensor(value)}
    saved = oracle.Forward(x["output"], None, None, x.get("gates"), x.get("cells"))
    rest = [x.get(name) for name in ("c0", "d_output", "d_h_n", "d_c_n")]
    weights = (x["weight_hh"], x["weight_chain"])
    return oracle.backward_chain(cell, *weights, saved, *rest, b["reverse"], clip)


def assert_back_right(made, want, dtype, precision, roundings=BACK):
    tf32 = dtype == torch.float32 and precision == "tf32"
    roundoff = testing.TF32_ROUNDOFF if tf32 else testing.UNIT_ROUNDOFF[dtype]
    for name, expected in want._asdict().items():
        value = getattr(made, name)
        if expected is None:
            assert value is None
            continue
        limit = roundings * roundoff * float(np.abs(expected).max())
        value = value.double().cpu().numpy()
        np.testing.assert_allclose(value, expected, rtol=0, atol=limit, err_msg=name)


def problem(cell, B, H, G, dtype, precision="ieee", direction="forward", chained=False):
    return problem_of(cell_of(cell), direction, H, B, G, dtype, precision, chained)


def skip_where_impossible(
    regime, cell, B, H, G, dtype, precision="ieee", directions=("forward",), chained=False
):
    limits = kernels.DeviceLimits.of(torch.device(DEVICE))
    for direction in directions:
        what = problem(cell, B, H, G, dtype, precision, direction, chained)
        reason = reason_against(regime, what, limits)
        if reason is not None:
            pytest.skip(f"{regime}, {direction}: {reason}")


def skip_if_refused(config, what):
    try:
        config.check(what, kernels.DeviceLimits.of(torch.device(DEVICE)))
    except ValueError as error:
        pytest.skip(str(error))


def grid_config(block_b=16, block_h=4, block_k=16, lanes=1, ahead=1, num_warps=4, splits=1):
    return kernels.GridConfig(block_b, block_h, block_k, lanes, ahead, splits, num_warps=num_warps)
