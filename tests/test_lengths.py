"""`lengths=`: padded rows that end early give the numbers of torch's packed sequences."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import fastrnn
from fastrnn import calls, functional, masks, testing
from fastrnn.request import Spec

CELLS = ["lstm", "rnn_tanh", "rnn_relu"]
NAN = float("nan")
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.backends("auto"),
]


def pair(spec: Spec, **options: object) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A layer of torch.nn in float64, and fastrnn's with the same weights."""
    arguments = {
        "num_layers": spec.num_layers, "bias": spec.bias, "bidirectional": spec.bidirectional,
        "dtype": torch.float64, **options,
    }  # fmt: skip
    if spec.cell == "lstm":
        arguments["proj_size"] = spec.proj_size
        classes = torch.nn.LSTM, fastrnn.LSTM
    else:
        arguments["nonlinearity"] = spec.cell.removeprefix("rnn_")
        classes = torch.nn.RNN, fastrnn.RNN
    want, got = (cls(spec.input_size, spec.hidden_size, **arguments) for cls in classes)
    got.load_state_dict(want.state_dict())
    return want, got


def as_hx(spec: Spec, states: list[torch.Tensor]) -> object:
    return tuple(states) if spec.has_cell_state else states[0]


def assert_equals_packed(
    spec: Spec, T: int, lengths: list[int], *, batch_first: bool = False, with_hx: bool = True
) -> None:
    """Output, states and every gradient, where the padding is NaN for fastrnn."""
    torch.manual_seed(0)
    modules = pair(spec, batch_first=batch_first)
    B, dim = len(lengths), 0 if batch_first else 1
    problem = testing.random_problem(spec, T, B)
    padded = problem.x.clone()
    for row, length in enumerate(lengths):
        padded[length:, row] = NAN
    found = []
    for module, x in zip(modules, (problem.x, padded), strict=True):
        x = x.transpose(0, 1) if batch_first else x
        x = x.clone().requires_grad_()
        hx = [state.clone().requires_grad_() for state in problem.hx] if with_hx else []
        states = as_hx(spec, hx) if with_hx else None
        if isinstance(module, fastrnn.recurrent.Recurrent):
            output, final = module(x, states, lengths=lengths)
        else:
            given = pack_padded_sequence(x, lengths, batch_first, enforce_sorted=False)
            output, final = module(given, states)
            output, _ = pad_packed_sequence(output, batch_first, total_length=T)
        outputs = (output, *final) if spec.has_cell_state else (output, final)
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(o.shape, generator=generator).double() for o in outputs]
        leaves = [x, *hx, *module.parameters()]
        found.append((*outputs, *torch.autograd.grad(outputs, leaves, upstream)))
    for want, got in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    output = found[1][0].movedim(dim, 0)
    for row, length in enumerate(lengths):
        assert (output[row, length:] == 0).all()


@pytest.mark.parametrize("num_layers", [1, 2, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "proj"), [*((c, 0) for c in CELLS), ("lstm", 2)])
def test_equal_torchs_packed_sequences(
    poisoned: None, cell: str, proj: int, bidirectional: bool, num_layers: int
) -> None:
    spec = Spec(cell, 3, 4, proj, num_layers, True, bidirectional)
    assert_equals_packed(spec, 6, [3, 6, 1, 5])
    assert_equals_packed(spec._replace(bias=False), 5, [2, 1, 2], batch_first=True, with_hx=False)


@settings(max_examples=30, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    num_layers=st.integers(1, 2),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    padding=st.integers(0, 3),
    batch_first=st.booleans(),
)
def test_equal_torchs_packed_sequences_at_any_lengths(
    cell: str,
    bidirectional: bool,
    num_layers: int,
    lengths: list[int],
    padding: int,
    batch_first: bool,
) -> None:
    spec = Spec(cell, 2, 3, 0, num_layers, True, bidirectional)
    assert_equals_packed(spec, max(lengths) + padding, lengths, batch_first=batch_first)


@pytest.mark.parametrize("lengths", [[0, 4, 2], [0, 0, 0], [4, 4, 4]], ids=str)
@pytest.mark.parametrize("cell", [*CELLS, "rnn_sigmoid"])
def test_equal_numpy_also_for_rows_without_a_step(
    oracle: ModuleType, cell: str, lengths: list[int]
) -> None:
    spec = Spec(cell, 3, 4, 0, 2, True, True)
    problem = testing.random_problem(spec, 4, 3)
    output, final = calls.run(
        spec, problem.x, as_hx(spec, list(problem.hx)), problem.weights, batch_first=False,
        dropout=0.0, training=False, backend="auto", lengths=lengths,
    )  # fmt: skip
    want = oracle.run_stack(
        cell, problem.x.numpy(), [w.numpy() for w in problem.weights],
        [state.numpy() for state in problem.hx], 2, True, True, lengths=lengths,
    )  # fmt: skip
    states = final if isinstance(final, tuple) else (final,)
    for g, w in zip((output, *states), want, strict=True):
        np.testing.assert_allclose(g.numpy(), w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_row_without_a_step_hands_its_states_on_and_touches_no_weight(cell: str) -> None:
    spec = Spec(cell, 3, 4, 0, 2, True, True)
    _, module = pair(spec)
    problem = testing.random_problem(spec, 5, 2)
    hx = [state.clone().requires_grad_() for state in problem.hx]
    _, final = module(problem.x, as_hx(spec, hx), lengths=[0, 3])
    states = final if isinstance(final, tuple) else (final,)
    upstream = [torch.randn_like(state[:, 0]) for state in states]
    leaves = [*hx, *module.parameters()]
    found = torch.autograd.grad([state[:, 0] for state in states], leaves, upstream)
    for state, start, d_state, d_given in zip(states, hx, upstream, found, strict=False):
        assert torch.equal(state[:, 0], start[:, 0])
        assert torch.equal(d_given[:, 0], d_state)
        assert (d_given[:, 1] == 0).all()
    assert all((gradient == 0).all() for gradient in found[len(hx) :])


@pytest.mark.parametrize("cell", CELLS)
def test_all_full_is_a_call_without(cell: str) -> None:
    _, module = pair(Spec(cell, 3, 4, 0, 2, True, True))
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    torch.testing.assert_close(module(x, lengths=[5, 5]), module(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    "lengths",
    [
        (4, 0, 2), np.array([4, 0, 2]).tolist(), list(np.array([4, 0, 2])),
        torch.tensor([4, 0, 2]), torch.tensor([4, 0, 2], dtype=torch.int32),
        torch.tensor([4, 0, 2], dtype=torch.uint8),
    ],
    ids=["tuple", "list", "numpy ints", "int64", "int32", "uint8"],
)  # fmt: skip
def test_forms(lengths: object) -> None:
    rnn, x = fastrnn.RNN(3, 4), torch.randn(5, 3, 3)
    output, h_n = rnn(x, lengths=[4, 0, 2])
    for g, w in zip(rnn(x, lengths=lengths), (output, h_n), strict=True):
        assert torch.equal(g, w)
    by_function = functional.rnn(x, None, list(rnn.parameters()), lengths=lengths)
    assert torch.equal(by_function[0], output)
    lstm = fastrnn.LSTM(3, 4)
    weights = list(lstm.parameters())
    output, (h_n, c_n) = functional.lstm(x, None, weights, lengths=lengths)
    want, (h, c) = lstm(x, lengths=[4, 0, 2])
    assert all(torch.equal(g, w) for g, w in ((output, want), (h_n, h), (c_n, c)))


@pytest.mark.parametrize("lengths", [3, [3], torch.tensor(3), torch.tensor([3])], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched(batch_first: bool, lengths: object) -> None:
    lstm, x = fastrnn.LSTM(3, 4, 2, batch_first=batch_first, bidirectional=True), torch.randn(5, 3)
    output, (h_n, c_n) = lstm(x, lengths=lengths)
    want, (h, c) = lstm(x[:3])
    assert output.shape == (5, 8)
    assert (output[3:] == 0).all()
    for g, w in ((output[:3], want), (h_n, h), (c_n, c)):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_final_only(cell: str, training: bool) -> None:
    _, module = pair(Spec(cell, 3, 4, 0, 2, True, True))
    x = torch.randn(5, 3, 3, dtype=torch.float64)
    x[4:, 0] = x[:, 1] = NAN
    with torch.set_grad_enabled(training):
        _, want = module(x, lengths=[4, 0, 2])
        module.final_only = True
        output, got = module(x, lengths=[4, 0, 2])
    assert output is None
    torch.testing.assert_close(got, want)


def test_recompute() -> None:
    lstm, x = fastrnn.LSTM(3, 4, bidirectional=True), torch.randn(9, 3, 3)
    weights, found = list(lstm.parameters()), []
    for recompute in (False, 4):
        lstm.recompute = recompute
        output, _ = lstm(x, lengths=[9, 0, 5])
        found.append(torch.autograd.grad(output.square().sum(), weights))
    torch.testing.assert_close(found[1], found[0])


def test_autocast() -> None:
    lstm, x = fastrnn.LSTM(3, 8), torch.randn(6, 3, 3)
    x[3:, 1] = NAN
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = lstm(x, lengths=[6, 3, 0])
    assert output.dtype == torch.bfloat16
    allowed = testing.tolerance(torch.bfloat16, 6).output
    want, _ = lstm(x, lengths=[6, 3, 0])
    torch.testing.assert_close(output.float(), want, rtol=0, atol=allowed)
    gradients = torch.autograd.grad(output.float().sum(), list(lstm.parameters()))
    assert all(g.dtype == torch.float32 and not g.isnan().any() for g in gradients)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_one_graph_for_all_sizes_and_values(cell: str) -> None:
    _, module = pair(Spec(cell, 3, 4, 0, 2, True, True), batch_first=True)
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    weights, made = list(module.parameters()), []
    for T, values in ((5, [5, 0]), (7, [1, 6, 7]), (3, [2, 2, 1, 3])):
        x, lengths = torch.randn(len(values), T, 3, dtype=torch.float64), torch.tensor(values)
        want, got = module(x, lengths=lengths)[0], compiled(x, lengths=lengths)[0]
        torch.testing.assert_close(got, want)
        want, got = (torch.autograd.grad(o.square().sum(), weights) for o in (want, got))
        torch.testing.assert_close(got, want)
        made.append(counter.frame_count)
    assert made[0] == made[-1]


def test_values_are_clamped_in_a_graph() -> None:
    """Nothing can be raised about them there."""
    rnn, x, wrong = fastrnn.RNN(3, 4), torch.randn(5, 3, 3), torch.tensor([2, -2, 9])
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, lengths=wrong), rnn(x, lengths=[2, 0, 5]))
    as_lengths = torch.compile(masks.as_lengths, fullgraph=True, backend="aot_eager")
    assert as_lengths(wrong, 5, 3, x.device, unbatched=False).tolist() == [2, 0, 5]


def test_list_in_a_graph() -> None:
    rnn, x = fastrnn.RNN(3, 4), torch.randn(5, 2, 3)
    torch.compiler.reset()
    compiled = torch.compile(rnn, fullgraph=True, backend="aot_eager")
    for lengths in ([5, 1], [2, 3], (0, 4)):
        torch.testing.assert_close(compiled(x, lengths=lengths), rnn(x, lengths=lengths))


def test_nothing_waits_for_a_tensor_on_a_gpu() -> None:
    """Fake tensors refuse whatever would have to know a value."""
    with FakeTensorMode():
        x = torch.empty(5, 2, 3, device="cuda")
        for dtype in (torch.int32, torch.int64):
            given = torch.empty(2, dtype=dtype, device="cuda")
            lengths = masks.as_lengths(given, 5, 2, x.device, unbatched=False)
            assert (lengths.dtype, lengths.device) == (torch.int64, x.device)
            assert masks.zero_past(x, lengths).shape == x.shape
