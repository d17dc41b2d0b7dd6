"""`JordanRNN`: the numbers of its equations in NumPy, and of the networks that it contains."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn.jordan import JordanRNN

NUMPY = {
    None: lambda a: a,
    "tanh": np.tanh,
    "relu": lambda a: np.maximum(a, 0),
    "sigmoid": lambda a: 1 / (1 + np.exp(-a)),
    "softmax": lambda a: np.exp(a) / np.exp(a).sum(),
}
T, B, I, H, O = 4, 3, 2, 5, 3


def network(*args, **kwargs):
    torch.manual_seed(0)
    return JordanRNN(*(args or (I, H, O)), dtype=torch.float64, **kwargs)


def sequence(features, steps=T, batch=B):
    return torch.randn(steps, batch, features, dtype=torch.float64)


def zeros(*shape):
    return torch.zeros(shape, dtype=torch.float64)


def random_state(net, batch=B):
    y0 = torch.randn(batch, net.output_size, dtype=torch.float64)
    if not net.hidden_feedback:
        return y0
    return y0, torch.randn(batch, net.hidden_size, dtype=torch.float64)


def transcribed(net, x, state, teacher=None):
    """The equations, a row at a time: output (T, B, O), y(T) and h(T)."""
    weights = {name: value.detach().numpy() for name, value in net.named_parameters()}
    f, g = NUMPY[net.nonlinearity], NUMPY[net.output_nonlinearity]
    output = np.zeros((*x.shape[:2], net.output_size))
    final_h = np.zeros((x.shape[1], net.hidden_size))
    for row in range(x.shape[1]):
        y = state[0][row].numpy() if isinstance(state, tuple) else state[row].numpy()
        h = state[1][row].numpy() if isinstance(state, tuple) else None
        for t in range(len(x)):
            a = weights["weight_ih"] @ x[t, row].numpy() + weights["weight_oh"] @ y
            a = a + weights.get("bias_h", 0)
            if net.hidden_feedback:
                a = a + weights["weight_hh"] @ h
            h = f(a)
            y = output[t, row] = g(weights["weight_ho"] @ h + weights.get("bias_o", 0))
            if teacher is not None:
                y = teacher[t, row].numpy()
        final_h[row] = h
    return output, output[-1], final_h


def close(actual, expected, **how):
    if isinstance(expected, np.ndarray):
        expected = torch.from_numpy(expected)
    torch.testing.assert_close(actual, expected, **how)


def states_of(made):
    output, final = made
    return [output, *final] if isinstance(final, tuple) else [output, final]


@settings(max_examples=40, deadline=None)
@given(
    f=st.sampled_from(["tanh", "relu", "sigmoid"]),
    g=st.sampled_from([None, "tanh", "sigmoid", "relu", "softmax"]),
    flags=st.fixed_dictionaries({"bias": st.booleans(), "hidden_feedback": st.booleans()}),
    taught=st.booleans(),
    sizes=st.tuples(*[st.integers(1, 4)] * 5),
)
def test_equations(f, g, flags, taught, sizes):
    steps, batch, *features = sizes
    net = network(*features, nonlinearity=f, output_nonlinearity=g, **flags)
    x, state = sequence(features[0], steps, batch), random_state(net, batch)
    teacher = sequence(features[2], steps, batch) if taught else None
    made = states_of(net(x, state, teacher=teacher))
    for actual, expected in zip(made, transcribed(net, x, state, teacher), strict=False):
        close(actual, expected)


def test_is_an_elman_network_where_the_output_is_linear():
    net = network()
    rnn = fastrnn.RNN(I, H, dtype=torch.float64)
    with torch.no_grad():
        rnn.weight_ih_l0.copy_(net.weight_ih)
        rnn.weight_hh_l0.copy_(net.weight_oh @ net.weight_ho)
        rnn.bias_ih_l0.copy_(net.bias_h)
        rnn.bias_hh_l0.copy_(net.weight_oh @ net.bias_o)
    h0 = torch.randn(1, B, H, dtype=torch.float64)
    x = sequence(I)
    hidden, _ = rnn(x, h0)
    y0 = torch.nn.functional.linear(h0[0], net.weight_ho, net.bias_o)
    close(net(x, y0)[0], torch.nn.functional.linear(hidden, net.weight_ho, net.bias_o))


def test_is_an_elman_network_where_no_output_is_fed_back():
    net = network(nonlinearity="relu", hidden_feedback=True)
    rnn = fastrnn.RNN(I, H, nonlinearity="relu", dtype=torch.float64)
    with torch.no_grad():
        net.weight_oh.zero_()
        rnn.weight_ih_l0.copy_(net.weight_ih)
        rnn.weight_hh_l0.copy_(net.weight_hh)
        rnn.bias_ih_l0.copy_(net.bias_h)
        rnn.bias_hh_l0.zero_()
    x, (y0, h0) = sequence(I), random_state(net)
    hidden, h_n = rnn(x, h0.unsqueeze(0))
    output, (_, h) = net(x, (y0, h0))
    close(output, torch.nn.functional.linear(hidden, net.weight_ho, net.bias_o))
    close(h, h_n[0])


@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_its_own_output_as_teacher_changes_nothing(hidden_feedback):
    net = network(output_nonlinearity="softmax", hidden_feedback=hidden_feedback)
    x, state = sequence(I), random_state(net)
    free = states_of(net(x, state))
    for a, b in zip(free, states_of(net(x, state, teacher=free[0].detach())), strict=True):
        close(a, b)


@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_a_teacher_cuts_the_gradient(hidden_feedback):
    net = network(hidden_feedback=hidden_feedback)
    x = sequence(I).requires_grad_()
    teacher = sequence(O).requires_grad_()
    output, _ = net(x, teacher=teacher)
    dx, dteacher = torch.autograd.grad(output[-1].sum(), (x, teacher))
    assert dx[-1].any()
    # an output of before reaches the last step through the teacher only, and not itself
    assert bool(dx[-2].any()) == hidden_feedback
    assert dteacher[-2].any()
    assert not dteacher[-1].any()


@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_goes_on_where_it_stopped(hidden_feedback):
    net = network(hidden_feedback=hidden_feedback)
    x, state, teacher = sequence(I), random_state(net), sequence(O)
    whole, final = net(x, state)
    first, between = net(x[:2], state)
    second, end = net(x[2:], between)
    close(torch.cat((first, second)), whole)
    close(end, final)
    taught, _ = net(x, state, teacher=teacher)
    _, between = net(x[:2], state, teacher=teacher[:2])
    between = (teacher[1], between[1]) if hidden_feedback else teacher[1]
    close(net(x[2:], between, teacher=teacher[2:])[0], taught[2:])


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_batch_first_and_unbatched(hidden_feedback, taught):
    net = network(hidden_feedback=hidden_feedback)
    x, state, teacher = sequence(I), random_state(net), sequence(O) if taught else None
    expected = states_of(net(x, state, teacher=teacher))
    net.batch_first = True
    turned = None if teacher is None else teacher.transpose(0, 1)
    made = states_of(net(x.transpose(0, 1), state, teacher=turned))
    close(made, [expected[0].transpose(0, 1), *expected[1:]])
    for net.batch_first in (False, True):
        row = tuple(s[1] for s in state) if hidden_feedback else state[1]
        alone = net(x[:, 1], row, teacher=None if teacher is None else teacher[:, 1])
        close(states_of(alone), [expected[0][:, 1], *(final[1] for final in expected[1:])])


def test_no_state_is_zero():
    x = sequence(I)
    net = network(hidden_feedback=True)
    close(net(x), net(x, (zeros(B, O), zeros(B, H))))
    close(net(x[:, 0]), net(x[:, 0], (zeros(O), zeros(H))))
    net = network()
    close(net(x), net(x, zeros(B, O)))
    close(net(x[:, 0]), net(x[:, 0], zeros(O)))


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_gradients(hidden_feedback, taught):
    net = network(1, 2, 2, output_nonlinearity="softmax", hidden_feedback=hidden_feedback)
    names, weights = zip(*net.named_parameters(), strict=True)
    state = random_state(net, 2)
    state = state if hidden_feedback else (state,)
    given = [sequence(1, 3, 2), *state] + ([sequence(2, 3, 2)] if taught else [])
    given = [tensor.requires_grad_() for tensor in given]

    def run(*tensors):
        x, *rest = tensors[: len(given)]
        teacher = rest.pop() if taught else None
        arguments = (x, tuple(rest) if hidden_feedback else rest[0], teacher)
        parameters = dict(zip(names, tensors[len(given) :], strict=True))
        made = torch.func.functional_call(net, parameters, arguments[:2], {"teacher": arguments[2]})
        return tuple(states_of(made))

    assert torch.autograd.gradcheck(run, (*given, *weights))
    assert torch.autograd.gradgradcheck(run, (*given, *weights))


def test_the_last_output_of_the_teacher_is_not_read():
    net = network()
    x, teacher = sequence(I), sequence(O)
    expected, _ = net(x, teacher=teacher)
    teacher[-1] = float("nan")
    close(net(x, teacher=teacher)[0], expected)


@pytest.mark.parametrize(
    ("hidden_feedback", "taught"), [(False, False), (True, False), (True, True)]
)
def test_compiles(hidden_feedback, taught):
    torch._dynamo.reset()
    net = network(output_nonlinearity="tanh", hidden_feedback=hidden_feedback)
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    x, state, teacher = sequence(I), random_state(net), sequence(O) if taught else None
    made = compiled(x, state, teacher=teacher)
    close(made, net(x, state, teacher=teacher))
    made[0].sum().backward()
    compiled_gradient, net.weight_oh.grad = net.weight_oh.grad, None
    net(x, state, teacher=teacher)[0].sum().backward()
    close(compiled_gradient, net.weight_oh.grad)


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("hidden_feedback", [False, True])
def test_autocast(hidden_feedback, taught):
    net = network(hidden_feedback=hidden_feedback).float()
    x, teacher = sequence(I).float(), sequence(O).float() if taught else None
    with torch.autocast("cpu", torch.bfloat16):
        output, state = net(x, teacher=teacher)
        assert output.dtype == torch.bfloat16
        again, _ = net(x, state, teacher=teacher)
    assert again.isfinite().all()
    close(output.float(), net(x, teacher=teacher)[0], atol=0.05, rtol=0.05)


def test_learns_to_count():
    """Without hidden feedback memory is in the output alone: y(t) = y(t-1) + x(t)."""
    net = network(1, 4, 1, nonlinearity="relu")
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(150):
        x = torch.rand(5, 16, 1, dtype=torch.float64)
        loss = (net(x)[0] - x.cumsum(0)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.01


def test_parameters():
    net = JordanRNN(I, H, O, hidden_feedback=True)
    shapes = {name: tuple(value.shape) for name, value in net.named_parameters()}
    assert shapes == {
        "weight_ih": (H, I),
        "weight_oh": (H, O),
        "weight_hh": (H, H),
        "weight_ho": (O, H),
        "bias_h": (H,),
        "bias_o": (O,),
    }
    net = JordanRNN(I, 400, O, bias=False, dtype=torch.float16)
    assert (net.weight_hh, net.bias_h, net.bias_o) == (None, None, None)
    assert 0.04 < net.weight_ho.abs().max() <= 0.05
    assert net.weight_ih.dtype == torch.float16
    twin = copy.deepcopy(net)
    twin.load_state_dict(net.state_dict())
    assert repr(network()) == "JordanRNN(2, 5, 3)"
    net = network(output_nonlinearity="softmax", hidden_feedback=True, bias=False)
    assert repr(net) == (
        "JordanRNN(2, 5, 3, output_nonlinearity=softmax, bias=False, hidden_feedback=True)"
    )


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, "hidden_size must be greater than zero, got: 0", {"hidden_size": 0}),
        (TypeError, "output_size should be of type int, got: float", {"output_size": 2.0}),
        (TypeError, "bias should be of type bool, got: int", {"bias": 1}),
        (ValueError, "Unknown nonlinearity 'softmax'", {"nonlinearity": "softmax"}),
        (ValueError, "Unknown output_nonlinearity 'gelu'", {"output_nonlinearity": "gelu"}),
    ],
)
def test_refuses_arguments(error, message, arguments):
    with pytest.raises(error, match=message):
        JordanRNN(**{"input_size": I, "hidden_size": H, "output_size": O, **arguments})


@pytest.mark.parametrize(
    ("error", "message", "flags", "call"),
    [
        (ValueError, "Expected input to be 2D or 3D, got 1D", {}, (zeros(I),)),
        (ValueError, r"Expected 2, got 3", {}, (zeros(T, B, 3),)),
        (ValueError, "sequence length", {}, (zeros(0, B, I),)),
        (ValueError, "sequence length", {"batch_first": True}, (zeros(B, 0, I),)),
        (ValueError, "float32.*does not match.*float64", {}, (zeros(T, B, I).float(),)),
        (TypeError, "input should be a Tensor", {}, (pack_sequence([zeros(T, I)]),)),
        (ValueError, r"state size \(3, 3\), got \(1, 3, 3\)", {}, (zeros(T, B, I), zeros(1, B, O))),
        (ValueError, r"state size \(3,\), got \(1, 3\)", {}, (zeros(T, I), zeros(1, O))),
        (
            ValueError,
            "state dtype torch.float64, got torch.float32",
            {},
            (zeros(T, B, I), zeros(B, O).float()),
        ),
        (
            TypeError,
            "state should be a Tensor, got tuple of length 2",
            {},
            (zeros(T, B, I), (1, 2)),
        ),
        (
            TypeError,
            r"pair \(y_0, h_0\), got Tensor",
            {"hidden_feedback": True},
            (zeros(T, B, I), zeros(B, O)),
        ),
        (
            ValueError,
            r"state\[1\] size \(3, 5\), got \(3, 3\)",
            {"hidden_feedback": True},
            (zeros(T, B, I), (zeros(B, O), zeros(B, O))),
        ),
    ],
)
def test_refuses_calls(error, message, flags, call):
    with pytest.raises(error, match=message):
        network(**flags)(*call)


def test_refuses_teachers():
    net = network(batch_first=True)
    with pytest.raises(ValueError, match=r"teacher size \(4, 3, 3\), got \(3, 3\)"):
        net(zeros(4, 3, I), teacher=zeros(3, O))
    with pytest.raises(TypeError, match="teacher should be a Tensor, got list of length 1"):
        net(zeros(4, 3, I), teacher=[1])
    with pytest.raises(ValueError, match="teacher dtype"):
        net(zeros(4, 3, I), teacher=zeros(4, 3, O).float())
