"""`final_only`: the states are those of an ordinary call, and no output is made for nobody."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from derivatives import assert_first
from fastrnn import calls, functional, testing
from fastrnn.backend import Layer, LayerOutput, OutputGradients, RecurrenceBackend
from fastrnn.ops import layer_forward
from fastrnn.options import Options
from fastrnn.plugins import registry
from fastrnn.request import GATES, Spec

CELLS = sorted(GATES)
RUNS = [("reference", cell) for cell in CELLS] + [("aten", "lstm"), ("aten", "rnn_relu")]


def call(problem: testing.Problem, backend: str = "reference", final_only: bool = True, **how):
    """Output and states as a tuple."""
    hx = problem.hx if problem.hx is None or problem.spec.has_cell_state else problem.hx[0]
    output, states = calls.run(
        problem.spec, how.pop("x", problem.x), hx, problem.weights, batch_first=False, dropout=0.0,
        training=True, backend=backend, options=Options(final_only=final_only), **how,
    )  # fmt: skip
    return output, states if isinstance(states, tuple) else (states,)


def with_leaves(problem: testing.Problem) -> tuple[testing.Problem, list[torch.Tensor]]:
    """The problem with tensors that require gradients, and these."""
    leaves = [t.clone().requires_grad_() for t in (problem.x, *problem.hx, *problem.weights)]
    states = len(problem.hx)
    hx, weights = tuple(leaves[1 : 1 + states]), tuple(leaves[1 + states :])
    return problem._replace(x=leaves[0], hx=hx, weights=weights), leaves


def layer(cell: str, *, save: bool, lengths: list[int] | None = None, T: int = 5) -> Layer:
    K, B, I, H, G = GATES[cell], 3, 2, 4, 2

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64)

    return Layer(
        cell, normal(T, B, I), normal(G, K * H, I), normal(G, K * H, H), None, normal(G, B, H),
        normal(G, B, H) if cell == "lstm" else None, None,
        None if lengths is None else torch.tensor(lengths), (False, True), "ieee", save,
        final_only=True,
    )  # fmt: skip


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("backend", "cell"), RUNS)
def test_states_are_those_of_an_ordinary_call(
    poisoned: None, backend: str, cell: str, bidirectional: bool, layers: int
) -> None:
    problem = testing.random_problem(Spec(cell, 3, 4, 0, layers, True, bidirectional), 6, 2)
    _, want = call(problem, backend, final_only=False)
    output, got = call(problem, backend)
    assert output is None
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("backend", "cell"), RUNS)
def test_gradients_are_those_of_an_unused_output(
    backend: str, cell: str, bidirectional: bool
) -> None:
    problem, leaves = with_leaves(
        testing.random_problem(Spec(cell, 3, 4, 0, 2, True, bidirectional), 6, 2)
    )
    found = []
    for final_only in (False, True):
        _, states = call(problem, backend, final_only)
        loss = sum(state.square().sum() for state in states)
        found.append(torch.autograd.grad(loss, leaves))
    for w, g in zip(*found, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck(cell: str) -> None:
    problem, leaves = with_leaves(testing.random_problem(Spec(cell, 2, 3, 0, 1, True, True), 3, 2))

    def states(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        count = len(problem.hx)
        hx, weights = tensors[1 : 1 + count], tensors[1 + count :]
        return call(problem._replace(x=tensors[0], hx=hx, weights=weights))[1]

    assert_first(states, leaves)


def test_the_gradient_of_an_output_that_is_not_there_is_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[OutputGradients] = []
    original = RecurrenceBackend.layer_backward

    def spy(self: object, grad: OutputGradients, *rest: object) -> object:
        seen.append(grad)
        return original(self, grad, *rest)

    monkeypatch.setattr(RecurrenceBackend, "layer_backward", spy)
    problem, leaves = with_leaves(testing.random_problem(Spec("lstm", 3, 4), 6, 2))
    _, (h_n, _) = call(problem)
    torch.autograd.grad(h_n.sum(), leaves)
    assert [(g.output is None, g.h_n is None, g.c_n is None) for g in seen] == [(True, False, True)]


def test_only_the_last_layer_has_no_output(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    original = RecurrenceBackend.layer_forward

    def spy(self: object, layer: Layer) -> LayerOutput:
        seen.append(layer.final_only)
        return original(self, layer)

    monkeypatch.setattr(RecurrenceBackend, "layer_forward", spy)
    call(testing.random_problem(Spec("rnn_tanh", 3, 4, 0, 3), 6, 2))
    assert seen == [False, False, True]


@pytest.mark.parametrize("ignored", [False, True], ids=["heeded", "ignored"])
@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_the_operator_returns_an_output_only_to_a_backward_pass(
    monkeypatch: pytest.MonkeyPatch, cell: str, save: bool, ignored: bool
) -> None:
    if ignored:  # by a backend that knows nothing of it
        backend = registry().backends["reference"]
        full = type(backend).recurrence_forward

        def ignorant(gates_x: torch.Tensor, weight_hh: torch.Tensor, layer: Layer) -> LayerOutput:
            whole = {name: getattr(layer, name) for name in Layer.__slots__ if name != "final_only"}
            return full(backend, gates_x, weight_hh, Layer(**whole))

        monkeypatch.setattr(backend, "recurrence_forward", ignorant)
    output, h_n, *_ = layer_forward(layer(cell, save=save), "reference")
    assert output.shape == (5 if save else 0, 3, 2, 4)
    assert h_n.shape == (2, 3, 4)
    if not save:
        assert output.untyped_storage().nbytes() == 0  # no view that keeps the whole alive


@pytest.mark.parametrize("save", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_opcheck(cell: str, save: bool) -> None:
    made = layer(cell, save=save, lengths=[5, 0, 3])
    arguments = (
        made.x.requires_grad_(save), made.weight_ih, made.weight_hh, None, made.h0, made.c0, None,
        None, None, made.lengths, None, None, None, None, cell, list(made.reverse), "ieee", 0, True,
        save, 0.0, False, "reference",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)


@pytest.mark.parametrize("lengths", [None, [100, 0, 60]], ids=["equal", "lengths"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_memory_of_the_time_loop_does_not_grow_with_its_steps(
    peak_memory: Callable[[Callable[[], object]], int], cell: str, lengths: list[int] | None
) -> None:
    backend = registry().backends["reference"]
    found = []
    for T in (100, 200):
        asked = layer(cell, save=False, lengths=lengths, T=T)
        gates_x = torch.randn(T, 3, 2, GATES[cell] * 4, dtype=torch.float64)
        bytes_ = peak_memory(
            lambda a=asked, g=gates_x: backend.recurrence_forward(g, a.weight_hh, a)
        )
        # which step of which row is alive: one byte each, and a few while they are compared
        found.append(bytes_ - (0 if lengths is None else 3 * T))
    assert found[1] - found[0] < 200 * 3 * 4  # one value of float32 a step and row, of 32 bytes


@pytest.mark.parametrize("shape", ["unbatched", "batch_first", "packed"])
@pytest.mark.parametrize("backend", ["reference", "aten"])
@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.RNN])
def test_module_with_every_form_of_input(cls: type, backend: str, shape: str) -> None:
    module = cls(3, 4, 2, bidirectional=True, batch_first=shape == "batch_first", backend=backend)
    x = {
        "unbatched": torch.randn(5, 3),
        "batch_first": torch.randn(2, 5, 3),
        "packed": pack_sequence([torch.randn(3, 3), torch.randn(5, 3)], enforce_sorted=False),
    }[shape]
    output, want = module(x)
    assert output is not None
    module.final_only = True
    for context in (torch.no_grad, torch.enable_grad):
        with context():
            output, got = module(x)
        assert output is None
        torch.testing.assert_close(got, want)


def test_functional_forms() -> None:
    lstm, rnn = fastrnn.LSTM(3, 4), fastrnn.RNN(3, 4)
    x = torch.randn(5, 2, 3)
    output, states = functional.lstm(x, None, list(lstm.parameters()), final_only=True)
    assert output is None
    torch.testing.assert_close(states, lstm(x)[1])
    output, h_n = functional.rnn(x, None, list(rnn.parameters()), final_only=True)
    assert output is None
    torch.testing.assert_close(h_n, rnn(x)[1])


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.RNN])
def test_module_keeps_it_and_shows_it(cls: type) -> None:
    assert repr(cls(3, 4)) == f"{cls.__name__}(3, 4)"
    module = cls(3, 4, backend="reference", final_only=True)
    assert repr(module) == f"{cls.__name__}(3, 4, backend=reference, final_only=True)"
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.final_only is True
        assert other(torch.randn(5, 2, 3))[0] is None


def test_what_was_pickled_before_it_was_there_has_an_output() -> None:
    state = fastrnn.LSTM(3, 4).__getstate__()
    del state["final_only"], state["recompute"]
    old = fastrnn.LSTM.__new__(fastrnn.LSTM)
    old.__setstate__(state)
    assert old(torch.randn(5, 2, 3))[0].shape == (5, 2, 4)


def test_conversion_neither_sets_it_nor_hands_it_on() -> None:
    model = fastrnn.convert(torch.nn.Sequential(torch.nn.LSTM(3, 4)))
    assert (model[0].final_only, model[0].recompute) == (False, False)
    model[0].final_only, model[0].recompute = True, 5
    back = fastrnn.revert(model)
    assert not {"final_only", "recompute"} & vars(back[0]).keys()
    assert back[0](torch.randn(5, 2, 3))[0].shape == (5, 2, 4)
    assert fastrnn.convert(back)[0].final_only is False


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_what_is_no_bool_is_refused(wrong: object) -> None:
    text = f"final_only should be of type bool, got: {type(wrong).__name__}"
    x, lstm, rnn = torch.randn(5, 2, 3), fastrnn.LSTM(3, 4), fastrnn.RNN(3, 4)
    for refused in (
        lambda: fastrnn.LSTM(3, 4, final_only=wrong),
        lambda: fastrnn.RNN(3, 4, final_only=wrong),
        lambda: functional.lstm(x, None, list(lstm.parameters()), final_only=wrong),
        lambda: functional.rnn(x, None, list(rnn.parameters()), final_only=wrong),
        lambda: setattr(lstm, "final_only", wrong),
    ):
        with pytest.raises(TypeError, match=text):
            refused()
    assert lstm.final_only is False


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.RNN])
def test_compile_and_export(cls: type) -> None:
    module = cls(3, 4, 2, bidirectional=True, final_only=True)
    x = torch.randn(5, 2, 3)

    def states(run: Callable[..., tuple[None, object]]) -> tuple[torch.Tensor, ...]:
        output, final = run(x)
        assert output is None
        return final if isinstance(final, tuple) else (final,)

    def gradients(final: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        return torch.autograd.grad(sum(s.square().sum() for s in final), list(module.parameters()))

    want = states(module)
    torch.compiler.reset()
    got = states(torch.compile(module, fullgraph=True, backend="aot_eager"))
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients(got), gradients(want))
    with torch.no_grad():
        exported = torch.export.export(module, (x,)).module()
        torch.testing.assert_close(states(exported), want)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_autocast(cell: str) -> None:
    problem = testing.random_problem(Spec(cell, 6, 8), 4, 3, dtype=torch.float32)._replace(hx=None)
    with torch.autocast("cpu", torch.bfloat16):
        _, want = call(problem, final_only=False)
        output, got = call(problem)
    assert output is None
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.bfloat16
        assert torch.equal(g, w)
