"""What `fastrnn bench` measures of itself: the cases, and every implementation of each."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn

from fastrnn.benchmark import Axes, Case, Peer, Preset
from fastrnn.calls import make_request
from fastrnn.modules import LSTM, RNN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.request import Request

BASELINE = "torch.nn"
LOOP = "cell loop"
MODES = {"forward": ("forward",), "train": ("train",), "both": ("forward", "train")}


PRESETS = (
    Preset(
        "quick",
        "a first impression: ends within 20 s on two cores",
        Axes(["lstm", "rnn_tanh"], [100], [1, 32], [64]),
    ),
    Preset(
        "cpu",
        "what a CPU is used for: short to long, one row to a batch, small to large layers",
        Axes(["lstm", "rnn_tanh"], [20, 100, 500], [1, 8, 32], [64, 256, 512]),
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
            cells.append(
                nn.LSTMCell(inputs, case.H)
                if self.is_lstm
                else nn.RNNCell(inputs, case.H, nonlinearity=case.cell.removeprefix("rnn_"))
            )
        self.cells = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | tuple[Tensor, Tensor]]:
        """Run x (T, B, I) from zero states, as torch.nn.LSTM and torch.nn.RNN do."""
        finals: list[tuple[Tensor, ...]] = []
        outputs: list[Tensor] = []
        for slot, cell in enumerate(self.cells):
            reverse = slot % self.directions == 1
            states: tuple[Tensor, ...] | None = None
            steps = []
            for x_t in reversed(x.unbind(0)) if reverse else x.unbind(0):
                if self.is_lstm:
                    states = cell(x_t, states)
                else:
                    states = (cell(x_t, None if states is None else states[0]),)
                steps.append(states[0])
            assert states is not None
            finals.append(states)
            outputs.append(torch.stack(steps[::-1] if reverse else steps))
            if len(outputs) == self.directions:
                x = torch.cat(outputs, -1) if self.directions > 1 else outputs[0]
                outputs = []
        stacked = tuple(torch.stack(each) for each in zip(*finals, strict=True))
        return x, (stacked[0], stacked[1]) if self.is_lstm else stacked[0]


def baseline(case: Case) -> nn.Module:
    """torch.nn's layer for a case, with torch's own random weights."""
    sizes = (case.I, case.H, case.layers)
    if case.cell == "lstm":
        return _placed(nn.LSTM(*sizes, bidirectional=case.bidirectional), case)
    nonlinearity = case.cell.removeprefix("rnn_")
    layer = nn.RNN(*sizes, nonlinearity=nonlinearity, bidirectional=case.bidirectional)
    return _placed(layer, case)


def cell_loop(case: Case) -> nn.Module:
    """A loop over torch.nn's cells for a case."""
    return _placed(CellLoop(case), case)


def torch_lacks(case: Case) -> list[str]:
    """Why torch.nn has nothing for a case."""
    return [] if case.cell in ("lstm", "rnn_tanh", "rnn_relu") else [f"torch.nn has no {case.cell}"]


PEERS = (
    Peer(BASELINE, "torch.nn.LSTM and torch.nn.RNN, the baseline", baseline, torch_lacks),
    Peer(LOOP, "a Python loop over torch.nn's cells", cell_loop, torch_lacks),
)


def layer(case: Case, backend: str) -> LSTM | RNN:
    """The layer of fastrnn for a case."""
    if case.cell == "lstm":
        built: LSTM | RNN = LSTM(
            case.I, case.H, case.layers, bidirectional=case.bidirectional, backend=backend
        )
    else:
        built = RNN(
            case.I, case.H, case.layers, nonlinearity=case.cell.removeprefix("rnn_"),
            bidirectional=case.bidirectional, backend=backend,
        )  # fmt: skip
    _placed(built, case)
    return built


def backend_as_peer(backend: str, reasons: Sequence[str]) -> Peer:
    """A backend, described as what it is compared with is."""
    return Peer(backend, "", lambda case: layer(case, backend), lambda case: reasons)


def _placed(module: nn.Module, case: Case) -> nn.Module:
    return module.to(case.device, case.torch_dtype).train(case.mode == "train")


def request_of(case: Case, x: Tensor, weights: Sequence[Tensor]) -> Request:
    """The request that a call of fastrnn's layer makes."""
    training = case.mode == "train"
    with torch.set_grad_enabled(training):
        states = (x.new_zeros(case.layers * case.spec.directions, case.B, case.H),)
        return make_request(case.spec, x, None, states, weights, False, 0.0, training)


def request_for(case: Case) -> Request:
    """`request_of` without the memory that the input and the weights take."""
    x = torch.empty((), dtype=case.torch_dtype, device=case.device).expand(case.T, case.B, case.I)
    return request_of(case, x, [x.new_empty(0).requires_grad_()])
