"""torch.func.vmap over inputs, weights, marks and gradients; per-sample gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.func import functional_call, grad, jvp, stack_module_state, vmap

import fastrnn
from fastrnn import dispatch
from fastrnn.request import Request
from fastrnn.transforms import requires_grad
from fastrnn_reference.backend import ReferenceBackend
from func_cases import MANY, MODULES, B, H, I, T, X, close, layers_run, loss_of, maker, weights_of

# torch's own: it compiles some of its formulas for tangents with what it has deprecated
pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated:DeprecationWarning"
)


@pytest.fixture(params=MODULES)
def make(request):
    return maker(request.param)


@pytest.fixture
def calls(monkeypatch):
    return layers_run(monkeypatch)


def test_over_inputs(make):
    module = make()
    close(vmap(lambda x: module(x)[0])(X), torch.stack([module(x)[0] for x in X]))


def test_over_states_and_ends():
    module = fastrnn.LSTM(I, H, bidirectional=True).double()
    h0 = torch.randn(MANY, 2, B, H, dtype=torch.float64)
    lengths = torch.tensor([[4, 2], [0, 4], [1, 3]])
    resets = torch.rand(MANY, T, B) < 0.4

    def run(x, h0, lengths, resets):
        return module(x, (h0, h0), lengths=lengths, resets=resets)

    want = [run(X[0], *each) for each in zip(h0, lengths, resets, strict=True)]
    output, (h_n, c_n) = vmap(run, (None, 0, 0, 0))(X[0], h0, lengths, resets)
    close(output, torch.stack([each[0] for each in want]))
    close(h_n, torch.stack([each[1][0] for each in want]))
    close(c_n, torch.stack([each[1][1] for each in want]))


def test_all_states():
    module = fastrnn.LSTM(I, H, 2).double()
    _, _, (h, c) = vmap(lambda x: module(x, return_all_states=True))(X)
    want = [module(x, return_all_states=True)[2] for x in X]
    close(h, torch.stack([each[0] for each in want]))
    close(c, torch.stack([each[1] for each in want]))


@pytest.mark.parametrize("along", [0, 2, None])
def test_over_weights(make, along):
    """An ensemble, with inputs of its own or the same for all."""
    modules = [make() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    base = copy.deepcopy(modules[0])
    x = X[0] if along is None else X.movedim(0, along).contiguous()
    got = vmap(lambda w, x: functional_call(base, w, (x,))[0], (0, along))(weights, x)
    own = [X[0] if along is None else each for each in X]
    close(got, torch.stack([module(x)[0] for module, x in zip(modules, own, strict=True)]))


def test_ensemble_with_ends_of_its_own():
    """Groups share lengths and resets, so that these run one by one."""
    modules = [fastrnn.LSTM(I, H).double() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    lengths = torch.tensor([[4, 2], [0, 4], [1, 3]])

    def loss(w, lengths):
        return functional_call(modules[0], w, (X[0],), {"lengths": lengths})[0].square().sum()

    got = vmap(grad(loss))(weights, lengths)
    for name in weights:
        want = [grad(loss)(weights_of(m), n)[name] for m, n in zip(modules, lengths, strict=True)]
        close(got[name], torch.stack(want))


def test_gradient_of_vmap(make):
    module = make()
    loss, weights = loss_of(module), weights_of(module)
    got = grad(lambda w: vmap(loss, (None, 0))(w, X).sum())(weights)
    want = grad(lambda w: sum(loss(w, x) for x in X))(weights)
    for name in weights:
        close(got[name], want[name])


def test_per_sample_gradients(make):
    module = make()
    loss, weights = loss_of(module), weights_of(module)
    got = vmap(grad(loss, argnums=(0, 1)), (None, 0))(weights, X)
    want = [grad(loss, argnums=(0, 1))(weights, x) for x in X]
    close(got[1], torch.stack([each[1] for each in want]))
    for name in weights:
        close(got[0][name], torch.stack([each[0][name] for each in want]))


def test_per_sample_gradients_with_lengths():
    module = fastrnn.LSTM(I, H, bidirectional=True).double()
    weights = weights_of(module)
    lengths = torch.tensor([[4, 2], [0, 4], [1, 3]])

    def loss(w, x, lengths):
        return functional_call(module, w, (x,), {"lengths": lengths})[0].square().sum()

    got = vmap(grad(loss), (None, 0, 0))(weights, X, lengths)
    for name in weights:
        want = [grad(loss)(weights, x, n)[name] for x, n in zip(X, lengths, strict=True)]
        close(got[name], torch.stack(want))


def test_gradients_of_an_ensemble(make):
    """Also where all have one input, of which each has a gradient of its own."""
    modules = [make() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    gradient = grad(loss_of(modules[0]), argnums=(0, 1))
    got = vmap(gradient, (0, None))(weights, X[0])
    want = [gradient(weights_of(module), X[0]) for module in modules]
    close(got[1], torch.stack([each[1] for each in want]))
    for name in weights:
        close(got[0][name], torch.stack([each[0][name] for each in want]))


def test_ensemble_trained_from_outside(make, calls):
    """What vmap hands out does not require grad, whatever becomes of its result."""
    modules = [make() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    loss = loss_of(modules[0])
    got = torch.autograd.grad(vmap(loss)(weights, X).sum(), list(weights.values()))
    layers, directions = modules[0].num_layers, 1 + modules[0].bidirectional
    one_of_each = [(name, B, MANY * directions) for name in ("forward", "backward")]
    assert calls == [each for each in one_of_each for _ in range(layers)]
    for name, gradient in zip(weights, got, strict=True):
        want = [grad(loss)(weights_of(m), x)[name] for m, x in zip(modules, X, strict=True)]
        close(gradient, torch.stack(want))


@pytest.mark.parametrize("how", [{"recompute": 2}, {"error_clip": 0.01}], ids=str)
def test_ensemble_trained_from_outside_with(how):
    modules = [fastrnn.LSTM(I, H, **how).double() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    loss = loss_of(modules[0])
    got = torch.autograd.grad(vmap(loss)(weights, X).sum(), list(weights.values()))
    for name, gradient in zip(weights, got, strict=True):
        want = [grad(loss)(weights_of(m), x)[name] for m, x in zip(modules, X, strict=True)]
        close(gradient, torch.stack(want))


def test_gradients_of_inputs_from_outside(make):
    module = make().requires_grad_(False)
    x = X.clone().requires_grad_()
    (got,) = torch.autograd.grad(vmap(lambda x: module(x)[0].square().sum())(x).sum(), x)
    close(got, torch.stack([grad(lambda x: module(x)[0].square().sum())(each) for each in X]))


@pytest.mark.parametrize("backend", ["reference", "rows"])
def test_many_gradients_of_one_output(make, backend, calls):
    """`vmap` over torch.autograd's own gradient: V backward passes as one."""
    module = make()
    if backend == "rows" and (module.proj_size or module.mode == "RNN_SIGMOID"):
        pytest.skip("rows has no projections and no sigmoid")
    module.backend = backend
    output, leaves = module(X[0])[0], list(module.parameters())
    weights = torch.randn(MANY, *output.shape, dtype=torch.float64)

    def gradient(weight):
        return torch.autograd.grad(output, leaves, weight, retain_graph=True)

    calls.clear()
    got = vmap(gradient)(weights)
    if backend == "reference":
        assert [name for name, *_ in calls].count("backward") == module.num_layers
    for one, other in zip(got, zip(*map(gradient, weights), strict=True), strict=True):
        close(one, torch.stack(other))


@pytest.mark.parametrize("cell", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_many_marks_of_one_input(cell):
    """Also where nothing else is many: no backend may look at them that has to read numbers."""
    module, x = cell(I, H).double(), X[0]
    lengths = torch.tensor([[4, 2], [0, 4], [1, 3]])
    resets = torch.rand(MANY, T, B, generator=torch.Generator().manual_seed(0)) < 0.3
    for marks in ({"lengths": lengths}, {"resets": resets}):
        ((name, many),) = marks.items()
        got = vmap(lambda mark, name=name: module(x, **{name: mark})[0])(many)
        close(got, torch.stack([module(x, **{name: mark})[0] for mark in many]))


def test_zoneout_drawn_alike_and_not():
    module, x = fastrnn.LSTM(I, H, zoneout=0.5).double(), X[:1].expand(MANY, T, B, I)
    alike = vmap(lambda x: module(x)[0], randomness="same")(x)
    close(alike, alike[:1].expand_as(alike))
    each = vmap(lambda x: module(x)[0], randomness="different")(x)
    assert not torch.equal(each[0], each[1])


def test_nothing_is_saved_for_nobody(monkeypatch):
    seen = []
    run = ReferenceBackend.layer_forward

    def spy(self, layer):
        seen.append(layer.save)
        return run(self, layer)

    monkeypatch.setattr(ReferenceBackend, "layer_forward", spy)
    modules = [fastrnn.LSTM(I, H).double() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    ensemble = vmap(lambda w, x: functional_call(modules[0], w, (x,))[0])
    ensemble(weights, X)
    with torch.no_grad():
        ensemble(weights, X)
    ensemble({name: weight.detach() for name, weight in weights.items()}, X)
    assert seen == [True, False, False]


def test_whose_gradients_are_asked_for():
    found = []

    def ask(x):
        found.append(requires_grad(x))
        return x.sum()

    plain, leaf = torch.ones(2, 2), torch.ones(2, 2, requires_grad=True)
    for x in (plain, leaf):
        ask(x)
        vmap(ask)(x)
        vmap(vmap(ask))(x)
    assert found == [False] * 3 + [True] * 3
    found.clear()
    grad(lambda x: vmap(ask)(x).sum())(plain)
    vmap(grad(ask))(plain)
    assert found == [True, True]


def test_one_vmap_in_another(make):
    modules = [make() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    over_inputs = vmap(lambda w, x: functional_call(modules[0], w, (x,))[0], (None, 0))
    got = vmap(over_inputs, (0, None))(weights, X[:2])
    want = [torch.stack([module(x)[0] for x in X[:2]]) for module in modules]
    close(got, torch.stack(want))


def test_many_are_one_call(calls):
    """Inputs become rows, weights become groups, and nothing is a loop over them."""
    modules = [fastrnn.LSTM(I, H).double() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    loss = loss_of(modules[0])

    vmap(lambda x: modules[0](x)[0])(X)
    assert calls == [("forward", MANY * B, 1)]
    calls.clear()
    vmap(grad(loss), (0, None))(weights, X[0])
    assert calls == [("forward", B, MANY), ("backward", B, MANY)]
    calls.clear()
    # before the gradient is asked for nobody knows that weights will have many
    vmap(grad(loss), (None, 0))(weights_of(modules[0]), X)
    assert calls == [("forward", MANY * B, 1), ("forward", B, MANY), ("backward", B, MANY)]
    calls.clear()
    frozen = modules[0].requires_grad_(False)
    vmap(grad(lambda x: frozen(x)[0].square().sum()))(X)
    assert calls == [("forward", MANY * B, 1), ("backward", MANY * B, 1)]


def test_more_mixed_groups_than_a_kernel_takes(calls):
    module = fastrnn.RNN(1, 1, bidirectional=True).double()
    many = {name: w.expand(40, *w.shape) for name, w in module.named_parameters()}
    x = torch.randn(2, 1, 1, dtype=torch.float64)
    got = vmap(lambda w: functional_call(module, w, (x,))[0])(many)
    close(got, module(x)[0].expand(40, -1, -1, -1))
    assert calls[0] == ("forward", 1, 2)


def test_randomness_is_for_the_user_to_choose():
    module = fastrnn.LSTM(I, H, 2, dropout=0.5, recurrent_dropout=0.5).double()
    same = vmap(lambda x: module(x)[0], randomness="same")(X[:1].expand(3, -1, -1, -1))
    close(same[0], same[1])
    other = vmap(lambda x: module(x)[0], randomness="different")(X[:1].expand(3, -1, -1, -1))
    assert not torch.allclose(other[0], other[1])
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: module(x)[0])(X)


def test_forward_mode_over_weights():
    module = fastrnn.LSTM(I, H).double()
    weights = weights_of(module)
    tangents = {name: torch.randn_like(weight) for name, weight in weights.items()}
    loss = loss_of(module)
    _, got = jvp(lambda w: loss(w, X[0]), (weights,), (tangents,))
    want = grad(loss)(weights, X[0])
    close(got, sum((want[name] * tangents[name]).sum() for name in weights))


def test_whole_stacks_are_passed_over_with_a_reason():
    request = Request(
        "lstm", T, B, I, H, 0, 1, False, True, 0.0, torch.float32, "cpu", "", "ieee",
        False, True, False, False, 1, transformed=True,
    )  # fmt: skip
    decision = dispatch.decide(request)
    assert decision.backend != "aten"
    assert "vmap and forward-mode derivatives need single layers" in str(decision)
    module = fastrnn.LSTM(I, H, backend="aten").double()
    with pytest.raises(fastrnn.BackendError, match="takes whole stacks"):
        vmap(lambda x: module(x)[0])(X)
