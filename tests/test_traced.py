"""Tracers other than torch.compile's: one node in torch.fx, refused by TorchScript's."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn


# sizes are looked at, in torch.nn's layers as in ours; and torch deprecates TorchScript
def torchs_warnings(test):
    for what in ("", "_method"):
        words = f"ignore:`torch.jit.trace{what}` is deprecated:DeprecationWarning"
        test = pytest.mark.filterwarnings(words)(test)
    return pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")(test)


LAYERS = (fastrnn.RNN, fastrnn.LSTM, fastrnn.GRU)


class Net(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.encoder = nn.Sequential(layer(3, 4), nn.Identity())
        self.head = nn.Linear(4, 2)

    def forward(self, x, hx=None, lengths=None):
        output, state = self.encoder[0](x, hx, lengths=lengths)
        return self.head(output), state


@pytest.mark.parametrize("layer", LAYERS)
def test_fx_makes_one_node_of_a_layer(layer):
    net = Net(layer)
    traced = torch.fx.symbolic_trace(net)
    called = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert called == ["encoder.0", "head"]
    for steps in (1, 5):
        x = torch.randn(steps, 2, 3)
        _, hx = net(x)
        for arguments in ((x,), (x, hx), (x, hx, [1, 0])):
            torch.testing.assert_close(traced(*arguments), net(*arguments), rtol=0, atol=0)


def test_fx_node_has_only_what_was_given():
    net = nn.Sequential(fastrnn.LSTM(3, 4, backend="reference"))
    (node,) = (node for node in torch.fx.symbolic_trace(net).graph.nodes if node.target == "0")
    assert len(node.args) == 1
    assert node.kwargs == {}


@torchs_warnings
@pytest.mark.parametrize("before", [False, True], ids=["at once", "called before"])
@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("layer", LAYERS)
def test_jit_trace_is_refused_in_words(layer, packed, before):
    net = layer(3, 4)

    def run(x):
        return net(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 2])) if packed else x)[1]

    x = torch.randn(5, 2, 3)
    if before:
        run(x)
    with pytest.raises(RuntimeError, match=r"cannot be traced by torch\.jit\.trace; trace a model"):
        torch.jit.trace(run, x)


@torchs_warnings
def test_what_was_reverted_is_traced():
    net, x = nn.Sequential(fastrnn.LSTM(3, 4)), torch.randn(5, 2, 3)
    want = net(x)[0]
    traced = torch.jit.trace(fastrnn.revert(net), x)
    torch.testing.assert_close(traced(x)[0], want)
