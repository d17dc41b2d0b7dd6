"""A layer that is called as before decides nothing again; whatever differs, it does."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence, pad_packed_sequence

import fastrnn
from fastrnn import calls, dispatch
from fastrnn.request import Request

T, B, I, H = 5, 2, 3, 4


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """The requests that were made out in full."""
    made: list[Request] = []
    make = calls.make_request

    def spy(*given: object) -> Request:
        made.append(make(*given))
        return made[-1]

    monkeypatch.setattr(calls, "make_request", spy)
    return made


def lstm(**how: object) -> fastrnn.LSTM:
    return fastrnn.LSTM(I, H, **how)


@pytest.mark.parametrize("backend", ["auto", "reference", "aten"])
def test_the_second_call_asks_nothing_and_gives_the_same(
    asked: list[Request], backend: str
) -> None:
    module, x = lstm(backend=backend, num_layers=2, bidirectional=True), torch.randn(T, B, I)
    first, (h, c) = module(x)
    second, again = module(x)
    given, _ = module(x, (torch.zeros_like(h), torch.zeros_like(c)))
    assert len(asked) == 1
    assert torch.equal(first, second)
    assert torch.equal(first, given)
    assert torch.equal(h, again[0])
    assert torch.equal(c, again[1])
    third, _ = module(x[:, :1])
    assert len(asked) == 2
    torch.testing.assert_close(third, first[:, :1])


def test_batch_first(asked: list[Request]) -> None:
    module = lstm(batch_first=True)
    x = torch.randn(B, T, I)
    (one, (h, _)), (two, (h_again, _)) = module(x), module(x)
    assert len(asked) == 1
    assert torch.equal(one, two)
    assert h_again.shape == (1, B, H)
    assert torch.equal(h, h_again)


def test_packed(asked: list[Request]) -> None:
    module = lstm(bidirectional=True)
    first, second = (torch.randn(n, I) for n in (3, T))
    for rows, anew in (
        ([first, second], 1),
        ([second, first], 0),
        ([second, second[:3]], 0),
        ([second, second[:4]], 1),  # of nine rows, not of eight
    ):
        x = pack_sequence(rows, enforce_sorted=False)
        alone = [module(row)[0] for row in rows]
        asked.clear()
        for _ in range(2):
            output, (h, _) = module(x)
            padded, lengths = pad_packed_sequence(output)
            for row, want in enumerate(alone):
                torch.testing.assert_close(padded[: lengths[row], row], want)
                torch.testing.assert_close(h[0, row], want[-1, :H])
        assert len(asked) == anew
    with pytest.raises(RuntimeError, match="must be equal to input_size"):
        module(pack_sequence([torch.randn(T, I + 1)]))


@contextmanager
def frozen(module: torch.nn.Module) -> Iterator[None]:
    module.requires_grad_(False)
    try:
        yield
    finally:
        module.requires_grad_(True)


@contextmanager
def threads(module: torch.nn.Module) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "within",
    [
        lambda module: torch.no_grad(),
        lambda module: torch.inference_mode(),
        lambda module: fastrnn.use_backend("reference"),
        lambda module: torch.autocast("cpu", torch.bfloat16),
        frozen,
        threads,
    ],
    ids=["no grad", "inference", "use_backend", "autocast", "frozen", "threads"],
)
def test_what_is_around_a_call_counts(asked: list[Request], within: Callable) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x)
    with within(module):
        output, _ = module(x)
    _, now = asked
    assert output.requires_grad == now.needs_grad
    assert output.dtype == now.dtype
    module(x)
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [("backend", "reference"), ("dropout", 0.5), ("training", False), ("final_only", True)],
)
def test_an_attribute_counts(asked: list[Request], name: str, value: object) -> None:
    module, x = lstm(num_layers=2), torch.randn(T, B, I)
    module(x)
    setattr(module, name, value)
    output, _ = module(x)
    assert len(asked) == 2
    assert (output is None) == (name == "final_only")


def test_what_a_call_brings_counts(asked: list[Request]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x)
    with torch.no_grad():
        module(x)
    h, c = torch.zeros(1, B, H), torch.zeros(1, B, H, requires_grad=True)
    module.requires_grad_(False)
    assert not module(x)[0].requires_grad
    assert module(x, (h, c))[0].requires_grad
    assert asked[-1].frozen
    assert module(x.clone().requires_grad_())[0].requires_grad
    lengths = torch.tensor([5, 3])
    assert not module(x, lengths=lengths)[0][3:, 1].any()
    assert module(x)[0][3:, 1].all()
    assert len(module(x, return_all_states=True)) == 3
    assert module(x[:, 0])[0].shape == (T, H)
    assert len(asked) == 6


def test_calls_with_marks_are_planned_once_for_each_kind(asked: list[Request]) -> None:
    x, resets = torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    for batch_first in (False, True):
        asked.clear()
        module, plain = lstm(batch_first=batch_first), lstm(batch_first=batch_first)
        plain.load_state_dict(module.state_dict())
        own = (x.transpose(0, 1), resets.mT) if batch_first else (x, resets)
        module(own[0])
        for lengths in ([5, 3], torch.tensor([1, 4]), (0, 5)):
            for how in ({"lengths": lengths}, {"lengths": lengths, "resets": own[1]}):
                got = module(own[0], **how)
                plain._plans = {}
                torch.testing.assert_close(got, plain(own[0], **how))
            resets[2, 1] = True
        module(own[0], resets=own[1])
        kinds = {(request.padded, request.resets) for request in asked}
        assert len(module._plans) == len(kinds) == 4
        resets[2, 1] = False


def test_a_second_state_to_start_over_from_is_not_planned() -> None:
    module, x, resets = lstm(), torch.randn(T, B, I), torch.zeros(T, B, dtype=torch.bool)
    fresh = (torch.ones(1, 1, H),) * 2
    for _ in range(2):
        module(x, resets=resets)
        module(x, resets=resets, reset_state=fresh)
    assert len(module._plans) == 1


@pytest.mark.parametrize(
    "how",
    [
        {"lengths": [T]},
        {"lengths": [T + 1, 1]},
        {"lengths": torch.tensor([1.0, 2.0])},
        {"resets": torch.zeros(B, T, dtype=torch.bool)},
        {"resets": torch.zeros(T, B)},
    ],
    ids=["number", "too long", "floats", "shape", "no bools"],
)
def test_wrong_marks_are_refused_as_in_a_first_call(how: dict[str, Any]) -> None:
    x, refused = torch.randn(T, B, I), []
    right = {"lengths": [T] * B} if "lengths" in how else {"resets": torch.zeros(T, B).bool()}
    for calls_before in (0, 1):
        module = lstm()
        for _ in range(calls_before):
            module(x, **right)
        with pytest.raises((TypeError, ValueError)) as error:
            module(x, **how)
        refused.append((type(error.value), str(error.value)))
    assert refused[0] == refused[1]


def test_other_plugins_and_measurements_count(asked: list[Request]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x)
    dispatch.clear_decisions()
    module(x)
    assert len(asked) == 2


def test_a_module_of_another_dtype(asked: list[Request]) -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x)
    module.double()
    with pytest.raises(ValueError, match="does not match weight dtype"):
        module(x)
    assert module(x.double())[0].dtype == torch.float64
    for weight in module.parameters():
        weight.data = weight.data.float()
    assert module(x)[0].dtype == torch.float32
    assert [request.dtype for request in asked] == [torch.float32, torch.float64]


@pytest.mark.parametrize(
    "hx",
    [
        torch.zeros(1, B, H),
        (torch.zeros(1, B, H), torch.zeros(1, B, H + 1)),
        (torch.zeros(B, H), torch.zeros(B, H)),
        3,
        ("h", "c"),
        (torch.zeros(1, B, H),),
        (torch.zeros(1, B, H), torch.zeros(1, B, H, dtype=torch.float64)),
    ],
    ids=["one", "size", "dims", "int", "strings", "no c", "dtype"],
)
def test_wrong_states_are_refused_as_in_a_first_call(hx: object) -> None:
    x, refused = torch.randn(T, B, I), []
    for calls_before in (0, 1):
        module = lstm(backend="reference")
        for _ in range(calls_before):
            module(x)
        with pytest.raises((TypeError, ValueError, RuntimeError, AttributeError)) as error:
            module(x, hx)
        refused.append((type(error.value), str(error.value)))
    assert refused[0] == refused[1]


def test_what_fails_fails_again() -> None:
    module = lstm(backend="reference")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="sequence length to be larger than 0"):
            module(torch.randn(0, B, I))


def test_copies_have_their_own_and_files_none() -> None:
    module, x = lstm(), torch.randn(T, B, I)
    module(x)
    assert len(module._plans) == 1
    copied, loaded = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    assert copied._plans == loaded._plans == {}
    assert torch.equal(copied(x)[0], module(x)[0])


def test_they_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "PLANS", 3)
    module = lstm()
    for steps in range(1, 9):
        module(torch.randn(steps, B, I))
        assert len(module._plans) <= 3
