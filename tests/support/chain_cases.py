"""Layers of a stack that run at the same time, in Triton's interpreter.

Imports the kernels: for test modules that have made sure of the interpreter before.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch

import fastrnn_kernels as kernels
from interpreter_cases import Case
from interpreter_cases import assert_close as assert_close_in_steps
from interpreter_cases import make as make_groups

ARGUMENTS = ("gates_x", "weight_hh", "h0", "c0")
GRADIENTS = ("d_output", "d_h_n", "d_c_n")


@dataclass(frozen=True)
class Chain(Case):
    """A `Case` whose groups, one a direction, are layers."""

    regime: str = "grid"
    bias: bool = True

    def __str__(self):
        return super().__str__() + ("" if self.bias else "-nobias")


def padded(value):
    """A view into something wider that is NaN beside it, with batch and time swapped."""
    T, B, G, width = value.shape
    wide = value.new_full((B, T, G, width + 3), math.nan)
    wide[..., :width] = value.transpose(0, 1)
    return wide.transpose(0, 1)[..., :width]


def make(case, seed=0):
    """Arguments in the case's dtype: gates_x of the first layer, d_output of the last."""
    a = make_groups(case, seed=seed)
    random = np.random.default_rng(seed + 1)
    G, width, H = a["weight_hh"].shape
    bound = 1 / math.sqrt(H)

    def draw(*shape):
        return torch.from_numpy(random.uniform(-bound, bound, shape)).to(case.dtype)

    arrange = padded if case.strided else torch.Tensor.contiguous
    a["gates_x"] = arrange(a["gates_x"][:, :, :1])
    if a["d_output"] is not None:
        a["d_output"] = arrange(a["d_output"][:, :, -1:])
    a["weight_chain"] = draw(G - 1, width, H)
    a["bias_chain"] = draw(G - 1, width) if case.bias else None
    return a


def forward(case, a, **changes):
    links = {name: a[name] for name in ("weight_chain", "bias_chain")}
    options = {"reverse": case.reverse, **case.forward_options, **links, **changes}
    return kernels.forward(case.cell, *(a[name] for name in ARGUMENTS), **options)


def backward(case, a, made, **changes):
    grads = {name: a[name] for name in GRADIENTS}
    links = {"weight_chain": a["weight_chain"]}
    options = {"reverse": case.reverse, "error_clip": case.clip, **case.backward_options}
    options |= links | grads | changes
    saved = (made.output, made.gates, made.cells, a["c0"])
    return kernels.backward(case.cell, a["weight_hh"], *saved, **options)


def run(case, a):
    made = forward(case, a, save=True)
    return made, backward(case, a, made)


def expect(oracle, case, a):
    x = {name: None if v is None else v.double().numpy() for name, v in a.items()}
    if x["bias_chain"] is None:
        x["bias_chain"] = np.zeros(x["weight_chain"].shape[:2])
    weights, links = (x["weight_hh"], x["weight_chain"]), (x["bias_chain"], x["h0"], x["c0"])
    made = oracle.forward_chain(case.cell, x["gates_x"], *weights, *links, case.reverse)
    grads = [x[name] for name in GRADIENTS]
    saved, clip = (made, x["c0"]), case.clip or math.inf
    back = oracle.backward_chain(case.cell, *weights, *saved, *grads, case.reverse, clip)
    return made, back


def assert_close(case, got, want, roundings):
    """As of one layer, with the random walk over the steps of every layer.

    What a step of one layer rounds reaches the last layer through T + G - 2 products or fewer, none
    of which lets it grow: G * T roundings add up, where one layer has T.
    """
    assert_close_in_steps(case, got, want, roundings * math.sqrt(len(case.reverse)))
