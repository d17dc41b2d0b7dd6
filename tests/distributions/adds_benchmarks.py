"""A healthy third party: its own loop over time beside the backends, and its own cases.

One of its peers raises, and one is wrong.
"""

from __future__ import annotations

import torch
from torch import nn

from fastrnn.benchmark import Axes, Peer, Preset
from fastrnn.hookspecs import hookimpl


class Loop(nn.Module):
    """One Elman layer with tanh, step by step."""

    def __init__(self, case, gain=1.0):
        super().__init__()
        rnn = nn.RNN(case.I, case.H).to(case.device, case.torch_dtype)
        for name, weight in rnn.named_parameters():
            self.register_parameter(name, weight)
        self.gain = gain

    def forward(self, x):
        w_ih, w_hh, b_ih, b_hh = self.parameters()
        h, outputs = x.new_zeros(x.shape[1], w_hh.shape[0]), []
        for x_t in x:
            h = torch.tanh(x_t @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
            outputs.append(h)
        return self.gain * torch.stack(outputs), h.unsqueeze(0)


def tanh_only(case):
    reasons = [] if case.cell == "rnn_tanh" else [f"cell is {case.cell}; needs rnn_tanh"]
    reasons += ["needs one layer"] if case.layers > 1 or case.bidirectional else []
    return reasons


def raises(case):
    raise OSError("no device")


@hookimpl
def fastrnn_benchmark_peers():
    yield Peer("own loop", "a loop over time", Loop, tanh_only)
    yield Peer("raises", "raises when it is built", raises)
    yield Peer("wrong", "a little more than it should be", lambda case: Loop(case, 1.01), tanh_only)


@hookimpl
def fastrnn_benchmark_cases():
    yield Preset("speech", "two layers over 80 features", Axes(["lstm"], [4], [2], [6]), 80, 2)
    yield Preset("tiny", "one of each cell", Axes(["lstm", "rnn_tanh"], [3], [2], [4]))
