"""FlashRNN (Pöppel, Beck and Hochreiter, 2024; PyPI `flashrnn`) beside fastrnn, where it is there.

Only its public function is called, as its documentation describes it. It takes one layer in one
direction and leaves the input projection to the caller, who does it here as torch.nn would: time is
that of a whole layer. It compiles its CUDA kernels at the first call, once per size, which takes
a compiler (nvcc, g++, ninja) and a minute or more.
"""

from __future__ import annotations

import functools
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastrnn.benchmark import Axes, Peer, Preset
from fastrnn.discovery import describe

if TYPE_CHECKING:
    from fastrnn.benchmark import Case

FLASHRNN = "FlashRNN"
BACKEND = "cuda_fused"
"""Its fastest for one head as wide as the layer."""
FUNCTIONS = {"lstm": "lstm", "rnn_tanh": "elman"}
PUBLISHED = Axes(["lstm"], [1024], [16], [768])
"""The size that its authors publish: cuDNN's best."""


def installed() -> bool:
    """Whether there is a package of that name; it is not imported."""
    try:
        return find_spec("flashrnn") is not None
    except ValueError:  # a module without a specification, which somebody made by hand
        return True


@functools.lru_cache
def absent() -> str | None:
    """Why it cannot be imported here; None if it can."""
    try:
        import_module("flashrnn").flashrnn  # noqa: B018 # a namesake would have no such function
    except Exception as error:  # whatever a package does on import
        return f"flashrnn cannot be imported: {describe(error)}"
    return None


class FlashRNN(nn.Module):
    """One layer, with torch.nn's parameters in torch.nn's order."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.function = FUNCTIONS[case.cell]
        self.dtype = case.dtype
        self.hidden = case.H
        rows = case.spec.gates * case.H
        sizes = {"weight_ih": (rows, case.I), "weight_hh": (rows, case.H),
                 "bias_ih": (rows,), "bias_hh": (rows,)}  # fmt: skip
        for name, size in sizes.items():
            value = torch.zeros(size, dtype=case.torch_dtype, device=case.device)
            self.register_parameter(f"{name}_l0", nn.Parameter(value))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run x (T, B, I) from zero states: output (T, B, H) and final states (1, B, H) each.

        In its own words Wx is (B, T, gates, heads, D), R (gates, heads, D, D), b (gates, heads,
        D), and the states it returns (states, B, T, heads, D), h first; gates as torch orders them.
        """
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        gates = (-1, 1, self.hidden)
        projected = nn.functional.linear(x, w_ih).view(*x.shape[:2], *gates).transpose(0, 1)
        states, last = import_module("flashrnn").flashrnn(
            projected, w_hh.view(*gates, self.hidden), (b_ih + b_hh).view(gates),
            function=self.function, backend=BACKEND, dtype=self.dtype,
        )  # fmt: skip
        finals = tuple(state.squeeze(2).transpose(0, 1) for state in last)
        return states[0].squeeze(2).transpose(0, 1), finals


def reasons_against(case: Case) -> list[str]:
    """Why it cannot run a case here."""
    reasons = [reason] if (reason := absent()) else []
    if case.cell not in FUNCTIONS:
        reasons.append(f"cell is {case.cell}; {' or '.join(FUNCTIONS)} is compared")
    if case.layers > 1 or case.bidirectional:
        reasons.append("it takes one layer in one direction")
    if torch.device(case.device).type != "cuda":
        reasons.append(f"device is {case.device}; needs cuda")
    return reasons


PEER = Peer(FLASHRNN, "fused CUDA kernels of the package flashrnn", FlashRNN, reasons_against)
PRESET = Preset(
    "flashrnn",
    "the size that FlashRNN's authors publish",
    PUBLISHED,
    dtypes=("bfloat16",),
    device="cuda",
)
