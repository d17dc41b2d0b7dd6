"""`fastrnn.LSTM` and `RNN` against torch.nn's in the same test: every number, error and warning.

Where both run ATen's code (backend "aten"), equal means bit for bit.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn import testing

PROJECTED_ON_CPU = "ignore:LSTM with projections is not supported with oneDNN"
pytestmark = pytest.mark.filterwarnings(PROJECTED_ON_CPU)

PAIRS = [(nn.LSTM, fastrnn.LSTM), (nn.RNN, fastrnn.RNN)]


class Case(NamedTuple):
    cell: str
    seq_len: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    bidirectional: bool
    projected: bool
    batch_first: bool
    form: str
    with_hx: bool
    strided: bool
    frozen: str
    mode: str
    dtype: torch.dtype


sizes = st.sampled_from([1, 2, 3, 17])
cases = st.builds(
    Case,
    cell=st.sampled_from(["LSTM", "tanh", "relu"]),
    seq_len=sizes,
    batch=sizes,
    input_size=st.sampled_from([1, 4, 7]),
    hidden_size=st.sampled_from([1, 5, 16, 33]),
    num_layers=st.sampled_from([1, 2, 3]),
    bias=st.booleans(),
    bidirectional=st.booleans(),
    projected=st.booleans(),
    batch_first=st.booleans(),
    form=st.sampled_from(["batched", "unbatched", "packed sorted", "packed unsorted"]),
    with_hx=st.booleans(),
    strided=st.booleans(),
    frozen=st.sampled_from(["nothing", "input", "weights", "layer 0", "recurrent"]),
    mode=st.sampled_from(["train", "eval", "no_grad"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]),
)


def build(case, **kwargs):
    """The torch layer and ours, with equal weights, some of them frozen."""
    arguments = (case.input_size, case.hidden_size, case.num_layers)
    options = {
        "bias": case.bias, "batch_first": case.batch_first, "bidirectional": case.bidirectional,
        "dtype": case.dtype,
    }  # fmt: skip
    if case.cell == "LSTM":
        options["proj_size"] = case.hidden_size // 2 if case.projected else 0
        theirs = nn.LSTM(*arguments, **options)
        ours = fastrnn.LSTM(*arguments, **options, **kwargs)
    else:
        theirs = nn.RNN(*arguments, nonlinearity=case.cell, **options)
        ours = fastrnn.RNN(*arguments, nonlinearity=case.cell, **options, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    is_frozen = {
        "nothing": lambda name: False,
        "input": lambda name: False,
        "weights": lambda name: True,
        "layer 0": lambda name: "_l0" in name,
        "recurrent": lambda name: "_hh_" in name,
    }[case.frozen]
    for module in (theirs, ours):
        module.train(case.mode == "train")
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(not is_frozen(name))
    return theirs, ours


def make_inputs(case):
    """The input as a leaf, what to make of it for the call, and the initial states."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(shape, generator=generator).to(case.dtype)

    shape = (case.seq_len, case.batch, case.input_size)
    if case.form == "unbatched":
        shape = (case.seq_len, case.input_size)
    elif case.batch_first:
        shape = (case.batch, case.seq_len, case.input_size)
    x = random(*shape[:-1], 2 * shape[-1])[..., ::2] if case.strided else random(*shape)
    hx = None
    if case.with_hx:
        rows = case.num_layers * (2 if case.bidirectional else 1)
        batch = () if case.form == "unbatched" else (case.batch,)
        projected = case.cell == "LSTM" and case.projected and case.hidden_size > 1
        width = case.hidden_size // 2 if projected else case.hidden_size
        hx = (random(rows, *batch, width), random(rows, *batch, case.hidden_size))
        if case.strided and batch:
            hx = tuple(state.transpose(0, 1).contiguous().transpose(0, 1) for state in hx)
    return x, hx


def run(module, case, x, hx):
    """Outputs, states and the gradients of everything, or the error, as something to compare."""
    x = x.detach().clone(memory_format=torch.preserve_format)
    x = x.requires_grad_(case.frozen != "input")
    states = None if hx is None else tuple(state.detach().requires_grad_() for state in hx)
    call = x
    if case.form.startswith("packed"):
        lengths = [1 + (5 * i + case.seq_len - 1) % case.seq_len for i in range(case.batch)]
        if case.form == "packed sorted":
            lengths.sort(reverse=True)
        call = pack_padded_sequence(
            x, lengths, batch_first=case.batch_first, enforce_sorted=case.form == "packed sorted"
        )
    given_hx = states if case.cell == "LSTM" or states is None else states[0]
    with torch.no_grad() if case.mode == "no_grad" else nullcontext():
        output, final = module(call, given_hx)
    tensors = {"output": output.data if isinstance(output, PackedSequence) else output}
    for i, state in enumerate(final if case.cell == "LSTM" else (final,)):
        tensors[f"state {i}"] = state
    rest = [type(output), type(final)]
    if isinstance(output, PackedSequence):
        rest += [
            output.batch_sizes.tolist(),
            *(None if i is None else i.tolist() for i in output[2:]),
        ]
    leaves = {"x": x, **dict(module.named_parameters())}
    leaves |= {f"hx {i}": state for i, state in enumerate(states or ())}
    rest.append({name: (t.requires_grad, t.dtype, t.stride()) for name, t in tensors.items()})
    results = [output.data if isinstance(output, PackedSequence) else output]
    results += list(final if case.cell == "LSTM" else (final,))
    if results[0].requires_grad:
        factors = [torch.arange(t.numel()).view(t.shape).cos() for t in results]
        sum((t * f).sum() for t, f in zip(results, factors, strict=True)).backward()
    gradients = {f"d {name}": leaf.grad for name, leaf in leaves.items()}
    rest.append({name: None if g is None else g.stride() for name, g in gradients.items()})
    tensors |= {name: g for name, g in gradients.items() if g is not None}
    return {name: t.detach() for name, t in tensors.items()}, rest


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(case=cases)
def test_same_bits(case):
    theirs, ours = build(case, backend="aten")
    x, hx = make_inputs(case)
    want, want_rest = run(theirs, case, x, hx)
    got, got_rest = run(ours, case, x, hx)
    assert got_rest == want_rest
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=0, equal_nan=True, msg=name)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(case=cases, backend=st.sampled_from(["auto", "reference"]))
def test_same_numbers_on_any_backend(case, backend):
    case = case._replace(dtype=torch.float64)
    theirs, ours = build(case, backend=backend)
    x, hx = make_inputs(case)
    want, _ = run(theirs, case, x, hx)
    got, _ = run(ours, case, x, hx)
    assert got.keys() == want.keys()
    allowed = testing.tolerance(torch.float64, case.seq_len * case.num_layers)
    for name in want:
        relative = allowed.gradient if name.startswith("d ") else allowed.output
        largest = float(want[name].abs().max()) if want[name].numel() else 0.0
        torch.testing.assert_close(
            got[name], want[name], rtol=0, atol=relative * max(largest, 1.0), msg=name
        )


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("num_layers", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_sigmoid_follows_its_equation(oracle, bidirectional, num_layers, bias):
    rnn = fastrnn.RNN(
        4, 5, num_layers, "sigmoid", bias, bidirectional=bidirectional, dtype=torch.float64
    )
    x = torch.randn(7, 3, 4, dtype=torch.float64)
    h0 = torch.randn(num_layers * (1 + bidirectional), 3, 5, dtype=torch.float64)
    output, h_n = rnn(x, h0)
    weights = [p.detach().numpy() for p in rnn.parameters()]
    want, want_h = oracle.run_stack(
        "rnn_sigmoid", x.numpy(), weights, (h0.numpy(),), num_layers, bidirectional, bias
    )
    torch.testing.assert_close(output, torch.from_numpy(want))
    torch.testing.assert_close(h_n, torch.from_numpy(want_h))


CONSTRUCTORS = [
    {},
    {"num_layers": 2},
    {"num_layers": 3, "dropout": 0.25, "bidirectional": True},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True, "bias": False, "num_layers": 2},
    {"dtype": torch.float64},
    {"device": "meta"},
    {"num_layers": 2, "dropout": 1},
    {"num_layers": 2, "dropout": 0},
]
LSTM_ONLY = [{"proj_size": 2}, {"proj_size": 3, "bidirectional": True, "num_layers": 2}]
RNN_ONLY = [{"nonlinearity": "relu"}, {"nonlinearity": "tanh", "bias": False}]
VALID = [(pair, kwargs) for pair in PAIRS for kwargs in CONSTRUCTORS]
VALID += [(PAIRS[0], kwargs) for kwargs in LSTM_ONLY]
VALID += [(PAIRS[1], kwargs) for kwargs in RNN_ONLY]


@pytest.mark.parametrize(("pair", "kwargs"), VALID)
def test_same_module(pair, kwargs):
    """Parameters (bit for bit, by the same draws), their order, attributes, repr, all_weights."""
    modules = []
    after = []
    for cls in pair:
        torch.manual_seed(3)
        modules.append(cls(4, 5, **kwargs))
        after.append(torch.rand(3))
    theirs, ours = modules
    assert torch.equal(*after)
    assert repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for want, got in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert type(got) is type(want)
        assert (got.shape, got.dtype, got.device) == (want.shape, want.dtype, want.device)
        assert got.is_meta or torch.equal(got, want)
    attributes = [
        "mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
        "bidirectional", "proj_size", "training",
    ]  # fmt: skip
    for name in [*attributes, *(["nonlinearity"] if pair[0] is nn.RNN else [])]:
        assert getattr(ours, name) == getattr(theirs, name)
        assert type(getattr(ours, name)) is type(getattr(theirs, name))
    names = {p: name for name, p in ours.named_parameters()}
    their_names = {p: name for name, p in theirs.named_parameters()}
    assert [[names[p] for p in group] for group in ours.all_weights] == [
        [their_names[p] for p in group] for group in theirs.all_weights
    ]


def test_positional_arguments_have_torchs_order():
    arguments = (4, 5, 2, False, True, 0.5, True, 3)
    assert repr(fastrnn.LSTM(*arguments)) == repr(nn.LSTM(*arguments))
    arguments = (4, 5, 2, "relu", False, True, 0.5, True)
    ours, theirs = fastrnn.RNN(*arguments), nn.RNN(*arguments)
    assert repr(ours) == repr(theirs)
    assert ours.mode == theirs.mode


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


def test_states_may_be_a_list():
    hx = [torch.randn(1, 3, 6), torch.randn(1, 3, 6)]
    theirs, ours = nn.LSTM(4, 6), fastrnn.LSTM(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    assert torch.equal(ours(X, hx)[0], theirs(X, hx)[0])


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_attributes_are_honoured_when_called(cell):
    """torch reads batch_first, dropout and training at each call; so must we."""
    theirs, ours = getattr(nn, cell)(4, 6, 2), getattr(fastrnn, cell)(4, 6, 2, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.batch_first = True
    assert torch.equal(ours(X)[0], theirs(X)[0])
    for module in (theirs, ours):
        module.dropout = 0.5
    results = []
    for module in (theirs, ours):
        torch.manual_seed(1)
        results.append(module(X)[0])
    assert torch.equal(*results)
    ours.eval()
    assert torch.equal(ours(X)[0], ours(X)[0])
    ours.train()
    assert not torch.equal(ours(X)[0], ours(X)[0])


def test_mode_is_honoured_when_called():
    theirs, ours = nn.RNN(4, 6), fastrnn.RNN(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    for module in (theirs, ours):
        module.mode = "RNN_RELU"
    assert torch.equal(ours(X)[0], theirs(X)[0])


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_autocast(cell):
    theirs, ours = getattr(nn, cell)(4, 6), getattr(fastrnn, cell)(4, 6, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = theirs(X)[0], ours(X)[0]
    assert got.dtype == want.dtype
    assert torch.equal(got, want)


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_double_backward(cell):
    theirs = getattr(nn, cell)(3, 4, dtype=torch.float64)
    ours = getattr(fastrnn, cell)(3, 4, dtype=torch.float64, backend="aten")
    ours.load_state_dict(theirs.state_dict())
    norms = []
    for module in (theirs, ours):
        x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 2, 3).requires_grad_()
        (d_x,) = torch.autograd.grad(module(x)[0].sum(), x, create_graph=True)
        d_x.square().sum().backward()
        norms.append(x.grad)
    assert torch.equal(*norms)
