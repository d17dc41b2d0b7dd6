"""`recompute`: the numbers of an ordinary call, from what was kept at every k-th step."""

from __future__ import annotations

import copy
import itertools
import pickle
from collections.abc import Callable

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

import fastrnn
from fastrnn import calls, chunked, functional, testing
from fastrnn.backend import Layer, LayerGradients, LayerOutput, RecurrenceBackend
from fastrnn.ops import layer_forward
from fastrnn.options import Options
from fastrnn.plugins import registry
from fastrnn.request import GATES, Spec

CELLS = sorted(GATES)
CHUNKS = [1, 2, 5, 17, 128]


def layer_call(
    cell: str,
    T: int,
    recompute: int,
    *,
    reverse: tuple[bool, ...] = (False,),
    lengths: list[int] | None = None,
    own_x: bool = False,
    proj: int = 0,
    asked: str = "x weight_ih weight_hh bias h0 c0 weight_hr",
    final_only: bool = False,
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """Outputs of one layer on the reference, and the gradients of the tensors that are asked."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    K, B, I, H, G = GATES[cell], 3, 2, 4, len(reverse)
    P = proj or H
    given = {
        "x": normal(T, B, G, I) if own_x else normal(T, B, I),
        "weight_ih": normal(G, K * H, I),
        "weight_hh": normal(G, K * H, P) / 2,
        "bias": normal(G, K * H),
        "h0": normal(G, B, P),
        "c0": normal(G, B, H) if cell == "lstm" else None,
        "weight_hr": normal(G, P, H) if proj else None,
    }
    wanted = [name for name in asked.split() if given[name] is not None]
    for name in wanted:
        given[name].requires_grad_()
    made = layer_forward(
        Layer(
            cell=cell, **given, lengths=None if lengths is None else torch.tensor(lengths),
            reverse=reverse, precision="ieee", save=True, recompute=recompute,
            final_only=final_only,
        ),
        "reference",
    )  # fmt: skip
    outputs = [tensor for tensor in made if tensor is not None]
    upstream = [normal(*output.shape) for output in outputs]
    if final_only:
        outputs, upstream = outputs[1:], upstream[1:]
    got = torch.autograd.grad(outputs, [given[name] for name in wanted], upstream)
    return [output.detach() for output in outputs], dict(zip(wanted, got, strict=True))


def assert_same(cell: str, T: int, k: int, **how: object) -> None:
    outputs, gradients = layer_call(cell, T, 0, **how)
    got_outputs, got_gradients = layer_call(cell, T, k, **how)
    for got, want in zip(got_outputs, outputs, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
    for name, want in gradients.items():
        scale = max(1.0, float(want.abs().max()))
        apart = float((got_gradients[name] - want).abs().max())
        assert apart <= 1e-12 * scale, (name, apart)


@pytest.mark.parametrize("k", CHUNKS)
@pytest.mark.parametrize("T", [1, 2, 3, 17])
@pytest.mark.parametrize("reverse", [(False,), (True,), (False, True)], ids=str)
@pytest.mark.parametrize(("cell", "proj"), [(c, 0) for c in CELLS] + [("lstm", 2)])
def test_equals_a_call_without(
    poisoned: None, cell: str, proj: int, reverse: tuple[bool, ...], T: int, k: int
) -> None:
    for lengths in (None, [T, 0, (T + 1) // 2]):
        assert_same(cell, T, k, reverse=reverse, lengths=lengths, proj=proj)


@pytest.mark.parametrize("lengths", [None, [17, 6, 5], [3, 17, 11]], ids=str)
@pytest.mark.parametrize("cell", CELLS)
def test_groups_with_inputs_of_their_own(cell: str, lengths: list[int] | None) -> None:
    for reverse, k in itertools.product([(False, True, False), (True, True)], [1, 5, 17]):
        assert_same(cell, 17, k, reverse=reverse, lengths=lengths, own_x=True)


@pytest.mark.parametrize("lengths", [None, [7, 0, 4]], ids=["equal", "lengths"])
@pytest.mark.parametrize("reverse", [(False,), (False, True)], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_every_subset_of_gradients(
    cell: str, reverse: tuple[bool, ...], lengths: list[int] | None
) -> None:
    names = ["x", "weight_ih", "weight_hh", "bias", "h0"] + ["c0"] * (cell == "lstm")
    for count in (1, 2, len(names)):
        for asked in itertools.combinations(names, count):
            assert_same(cell, 7, 3, reverse=reverse, lengths=lengths, asked=" ".join(asked))


@pytest.mark.parametrize("cell", CELLS)
def test_with_final_only(cell: str) -> None:
    for reverse, lengths in itertools.product([(False,), (False, True)], [None, [7, 0, 4]]):
        assert_same(cell, 7, 3, reverse=reverse, lengths=lengths, final_only=True)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "rnn_relu"])
def test_two_layers_with_dropout(cell: str, packed: bool) -> None:
    spec = Spec(cell, 3, 4, 0, 2, True, True)
    problem = testing.random_problem(spec, 9, 3)
    x = pack_padded_sequence(problem.x, torch.tensor([9, 6, 1])) if packed else problem.x
    found = []
    for recompute in (0, 4):
        leaves = [weight.clone().requires_grad_() for weight in problem.weights]
        torch.manual_seed(0)
        output, _ = calls.run(
            spec, x, None, leaves, batch_first=False, dropout=0.5, training=True,
            backend="reference", options=Options(recompute=recompute),
        )  # fmt: skip
        output = output.data if packed else output
        found.append((output, *torch.autograd.grad(output.square().sum(), leaves)))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_within_the_tolerance_of_every_dtype(
    monkeypatch: pytest.MonkeyPatch, cell: str, dtype: torch.dtype
) -> None:
    problem = testing.random_problem(Spec(cell, 5, 8, 0, 2, True, True), 30, 3, dtype=dtype)
    ordinary, options = calls.run, Options(recompute=4)
    monkeypatch.setattr(calls, "run", lambda *a, **how: ordinary(*a, **how, options=options))
    got = testing.run(problem, backend="reference")
    monkeypatch.undo()
    testing.assert_close(got, testing.truth(problem), testing.tolerance(dtype, 30))


def test_sums_over_many_chunks_keep_small_terms() -> None:
    """In bfloat16 a sum of 600 equal terms would stop growing at 256 of them."""
    ones = torch.ones(600, 1, 1, dtype=torch.bfloat16)
    bias = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    nothing = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    output, *_ = layer_forward(
        Layer(
            "rnn_relu", ones, nothing + 1, nothing, bias, nothing, None, None, None, (False,),
            "ieee", save=True, recompute=1,
        ),
        "reference",
    )  # fmt: skip
    (d_bias,) = torch.autograd.grad(output.sum(), bias)
    assert d_bias.item() == 600


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_gradients_of_gradients(cell: str) -> None:
    problem = testing.random_problem(Spec(cell, 3, 4), 5, 2)

    def penalty(recompute: int) -> tuple[torch.Tensor, ...]:
        x = problem.x.clone().requires_grad_()
        leaves = [weight.clone().requires_grad_() for weight in problem.weights]
        output, _ = calls.run(
            problem.spec, x, None, leaves, batch_first=False, dropout=0.0, training=True,
            backend="reference", options=Options(recompute=recompute),
        )  # fmt: skip
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), leaves)

    torch.testing.assert_close(penalty(2), penalty(0), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("spec", [Spec("rnn_tanh", 3, 4), Spec("lstm", 3, 4, 2, 2, True, True)])
def test_compile_without_graph_break_equals_eager(spec: Spec) -> None:
    module = fastrnn.LSTM if spec.cell == "lstm" else fastrnn.RNN
    how = {"proj_size": spec.proj_size} if spec.cell == "lstm" else {}
    module = module(3, 4, spec.num_layers, bidirectional=spec.bidirectional, recompute=2, **how)

    def gradients(run: Callable[..., tuple[torch.Tensor, object]], T: int) -> object:
        x = torch.linspace(-1, 1, T * 6).view(T, 2, 3)
        output, _ = run(x)
        return output, torch.autograd.grad(output.square().sum(), list(module.parameters()))

    torch.compiler.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for T in (5, 6, 1):
        torch.testing.assert_close(gradients(compiled, T), gradients(module, T))


def test_compile_with_the_number_as_an_argument() -> None:
    weights = [w.requires_grad_() for w in testing.random_problem(Spec("lstm", 3, 4), 1, 1).weights]
    x = torch.randn(7, 2, 3, dtype=torch.float64)

    def call(recompute: bool | int) -> torch.Tensor:
        return functional.lstm(x, None, weights, recompute=recompute)[0]

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for recompute in (5, 6, True, False):  # from the second on, numbers would be symbols
        torch.testing.assert_close(compiled(recompute), call(recompute))


@pytest.mark.parametrize("lengths", [None, [4, 0, 2]], ids=["equal", "lengths"])
@pytest.mark.parametrize("k", [1, 3, 9])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_opcheck(cell: str, k: int, lengths: list[int] | None) -> None:
    K, T, B, I, H, G = GATES[cell], 4, 3, 2, 5, 2

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    torch.library.opcheck(
        torch.ops.fastrnn.layer_forward.default,
        (
            leaf(T, B, I), leaf(G, K * H, I), leaf(G, K * H, H), None, leaf(G, B, H),
            leaf(G, B, H) if cell == "lstm" else None, None, None, None,
            None if lengths is None else torch.tensor(lengths), None, None, None, None,
            cell, [False, True], "ieee", k, False, True, 0.0, False, "reference",
        ),
    )  # fmt: skip


def kept_for_backward(run: Callable[[], object]) -> list[torch.Tensor]:
    """What autograd keeps, each tensor once."""
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        made = run()
    assert made is not None
    return list(kept.values())


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_kept_is_the_output_and_the_states_between_chunks(cell: str, bidirectional: bool) -> None:
    K, T, B, I, H, G = GATES[cell], 100, 3, 2, 8, 2 if bidirectional else 1
    problem = testing.random_problem(Spec(cell, I, H, bidirectional=bidirectional), T, B)
    x = problem.x.requires_grad_()
    states = 2 if cell == "lstm" else 1

    def count(recompute: int) -> int:
        kept = kept_for_backward(
            lambda: calls.run(
                problem.spec, x, None, problem.weights, batch_first=False, dropout=0.0,
                training=True, backend="reference", options=Options(recompute=recompute),
            )
        )  # fmt: skip
        return sum(tensor.numel() for tensor in kept)

    given = x.numel() + G * (K * H * (I + H) + K * H) + G * B * H  # h0 and c0 are the same zeros
    assert count(0) == given + T * B * G * H * (6 if cell == "lstm" else 1)
    for k, chunks in ((1, 100), (7, 15), (10, 10), (128, 1)):
        assert count(k) == given + T * B * G * H + chunks * states * G * B * H


@pytest.mark.parametrize("bidirectional", [False, True])
def test_peak_memory_of_a_training_step(
    peak_memory: Callable[[Callable[[], object]], int], bidirectional: bool
) -> None:
    """Beside input and output, and their gradients, a step needs what a chunk of it does."""
    T, B, H = 256, 8, 32
    spec = Spec("lstm", 1, H, bidirectional=bidirectional)
    problem = testing.random_problem(spec, T, B, dtype=torch.float32)
    leaves = [weight.requires_grad_() for weight in problem.weights]
    d_output = torch.randn(T, B, spec.directions * H)

    def step(recompute: int) -> object:
        output, _ = calls.run(
            spec, problem.x, problem.hx, leaves, batch_first=False, dropout=0.0, training=True,
            backend="reference", options=Options(recompute=recompute),
        )  # fmt: skip
        return torch.autograd.grad(output, leaves, d_output)

    step(0)
    whole, chunks = peak_memory(lambda: step(0)), peak_memory(lambda: step(8))
    output = T * B * H * spec.directions * 4
    assert whole > 15 * output
    assert chunks < 2.5 * output


def test_elman_backward_runs_no_step_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """h of every step is all that its gradient needs, and that is the output."""
    lengths: list[int] = []
    original = RecurrenceBackend.layer_forward

    def spy(self: object, layer: Layer) -> LayerOutput:
        lengths.append(len(layer.x))
        return original(self, layer)

    monkeypatch.setattr(RecurrenceBackend, "layer_forward", spy)
    layer_call("rnn_tanh", 8, 3)
    assert lengths == [3, 3, 2]
    lengths.clear()
    layer_call("lstm", 8, 3)
    assert lengths == [3, 3, 2, 2, 3, 3]


def test_a_backend_sees_ordinary_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = registry().backends["reference"]
    seen: list[tuple[int, int, bool, bool]] = []
    back: list[tuple[int, int]] = []
    forward, backward = backend.layer_forward, backend.layer_backward

    def spy(layer: Layer) -> LayerOutput:
        seen.append((len(layer.x), layer.recompute, layer.final_only, layer.save))
        return forward(layer)

    def spy_back(grad: object, layer: Layer, output: torch.Tensor, saved, wanted) -> LayerGradients:
        back.append((len(output), len(saved)))
        assert output.is_contiguous()
        return backward(grad, layer, output, saved, wanted)

    monkeypatch.setattr(backend, "layer_forward", spy)
    monkeypatch.setattr(backend, "layer_backward", spy_back)
    layer_call("lstm", 5, 2, final_only=True, reverse=(False, True))
    forwards = [(2, 0, False, False), (2, 0, False, False), (1, 0, False, False)]
    assert seen == forwards + [(n, *rest, True) for n, *rest, _ in reversed(forwards)]
    assert back == [(1, 3), (2, 3), (2, 3)]
    back.clear()
    layer_call("rnn_tanh", 5, 2, reverse=(False, True), lengths=[5, 3, 1])
    assert [saved for _, saved in back] == [3] * 6


def test_without_a_gradient_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "forward", None)
    lstm, x = fastrnn.LSTM(3, 4, recompute=2), torch.randn(5, 2, 3)
    with torch.no_grad():
        decision = fastrnn.explain(lstm, x)
        assert (decision.backend, decision.request.recompute) == ("aten", 0)
        assert "recompute" not in str(decision)
        torch.testing.assert_close(lstm(x), fastrnn.LSTM.forward(copy.deepcopy(lstm), x))


def test_a_backend_that_keeps_everything_is_not_chosen_and_says_why() -> None:
    lstm, x = fastrnn.LSTM(3, 4, recompute=2), torch.randn(5, 2, 3)
    decision = fastrnn.explain(lstm, x)
    assert decision.backend == "reference"
    assert "forward and backward, recompute=2" in str(decision)
    (aten,) = (c for c in decision.candidates if c.name == "aten")
    assert aten.reasons == ("recompute was asked for; it keeps what every step needs",)
    lstm.backend = "aten"
    with pytest.raises(fastrnn.BackendError, match="aten: cannot run: recompute was asked for"):
        lstm(x)
    lstm.recompute = False
    lstm(x)


def test_the_estimate_has_the_second_forward_pass() -> None:
    x = torch.randn(50, 2, 3)
    for cls, more in ((fastrnn.LSTM, True), (fastrnn.RNN, False)):
        costs = [
            fastrnn.explain(cls(3, 4, backend="reference", recompute=recompute), x)
            .candidates[0].cost.seconds
            for recompute in (False, 10)
        ]  # fmt: skip
        assert (costs[1] > costs[0]) == more


@pytest.mark.parametrize(("recompute", "steps"), [(False, 0), (True, 128), (1, 1), (300, 300)])
def test_true_is_128_steps(recompute: bool | int, steps: int) -> None:
    module = fastrnn.RNN(3, 4, recompute=recompute)
    assert fastrnn.explain(module, torch.randn(5, 2, 3)).request.recompute == steps


@pytest.mark.parametrize(
    ("wrong", "error", "got"),
    [
        (0, ValueError, "greater than zero, got: 0"),
        (-3, ValueError, "greater than zero, got: -3"),
        (2.0, TypeError, "of type bool or int, got: float"),
        (None, TypeError, "of type bool or int, got: NoneType"),
    ],
)
def test_wrong_values_are_named(wrong: object, error: type[Exception], got: str) -> None:
    x, lstm, rnn = torch.randn(5, 2, 3), fastrnn.LSTM(3, 4), fastrnn.RNN(3, 4)
    for refused in (
        lambda: fastrnn.LSTM(3, 4, recompute=wrong),
        lambda: fastrnn.RNN(3, 4, recompute=wrong),
        lambda: functional.lstm(x, None, list(lstm.parameters()), recompute=wrong),
        lambda: functional.rnn(x, None, list(rnn.parameters()), recompute=wrong),
        lambda: setattr(lstm, "recompute", wrong),
    ):
        with pytest.raises(error, match=f"recompute should be .*{got}"):
            refused()
    assert lstm.recompute is False


@pytest.mark.parametrize("recompute", [True, 1, 50])
def test_module_keeps_it_and_shows_it(recompute: bool | int) -> None:
    module = fastrnn.LSTM(3, 4, recompute=recompute)
    assert repr(module) == f"LSTM(3, 4, recompute={recompute})"
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.recompute is recompute


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.RNN])
def test_modules_and_functional_forms_train(cls: type) -> None:
    plain = cls(3, 4, bidirectional=True)
    chunks = cls(3, 4, bidirectional=True, recompute=2)
    chunks.load_state_dict(plain.state_dict())
    x = pack_sequence([torch.randn(5, 3), torch.randn(3, 3)])
    function = functional.lstm if cls is fastrnn.LSTM else functional.rnn
    weights = list(chunks.parameters())
    want = torch.autograd.grad(plain(x)[0].data.square().sum(), list(plain.parameters()))
    for output in (
        chunks(x)[0],
        function(x, None, weights, bidirectional=True, recompute=2)[0],
    ):
        got = torch.autograd.grad(output.data.square().sum(), weights)
        torch.testing.assert_close(got, want)


def test_autocast() -> None:
    x = torch.randn(9, 2, 3)
    found = []
    for recompute in (False, 4):
        torch.manual_seed(0)
        lstm = fastrnn.LSTM(3, 8, backend="reference", recompute=recompute)
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = lstm(x)
        assert output.dtype == torch.bfloat16
        found.append(torch.autograd.grad(output.float().square().sum(), list(lstm.parameters())))
    for want, got in zip(*found, strict=True):
        assert got.dtype == torch.float32
        allowed = testing.tolerance(torch.bfloat16, 9).gradient * float(want.abs().max())
        torch.testing.assert_close(got, want, rtol=0, atol=allowed)
