"""The backend `onednn`: rectangles of packed rows, against torch's own loop over them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn
from fastrnn import testing
from fastrnn_aten import rectangles
from fastrnn_aten.rectangles import cuts


def run(call: object, *leaves: Tensor) -> list[Tensor]:
    """What `call` makes of leaves, and the gradients of all of it."""
    made = call(*leaves)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(m.shape, generator=generator) for m in made]
    return [*made, *torch.autograd.grad(made, leaves, upstream)]


@settings(max_examples=80, deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=7),
    layers=st.integers(1, 2),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    spare=st.sampled_from([0, 2, 5, 1e9]),
)
def test_rectangles_are_what_torchs_loop_makes(
    lengths: list[int], layers: int, bidirectional: bool, bias: bool, spare: float
) -> None:
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(3, 4, layers, bias, bidirectional=bidirectional)
    lengths = sorted(lengths, reverse=True)
    packed = pack_padded_sequence(torch.randn(lengths[0], len(lengths), 3), lengths)
    rows = layers * (1 + bidirectional)
    leaves = [
        packed.data,
        *(torch.randn(rows, len(lengths), 4) for _ in "hc"),
        *(p.detach() for p in lstm.parameters()),
    ]
    leaves = [leaf.requires_grad_() for leaf in leaves]

    def ours(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        sizes = packed.batch_sizes.tolist()
        return rectangles.run(
            x, sizes, (h0, c0), weights, bias, layers, 0.0, bidirectional, spare
        )  # fmt: skip

    def theirs(x: Tensor, h0: Tensor, c0: Tensor, *weights: Tensor) -> tuple[Tensor, ...]:
        return torch.lstm(
            x, packed.batch_sizes, (h0, c0), weights, bias, layers, 0.0, True, bidirectional
        )

    for got, want in zip(run(ours, *leaves), run(theirs, *leaves), strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-5)


def test_a_frozen_c_is_the_same_to_the_bit() -> None:
    """However long a row has been frozen, its c_n is that of its last step."""
    torch.manual_seed(0)
    lstm, x = torch.nn.LSTM(3, 4), torch.randn(200, 2, 3)
    start, weights = torch.randn(1, 2, 4), list(lstm.parameters())
    made = []
    for lengths in ([200, 5], [5, 5]):
        packed = pack_padded_sequence(x[: lengths[0]], lengths)
        hx = (start, start)
        sizes = packed.batch_sizes.tolist()
        made.append(rectangles.run(packed.data, sizes, hx, weights, True, 1, 0.0, False, 1e9))
    (_, h_frozen, c_frozen), (_, h, c) = made
    assert torch.equal(c_frozen[:, 1], c[:, 1])
    assert torch.equal(h_frozen[:, 1], h[:, 1])


@settings(deadline=None, derandomize=True, database=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    spare=st.floats(0, 200),
)
def test_cuts_spare_what_they_may_and_no_more(lengths: list[int], spare: float) -> None:
    sizes = [sum(n > t for n in lengths) for t in range(max(lengths))]
    edges = cuts(sizes, spare)
    assert edges[0] == 0
    assert edges[-1] == len(sizes)
    frozen = []
    for begin, end in pairwise(edges):
        assert begin < end
        frozen.append(sum(sizes[begin] - rows for rows in sizes[begin:end]))
        assert frozen[-1] <= spare
        if end < len(sizes):  # a step more had been too much
            assert frozen[-1] + sizes[begin] - sizes[end] > spare


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("lengths", [[5, 0, 3, 1], [0, 0, 0, 0], [5, 5, 5, 5], [2, 3, 0, 3]])
def test_padded_rows(lengths: list[int], hx: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    ours = fastrnn.LSTM(
        3, 4, 2, bidirectional=True, batch_first=batch_first, backend="onednn"
    )  # fmt: skip
    truth = fastrnn.LSTM(
        3, 4, 2, bidirectional=True, batch_first=batch_first, backend="reference"
    ).double()
    truth.load_state_dict(ours.state_dict())
    x = torch.randn(4, 5, 3)
    for row, n in enumerate(lengths):
        x[row, n:] = torch.nan
    if not batch_first:
        x = x.transpose(0, 1).contiguous()
    start = [torch.randn(4, 4, 4) for _ in "hc"]

    def results(lstm: torch.nn.Module, dtype: torch.dtype) -> list[Tensor]:
        own_x = x.to(dtype).requires_grad_()
        states = [s.to(dtype).requires_grad_() for s in start] if hx else []
        output, final = lstm(own_x, tuple(states) or None, lengths=lengths)
        made = [output, *final]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(m.shape, generator=generator, dtype=torch.float64) for m in made]
        leaves = [own_x, *states, *lstm.parameters()]
        upstream = [u.to(dtype) for u in upstream]
        return [*made, *torch.autograd.grad(made, leaves, upstream)]

    allowed = testing.tolerance(torch.float32, 5)
    for got, want in zip(results(ours, torch.float32), results(truth, torch.float64), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got.double(), want, atol=allowed.gradient, rtol=allowed.gradient)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("hx", [False, True])
@pytest.mark.parametrize("lengths", [None, [9, 0, 5, 1], [0, 0, 0, 0]])
def test_rows_that_start_over(lengths: list[int] | None, hx: bool, batch_first: bool) -> None:
    torch.manual_seed(0)
    ours = fastrnn.LSTM(3, 4, 2, batch_first=batch_first, backend="onednn")
    truth = fastrnn.LSTM(3, 4, 2, batch_first=batch_first, backend="reference").double()
    truth.load_state_dict(ours.state_dict())
    x = torch.randn(4, 9, 3) if batch_first else torch.randn(9, 4, 3)
    resets = torch.rand(x.shape[:2]) < 0.3
    start = [torch.randn(2, 4, 4) for _ in "hc"]
    made = []
    for lstm, dtype in ((ours, torch.float32), (truth, torch.float64)):
        own_x = x.to(dtype).requires_grad_()
        states = [s.to(dtype).requires_grad_() for s in start] if hx else []
        output, final = lstm(own_x, tuple(states) or None, lengths=lengths, resets=resets)
        found = [output, *final]
        generator = torch.Generator().manual_seed(1)
        upstream = [torch.randn(m.shape, generator=generator).to(dtype) for m in found]
        leaves = [own_x, *states, *lstm.parameters()]
        made.append([*found, *torch.autograd.grad(found, leaves, upstream)])
    allowed = testing.tolerance(torch.float32, 9).gradient
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got.double(), want, atol=allowed, rtol=allowed)


def test_a_gradient_can_be_differentiated_again() -> None:
    made = []
    for backend in ("onednn", "reference"):
        torch.manual_seed(0)
        lstm = fastrnn.LSTM(3, 4, backend=backend)
        x = torch.randn(5, 3, 3, requires_grad=True)
        output, _ = lstm(x, lengths=[5, 2, 4])
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        made.append(torch.autograd.grad(d_x.square().sum(), list(lstm.parameters())))
    for got, want in zip(*made, strict=True):
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_dropout_draws_as_torch_does() -> None:
    theirs = torch.nn.LSTM(3, 8, 2, dropout=0.5)
    ours = fastrnn.LSTM(3, 8, 2, dropout=0.5, backend="onednn")
    ours.load_state_dict(theirs.state_dict())
    packed = pack_padded_sequence(torch.randn(6, 3, 3), [6, 4, 1])
    made = []
    for lstm in (theirs, ours):
        torch.manual_seed(3)
        made.append(lstm(packed)[0].data)
    torch.testing.assert_close(made[1], made[0])


@pytest.mark.parametrize("needs_grad", [False, True])
def test_auto_takes_it_for_rows_of_different_lengths(needs_grad: bool) -> None:
    lstm, x = fastrnn.LSTM(64, 64), torch.randn(100, 32, 64)
    with torch.set_grad_enabled(needs_grad):
        assert fastrnn.explain(lstm, x, lengths=[100] * 32).backend == "onednn"
        assert fastrnn.explain(lstm, x).backend == "aten"
        for size in (64, 256, 512):
            alone = pack_padded_sequence(torch.empty(500, 1, size), [500])
            assert fastrnn.explain(fastrnn.LSTM(size, size), alone).backend == "aten"
    with torch.autocast("cpu", torch.bfloat16):
        assert fastrnn.explain(lstm, x, lengths=[100] * 32).backend == "rows"


@pytest.mark.parametrize(
    ("layer", "lengths", "message"),
    [
        (fastrnn.LSTM(3, 4), None, "all rows have the same length, which is aten's work"),
        (fastrnn.RNN(3, 4), [5, 2], "cell is rnn_tanh; oneDNN has lstm"),
        (fastrnn.LSTM(3, 4, proj_size=2), [5, 2], "cell is lstm with a projection"),
        (fastrnn.LSTM(3, 4).double(), [5, 2], "dtype is torch.float64; needs torch.float32"),
    ],
)
def test_what_it_refuses(layer: torch.nn.Module, lengths: list[int] | None, message: str) -> None:
    layer.backend = "onednn"
    x = torch.randn(5, 2, 3, dtype=next(layer.parameters()).dtype)
    with pytest.raises(fastrnn.BackendError, match=message):
        layer(x, lengths=lengths)


def test_resets_would_cut_up_two_directions_in_different_places() -> None:
    x, resets = torch.randn(5, 2, 3), torch.zeros(5, 2, dtype=torch.bool)
    message = "resets cut up rows, for each of two directions elsewhere"
    with pytest.raises(fastrnn.BackendError, match=message):
        fastrnn.LSTM(3, 4, bidirectional=True, backend="onednn")(x, resets=resets)
    fastrnn.LSTM(3, 4, backend="onednn")(x, resets=resets)


@pytest.mark.parametrize("bound", [1e5, 1e20])
@pytest.mark.parametrize("gate", [0, 1])
def test_gates_that_a_bias_shuts_or_opens(gate: int, bound: float) -> None:
    """A forget gate switched off is no reason to lose the c of a row that has ended."""
    torch.manual_seed(0)
    theirs = torch.nn.LSTM(3, 4)
    with torch.no_grad():
        theirs.bias_hh_l0[4 * gate : 4 * gate + 4] = -bound if gate else bound
    ours = fastrnn.LSTM(3, 4, backend="onednn")
    ours.load_state_dict(theirs.state_dict())
    x, lengths = torch.randn(9, 4, 3), [9, 7, 7, 2]
    _, want = theirs(pack_padded_sequence(x, lengths))
    for marked in (ours(pack_padded_sequence(x, lengths)), ours(x, lengths=lengths)):
        torch.testing.assert_close(marked[1], want)
    resets = torch.rand(9, 4) < 0.2
    got, _ = ours(x, resets=resets)
    ours.backend = "reference"
    torch.testing.assert_close(got, ours(x, resets=resets)[0])
