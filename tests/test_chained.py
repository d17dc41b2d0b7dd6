"""Several layers in one call, `Layer.weight_chain`: the numbers of layers run one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fastrnn import calls, dispatch, testing
from fastrnn.backend import Layer, LayerOutput
from fastrnn.request import GATES, Request, Spec
from fastrnn_reference.backend import ReferenceBackend

CELLS = sorted(GATES)
Count = Callable[[], list[int]]


@pytest.fixture(params=[2, 3, 4], ids=lambda n: f"{n} at once")
def chained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Count]:
    """The reference takes so many layers at once; returns the groups of every call so far."""
    groups: list[int] = []
    forward = ReferenceBackend.layer_forward

    def counted(self: ReferenceBackend, layer: Layer) -> LayerOutput:
        groups.append(layer.groups)
        assert layer.weight_chain is None or layer.groups > 1
        return forward(self, layer)

    def at_once(self: ReferenceBackend, asked: Request) -> int:
        return min(request.param, asked.num_layers)

    monkeypatch.setattr(ReferenceBackend, "layers_at_once", at_once)
    monkeypatch.setattr(ReferenceBackend, "layer_forward", counted)
    dispatch.clear_cache()
    yield lambda: groups
    dispatch.clear_cache()


def spans(layers: int, at_once: int) -> list[int]:
    return [min(at_once, layers - first) for first in range(0, layers, at_once)]


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("layers", [2, 3, 5])
@pytest.mark.parametrize("cell", CELLS)
def test_the_same_numbers(
    cell: str, layers: int, bias: bool, chained: Count, request: pytest.FixtureRequest
) -> None:
    spec = Spec(cell, 3, 5, num_layers=layers, bias=bias)
    problem = testing.random_problem(spec, 4, 3)
    with pytest.MonkeyPatch.context() as one_by_one:
        one_by_one.setattr(ReferenceBackend, "layers_at_once", lambda self, request: 1)
        want = testing.run(problem, backend="reference")
    assert chained() == [1] * layers
    chained().clear()
    dispatch.clear_cache()
    got = testing.run(problem, backend="reference")
    assert chained() == spans(layers, request.node.callspec.params["chained"])
    testing.assert_close(got, want, testing.tolerance(torch.float64, 4))


@pytest.mark.parametrize("T", [1, 2, 17])
@pytest.mark.parametrize("B", [1, 2, 17])
def test_few_and_many_steps_and_rows(T: int, B: int, chained: Count, poisoned: None) -> None:
    problem = testing.random_problem(Spec("lstm", 4, 7, num_layers=4), T, B)
    got = testing.run(problem, backend="reference")
    testing.assert_close(
        got, testing.run(problem, backend="aten"), testing.tolerance(torch.float64, T)
    )


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
@pytest.mark.parametrize("final_only", [False, True])
def test_modules_without_gradients(
    kind: type[fastrnn.LSTM | fastrnn.RNN], final_only: bool, chained: Count
) -> None:
    module = kind(3, 4, num_layers=4, batch_first=True, backend="reference").eval()
    plain = kind(3, 4, num_layers=4, batch_first=True, backend="aten").eval()
    plain.load_state_dict(module.state_dict())
    module.final_only = final_only
    x = torch.randn(2, 5, 3)
    with torch.no_grad():
        (output, states), (want, want_states) = module(x), plain(x)
    assert max(chained()) > 1
    if final_only:
        assert output is None
    else:
        torch.testing.assert_close(output, want)
        assert output.transpose(0, 1).is_contiguous()
    torch.testing.assert_close(states, want_states)


def frozen(*names: str) -> Callable[[fastrnn.LSTM], None]:
    def freeze(module: fastrnn.LSTM) -> None:
        for name, weight in module.named_parameters():
            weight.requires_grad_(not any(name.startswith(each) for each in names))

    return freeze


@pytest.mark.parametrize(
    ("prepare", "together"),
    [
        (frozen("weight_ih", "weight_hh", "bias"), True),  # only x is asked for
        (frozen("weight_hh"), True),  # of every layer
        (frozen("weight_hh_l0", "weight_ih_l0", "bias_ih_l0", "bias_hh_l0"), False),
        (frozen("weight_hh_l1"), False),
    ],
    ids=["all", "one kind", "a layer", "one weight"],
)
def test_gradients_that_nobody_wants(
    prepare: Callable[[fastrnn.LSTM], None], together: bool, chained: Count
) -> None:
    """They are not computed: a stack of which some layers are frozen is run one by one."""
    module = fastrnn.LSTM(3, 4, num_layers=2, backend="reference").double()
    prepare(module)
    plain = fastrnn.LSTM(3, 4, num_layers=2, backend="aten").double()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64, requires_grad=True)
    leaves = [x, *(weight for weight in module.parameters() if weight.requires_grad)]
    got = torch.autograd.grad(module(x)[0].sin().sum(), leaves)
    assert chained() == ([2] if together else [1, 1])
    named = dict(plain.named_parameters())
    own = [x, *(named[n] for n, w in module.named_parameters() if w.requires_grad)]
    want = torch.autograd.grad(plain(x)[0].sin().sum(), own)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize(
    "how",
    [
        {"bidirectional": True},
        {"dropout": 0.5},
        {"proj_size": 2},
        {"recompute": 2},
    ],
    ids=str,
)
def test_what_needs_something_between_layers_is_run_one_by_one(
    how: dict[str, object], chained: Count
) -> None:
    module = fastrnn.LSTM(3, 4, num_layers=2, backend="reference", **how)
    module(torch.randn(5, 2, 3))[0].sum().backward()
    assert set(chained()) == {2 if "bidirectional" in how else 1}
    assert len(chained()) >= 2


def test_dropout_in_eval_mode_is_none(chained: Count) -> None:
    module = fastrnn.LSTM(3, 4, num_layers=2, dropout=0.5, backend="reference").eval()
    module(torch.randn(5, 2, 3))
    assert chained() == [2]


def test_packed_sequences_are_run_one_by_one(chained: Count) -> None:
    module = fastrnn.LSTM(3, 4, num_layers=2, backend="reference")
    module(pack_sequence([torch.randn(n, 3) for n in (3, 2)]))
    assert chained() == [1, 1]


def test_states_alone_may_have_a_gradient(chained: Count) -> None:
    """Of the last layer's final state, and of a lower one's, which nobody's output is made of."""
    module = fastrnn.LSTM(3, 4, num_layers=3, backend="reference").double()
    plain = fastrnn.LSTM(3, 4, num_layers=3, backend="aten").double()
    plain.load_state_dict(module.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    for layer in range(3):
        found = []
        for each in (module, plain):
            each.zero_grad()
            _, (h_n, c_n) = each(x)
            (h_n[layer].sin() + c_n[layer]).sum().backward()
            found.append([weight.grad.clone() for weight in each.parameters()])
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want)


def test_gradients_of_layers_do_not_share_memory(chained: Count) -> None:
    """Clipping in place would otherwise clip twice."""
    module = fastrnn.LSTM(4, 4, num_layers=3, backend="reference")
    module(torch.randn(5, 2, 4))[0].sum().backward()
    before = [weight.grad.clone() for weight in module.parameters()]
    for weight in module.parameters():
        weight.grad.mul_(2)
    for weight, was in zip(module.parameters(), before, strict=True):
        assert torch.equal(weight.grad, 2 * was)


@pytest.mark.parametrize("spec", [Spec("rnn_tanh", 3, 4, num_layers=3), Spec("lstm", 3, 4, 0, 3)])
def test_compiled(spec: Spec, chained: Count) -> None:
    problem = testing.random_problem(spec._replace(num_layers=3), 5, 2)
    leaves = [weight.clone().requires_grad_() for weight in problem.weights]

    def call(x: torch.Tensor) -> torch.Tensor:
        return calls.run(
            problem.spec, x, None, leaves, batch_first=False, dropout=0.0, training=True,
            backend="reference",
        )[0]  # fmt: skip

    want = call(problem.x)
    want_gradients = torch.autograd.grad(want.square().sum(), leaves)
    torch.compiler.reset()
    got = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=True)(problem.x)
    torch.testing.assert_close(got, want)
    got_gradients = torch.autograd.grad(got.square().sum(), leaves)
    for g, w in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(g, w)
    assert max(chained()) > 1


def test_the_decision_says_so(chained: Count, request: pytest.FixtureRequest) -> None:
    at_once = request.node.callspec.params["chained"]
    module = fastrnn.LSTM(3, 4, num_layers=4, backend="reference")
    assert f"(argument), {at_once} layers at once" in str(
        fastrnn.explain(module, torch.randn(5, 2, 3))
    )
    one = fastrnn.explain(fastrnn.LSTM(3, 4, backend="reference"), torch.randn(5, 2, 3))
    assert "at once" not in str(one)


@pytest.mark.parametrize("answer", [0, 3, None, 1.5])
def test_a_backend_that_answers_nonsense(answer: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ReferenceBackend, "layers_at_once", lambda self, request: answer)
    dispatch.clear_cache()
    module = fastrnn.LSTM(3, 4, num_layers=2, backend="reference")
    with pytest.raises(fastrnn.BackendError, match=r"layers_at_once is .*, expected 1 to 2"):
        module(torch.randn(5, 2, 3))
    dispatch.clear_cache()


def test_a_backend_that_says_nothing_gets_one_layer() -> None:
    module = fastrnn.LSTM(3, 4, num_layers=3, backend="reference")
    assert fastrnn.explain(module, torch.randn(5, 2, 3)).layers_at_once == 1
