"""What a recurrent cell is: its gates, its state, and one time step in torch's operations.

A layer makes pre-activations, a(t) = W_ih x(t) + W_hh h(t-1) + b, K of them for each hidden unit;
what a cell makes of a unit's, and of its state, is point-wise: no other unit has a part in it. So a
cell is one function, from which backends that know no more run it, and derivatives of derivatives
are taken. A backend that fuses time steps may need the step in a language of its own: for Triton
`Cell.kernel` says where that is.

Plugins bring cells through the hook `fastrnn_cells`; the four that every backend knows are below.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

Step = Callable[[tuple[Tensor, ...], Tensor, tuple[Tensor, ...]], tuple[Tensor, Tensor]]
Layout = Callable[
    [Tensor, Tensor, Tensor | None, Tensor | None], tuple[Tensor, Tensor, Tensor | None]
]

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_KERNEL = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_TYPES = {
    "name": str, "gates": int, "has_cell_state": bool, "c_is_h": bool, "weights": int,
    "kernel": str, "rows": int, "summary": str,
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A recurrent cell.

    Attributes:
        name: how layers and plugins name it: lower-case letters, digits and `_`, a letter first.
        gates: K, pre-activations of a hidden unit. Fused kernels take 1, 2 or 4.
        has_cell_state: whether a second state c, as wide as h, is carried from step to step.
        step: `step(pre, c_prev, weights) -> (h, c)`, in differentiable operations of torch that
            write to nothing. pre: K tensors (..., H); c_prev: (..., H) if `has_cell_state`, else
            a zero; weights: Q tensors (H,). h and c are (..., H), in the dtype of pre; without a
            cell state c is whatever came in. Point-wise over units and what comes before them.
        c_is_h: c is h once more, kept from rounding: users see, and pass, h alone. For a cell whose
            h(t-1) has a part in a step beside W_hh h(t-1).
        weights: Q, weights of a hidden unit of its own beside W_ih, W_hh and biases.
        kernel: `module:NAME` of a `fastrnn_kernels.cells.Cell`, which is imported when a kernel
            runs; empty if there is none.
        rows: rows of a hidden unit in the parameters of a module, if they are not the K of a layer;
            `layout` then makes the one of the other.
        layout: `layout(weight_ih, weight_hh, bias_ih, bias_hh) -> (weight_ih, weight_hh, bias)`, in
            differentiable operations: parameters (rows * H, ...), biases None if there are none, to
            what a layer takes, (K * H, ...), with the biases added up.
        summary: one line for listings.

    Raises:
        TypeError: an argument is of another type.
        ValueError: a name is not allowed, a number is out of range, or two do not fit.

    Example:
        >>> def step(pre, c_prev, weights):
        ...     return torch.nn.functional.softsign(pre[0]), c_prev
        >>> softsign = Cell("rnn_softsign", gates=1, has_cell_state=False, step=step)
    """

    name: str
    gates: int
    has_cell_state: bool
    step: Step
    c_is_h: bool = False
    weights: int = 0
    kernel: str = ""
    rows: int = 0
    layout: Layout | None = None
    summary: str = ""

    def __post_init__(self) -> None:
        for name, kind in _TYPES.items():
            value = getattr(self, name)
            if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
                got = type(value).__name__
                raise TypeError(f"{name} should be of type {kind.__name__}, got: {got}")
        if not callable(self.step):
            raise TypeError(f"step should be a function, got: {type(self.step).__name__}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"name: got {self.name!r}, expected lower-case letters, digits and _, a letter "
                "first"
            )
        if self.gates < 1 or self.weights < 0 or self.rows < 0:
            raise ValueError(
                f"gates, weights, rows: got {(self.gates, self.weights, self.rows)}, expected one "
                "gate or more, and no negative number"
            )
        if self.kernel and not _KERNEL.fullmatch(self.kernel):
            raise ValueError(f"kernel: got {self.kernel!r}, expected 'module:NAME'")
        if self.c_is_h and not self.has_cell_state:
            raise ValueError("c_is_h: got True, expected False where there is no cell state")
        if (self.layout is None) != (self.rows == 0):
            raise ValueError("rows, layout: got one of them, expected both or neither")

    @property
    def parameter_rows(self) -> int:
        """Rows of a hidden unit in the parameters of a module."""
        return self.rows or self.gates

    @property
    def has_pair(self) -> bool:
        """Whether users see a pair of states, (h, c)."""
        return self.has_cell_state and not self.c_is_h

    def as_layer(
        self, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor | None, bias_hh: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Parameters of one layer and direction as a layer takes them; see `layout`."""
        if self.layout is not None:
            return self.layout(weight_ih, weight_hh, bias_ih, bias_hh)
        bias = None if bias_ih is None or bias_hh is None else bias_ih + bias_hh
        return weight_ih, weight_hh, bias


def _lstm(
    pre: tuple[Tensor, ...], c_prev: Tensor, weights: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    i, f, g, o = pre
    c = f.sigmoid() * c_prev + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _elman(activation: Callable[[Tensor], Tensor]) -> Step:
    def step(
        pre: tuple[Tensor, ...], c_prev: Tensor, weights: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        return activation(pre[0]), c_prev

    return step


BUILTIN: Mapping[str, Cell] = MappingProxyType(
    {
        cell.name: cell
        for cell in (
            Cell("lstm", 4, True, _lstm, summary="torch.nn.LSTM's, gates i, f, g, o"),
            Cell("rnn_tanh", 1, False, _elman(torch.tanh), summary="Elman, tanh"),
            Cell("rnn_relu", 1, False, _elman(torch.relu), summary="Elman, ReLU"),
            Cell("rnn_sigmoid", 1, False, _elman(torch.sigmoid), summary="Elman, logistic"),
        )
    }
)
"""The cells that every backend is asked to run."""


def cell_of(name: str) -> Cell:
    """The cell of this name, a plugin's or a built-in.

    Raises:
        ValueError: there is none; the text lists those there are.
    """
    found = BUILTIN.get(name)
    return _from_plugins(name) if found is None else found


_registry: list[Callable[[], Any]] = []
"""`fastrnn.plugins.registry`, once somebody asked for a plugin's cell. That module stands on this
one, and to import a name in each call would take a tenth of a short one."""


def _from_plugins(name: str) -> Cell:
    if not _registry:
        from fastrnn.plugins import registry

        _registry.append(registry)
    cells: Mapping[str, Cell] = _registry[0]().cells
    found = cells.get(name)
    if found is None:
        raise ValueError(f"cell: got {name!r}, expected one of {', '.join(cells)}")
    return found
