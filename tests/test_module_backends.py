"""`LSTM` and `RNN` as modules: the backend that they name, run and explain."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrnn
from fastrnn import calls, recurrent
from module_cases import CELLS, X


def test_backend_is_checked_wherever_it_is_set():
    with pytest.raises(fastrnn.BackendError, match="unknown backend 'warp'"):
        fastrnn.LSTM(4, 5, backend="warp")
    with pytest.raises(TypeError, match="backend should be of type str, got: NoneType"):
        fastrnn.RNN(4, 5, backend=None)
    ours = fastrnn.LSTM(4, 5, backend="reference,auto")
    with pytest.raises(fastrnn.BackendError, match="unknown backend 'warp'"):
        ours.backend = "reference,warp"
    assert ours.backend == "reference,auto"


def test_backend_is_keyword_only():
    with pytest.raises(TypeError, match="positional"):
        fastrnn.LSTM(4, 5, 1, True, False, 0.0, False, 0, None, None, "aten")
    with pytest.raises(TypeError, match="positional"):
        fastrnn.RNN(4, 5, 1, "tanh", True, False, 0.0, False, None, None, "aten")
    with pytest.raises(TypeError, match="unexpected keyword argument 'bakcend'"):
        fastrnn.RNN(4, 5, bakcend="aten")


@pytest.mark.parametrize("cell", CELLS)
def test_backend_named_is_backend_run(cell, monkeypatch):
    asked = []
    run = recurrent.run

    def spy(*args, backend, **kwargs):
        asked.append(backend)
        return run(*args, backend=backend, **kwargs)

    monkeypatch.setattr(recurrent, "run", spy)
    ours = getattr(fastrnn, cell)(4, 5, backend="reference")
    ours(X)
    ours.backend = "aten"
    ours(X)
    assert asked == ["reference", "aten"]


def test_backend_that_cannot_run_is_an_error():
    ours = fastrnn.RNN(4, 5, nonlinearity="sigmoid", backend="aten")
    with pytest.raises(fastrnn.BackendError, match="torch has no rnn_sigmoid"):
        ours(X)


def test_repr_shows_what_torch_lacks():
    assert repr(fastrnn.LSTM(4, 5, backend="aten")) == "LSTM(4, 5, backend=aten)"
    rnn = fastrnn.RNN(4, 5, 2, "sigmoid", backend="reference")
    assert repr(rnn) == "RNN(4, 5, num_layers=2, nonlinearity=sigmoid, backend=reference)"


@pytest.mark.parametrize("form", ["batched", "unbatched", "packed"])
@pytest.mark.parametrize("cell", CELLS)
def test_explain_describes_the_call(cell, form, monkeypatch):
    """The request that `explain` makes is the very one that the call makes."""
    made = []
    decide = calls.decide

    def spy(request, backend):
        made.append(request)
        return decide(request, backend)

    monkeypatch.setattr(calls, "decide", spy)
    ours = getattr(fastrnn, cell)(4, 5, 2, batch_first=True, dropout=0.5, backend="reference")
    x = {
        "batched": X,
        "unbatched": X[0],
        "packed": nn.utils.rnn.pack_padded_sequence(X, [3, 2, 2, 1, 1], batch_first=True),
    }[form]
    batch = () if form == "unbatched" else (5,)
    ours.requires_grad_(False)  # so that only the states ask for gradients
    h0 = torch.zeros(2, *batch, 5, requires_grad=True)
    for hx in (None, (h0, h0) if cell == "LSTM" else h0):
        ours(x, hx)
        decision = fastrnn.explain(ours, x, hx)
        assert decision.request == made[-1]
        assert decision.request.needs_grad == (hx is not None)
        assert (decision.backend, decision.rule) == ("reference", "argument")


def test_explain_refuses_torchs():
    with pytest.raises(TypeError, match=r"a fastrnn\.RNN or LSTM, got: LSTM"):
        fastrnn.explain(nn.LSTM(4, 5), X)


@pytest.mark.parametrize(
    ("cls", "steps", "batch", "size", "training", "backend"),
    [
        (fastrnn.LSTM, 1, 1, 64, False, "aten"),
        (fastrnn.LSTM, 1, 1, 256, False, "rows"),
        (fastrnn.LSTM, 1, 1, 1024, False, "rows"),
        (fastrnn.LSTM, 1, 32, 1024, True, "rows"),
        (fastrnn.LSTM, 4, 8, 1024, True, "rows"),
        (fastrnn.LSTM, 20, 32, 1024, True, "aten"),
        (fastrnn.LSTM, 100, 1, 1024, False, "aten"),
        (fastrnn.RNN, 1, 1, 64, True, "aten"),
        (fastrnn.RNN, 20, 1, 64, True, "rows"),
        (fastrnn.RNN, 100, 32, 512, True, "rows"),
        (fastrnn.RNN, 20, 1, 64, False, "aten"),
        (fastrnn.RNN, 100, 1, 64, False, "rows"),
    ],
)
def test_auto_goes_by_what_was_measured_on_a_cpu(
    cls, steps, batch, size, training, backend, monkeypatch
):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    module = cls(size, size)
    with torch.set_grad_enabled(training):
        assert fastrnn.explain(module, torch.empty(steps, batch, size)).backend == backend
