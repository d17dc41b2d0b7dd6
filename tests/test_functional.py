"""The stateless forms: they equal the modules, and wrong arguments are named."""

from __future__ import annotations

import pytest
import torch

import fastrnn
from fastrnn import calls, functional, testing
from fastrnn.request import Spec


def lstm_weights(num_layers: int = 1, bidirectional: bool = False) -> list[torch.Tensor]:
    spec = Spec("lstm", 3, 4, 0, num_layers, True, bidirectional)
    return list(testing.random_problem(spec, 1, 1, dtype=torch.float32).weights)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("proj_size", [0, 2])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_lstm_equals_torch_nn(proj_size: int, batch_first: bool, bidirectional: bool) -> None:
    module = torch.nn.LSTM(
        3, 4, 2, batch_first=batch_first, bidirectional=bidirectional, proj_size=proj_size
    )
    x = torch.randn(5, 2, 3)
    want, (h_n, c_n) = module(x)
    output, state = functional.lstm(
        x, None, list(module.parameters()), num_layers=2, batch_first=batch_first,
        bidirectional=bidirectional,
    )  # fmt: skip
    for got, expected in zip((output, *state), (want, h_n, c_n), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
def test_rnn_equals_torch_nn(nonlinearity: str) -> None:
    module = torch.nn.RNN(3, 4, nonlinearity=nonlinearity)
    x, h0 = torch.randn(5, 3), torch.randn(1, 4)
    want = module(x, h0)
    got = functional.rnn(x, h0, list(module.parameters()), nonlinearity=nonlinearity)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_sigmoid_rnn_equals_its_equation() -> None:
    module = fastrnn.RNN(3, 4, nonlinearity="sigmoid")
    x = torch.randn(5, 2, 3)
    output, _ = functional.rnn(x, None, list(module.parameters()), nonlinearity="sigmoid")
    w_ih, w_hh, b_ih, b_hh = module.parameters()
    h = torch.zeros(2, 4)
    for t in range(5):
        h = torch.sigmoid(x[t] @ w_ih.T + b_ih + h @ w_hh.T + b_hh)
        torch.testing.assert_close(output[t], h)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w[:3], r"weights: got 3 tensors, expected 4 \(weight_ih, weight_hh, bias_ih"),
        (lambda w: [w[0][0], *w[1:]], r"weights\[0\] \(weight_ih\): expected 2-D, got 1-D"),
        (lambda w: [*w[:3], w[3][:5]], r"weights\[3\] \(bias_hh of layer 0\): expected shape"),
        (lambda w: [w[0][:8], *w[1:]], r"weights\[0\] \(weight_ih of layer 0\): expected shape"),
        (lambda w: [w[0], w[1][:, :2], *w[2:]], r"weights\[1\] \(weight_hh of layer 0\): expected"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        functional.lstm(torch.randn(5, 2, 3), None, change(lstm_weights()))


def test_wrong_options_are_named() -> None:
    x, weights = torch.randn(5, 2, 3), lstm_weights()
    with pytest.raises(ValueError, match=r"Unknown nonlinearity 'gelu'\. Select from"):
        functional.rnn(x, None, weights, nonlinearity="gelu")
    with pytest.raises(ValueError, match="num_layers=0"):
        functional.lstm(x, None, weights, num_layers=0)
    with pytest.raises(ValueError, match="unknown backend 'cudnn'; expected 'auto' or"):
        functional.lstm(x, None, weights, backend="cudnn")
    with pytest.raises(TypeError, match="backend should be of type str, got: int"):
        functional.lstm(x, None, weights, backend=3)
    with pytest.raises(ValueError, match=r"hx should be a pair \(h_0, c_0\), got length 3"):
        functional.lstm(x, (x, x, x), weights)
    with pytest.raises(ValueError, match="RNN: hx should be one tensor h_0, got tuple"):
        functional.rnn(x, (x, x), [torch.randn(4, 3), torch.randn(4, 4)], bias=False)


@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize("shape", [(0, 2, 3), (5, 0, 3)], ids=["no steps", "empty batch"])
def test_empty_input_is_as_torch_nn_has_it(backend: str, shape: tuple[int, ...]) -> None:
    """No steps is torch's error; an empty batch gives empty results and zero gradients."""
    module = torch.nn.LSTM(3, 4)
    x = torch.randn(shape)
    if shape[0] == 0:
        with pytest.raises(RuntimeError) as expected:
            module(x)
        with pytest.raises(RuntimeError) as raised:
            functional.lstm(x, None, list(module.parameters()), backend=backend)
        assert str(raised.value) == str(expected.value)
        return
    output, (h_n, c_n) = functional.lstm(x, None, list(module.parameters()), backend=backend)
    assert [tuple(t.shape) for t in (output, h_n, c_n)] == [(5, 0, 4), (1, 0, 4), (1, 0, 4)]
    output.sum().backward()
    assert all((p.grad == 0).all() for p in module.parameters())


@pytest.mark.parametrize("backend", ["reference", "aten"])
def test_weight_on_another_device_is_an_error(backend: str) -> None:
    weights = [weight.to("meta") for weight in lstm_weights()]
    with pytest.raises(RuntimeError, match="not at the same device"):
        functional.lstm(torch.randn(5, 2, 3), None, weights, backend=backend)


def test_mixed_dtypes_are_an_error() -> None:
    weights, x = lstm_weights(), torch.randn(5, 2, 3)
    with pytest.raises(ValueError, match=r"RNN input dtype .* does not match weight dtype"):
        functional.lstm(x.double(), None, weights)
    hx = (torch.zeros(1, 2, 4, dtype=torch.float64),) * 2
    with pytest.raises(RuntimeError, match="Input and hidden tensors are not the same dtype"):
        functional.lstm(x, hx, weights, backend="reference")


def test_non_contiguous_input_and_state() -> None:
    weights = lstm_weights()
    x = torch.randn(3, 2, 5).permute(2, 1, 0)
    hx = tuple(torch.randn(4, 2, 1).permute(2, 1, 0) for _ in range(2))
    want = functional.lstm(x.contiguous(), tuple(s.contiguous() for s in hx), weights)
    for backend in ("reference", "aten"):
        got = functional.lstm(x, hx, weights, backend=backend)
        torch.testing.assert_close(got, want)


def test_inputs_are_not_written_to() -> None:
    weights = lstm_weights()
    x, hx = torch.randn(5, 2, 3), (torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    before = [t.clone() for t in (x, *hx, *weights)]
    for t in (x, *hx, *weights):
        t.requires_grad_()
    output, (h_n, c_n) = functional.lstm(x, hx, weights, backend="reference")
    (output.sum() + h_n.sum() + c_n.sum()).backward()
    for b, t in zip(before, (x, *hx, *weights), strict=True):
        assert torch.equal(b, t)
    # and what comes out is nobody else's memory
    assert h_n.untyped_storage().data_ptr() != output.untyped_storage().data_ptr()


@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize(("cell", "proj"), [("lstm", 0), ("lstm", 2), ("rnn_tanh", 0)])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_no_two_gradients_share_memory(
    cell: str, proj: int, num_layers: int, bidirectional: bool, backend: str
) -> None:
    """Clipping and unscaling work in place: a shared gradient would be scaled twice."""
    spec = Spec(cell, 3, 4, proj, num_layers, True, bidirectional)
    problem = testing.random_problem(spec, 5, 2)
    assert problem.hx is not None
    leaves = [t.clone().requires_grad_() for t in (problem.x, *problem.hx, *problem.weights)]
    x, hx, weights = leaves[0], leaves[1 : 1 + len(problem.hx)], leaves[1 + len(problem.hx) :]
    output, _ = calls.run(
        spec, x, tuple(hx) if cell == "lstm" else hx[0], weights, batch_first=False, dropout=0.0,
        training=True, backend=backend,
    )  # fmt: skip
    output.sum().backward()
    before = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad.mul_(2)
    for leaf, grad in zip(leaves, before, strict=True):
        assert torch.equal(leaf.grad, 2 * grad)
