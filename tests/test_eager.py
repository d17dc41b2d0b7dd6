"""Calls that need no operator go straight to the backend; whoever looks at operators sees them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fastrnn
from fastrnn import layer_call
from fastrnn.autograd import LayerFunction
from fastrnn.flat import FIELDS, fields_of, layer_of
from fastrnn_reference.backend import ReferenceBackend

LAYERS: dict[str, Callable[..., torch.nn.Module]] = {
    "lstm": fastrnn.LSTM, "rnn_tanh": fastrnn.RNN, "gru": fastrnn.GRU,
    "rnn_relu": lambda *a, **k: fastrnn.RNN(*a, nonlinearity="relu", **k),
}  # fmt: skip


class Seen(TorchDispatchMode):
    """The names of fastrnn's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastrnn":
            self.names.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


class Looking(TorchFunctionMode):
    """Somebody who looks at functions, and does nothing."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Own(torch.Tensor):
    """Somebody's subclass."""


def results(module: torch.nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """Output, final states and gradients."""
    output, final = module(x)
    finals = list(final) if isinstance(final, tuple) else [final]
    loss = output.sin().sum() + sum(each.cos().sum() for each in finals)
    return [output, *finals, *torch.autograd.grad(loss, [x, *module.parameters()])]


@pytest.mark.parametrize("how", [{}, {"num_layers": 2, "bidirectional": True}], ids=str)
@pytest.mark.parametrize("cell", LAYERS)
def test_the_same_bits_with_operators_and_without(cell: str, how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    module = LAYERS[cell](3, 4, backend="reference", **how)
    x = torch.randn(5, 2, 3, requires_grad=True)
    straight = results(module, x)
    with Seen() as seen:
        by_operators = results(module, x)
    layers = how.get("num_layers", 1)
    assert seen.names == ["layer_forward"] * layers + ["layer_backward_"] * layers
    for one, other in zip(straight, by_operators, strict=True):
        assert torch.equal(one, other)
    with torch.no_grad():
        assert torch.equal(module(x)[0], straight[0])
    with torch.inference_mode():
        assert torch.equal(module(x)[0], straight[0])


def test_no_operator_is_called_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: object, **named: object) -> None:
        raise AssertionError("an operator was called")

    for name in ("layer_forward", "layer_backward", "layer_backward_"):
        monkeypatch.setattr(torch.ops.fastrnn, name, refuse)
    module = fastrnn.RNN(3, 4, backend="reference")
    x = torch.randn(5, 2, 3, requires_grad=True)
    results(module, x)
    loss = module(x)[0].sum()
    loss.backward(retain_graph=True)
    loss.backward()
    with torch.no_grad():
        module(x)
    with pytest.raises(AssertionError, match="an operator was called"), Looking():
        module(x)


def test_an_operator_that_nobody_records_is_no_function_of_autograd(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*given: object) -> None:
        raise AssertionError("recorded")

    monkeypatch.setattr(LayerFunction, "setup_context", refuse)
    module, x = fastrnn.RNN(3, 4, backend="reference"), torch.randn(5, 2, 3)
    with Seen() as seen, torch.no_grad():
        output, _ = module(x)
    assert seen.names == ["layer_forward"]
    assert not output.requires_grad
    with pytest.raises(AssertionError, match="recorded"), Seen():
        module(x)


@pytest.mark.parametrize(
    "context",
    [
        Seen,
        Looking,
        torch._subclasses.FakeTensorMode,
        lambda: torch.autograd.profiler.profile(use_kineto=False),
        lambda: torch.device("cpu"),
    ],
    ids=["dispatch mode", "function mode", "fake tensors", "profiler", "default device"],
)
def test_somebody_who_looks(context: Callable[[], AbstractContextManager[object]]) -> None:
    x = torch.ones(2)
    assert layer_call.is_eager((x, None, torch.nn.Parameter(x)))
    with context():
        assert not layer_call.is_eager((x, None))
    assert layer_call.is_eager((x, None))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, device="meta"), torch.ones(2).as_subclass(Own)],
    ids=["meta", "subclass"],
)
def test_tensors_that_are_not_plain(tensor: torch.Tensor) -> None:
    assert not layer_call.is_eager((torch.ones(2), tensor))


def test_within_transforms_and_tracing() -> None:
    found = []

    def ask(x: torch.Tensor) -> torch.Tensor:
        found.append(layer_call.is_eager((x,)))
        return x * 2

    torch.func.vmap(ask)(torch.ones(2))
    with pytest.warns(DeprecationWarning, match="jit.trace"):
        torch.jit.trace(ask, torch.ones(2), check_trace=False)
    assert found == [False, False]
    leaked = []
    torch.func.grad(lambda x: leaked.append(x) or x.sum())(torch.ones(2))
    assert not layer_call.is_eager(leaked)


def test_the_profiler_shows_the_layer() -> None:
    module = fastrnn.RNN(3, 4, backend="reference")
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        module(torch.randn(5, 2, 3))[0].sum().backward()
    names = {event.name for event in profile.function_events}
    assert {"fastrnn::layer_forward", "fastrnn::layer_backward_"} <= names


def test_fields_there_and_back() -> None:
    fields: tuple[Any, ...] = tuple(object() for _ in FIELDS)
    at = FIELDS.index("reverse")
    fields = (*fields[:at], (True, False), *fields[at + 1 :])
    layer = layer_of(fields)
    assert fields_of(layer) == fields
    assert [getattr(layer, name) for name in FIELDS] == list(fields)
    assert (layer.overwrite_saved, layer_of(fields, overwrite_saved=True).overwrite_saved) == (
        False,
        True,
    )


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("cell", LAYERS)
def test_marks_without_numbers(cell: str, backend: str) -> None:
    """Of fake tensors, on which shapes are tried out, nobody can read where a row ends."""
    with torch._subclasses.FakeTensorMode():
        module, x = LAYERS[cell](3, 4, backend=backend), torch.randn(5, 2, 3)
        resets = torch.zeros(5, 2, dtype=torch.bool)
        for lengths in ([5, 3], torch.tensor([5, 3]), None):
            output, _ = module(x, lengths=lengths, resets=resets)
            output.sum().backward()
            assert output.shape == (5, 2, 4)
            assert module(x, lengths=lengths)[0].shape == (5, 2, 4)


@pytest.mark.parametrize("method", ["layer_forward", "layer_backward"])
@pytest.mark.parametrize("looked_at", [False, True], ids=["straight", "operator"])
def test_what_goes_wrong_in_a_backend_names_it(
    method: str, looked_at: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that forgets to return what it made."""
    monkeypatch.setattr(ReferenceBackend, method, lambda *_: None)
    layer = fastrnn.LSTM(3, 4, backend="reference")
    with Looking() if looked_at else nullcontext(), pytest.raises(TypeError) as caught:
        layer(torch.randn(2, 1, 3))[0].sum().backward()
    assert caught.value.__notes__ == ["in the backend 'reference'"]
