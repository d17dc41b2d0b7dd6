"""Wrong `lengths=` and `resets=` are named, and which backends take them."""

from __future__ import annotations

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

import fastrnn
from fake_backends import REQUEST, Fake
from fastrnn import functional
from fastrnn.backend import StackBackend
from fastrnn.dispatch import decide

RESETS = torch.arange(15).view(5, 3) % 4 == 0


@pytest.mark.parametrize(
    ("lengths", "error", "message"),
    [
        ([5, 3], ValueError, "lengths: got 2, expected 3, one for each row"),
        ([5, 6, 1], ValueError, "lengths: got 6 for row 1, expected 0 to T, 5"),
        ([5, 1, -1], ValueError, "lengths: got -1 for row 2, expected 0 to T, 5"),
        (torch.tensor([5, 6, 1]), ValueError, "lengths: got 6 for row 1, expected 0 to T, 5"),
        (torch.tensor([-1, 6, 1]), ValueError, "lengths: got -1 for row 0, expected 0 to T, 5"),
        (torch.tensor([[5, 3, 1]]), ValueError,
         r"lengths: got shape \(1, 3\), expected \(3,\), one for each row"),
        (torch.tensor(5), ValueError, r"lengths: got shape \(\), expected \(3,\)"),
        (torch.tensor([5.0, 3.0, 1.0]), TypeError,
         r"lengths should be a tensor of integers, got: torch\.float32"),
        (torch.tensor([True, False, True]), TypeError, r"of integers, got: torch\.bool"),
        ([5, 3.0, 1], TypeError, "lengths should hold ints, got: float"),
        ([5, True, 1], TypeError, "lengths should hold ints, got: bool"),
        (5, TypeError, "lengths should be a list, tuple or tensor of ints, got: int"),
        ("531", TypeError, "lengths should be a list, tuple or tensor of ints, got: str"),
    ],
)  # fmt: skip
def test_wrong_lengths_are_named(lengths: object, error: type[Exception], message: str) -> None:
    rnn, x = fastrnn.RNN(3, 4, batch_first=True), torch.randn(3, 5, 3)
    for refused in (
        lambda: rnn(x, lengths=lengths),
        lambda: functional.rnn(
            x, None, list(rnn.parameters()), batch_first=True, lengths=lengths
        ),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            refused()


def test_wrong_lengths_of_unbatched_input_are_named() -> None:
    with pytest.raises(TypeError, match="tuple or tensor of ints, or an int, got: float"):
        fastrnn.RNN(3, 4)(torch.randn(5, 3), lengths=2.0)
    with pytest.raises(ValueError, match="lengths: got 6 for row 0, expected 0 to T, 5"):
        fastrnn.RNN(3, 4)(torch.randn(5, 3), lengths=6)


def test_packed_sequence_has_its_own() -> None:
    lstm, x = fastrnn.LSTM(3, 4), pack_sequence([torch.randn(5, 3), torch.randn(3, 3)])
    message = "lengths: got some for a PackedSequence, which has its own; expected None"
    for refused in (lstm, lambda *a, **k: fastrnn.explain(lstm, *a, **k)):
        with pytest.raises(ValueError, match=message):
            refused(x, lengths=[5, 3])
    with pytest.raises(TypeError, match="positional argument"):
        lstm(torch.randn(5, 2, 3), None, [5, 3])


def test_explain_and_reasons_of_lengths() -> None:
    lstm, x = fastrnn.LSTM(3, 4), torch.randn(5, 2, 3)
    decision = fastrnn.explain(lstm, x, lengths=[5, 3])
    request = decision.request
    assert (request.varlen, request.padded, request.resets) == (True, True, False)
    assert ", lengths, forward and backward" in str(decision)
    assert decision.backend == "onednn"
    (aten,) = (c for c in decision.candidates if c.name == "aten")
    (reason,) = aten.reasons
    assert reason.startswith("lengths of padded rows were given; torch would have to sort, pack")
    packed = fastrnn.explain(lstm, pack_sequence([x[:, 0]])).request
    assert (packed.varlen, packed.padded) == (True, False)
    assert "variable lengths" in packed.describe()
    lstm.backend = "aten"
    with pytest.raises(fastrnn.BackendError, match="aten: cannot run: lengths of padded rows"):
        lstm(x, lengths=[5, 3])


def test_stack_backend_that_knows_no_padding_is_not_chosen(use) -> None:
    class Stack(Fake, StackBackend):
        def run(self, call: object) -> tuple[torch.Tensor, ...]:
            raise AssertionError

    use(Stack("stack", 1.0), Fake("other", 2.0))
    assert decide(REQUEST).backend == "stack"
    assert decide(REQUEST._replace(varlen=True)).backend == "stack"
    decision = decide(REQUEST._replace(varlen=True, padded=True))
    assert decision.backend == "other"
    assert "lengths of padded rows were given; it takes whole stacks" in str(decision)


@pytest.mark.parametrize(
    ("resets", "error", "message"),
    [
        ([True, False], TypeError, r"resets should be a tensor of torch\.bool, got: list"),
        (torch.zeros(5, 3), TypeError, r"a tensor of torch\.bool, got: torch\.float32"),
        (torch.zeros(3, 5) > 0, ValueError,
         r"resets: got shape \(3, 5\), expected \(5, 3\), \(T, B\)"),
        (torch.zeros(5) > 0, ValueError, r"resets: got shape \(5,\), expected \(5, 3\), \(T, B\)"),
    ],
)  # fmt: skip
def test_wrong_resets_are_named(resets: object, error: type[Exception], message: str) -> None:
    rnn = fastrnn.RNN(3, 4)
    with pytest.raises(error, match=message):
        rnn(torch.randn(5, 3, 3), resets=resets)
    with pytest.raises(error, match=message):
        functional.rnn(torch.randn(5, 3, 3), None, list(rnn.parameters()), resets=resets)


def test_wrong_resets_of_other_layouts_are_named() -> None:
    message = r"resets: got shape \(5, 2\), expected \(2, 5\), \(B, T\)"
    with pytest.raises(ValueError, match=message):
        fastrnn.RNN(3, 4, batch_first=True)(torch.randn(2, 5, 3), resets=torch.zeros(5, 2) > 0)
    message = r"resets: got shape \(5, 1\), expected \(5,\), \(T,\)"
    with pytest.raises(ValueError, match=message):
        fastrnn.RNN(3, 4)(torch.randn(5, 3), resets=torch.zeros(5, 1) > 0)


def test_what_resets_cannot_be_combined_with_is_named() -> None:
    lstm, x, resets = fastrnn.LSTM(3, 4, recompute=2), torch.randn(5, 3, 3), RESETS
    packed = pack_sequence([torch.randn(5, 3)])
    for call in (lstm, lambda *a, **k: fastrnn.explain(lstm, *a, **k)):
        with pytest.raises(ValueError, match="recompute and resets: got recompute=2 and resets"):
            call(x, resets=resets)
        with pytest.raises(ValueError, match="resets: got some for a PackedSequence, expected"):
            call(packed, resets=resets)
    weights = list(lstm.parameters())
    with pytest.raises(ValueError, match="recompute and resets: got recompute=128"):
        functional.lstm(x, None, weights, recompute=True, resets=resets)


def test_explain_and_reasons_of_resets() -> None:
    lstm, x, resets = fastrnn.LSTM(3, 4, 2), torch.randn(5, 2, 3), RESETS[:, :2]
    decision = fastrnn.explain(lstm, x, resets=resets)
    request = decision.request
    assert (request.varlen, request.padded, request.resets) == (False, False, True)
    assert not request.stacks_plainly
    assert request._replace(resets=False).stacks_plainly
    assert "layers=2, resets, forward and backward" in str(decision)
    assert decision.backend == "onednn"
    (aten,) = (c for c in decision.candidates if c.name == "aten")
    (reason,) = aten.reasons
    assert reason.startswith("resets were given; torch would have to cut up, sort, pack and copy")
    lstm.backend = "aten"
    with pytest.raises(fastrnn.BackendError, match="aten: cannot run: resets were given"):
        lstm(x, resets=resets)


def test_backend_that_does_not_say_that_it_heeds_resets_is_not_chosen(use) -> None:
    silent, heeds = Fake("silent", 1.0), Fake("heeds", 2.0)
    heeds.options = frozenset({"resets"})
    use(silent, heeds)
    assert decide(REQUEST).backend == "silent"
    decision = decide(REQUEST._replace(resets=True))
    assert decision.backend == "heeds"
    assert "resets asked for; not among the options that it heeds" in str(decision)
