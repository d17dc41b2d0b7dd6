"""One graph for every T and B: torch.compile and torch.export, both passes, all options."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.fx.experimental.proxy_tensor import make_fx

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


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["reference", "auto"])
@pytest.mark.parametrize("cell", ["LSTM", "GRU"])
def test_compiled_code_of_tensors_in_any_layout(cell, backend):
    """Inductor counts on the strides that an operator said its results would have."""
    torch.compiler.reset()
    layer = getattr(fastrnn, cell)(I, H, bidirectional=True, batch_first=True, backend=backend)
    layer = layer.double()
    before = torch.nn.Linear(I, I).double()
    x, h = (torch.randn(size, dtype=torch.float64) for size in ((3, 5, I), (3, 2, H)))
    weights = dict(layer.named_parameters())

    def run(x, h):
        h = h.transpose(0, 1)
        hx = (h, h) if cell == "LSTM" else h
        turned = {name: w.t().contiguous().t() for name, w in weights.items() if w.dim() == 2}
        made = functional_call(layer, turned, (before(x), hx), {"return_all_states": True})
        return sum(each.sin().sum() for each in all_of(made))

    leaves = [*weights.values(), *before.parameters()]
    # not what an earlier run compiled, by what operators said then
    with (
        torch._inductor.config.patch(fx_graph_cache=False),
        torch._functorch.config.patch(enable_autograd_cache=False),
    ):
        want, got = run(x, h), torch.compile(run, fullgraph=True)(x, h)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, leaves), torch.autograd.grad(want, leaves))


class Counted:
    """A compiler that counts the layers in what autograd has made of a graph, both passes."""

    def __init__(self) -> None:
        self.layers: list[tuple[int, int]] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        return aot_autograd(fw_compiler=self._count)(graph, inputs)

    def _count(self, graph: torch.fx.GraphModule, inputs: list[object]) -> object:
        names = [str(node.target) for node in graph.graph.nodes if node.op == "call_function"]
        self.layers.append(
            tuple(sum(part in name for name in names) for part in ("layer_forward", "layer_back"))
        )
        return make_boxed_func(graph)


MANY = 3
TRANSFORMED = {
    # by how many layers forward and back the results come about, and then their derivatives
    "an ensemble": (
        lambda loss, stacked, one, x: vmap(loss, (0, None))(stacked, x[0]).sum(),
        [(1, 0), (0, 1)],
    ),
    "many inputs": (
        lambda loss, stacked, one, x: vmap(loss, (None, 0))(one, x).sum(),
        [(1, 0), (0, 1)],
    ),
    "a gradient": (
        lambda loss, stacked, one, x: squares(grad(loss)(one, x[0])),
        None,
    ),
    "gradients of an ensemble": (
        lambda loss, stacked, one, x: squares(vmap(grad(loss), (0, None))(stacked, x[0])),
        None,
    ),
    "gradients of samples": (
        lambda loss, stacked, one, x: squares(vmap(grad(loss), (None, 0))(one, x)),
        None,
    ),
    "a penalty on the gradient of the input": (
        lambda loss, stacked, one, x: grad(loss, 1)(one, x[0]).square().sum(),
        None,
    ),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_traced_with_symbols_for_sizes(make, backend):
    """By `make_fx`, which torch.compile's tracer has no part in."""
    module = make(backend=backend)
    weights = {name: weight.detach() for name, weight in module.named_parameters()}

    def run(weights, x):
        return all_of(functional_call(module, weights, (x,)))

    x = torch.randn(*SIZES[0], I, dtype=torch.float64)
    graph = make_fx(run, tracing_mode="symbolic")(weights, x)
    for T, B in SIZES:
        x = torch.randn(T, B, I, dtype=torch.float64)
        torch.testing.assert_close(graph(weights, x), run(weights, x))


def squares(found):
    return sum(each.square().sum() for each in found.values())


@pytest.mark.parametrize("case", TRANSFORMED)
@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_transforms_within_a_graph(cell, case):
    """What `torch.func` makes of a layer is in the graph, in one piece; and is differentiated."""
    torch.manual_seed(0)
    torch.compiler.reset()
    run, layers = TRANSFORMED[case]
    modules = [getattr(fastrnn, cell)(I, H, backend="reference").double() for _ in range(MANY)]
    stacked, _ = stack_module_state(modules)
    one = dict(modules[0].named_parameters())

    def loss(weights, x):
        output, _ = functional_call(modules[0], weights, (x,))
        return output.square().sum()

    counted = Counted()
    compiled = torch.compile(partial(run, loss), fullgraph=True, backend=counted)
    x = torch.randn(MANY, 3, 2, I, dtype=torch.float64)
    leaves = [*stacked.values(), *one.values()]
    want, got = run(loss, stacked, one, x), compiled(stacked, one, x)
    torch.testing.assert_close(got, want)
    for one_, other in zip(
        torch.autograd.grad(got, leaves, allow_unused=True),
        torch.autograd.grad(want, leaves, allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(one_, other)
    if layers is not None:
        assert counted.layers == layers
    detached = [{k: v.detach() for k, v in each.items()} for each in (stacked, one)]
    torch.testing.assert_close(compiled(*detached, x), want.detach())


def test_an_ensemble_in_one_graph_for_all_sizes():
    torch.compiler.reset()
    modules = [fastrnn.LSTM(I, H, backend="reference").double() for _ in range(MANY)]
    weights, _ = stack_module_state(modules)
    counter = CompileCounterWithBackend("aot_eager")

    def ensemble(weights, x):
        return vmap(lambda w: functional_call(modules[0], w, (x,))[0])(weights)

    compiled = torch.compile(ensemble, fullgraph=True, backend=counter)
    for T, B in SIZES:
        x = torch.randn(T, B, I, dtype=torch.float64)
        torch._dynamo.mark_dynamic(x, (0, 1))
        torch.testing.assert_close(compiled(weights, x), torch.stack([m(x)[0] for m in modules]))
    assert counter.frame_count == 1
