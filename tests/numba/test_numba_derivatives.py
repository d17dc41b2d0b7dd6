"""Derivatives of all kinds of what loops of arrays made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.func import functional_call, grad, jvp, stack_module_state, vmap
from torch.utils.flop_counter import FlopCounterMode

import fastrnn
from rows_cases import CELLS, assert_same, modules, packed_rows, results, start

LENGTHS = [None, [4, 2, 0]]


def ours(cell: str, *sizes: int, **how: Any) -> Any:
    return modules(cell, *sizes, backend="numba", **how)[1]


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients(cell: str, bidirectional: bool, lengths: list[int] | None) -> None:
    module, found = ours(cell, 3, 4, bidirectional=bidirectional), []
    resets = None if bidirectional else torch.tensor([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0] * 3]) > 0
    for module.backend in ("numba", "reference"):
        x = torch.randn(4, 3, 3, generator=torch.Generator().manual_seed(0)).double()
        x.requires_grad_()
        hx = start(module, 3)
        states = tuple(hx) if len(hx) == 2 else hx[0]
        output, _ = module(x, states, lengths=lengths, resets=resets)
        leaves = [x, *hx, *module.parameters()]
        first = torch.autograd.grad(output.sin().sum(), leaves, create_graph=True)
        penalty = sum(one.square().sum() for one in first)
        found.append((first, torch.autograd.grad(penalty, leaves)))
    assert_same(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_gradients_of_packed_rows(cell: str) -> None:
    rows, found = packed_rows([4, 2, 1]), []
    for module in modules(cell, 3, 4, backend="numba", bidirectional=True):
        data = rows.data.clone().requires_grad_()
        output, _ = module(rows._replace(data=data))
        leaves = [data, *module.parameters()]
        first = torch.autograd.grad(output.data.sin().sum(), leaves, create_graph=True)
        found.append((first, torch.autograd.grad(sum(g.square().sum() for g in first), leaves)))
    assert_same(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_many_gradients_at_once(cell: str) -> None:
    module, x = ours(cell, 3, 4), torch.randn(4, 2, 3).double().requires_grad_()
    output, _ = module(x)
    upstream = torch.randn(5, *output.shape).double()
    (many,) = torch.autograd.grad(output, x, upstream, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(output, x, one, retain_graph=True)[0] for one in upstream]
    torch.testing.assert_close(many, torch.stack(each))
    (many,) = vmap(lambda one: torch.autograd.grad(output, x, one, retain_graph=True))(upstream)
    torch.testing.assert_close(many, torch.stack(each))


@pytest.mark.parametrize("cell", CELLS)
def test_under_torch_func(cell: str) -> None:
    module, x = ours(cell, 3, 4), torch.randn(4, 2, 3).double()
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, weights, (x,))[0].square().sum()

    found = grad(loss)(weights, x)
    module(x)[0].square().sum().backward()
    for name, weight in module.named_parameters():
        torch.testing.assert_close(found[name], weight.grad)
    samples = torch.randn(3, 4, 1, 3).double()
    each = vmap(grad(loss), (None, 0))(weights, samples)
    for k, sample in enumerate(samples):
        one = grad(loss)(weights, sample)
        torch.testing.assert_close({name: g[k] for name, g in each.items()}, one)


@pytest.mark.parametrize("marks", [("lengths",), ("resets",), ("lengths", "resets")], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_marks_under_torch_func(cell: str, marks: tuple[str, ...]) -> None:
    """Which are wrapped there, and have no memory of their own."""
    known = {"lengths": [4, 2], "resets": torch.tensor([[0, 0], [0, 1], [1, 0], [0, 1]]).bool()}
    given = {name: known[name] for name in marks}
    module, x = ours(cell, 3, 4), torch.randn(4, 2, 3).double()
    got = grad(lambda x: module(x, **given)[0].square().sum())(x)
    x.requires_grad_()
    (want,) = torch.autograd.grad(module(x, **given)[0].square().sum(), x)
    torch.testing.assert_close(got, want)


# torch's own: it compiles some of its formulas for tangents with what it has deprecated
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("marks", [(), ("lengths",), ("resets",), ("lengths", "resets")], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_many_networks(cell: str, marks: tuple[str, ...]) -> None:
    """Groups of one call, whose gradients are asked for from within and from outside."""
    known = {
        "lengths": torch.tensor([4, 2]),
        "resets": torch.tensor([[0, 0], [0, 1], [1, 0], [0, 1]]).bool(),
    }
    given = {name: known[name] for name in marks}
    own = torch.randn(3, 4, 2, 3, dtype=torch.float64)
    networks = [ours(cell, 3, 4) for _ in range(3)]
    weights, _ = stack_module_state(networks)  # type: ignore[arg-type] # modules, all of one class
    found = []

    def loss(weights: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        output, state = functional_call(networks[0], weights, (x,), given)
        states = state if isinstance(state, tuple) else (state,)
        return output.square().sum() + sum(each.sin().sum() for each in states)

    for backend in ("reference", "numba"):
        networks[0].backend = backend
        outside = torch.autograd.grad(vmap(loss)(weights, own).sum(), list(weights.values()))
        shared = vmap(grad(loss, (0, 1)), (0, None))(weights, own[0])
        one = dict(networks[0].named_parameters())
        tangents = jvp(lambda x, one=one: loss(one, x), (own[0],), (own[1],))
        found.append((outside, shared, vmap(loss, (None, 0))(one, own), tangents))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_a_graph_that_is_retained_gives_the_same_bits_twice(cell: str) -> None:
    module, x = ours(cell, 3, 4), torch.randn(4, 2, 3).double().requires_grad_()
    leaves = [x, *module.parameters()]
    loss = module(x)[0].sin().sum()
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, leaves)))


@pytest.mark.parametrize(
    "wanted", ["x", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
)
@pytest.mark.parametrize("cell", CELLS)
def test_one_gradient_alone_is_that_of_all(cell: str, wanted: str) -> None:
    module, x = ours(cell, 3, 4), torch.randn(4, 2, 3).double().requires_grad_()
    leaves = {"x": x, **dict(module.named_parameters())}
    every = dict(zip(leaves, torch.autograd.grad(module(x)[0].sum(), leaves.values()), strict=True))
    for name, leaf in leaves.items():
        leaf.requires_grad_(name == wanted)
    module(x)[0].sum().backward()
    torch.testing.assert_close(leaves[wanted].grad, every[wanted], rtol=0, atol=0)


@pytest.mark.parametrize("cell", CELLS)
def test_dropout_draws_as_torch_does(cell: str) -> None:
    x, found = torch.randn(4, 2, 3).double(), []
    for module in modules(cell, 3, 4, 3, backend="numba", dropout=0.5):
        torch.manual_seed(1)
        found.append(results(module, x))
    assert_same(*found)


@pytest.mark.parametrize("cell", CELLS)
def test_what_it_is_given_is_left_as_it_was(cell: str) -> None:
    module, x = ours(cell, 3, 4, 2), torch.randn(4, 2, 3).double().requires_grad_()
    hx = start(module, 2)
    given = [x, *hx, *module.parameters()]
    before = [tensor.detach().clone() for tensor in given]
    output, _ = module(x, tuple(hx) if len(hx) == 2 else hx[0])
    upstream = torch.ones_like(output)
    output.backward(upstream)
    assert all(map(torch.equal, before, given))
    assert torch.equal(upstream, torch.ones_like(output))


@pytest.mark.parametrize("cell", CELLS)
def test_tensors_without_numbers_and_under_modes(cell: str) -> None:
    layer = getattr(fastrnn, CELLS[cell][0])(3, 4, 2, backend="numba", bidirectional=True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        output, _ = layer(torch.randn(5, 2, 3))
    assert output.shape == (5, 2, 8)
    x = torch.randn(5, 2, 3)
    with FlopCounterMode(display=False) as counted:
        output, _ = layer(x)
    assert counted.get_total_flops() > 0
    torch.testing.assert_close(output, layer(x)[0])


def test_strides_do_not_matter() -> None:
    module = ours("lstm", 3, 4)
    wide = torch.randn(2, 4, 6).double()
    x = wide.transpose(0, 1)[..., ::2]
    assert not x.is_contiguous()
    got, want = results(module, x), results(module, x.contiguous())
    assert_same(got, want)
    weight = module.weight_hh_l0
    module.weight_hh_l0 = torch.nn.Parameter(weight.detach().mT.contiguous().mT)
    assert_same(results(module, x), want)


@pytest.mark.parametrize("cell", CELLS)
def test_states_and_their_gradients_may_lie_turned_over(cell: str) -> None:
    """What is written over must not be a copy of what is returned."""
    module, x = ours(cell, 3, 4), torch.randn(5, 2, 3).double()
    number = 2 if cell == "lstm" else 1
    given = [torch.randn(1, 4, 2).double().mT.requires_grad_() for _ in range(number)]
    upstream = [torch.randn(1, 4, 2).double().mT for _ in range(number)]
    made = []
    for module.backend in ("numba", "reference"):
        output, final = module(x, tuple(given) if number == 2 else given[0])
        final = final if isinstance(final, tuple) else (final,)
        made.append(((output, *final), torch.autograd.grad(final, given, upstream)))
    assert_same(*made)
