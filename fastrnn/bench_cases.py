"""What `fastrnn bench` measures of itself: the cases, and every implementation of each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fastrnn.benchmark import Axes, Case, Peer, Preset
from fastrnn.calls import make_request
from fastrnn.cell_modules import GRU, CellRNN
from fastrnn.modules import LSTM, RNN
from fastrnn.request import GATES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from torch import Tensor

    from fastrnn.recurrent import Recurrent
    from fastrnn.request import Request

BASELINE = "torch.nn"
LOOP = "cell loop"
MODES = {
    "forward": ("forward",),
    "inference": ("inference",),
    "train": ("train",),
    "both": ("forward", "train"),
}
"""What `--mode` may be, and the modes of cases that it stands for."""
CELLS = ["lstm", "rnn_tanh"]
OF_TORCH = ("lstm", "gru", "rnn_tanh", "rnn_relu")
"""The cells that torch.nn has."""

PRESETS = (
    Preset(
        "quick",
        "a first impression: ends within a minute on two cores",
        Axes(CELLS, [100], [1, 32], [64]),
    ),
    Preset(
        "cpu",
        "what a CPU is used for: one row or a batch, small to large layers; some five minutes",
        Axes(CELLS, [20, 100], [1, 16], [64, 256, 512]),
    ),
    Preset(
        "gpu",
        "any GPU: layers that one multiprocessor holds, and layers that all of them share",
        Axes(CELLS, [128], [16, 64], [64, 256, 1024]),
        dtypes=("bfloat16",),
        device="cuda",
        peers=("compiled loop",),
    ),
    Preset(
        "h200",
        "what the kernels are written for: corners of the grid of benchmarks/regimes.py",
        Axes(CELLS, [128, 1024], [16, 64], [256, 512, 1024]),
        dtypes=("bfloat16", "float32"),
        device="cuda",
    ),
)


def cases(
    axes: Axes,
    *,
    mode: str,
    input_size: int | None,
    layers: int,
    bidirectional: bool,
    dtype: str,
    device: str,
) -> list[Case]:
    """Every combination of the axes.

    Args:
        axes: the values to combine.
        mode: a key of `MODES`.
        input_size: I; H where it is None.
        layers: number of layers.
        bidirectional: whether each layer has two directions.
        dtype: a torch dtype's name.
        device: a torch device.
    """
    # T and B vary fastest, so that neighbouring lines of the table compare
    combinations = itertools.product(axes.cell, MODES[mode], axes.H, axes.T, axes.B)
    return [
        Case(cell, how, steps, batch, input_size or hidden, hidden, layers, bidirectional, dtype,
             device)
        for cell, how, hidden, steps, batch in combinations
    ]  # fmt: skip


class CellLoop(nn.Module):
    """A Python loop over torch.nn's cells: what one writes without a fused layer."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.is_lstm = case.cell == "lstm"
        self.directions = case.spec.directions
        cells: list[nn.Module] = []
        for slot in range(case.layers * self.directions):
            inputs = case.I if slot < self.directions else case.H * self.directions
            if case.cell in ("lstm", "gru"):
                cells.append((nn.LSTMCell if self.is_lstm else nn.GRUCell)(inputs, case.H))
            else:
                nonlinearity = case.cell.removeprefix("rnn_")
                cells.append(nn.RNNCell(inputs, case.H, nonlinearity=nonlinearity))
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Run x (T, B, I) from zero states, as torch.nn's layers do."""
        finals: list[tuple[Tensor, ...]] = []
        outputs: list[Tensor] = []
        for slot, cell in enumerate(self.cells):
            reverse = slot % self.directions == 1
            states: tuple[Tensor, ...] | None = None
            steps = []
            for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
                states = self.step(cell, x_t, states)
                steps.append(states[0])
            assert states is not None
            finals.append(states)
            outputs.append(torch.stack(steps[::-1] if reverse else steps))
            if len(outputs) == self.directions:
                x = torch.cat(outputs, -1) if self.directions > 1 else outputs[0]
                outputs = []
        stacked = tuple(torch.stack(each) for each in zip(*finals, strict=True))
        return x, (stacked[0], stacked[1]) if self.is_lstm else stacked[0]

    def step(
        self, cell: nn.Module, x_t: Tensor, states: tuple[Tensor, ...] | None
    ) -> tuple[Tensor, ...]:
        """The states of a cell after x_t (B, I); before the first step they are None, for zeros."""
        if self.is_lstm:
            after: tuple[Tensor, Tensor] = cell(x_t, states)
            return after
        return (cell(x_t, None if states is None else states[0]),)


def baseline(case: Case) -> nn.Module:
    """torch.nn's layer for a case, with torch's own random weights."""
    sizes = (case.I, case.H, case.layers)
    if case.cell in ("lstm", "gru"):
        kind = nn.LSTM if case.cell == "lstm" else nn.GRU
        return placed(kind(*sizes, bidirectional=case.bidirectional), case)
    nonlinearity = case.cell.removeprefix("rnn_")
    layer = nn.RNN(*sizes, nonlinearity=nonlinearity, bidirectional=case.bidirectional)
    return placed(layer, case)


def cell_loop(case: Case) -> nn.Module:
    """A loop over torch.nn's cells for a case."""
    return placed(CellLoop(case), case)


def torch_lacks(case: Case) -> list[str]:
    """Why torch.nn has nothing for a case."""
    return [] if case.cell in OF_TORCH else [f"torch.nn has no {case.cell}"]


PEERS = (
    Peer(BASELINE, "torch.nn.LSTM, GRU and RNN, the baseline", baseline, torch_lacks),
    Peer(LOOP, "a Python loop over torch.nn's cells", cell_loop, torch_lacks),
)


def layer(case: Case, backend: str) -> Recurrent:
    """The layer of fastrnn for a case."""
    sizes = (case.I, case.H, case.layers)
    built: Recurrent
    how: dict[str, Any] = {"bidirectional": case.bidirectional, "backend": backend}
    if case.cell in ("lstm", "gru"):
        built = (LSTM if case.cell == "lstm" else GRU)(*sizes, **how)
    elif case.cell in GATES:
        built = RNN(*sizes, nonlinearity=case.cell.removeprefix("rnn_"), **how)
    else:
        built = CellRNN(case.cell, *sizes, **how)
    placed(built, case)
    return built


def backend_as_peer(backend: str, reasons: Sequence[str]) -> Peer:
    """A backend, described as what it is compared with is."""
    return Peer(backend, "", lambda case: layer(case, backend), lambda case: reasons)


def placed(module: nn.Module, case: Case) -> nn.Module:
    """A module on a case's device, of its dtype, and in the mode that torch.nn's has."""
    return module.to(case.device, case.torch_dtype).train(case.mode == "train")


def gradients(mode: str) -> AbstractContextManager[None]:
    """Within it, calls are those of a mode: gradients are recorded in training only."""
    return (
        torch.inference_mode() if mode == "inference" else torch.set_grad_enabled(mode == "train")
    )


def request_of(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Request:
    """The request that a call of fastrnn's layer makes."""
    training = case.mode == "train"
    with gradients(case.mode):
        states = (x.new_zeros(case.layers * case.spec.directions, case.B, case.H),)
        return make_request(case.spec, x, None, states, weights, False, 0.0, training)


def request_for(case: Case) -> Request:
    """`request_of` without the memory that the input and the weights take."""
    x = torch.empty((), dtype=case.torch_dtype, device=case.device).expand(case.T, case.B, case.I)
    return request_of(case, x, [x.new_empty(0).requires_grad_()])
