"""`fastrnn.LSTM` and `RNN` against torch.nn's in the same test: every error and warning."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import fastrnn

PROJECTED_ON_CPU = "ignore:LSTM with projections is not supported with oneDNN"
pytestmark = pytest.mark.filterwarnings(PROJECTED_ON_CPU)

PAIRS = [(nn.LSTM, fastrnn.LSTM), (nn.RNN, fastrnn.RNN)]


def outcome(call, *args, **kwargs):
    """The type and text of what a call raises, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            call(*args, **kwargs)
            raised = None
        except Exception as error:
            raised = (type(error), str(error))
    return raised, [(w.category, str(w.message)) for w in caught]


WRONG_CONSTRUCTORS = [
    {"dropout": 1.5},
    {"dropout": -0.1},
    {"dropout": True},
    {"dropout": "0.5"},
    {"dropout": "much"},
    {"dropout": None},
    {"dropout": float("nan")},
    {"dropout": 0.5},  # a warning: one layer
    {"dropout": 1},
    {"bias": 1},
    {"bias": None},
    {"batch_first": "yes"},
    {"input_size": 4.0},
    {"input_size": 0},
    {"input_size": -1},
    {"hidden_size": 5.0},
    {"hidden_size": 0},
    {"num_layers": 0},
    {"num_layers": -2},
    {"num_layers": 1.5},
    {"num_layers": "1"},
    {"dtype": torch.int64},
    {"device": "nowhere"},
    {"dropout": 2.0, "bias": 1, "input_size": 0},  # the first of them is told
    {"input_size": 0, "hidden_size": 5.0},
    {"bias": 1, "batch_first": 1},
    {"num_layers": 0, "hidden_size": 0},
    {"dropout": 0.5, "hidden_size": 0},  # the warning comes before the error
]


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("wrong", WRONG_CONSTRUCTORS)
def test_same_refusal_of_arguments(pair, wrong):
    kwargs = {"input_size": 4, "hidden_size": 5, **wrong}
    want, got = (outcome(cls, **kwargs) for cls in pair)
    assert got == want
    assert want != (None, [])


@pytest.mark.parametrize("proj_size", [-1, 5, 6, "2", None])
def test_same_refusal_of_proj_size(proj_size):
    want, got = (outcome(cls, 4, 5, proj_size=proj_size) for cls in PAIRS[0])
    assert got == want
    assert want[0] is not None
    want, got = (outcome(cls, 4, 5, proj_size=proj_size) for cls in PAIRS[1])
    assert got == want


def test_nonlinearity_is_refused_in_torchs_words_but_for_sigmoid():
    (kind, text), _ = outcome(nn.RNN, 4, 5, nonlinearity="gelu")
    (our_kind, our_text), _ = outcome(fastrnn.RNN, 4, 5, nonlinearity="gelu")
    assert our_kind is kind
    assert our_text == text.replace("'tanh' or 'relu'", "'tanh', 'relu' or 'sigmoid'")


@pytest.mark.parametrize("cls", [fastrnn.LSTM, fastrnn.RNN])
def test_dropout_warning_points_at_the_caller(cls):
    with pytest.warns(UserWarning, match="num_layers greater than 1") as caught:
        cls(4, 5, dropout=0.5)
    assert caught[0].filename == __file__


def packed(x, lengths=(5, 3, 2)):
    return pack_padded_sequence(x, lengths)


X = torch.randn(5, 3, 4)
H = torch.randn(1, 3, 6)
WRONG_CALLS = {
    "0-D": lambda: (torch.tensor(1.0), None),
    "1-D": lambda: (X[0, 0], None),
    "4-D": lambda: (X[None], None),
    "features": lambda: (X[..., :3], None),
    "features, unbatched": lambda: (X[:, 0, :3], None),
    "dtype": lambda: (X.double(), None),
    "integers": lambda: (X.long(), None),
    "h 2-D for 3-D": lambda: (X, H[0]),
    "h 3-D for 2-D": lambda: (X[:, 0], H),
    "h 4-D": lambda: (X, H[None]),
    "h of another batch": lambda: (X, H[:, :2]),
    "h of another width": lambda: (X, H[..., :5]),
    "h of more layers": lambda: (X, H.repeat(2, 1, 1)),
    "h of another dtype": lambda: (X, H.double()),
    "packed, features": lambda: (packed(X[..., :3]), None),
    "packed, h of another batch": lambda: (packed(X), H[:, :2]),
    "packed, h of more layers": lambda: (packed(X), H.repeat(2, 1, 1)),
    "packed, dtype": lambda: (packed(X.double()), None),
    "not a tensor": lambda: ([1.0], None),
}


PACKED = [name for name in WRONG_CALLS if name.startswith("packed")]
NOT_PACKED = [name for name in WRONG_CALLS if name not in PACKED]


@pytest.mark.parametrize(
    ("cell", "name"),
    [("RNN", name) for name in WRONG_CALLS] + [("LSTM", name) for name in NOT_PACKED],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_same_refusal_of_inputs(cell, batch_first, name):
    input, h = WRONG_CALLS[name]()
    theirs = getattr(nn, cell)(4, 6, batch_first=batch_first)
    ours = getattr(fastrnn, cell)(4, 6, batch_first=batch_first)
    hx = (h, h) if cell == "LSTM" and h is not None else h
    want, got = outcome(theirs, input, hx), outcome(ours, input, hx)
    assert want[0] is not None
    assert got == want


@pytest.mark.parametrize("name", PACKED)
def test_packed_lstm_is_checked_as_others_are(name):
    """torch.nn.LSTM checks nothing of a packed call; its kernels raise about matrix products.

    We say what torch.nn.RNN says.
    """
    input, h = WRONG_CALLS[name]()
    hx = None if h is None else (h, h)
    assert outcome(nn.LSTM(4, 6), input, hx)[0] is not None
    kind, text = outcome(fastrnn.LSTM(4, 6), input, hx)[0]
    want_kind, want_text = outcome(nn.RNN(4, 6), input, h)[0]
    assert kind is want_kind
    assert text.replace("hidden[0]", "hidden") == want_text


@pytest.mark.parametrize("number", [1, 3])
def test_same_refusal_of_packed_rows_with_other_than_two_states(number):
    given = packed(X), (H,) * number
    want = outcome(nn.LSTM(4, 6), *given)
    assert want[0] is not None
    assert outcome(fastrnn.LSTM(4, 6), *given) == want


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_same_refusal_of_no_steps(cell, batch_first):
    input = X[:0].transpose(0, 1) if batch_first else X[:0]
    options = {"batch_first": batch_first}
    want = outcome(getattr(nn, cell)(4, 6, **options), input)
    assert want[0] is not None
    assert outcome(getattr(fastrnn, cell)(4, 6, **options), input) == want


@pytest.mark.parametrize("wrong", ["h", "c"])
@pytest.mark.parametrize("proj_size", [0, 2])
def test_same_refusal_of_either_lstm_state(proj_size, wrong):
    theirs, ours = (cls(4, 6, proj_size=proj_size) for cls in PAIRS[0])
    h, c = torch.zeros(1, 3, proj_size or 6), torch.zeros(1, 3, 6)
    hx = (h[..., :1], c) if wrong == "h" else (h, c[..., :1])
    want, got = outcome(theirs, X, hx), outcome(ours, X, hx)
    assert want[0][0] is RuntimeError
    assert got == want


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_empty_batch(cell):
    theirs, ours = getattr(nn, cell)(4, 6), getattr(fastrnn, cell)(4, 6)
    want, got = outcome(theirs, X[:, :0]), outcome(ours, X[:, :0])
    assert got == want
