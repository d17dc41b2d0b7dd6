"""`Layer.overwrite_saved`: what was saved may be written over once nobody will ask for it again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastrnn
from fastrnn.backend import Layer, LayerGradients, OutputGradients, Wanted
from fastrnn_reference.backend import ReferenceBackend

Told = list[bool]


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Told:
    """What backward passes were told; those that may do spoil what was saved."""
    permitted: Told = []
    backward = ReferenceBackend.layer_backward

    def spoiling(
        self: ReferenceBackend,
        grad: OutputGradients,
        layer: Layer,
        output: torch.Tensor,
        saved: Sequence[torch.Tensor],
        wanted: Wanted,
    ) -> LayerGradients:
        permitted.append(layer.overwrite_saved)
        found = backward(self, grad, layer, output, saved, wanted)
        if layer.overwrite_saved:
            for tensor in saved:
                tensor.fill_(float("nan"))
        return found

    monkeypatch.setattr(ReferenceBackend, "layer_backward", spoiling)
    return permitted


def lstm(**how: object) -> fastrnn.LSTM:
    return fastrnn.LSTM(3, 4, backend="reference", **how).double()


def inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def test_the_only_pass_may_and_one_that_is_to_be_repeated_may_not(told: Told) -> None:
    module, x = lstm(num_layers=2), inputs()
    loss = module(x)[0].sin().sum()
    (first,) = torch.autograd.grad(loss, x, retain_graph=True)
    (second,) = torch.autograd.grad(loss, x, retain_graph=True)
    (last,) = torch.autograd.grad(loss, x)
    assert told == [False] * 4 + [True] * 2
    assert torch.equal(first, second)
    assert torch.equal(first, last)


def test_a_pass_that_is_differentiated_again(told: Told) -> None:
    """The second derivative needs nothing saved; its pass through the first graph is the last."""
    module, x = lstm(), inputs()
    (d_x,) = torch.autograd.grad(module(x)[0].square().sum(), x, create_graph=True)
    assert told == [False]
    d_x.square().sum().backward()
    assert told == [False, True]
    assert x.grad.isfinite().all()


def test_many_gradients_in_one_pass(told: Told) -> None:
    """A vectorised Jacobian: one backward pass in which each gradient stands for many."""
    module, x = lstm(), inputs()
    jacobian = torch.autograd.functional.jacobian
    got = jacobian(lambda x: module(x)[0].sum((1, 2)), x, vectorize=True)
    assert told == []
    torch.testing.assert_close(got, jacobian(lambda x: module(x)[0].sum((1, 2)), x))
    assert told == [False] * 5  # torch retains the graph


def hooked(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    with torch.autograd.graph.save_on_cpu():
        return run()


def checkpointed(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = checkpoint(run, use_reentrant=False)
    return found


@pytest.mark.parametrize("how", [hooked, checkpointed])
def test_under_saved_tensor_hooks(
    how: Callable[[Callable[[], torch.Tensor]], torch.Tensor], told: Told
) -> None:
    module, x = lstm(), inputs()
    (want,) = torch.autograd.grad(module(x)[0].sin().sum(), x, retain_graph=True)
    loss = how(lambda: module(x)[0].sin().sum())
    for retain in (True, False):
        (got,) = torch.autograd.grad(loss, x, retain_graph=retain)
        assert torch.equal(got, want)


def test_under_compile_nothing_is_written_over(told: Told) -> None:
    module, x = lstm(), inputs()
    (want,) = torch.autograd.grad(module(x)[0].sin().sum(), x)
    told.clear()
    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    (got,) = torch.autograd.grad(compiled(x)[0].sin().sum(), x)
    assert told == [False]
    torch.testing.assert_close(got, want)


def test_replayed_chunks_always_may(told: Told) -> None:
    module, x = lstm(recompute=2), inputs()
    plain = lstm()
    plain.load_state_dict(module.state_dict())
    loss = module(x)[0].sin().sum()
    for retain in (True, False):
        told.clear()
        (got,) = torch.autograd.grad(loss, x, retain_graph=retain)
        assert told == [True] * 3
    (want,) = torch.autograd.grad(plain(x)[0].sin().sum(), x)
    torch.testing.assert_close(got, want)


def test_outputs_and_inputs_are_never_written_over(told: Told) -> None:
    module, x = lstm(), inputs()
    output, (h_n, c_n) = module(x)
    before = [tensor.detach().clone() for tensor in (x, output, h_n, c_n, *module.parameters())]
    (output.sin().sum() + h_n.sum() + c_n.sum()).backward()
    assert told == [True]
    for tensor, was in zip((x, output, h_n, c_n, *module.parameters()), before, strict=True):
        assert torch.equal(tensor.detach(), was)
