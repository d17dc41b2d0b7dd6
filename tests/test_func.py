"""torch.func: forward mode, Jacobians, Hessians, and gradients of gradients."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

import fastrnn
from func_cases import MODULES, B, H, I, T, X, close, layers_run, loss_of, maker, weights_of

# torch's own: it compiles some of its formulas for tangents with what it has deprecated
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


@pytest.fixture(params=MODULES)
def make(request):
    return maker(request.param)


@pytest.mark.parametrize("how", ["outside", "inside", "of leaves", "of many"])
def test_penalty_on_the_gradient_of_the_input(make, how):
    """Differentiated by the weights, of which the inner gradient is none."""
    module = make()
    loss = loss_of(module)

    def penalty(weights, x):
        return grad(loss, argnums=1)(weights, x).square().sum()

    leaves = weights_of(module)
    plain = {name: weight.detach() for name, weight in leaves.items()}
    if how == "outside":
        got = torch.autograd.grad(penalty(leaves, X[0]), list(leaves.values()))
    elif how == "of many":
        got = [each[0] for each in vmap(grad(penalty), (None, 0))(plain, X[:1]).values()]
    else:
        got = grad(penalty)(leaves if how == "of leaves" else plain, X[0]).values()
    x = X[0].clone().requires_grad_()
    (d_x,) = torch.autograd.grad(loss(leaves, x), x, create_graph=True)
    want = torch.autograd.grad(d_x.square().sum(), list(leaves.values()))
    for one, other in zip(got, want, strict=True):
        close(one, other)


def test_forward_mode(make):
    module = make()
    x, tangent = X[0], X[1]
    output, pushed = jvp(lambda x: module(x)[0], (x,), (tangent,))
    close(output, module(x)[0])
    jacobian = torch.autograd.functional.jacobian(lambda x: module(x)[0], x)
    close(pushed, torch.tensordot(jacobian, tangent, 3))


def test_jacobians(make):
    module = make()

    def last(x):
        return module(x)[0][-1]

    want = torch.autograd.functional.jacobian(last, X[0])
    close(jacrev(last)(X[0]), want)
    close(jacfwd(last)(X[0]), want)


@pytest.mark.parametrize("name", ["lstm", "relu in two directions"])
def test_hessian(name):
    module = MODULES[name]().double()
    x = X[0, :2]

    def loss(x):
        return module(x)[0].sin().sum()

    want = torch.autograd.functional.hessian(loss, x)
    close(hessian(loss)(x), want)
    close(jacrev(jacrev(loss))(x), want)


def test_third_derivative():
    module = fastrnn.RNN(1, 1).double()
    third = grad(grad(grad(lambda x: module(x.view(1, 1, 1))[0].sum())))(
        torch.tensor(0.3, dtype=torch.float64)
    )
    w_ih, b = module.weight_ih_l0.item(), (module.bias_ih_l0 + module.bias_hh_l0).item()
    y = torch.tanh(torch.tensor(w_ih * 0.3 + b, dtype=torch.float64))
    close(third, (1 - y**2) * (6 * y**2 - 2) * w_ih**3)


@pytest.mark.parametrize("options", [{}, {"lengths": [4, 2]}, {"resets": True}], ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_gradcheck_in_every_mode(name, options):
    module = MODULES[name]().double()
    if "resets" in options:
        options = {"resets": torch.rand(T, B) < 0.4}
    x = X[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: module(x, **options)[0], x,
        fast_mode=True, check_forward_ad=True, check_batched_grad=True,
        check_batched_forward_grad=True,
    )  # fmt: skip
    assert torch.autograd.gradgradcheck(
        lambda x: module(x, **options)[0], x, fast_mode=True, check_fwd_over_rev=True
    )


@pytest.mark.parametrize("batched", [False, True])
def test_states_made_of_the_input_count_once(batched):
    """What h0 is made of is another's part of the chain rule."""
    module = fastrnn.LSTM(I, I).double()
    x = X[0].clone().requires_grad_()

    def penalty(module):
        hx = (x.sum(0, keepdim=True), x.mean(0, keepdim=True))
        output = module(x, hx)[0]
        if batched:
            ones = torch.stack([torch.ones_like(output)] * 2)
            d_x = torch.autograd.grad(output, x, ones, create_graph=True, is_grads_batched=True)
        else:
            d_x = torch.autograd.grad(output.sum(), x, create_graph=True)
        return (d_x[0], *torch.autograd.grad(d_x[0].square().sum(), (x, module.weight_hh_l0)))

    theirs = torch.nn.LSTM(I, I).double()
    theirs.load_state_dict(module.state_dict())
    close(penalty(module), penalty(theirs))


def test_first_derivative_is_the_backends_even_if_there_may_be_a_second(monkeypatch):
    calls = layers_run(monkeypatch)
    module = fastrnn.LSTM(I, H, backend="reference").double()
    x = X[0].clone().requires_grad_()
    torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
    assert calls == [("forward", B, 1), ("backward", B, 1)]
