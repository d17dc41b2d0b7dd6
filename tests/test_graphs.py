"""One graph for every T and B: torch.compile and torch.export, both passes, all options."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import fastrnn

I, H = 3, 4
SIZES = ((5, 2), (7, 3), (4, 6), (9, 5))
MODULES = {
    "lstm": lambda **how: fastrnn.LSTM(I, H, 2, **how),
    "lstm, projected, both directions": lambda **how: fastrnn.LSTM(
        I, H, proj_size=2, bidirectional=True, **how
    ),
    "rnn": lambda **how: fastrnn.RNN(I, H, **how),
    "sigmoid, both directions": lambda **how: fastrnn.RNN(
        I, H, nonlinearity="sigmoid", bidirectional=True, **how
    ),
}


@pytest.fixture(params=MODULES)
def make(request):
    torch.manual_seed(0)
    torch.compiler.reset()
    return lambda **how: MODULES[request.param](**how).double()


def all_of(result):
    """Output and states, flat."""
    tensors = []
    for each in result:
        if each is not None:
            tensors += [each] if isinstance(each, torch.Tensor) else [*each]
    return tensors


def gradients(tensors, module, x):
    return torch.autograd.grad(
        sum(each.square().sum() for each in tensors), [x, *module.parameters()]
    )


@pytest.mark.parametrize("backend", ["reference", "auto"])
def test_no_graph_break_and_no_recompilation_for_other_sizes(make, backend):
    """With T and B marked dynamic from the first call on: one graph for all, both passes."""
    module = make(backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        torch._dynamo.mark_dynamic(x, (0, 1))
        want, got = all_of(module(x)), all_of(compiled(x))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, module, x), gradients(want, module, x))
    assert counter.frame_count == 1


OPTIONS = {
    "all states": ({}, {"return_all_states": True}),
    "final only": ({"final_only": True}, {}),
    "recompute": ({"recompute": 2}, {}),
    "error clip": ({"error_clip": 0.01}, {}),
    "zoneout": ({"zoneout": 0.3}, {}),
    "batch first": ({"batch_first": True}, {}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_options_in_one_graph_for_all_sizes(option):
    torch.compiler.reset()
    built, called = OPTIONS[option]
    module = fastrnn.LSTM(I, H, 2, **built).double().eval()  # zoneout mixes rather than draws
    counter, made = CompileCounterWithBackend("aot_eager"), []
    compiled = torch.compile(module, fullgraph=True, backend=counter, dynamic=True)
    for T, B in SIZES:
        x = torch.randn(T, B, I, dtype=torch.float64, requires_grad=True)
        want, got = all_of(module(x, **called)), all_of(compiled(x, **called))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, module, x), gradients(want, module, x))
        made.append(counter.frame_count)
    assert made[0] == made[-1]  # torch itself starts once more when it finds floats that it can fix


@pytest.mark.parametrize("strict", [False, True])
def test_export_with_any_number_of_steps_and_rows(make, strict):
    module = make(backend="reference")
    example = torch.randn(5, 2, I, dtype=torch.float64)
    sizes = {0: Dim("T", min=2, max=1000), 1: Dim("B", min=2, max=1000)}
    program = torch.export.export(module, (example,), dynamic_shapes=(sizes,), strict=strict)
    for T, B in SIZES:
        x = torch.randn(T, B, I, dtype=torch.float64)
        torch.testing.assert_close(all_of(program.module()(x)), all_of(module(x)))


# torch's own, when it builds the kernels around the operators
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_compiled_code_and_not_only_its_graph():
    """Inductor's own code around the operators."""
    torch.compiler.reset()
    module = fastrnn.LSTM(I, H, backend="reference")
    compiled = torch.compile(module, fullgraph=True, dynamic=True)
    for T, B in SIZES[:2]:
        x = torch.randn(T, B, I, requires_grad=True)
        want, got = all_of(module(x)), all_of(compiled(x))
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(gradients(got, module, x), gradients(want, module, x))
