"""The contract between `fastrnn bench` and a plugin: what is measured, and what is measured beside.

`fastrnn_benchmark_cases` returns `Preset`s, `fastrnn_benchmark_peers` returns `Peer`s; what fastrnn
itself measures and compares with is made of the same two.

Letters: T steps, B rows of the batch, I inputs, H hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastrnn.request import Spec

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Axes", "Case", "Peer", "Preset"]


class Axes(NamedTuple):
    """Values to combine: every combination is a case."""

    cell: Sequence[str]
    T: Sequence[int]
    B: Sequence[int]
    H: Sequence[int]


class Case(NamedTuple):
    """One thing to measure; the fields are the columns of the CSV file."""

    cell: str
    mode: str
    """`forward` (no gradients), `inference` (the same under `torch.inference_mode`) or `train`
    (forward and backward)."""
    T: int
    B: int
    I: int
    H: int
    layers: int
    bidirectional: bool
    dtype: str
    """A torch dtype's name, such as `float32`."""
    device: str
    """A torch device, such as `cpu` or `cuda`."""

    @property
    def spec(self) -> Spec:
        """The stack's static shape."""
        return Spec(
            self.cell, self.I, self.H, num_layers=self.layers, bidirectional=self.bidirectional
        )

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype that `dtype` names."""
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def __str__(self) -> str:
        """One line for the table."""
        text = f"{self.cell} {self.mode} T={self.T} B={self.B} I={self.I} H={self.H}"
        text += f" layers={self.layers}" if self.layers > 1 else ""
        return text + (" bidirectional" if self.bidirectional else "")


@dataclass(frozen=True, slots=True)
class Preset:
    """Cases under a name, for `fastrnn bench --preset NAME`; other arguments override what it says.

    The mode is whatever the command is told.
    """

    name: str
    summary: str
    """One line: what the cases are those of."""
    axes: Axes
    input_size: int | None = None
    """I; as large as H if None."""
    layers: int = 1
    bidirectional: bool = False
    dtypes: Sequence[str] = ("float32",)
    """Names of torch dtypes; every case is measured in each."""
    device: str = "cpu"
    """`cpu` or `cuda`."""
    peers: Sequence[str] = ()
    """Peers that are compared beside those that always are; see `Peer.on_demand`."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An implementation that backends are compared with, and that is none itself.

    It is given the weights and the input that every other implementation of a case gets, its
    result is compared with float64, and it is timed only if that is right. If it raises, or makes
    something else, its line in the table says so, and the others are measured.
    """

    name: str
    """Not that of a backend or of another peer."""
    summary: str
    """One line for `fastrnn bench --list`."""
    build: Callable[[Case], nn.Module]
    """Make the module for a case, on its device and of its dtype. Its parameters are torch.nn's, in
    torch.nn's order, and are written to afterwards. Called with x (T, B, I) it starts from zero
    states and returns what torch.nn.LSTM or torch.nn.RNN does: output (T, B, directions * H) and
    the final states, (h_n, c_n) or h_n, all of which have gradients where `mode` is `train`."""
    can_run: Callable[[Case], Sequence[str]] = lambda case: ()
    """Every reason why a case cannot be run, each a clause; none means that it can."""
    on_demand: bool = False
    """Compared only where `--peers` or a preset names it: one that takes long to get ready."""
