"""`fastrnn.LSTM` and `RNN` against torch.nn's in the same test: every number.

Where both run ATen's code (backend "aten"), equal means bit for bit.
"""

from __future__ import annotations

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
    cell=st.sampled_from(["LSTM", "GRU", "tanh", "relu"]),
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
    elif case.cell == "GRU":
        theirs, ours = nn.GRU(*arguments, **options), fastrnn.GRU(*arguments, **options, **kwargs)
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
