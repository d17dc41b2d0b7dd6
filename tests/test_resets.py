"""`resets=`: rows that start over within a sequence; the numbers of a loop over torch's cells."""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

import fastrnn
from fastrnn import calls, functional, testing
from fastrnn.options import Options
from fastrnn.request import Spec
from fastrnn_reference import time

CELLS = ["lstm", "rnn_tanh", "rnn_relu"]
NAN = float("nan")
Tensors = list[torch.Tensor]
pytestmark = pytest.mark.backends("auto")


def step(spec: Spec, x: torch.Tensor, state: Tensors, weights: Tensors) -> Tensors:
    """One step of torch's cell, for one row."""
    if spec.cell == "lstm":
        if not spec.proj_size:
            return list(torch.lstm_cell(x, state, *weights))
        w_ih, w_hh, b_ih, b_hh, w_hr = weights  # torch has no cell with a projection
        gates = x @ w_ih.T + b_ih + state[0] @ w_hh.T + b_hh
        ones = torch.eye(len(gates.T), dtype=gates.dtype)
        nothing = torch.zeros(1, spec.hidden_size, dtype=gates.dtype)
        h, c = torch.lstm_cell(gates, (nothing, state[1]), ones, ones[:, : spec.hidden_size])
        return [h @ w_hr.T, c]
    cell = {"rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell}[spec.cell]
    return [cell(x, state[0], *weights)]


def loop(
    spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors, resets: torch.Tensor,
    lengths: list[int],
) -> Tensors:  # fmt: skip
    """Output and final states of one row after another, layer by layer, step by step."""
    size = len(weights) // (spec.num_layers * spec.directions)
    finals = []
    for layer in range(spec.num_layers):
        outputs = []
        for direction in range(spec.directions):
            slot = layer * spec.directions + direction
            own, rows, last = weights[slot * size : (slot + 1) * size], [], []
            for row, length in enumerate(lengths):
                first = [each[slot, row : row + 1] for each in hx]
                state = first
                made = [torch.zeros(1, spec.state_size, dtype=x.dtype)] * len(x)
                for t in range(length)[:: -1 if direction else 1]:
                    state = first if resets[t, row] else state
                    state = step(spec, x[t, row : row + 1], state, own)
                    made[t] = state[0]
                rows.append(torch.stack(made))
                last.append(state)
            outputs.append(torch.cat(rows, 1))
            finals.append([torch.cat(each) for each in zip(*last, strict=True)])
        x = torch.cat(outputs, 2)
    return [x, *(torch.stack(each) for each in zip(*finals, strict=True))]


def flat(made: object) -> Tensors:
    output, final = made
    return [output, *final] if isinstance(final, tuple) else [output, final]


def fast(spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors, **how: object) -> Tensors:
    """The same of fastrnn."""
    how = {"batch_first": False, "dropout": 0.0, "training": True, "backend": "auto", **how}
    states = None if not hx else tuple(hx) if spec.has_cell_state else hx[0]
    return flat(calls.run(spec, x, states, weights, **how))


def gradients(outputs: Tensors, leaves: Tensors) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    return torch.autograd.grad(outputs, leaves, upstream)


def leaves_of(problem: testing.Problem) -> tuple[torch.Tensor, Tensors, Tensors]:
    x = problem.x.clone().requires_grad_()
    hx = [state.clone().requires_grad_() for state in problem.hx]
    return x, hx, [weight.clone().requires_grad_() for weight in problem.weights]


def assert_equals_loop(spec: Spec, resets: torch.Tensor, lengths: list[int] | None) -> None:
    T, B = resets.shape
    x, hx, weights = leaves_of(testing.random_problem(spec, T, B))
    got = fast(spec, x, hx, weights, resets=resets, lengths=lengths)
    want = loop(spec, x, hx, weights, resets, lengths or [T] * B)
    leaves = [x, *hx, *weights]
    for g, w in zip(
        [*got, *gradients(got, leaves)], [*want, *gradients(want, leaves)], strict=True
    ):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def random(T: int, B: int, density: float = 0.3, seed: int = 0) -> torch.Tensor:
    return torch.rand(T, B, generator=torch.Generator().manual_seed(seed)) < density


@pytest.mark.parametrize("zoneout", [(0.0, 0.0), (0.3, 0.3)], ids=["plain", "zoneout"])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_masks_of_other_devices_choose_the_same_rows(
    monkeypatch: pytest.MonkeyPatch, cell: str, zoneout: tuple[float, float]
) -> None:
    def bits() -> Tensors:
        spec = Spec(cell, 3, 4, bidirectional=True)
        x, hx, weights = leaves_of(testing.random_problem(spec, 7, 3))
        torch.manual_seed(0)
        how = {"resets": random(7, 3), "lengths": [7, 3, 5], "options": Options(zoneout=zoneout)}
        got = fast(spec, x, hx, weights, **how)
        return [*got, *gradients(got, [x, *hx, *weights])]

    by_number = bits()
    monkeypatch.setattr(time, "_is_numbered", lambda device: False)
    for g, w in zip(bits(), by_number, strict=True):
        assert torch.equal(g, w)


@pytest.mark.parametrize("lengths", [None, [7, 3, 5]], ids=["equal", "lengths"])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "proj"), [*((c, 0) for c in CELLS), ("lstm", 2)])
def test_equal_a_loop_over_torchs_cells(
    poisoned: None, cell: str, proj: int, bidirectional: bool, num_layers: int,
    lengths: list[int] | None,
) -> None:  # fmt: skip
    spec = Spec(cell, 3, 4, proj, num_layers, True, bidirectional)
    assert_equals_loop(spec, random(7, 3), lengths)


@settings(max_examples=30, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=4).filter(any),
    padding=st.integers(0, 2),
    density=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 1000),
)
def test_equal_a_loop_anywhere(
    cell: str, bidirectional: bool, lengths: list[int], padding: int, density: float, seed: int
) -> None:
    T = max(lengths) + padding
    spec = Spec(cell, 2, 3, 0, 2, True, bidirectional)
    assert_equals_loop(spec, random(T, len(lengths), density, seed), lengths)


@pytest.mark.parametrize("lengths", [None, [5, 0, 3]], ids=["equal", "lengths"])
@pytest.mark.parametrize("cell", [*CELLS, "rnn_sigmoid"])
def test_equal_numpy(oracle: ModuleType, cell: str, lengths: list[int] | None) -> None:
    spec, resets = Spec(cell, 3, 4, 0, 2, True, True), random(5, 3)
    problem = testing.random_problem(spec, 5, 3)
    got = fast(spec, problem.x, list(problem.hx), problem.weights, resets=resets, lengths=lengths)
    want = oracle.run_stack(
        cell, problem.x.numpy(), [w.numpy() for w in problem.weights],
        [state.numpy() for state in problem.hx], 2, True, True, False, lengths, resets.numpy(),
    )  # fmt: skip
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(g.numpy(), w, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_equal_segments_run_by_themselves_from_a_learned_state(cell: str) -> None:
    """One h0 for all rows and episodes: its gradient sums over all of them."""
    T, B, starts = 9, 2, [[0, 4, 5], [0, 7]]
    options = {"dtype": torch.float64}
    want, got = (
        (package.LSTM(3, 4, **options) if cell == "lstm" else
         package.RNN(3, 4, nonlinearity=cell[4:], **options))
        for package in (torch.nn, fastrnn)
    )  # fmt: skip
    got.load_state_dict(want.state_dict())
    x = torch.randn(T, B, 3, dtype=torch.float64)
    resets = torch.zeros(T, B, dtype=torch.bool)
    learned = [
        torch.nn.Parameter(torch.randn(1, 1, 4, dtype=torch.float64))
        for _ in range(2 if cell == "lstm" else 1)
    ]

    def states(batch: int) -> object:
        expanded = tuple(each.expand(1, batch, 4) for each in learned)
        return expanded if cell == "lstm" else expanded[0]

    columns = []
    for row, own in enumerate(starts):
        resets[own[1:], row] = True
        pieces = itertools.pairwise([*own, T])
        columns.append(
            torch.cat([want(x[a:b, row : row + 1].contiguous(), states(1))[0] for a, b in pieces])
        )
    expected = torch.cat(columns, 1)
    output, _ = got(x, states(B), resets=resets)
    torch.testing.assert_close(output, expected)
    for g, w in zip(
        gradients([output], [*learned, *got.parameters()]),
        gradients([expected], [*learned, *want.parameters()]),
        strict=True,
    ):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_nowhere_first_and_everywhere(cell: str, bidirectional: bool) -> None:
    T, B, spec = 4, 3, Spec(cell, 3, 4, 0, 1, True, bidirectional)
    x, hx, weights = leaves_of(testing.random_problem(spec, T, B))
    leaves = [x, *hx, *weights]
    plain = fast(spec, x, hx, weights)
    d_plain = gradients(plain, leaves)
    nowhere = torch.zeros(T, B, dtype=torch.bool)
    first = nowhere.clone()
    first[0] = True  # of the direction forwards; backwards it is the last
    for resets in [nowhere] if bidirectional else [nowhere, first]:
        got = fast(spec, x, hx, weights, resets=resets)
        torch.testing.assert_close(got, plain)
        torch.testing.assert_close(gradients(got, leaves), d_plain)
    got = fast(spec, x, hx, weights, resets=~nowhere)[0]
    want = torch.cat([fast(spec, x[t : t + 1], hx, weights)[0] for t in range(T)])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradients([got], leaves), gradients([want], leaves))


@pytest.mark.parametrize("cell", CELLS)
def test_nothing_passes_a_reset(cell: str) -> None:
    """Neither NaN forwards, nor a gradient back."""
    spec, T, t = Spec(cell, 3, 4, 0, 2), 5, 3
    x, hx, weights = leaves_of(testing.random_problem(spec, T, 2))
    resets = torch.zeros(T, 2, dtype=torch.bool)
    resets[t, 0] = True
    output = fast(spec, x, hx, weights, resets=resets)[0]
    d_x, *d_hx = torch.autograd.grad(output[t:].sum(), [x, *hx], retain_graph=True)
    assert (d_x[:t, 0] == 0).all()
    assert (d_x[:t, 1] != 0).any()
    assert all((d[:, 0] != 0).any() for d in d_hx)
    dirty = x.detach().clone()
    dirty[t - 1, 0] = NAN
    got = fast(spec, dirty, hx, weights, resets=resets)[0]
    assert got[t - 1, 0].isnan().all()
    assert torch.equal(got[t:], output[t:])


@pytest.mark.parametrize("cell", CELLS)
def test_resets_past_the_end_of_a_row_are_ignored(cell: str) -> None:
    spec, lengths = Spec(cell, 3, 4, 0, 2, True, True), [6, 0, 3]
    x, hx, weights = leaves_of(testing.random_problem(spec, 6, 3))
    resets = random(6, 3)
    more = resets | (torch.arange(6).unsqueeze(1) >= torch.tensor(lengths))
    assert not torch.equal(resets, more)
    for want, got in itertools.pairwise(
        [*made, *gradients(made, [x, *hx, *weights])]
        for made in (
            fast(spec, x, hx, weights, resets=each, lengths=lengths) for each in (resets, more)
        )
    ):
        assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("training", [False, True])
def test_final_only_batch_first_and_zero_states(cell: str, training: bool) -> None:
    spec, resets = Spec(cell, 3, 4, 0, 2, True, True), random(5, 3)
    x, hx, weights = leaves_of(testing.random_problem(spec, 5, 3))
    with torch.set_grad_enabled(training):
        for states in (hx, []):
            want = fast(spec, x, states, weights, resets=resets)
            output, *final = fast(
                spec, x, states, weights, resets=resets, options=Options(final_only=True)
            )
            assert output is None
            torch.testing.assert_close(final, want[1:])
            other = fast(
                spec, x.transpose(0, 1), states, weights, resets=resets.T, batch_first=True
            )
            torch.testing.assert_close(other, [want[0].transpose(0, 1), *want[1:]])
        zeros = [torch.zeros_like(state) for state in hx]
        torch.testing.assert_close(fast(spec, x, zeros, weights, resets=resets), want)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_by_module_and_by_function(batch_first: bool) -> None:
    resets = torch.tensor([False, False, True, False, True])
    for cls, function in ((fastrnn.LSTM, functional.lstm), (fastrnn.RNN, functional.rnn)):
        module, x = cls(3, 4, batch_first=batch_first), torch.randn(5, 3)
        segments = [module(x[a:b])[0] for a, b in ((0, 2), (2, 4), (4, 5))]
        weights = list(module.parameters())
        for got in (
            module(x, resets=resets),
            function(x, None, weights, batch_first=batch_first, resets=resets),
        ):
            torch.testing.assert_close(got[0], torch.cat(segments))
        shorter, _ = module(x, resets=resets, lengths=3)
        torch.testing.assert_close(shorter[:3], got[0][:3])
        assert (shorter[3:] == 0).all()


def test_autocast() -> None:
    spec, resets = Spec("lstm", 6, 8), random(5, 3)
    problem = testing.random_problem(spec, 5, 3, dtype=torch.float32)
    x, hx, weights = leaves_of(problem)
    want = fast(spec, x, hx, weights, resets=resets)
    with torch.autocast("cpu", torch.bfloat16):
        got = fast(spec, x, hx, weights, resets=resets)
    allowed = testing.tolerance(torch.bfloat16, 5).output
    for g, w in zip(got, want, strict=True):
        assert g.dtype == torch.bfloat16
        torch.testing.assert_close(g.float(), w, rtol=0, atol=allowed)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_one_graph_for_all_sizes_and_values(cell: str) -> None:
    spec = Spec(cell, 3, 4, 0, 2, True, True)
    _, _, weights = leaves_of(testing.random_problem(spec, 1, 1))

    def call(x: torch.Tensor, resets: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return fast(spec, x, [], weights, resets=resets, lengths=lengths)[0]

    torch.compiler.reset()
    counter, made = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(call, fullgraph=True, backend=counter, dynamic=True)
    for T, B in ((5, 2), (7, 3), (9, 4)):
        arguments = (
            torch.randn(T, B, 3, dtype=torch.float64), random(T, B), torch.arange(T - B, T)
        )  # fmt: skip
        want, got = call(*arguments), compiled(*arguments)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients([got], weights), gradients([want], weights))
        made.append(counter.frame_count)
    assert made[0] == made[-1]
