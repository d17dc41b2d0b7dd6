"""The operators behind layer backends: torch's own checks of them, and torch.compile."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import pytest
import torch

from derivatives import assert_first, assert_second
from fastrnn import backend as backend_module
from fastrnn import calls, dispatch, functional, testing
from fastrnn.backend import Layer, OutputGradients
from fastrnn.flat import FIELDS
from fastrnn.ops import layer_forward
from fastrnn.plugins import registry
from fastrnn.request import GATES, Spec

CELLS = sorted(GATES)
RESETS = [[0, 1, 0], [1, 0, 1], [0, 1, 0], [1, 1, 0]]
SMALL = (3, 3, 1, 2)
"""T, B, I, H where every number is differentiated by every other, and again."""


def layer_arguments(
    cell: str,
    *,
    groups: int = 1,
    proj: int = 0,
    lengths: list[int] | None = None,
    resets: list[list[int]] | None = None,
    chained: bool = False,
    sizes: tuple[int, int, int, int] = (4, 3, 2, 5),
) -> tuple[object, ...]:
    T, B, I, H = sizes
    K, P = GATES[cell], proj or H

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    return (
        leaf(T, B, I), leaf(1 if chained else groups, K * H, I), leaf(groups, K * H, P),
        leaf(groups, K * H), leaf(groups, B, P), leaf(groups, B, H) if cell == "lstm" else None,
        leaf(groups, P, H) if proj else None,
        leaf(groups - 1, K * H, H) if chained else None, None,
        None if lengths is None else torch.tensor(lengths),
        None if resets is None else torch.tensor(resets)[:T, :B].bool(), None, None, None,
        cell, [False] * groups if chained else [False, True][:groups], "ieee", 0, False, True,
        0.0, False, "reference",
    )  # fmt: skip


def differentiable(
    arguments: tuple[object, ...],
) -> tuple[Callable[..., tuple[torch.Tensor, ...]], list[torch.Tensor]]:
    """The operator as a function of its differentiable inputs alone, and those inputs."""

    def call(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given = iter(tensors)
        inputs = [next(given) if isinstance(a, torch.Tensor) else a for a in arguments[:9]]
        outputs = torch.ops.fastrnn.layer_forward(*inputs, *arguments[9:])
        return outputs[: 2 if arguments[5] is None else 3]  # c_n means nothing without c0

    return call, [a for a in arguments[:9] if isinstance(a, torch.Tensor)]


@pytest.mark.parametrize(("groups", "chained"), [(1, False), (2, False), (3, True)])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_forward(cell: str, groups: int, chained: bool) -> None:
    arguments = layer_arguments(cell, groups=groups, chained=chained)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)


def test_opcheck_forward_with_projection_and_lengths() -> None:
    arguments = layer_arguments("lstm", groups=2, proj=2, lengths=[4, 0, 2])
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)


@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_forward_with_resets(cell: str) -> None:
    arguments = layer_arguments(cell, groups=2, lengths=[4, 0, 2], resets=RESETS)
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)


@pytest.mark.parametrize("resets", [None, RESETS], ids=["plain", "resets"])
@pytest.mark.parametrize("chained", [False, True], ids=["layer", "chained"])
@pytest.mark.parametrize("cell", CELLS)
def test_opcheck_backward(cell: str, chained: bool, resets: list[list[int]] | None) -> None:
    groups = 3 if chained else 1
    arguments = layer_arguments(cell, groups=groups, chained=chained, resets=resets)
    arguments = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    output, h_n, c_n, cells, *saved = torch.ops.fastrnn.layer_forward(*arguments)
    wanted = [tensor is not None for tensor in arguments[:9]]
    d_c_n = torch.randn_like(c_n) if cell == "lstm" else None
    torch.library.opcheck(
        torch.ops.fastrnn.layer_backward.default,
        (output, torch.randn_like(h_n), d_c_n, None, output, cells, *saved, wanted, *arguments),
        test_utils=("test_schema", "test_faketensor"),  # it has no autograd rule of its own
    )


@pytest.mark.parametrize(
    ("lengths", "resets"),
    [([4, 4, 4], None), ([4, 0, 2], None), ([1, 3, 0], None), (None, RESETS), ([4, 0, 2], RESETS)],
    ids=str,
)
@pytest.mark.parametrize(("cell", "proj"), [(c, 0) for c in CELLS] + [("lstm", 2)])
def test_gradcheck_of_a_layer_with_two_directions(
    cell: str, proj: int, lengths: list[int] | None, resets: list[list[int]] | None
) -> None:
    arguments = layer_arguments(cell, groups=2, proj=proj, lengths=lengths, resets=resets)

    assert_first(*differentiable(arguments))


@pytest.mark.parametrize("resets", [None, RESETS], ids=["plain", "resets"])
@pytest.mark.parametrize("cell", CELLS)
def test_gradients_of_chained_groups(cell: str, resets: list[list[int]] | None) -> None:
    how = {"groups": 3, "chained": True, "resets": resets}

    assert_first(*differentiable(layer_arguments(cell, **how)))
    small = differentiable(layer_arguments(cell, sizes=(3, 2, 1, 2), **how))
    assert_second(*small)


@pytest.mark.parametrize(
    ("lengths", "resets"),
    [(None, None), ([3, 0, 2], None), ([3, 0, 2], RESETS)],
    ids=["equal", "lengths", "resets"],
)
@pytest.mark.parametrize(("cell", "proj"), [(c, 0) for c in CELLS] + [("lstm", 1)])
def test_gradgradcheck(
    cell: str, proj: int, lengths: list[int] | None, resets: list[list[int]] | None
) -> None:
    """A gradient can be differentiated again: penalties, Hessian-vector products."""
    arguments = layer_arguments(
        cell, groups=2, proj=proj, lengths=lengths, resets=resets, sizes=SMALL
    )

    assert_second(*differentiable(arguments))


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_gradient_penalty_equals_torchs(cell: str) -> None:
    problem = testing.random_problem(Spec(cell, 3, 4), 5, 2)

    def penalty(backend: str) -> tuple[torch.Tensor, ...]:
        x = problem.x.clone().requires_grad_()
        leaves = [weight.clone().requires_grad_() for weight in problem.weights]
        output, _ = calls.run(
            problem.spec, x, None, leaves, batch_first=False, dropout=0.0, training=True,
            backend=backend,
        )  # fmt: skip
        (d_x,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), leaves)

    for g, w in zip(penalty("reference"), penalty("aten"), strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("cell", CELLS)
def test_lengths_ignore_what_is_past_the_end(cell: str) -> None:
    """NaN in the padding reaches neither outputs nor gradients."""
    arguments = list(layer_arguments(cell, groups=2, lengths=[4, 2, 0]))
    clean = torch.ops.fastrnn.layer_forward(*arguments)
    x = arguments[0].detach().clone()
    x[2:, 1] = x[:, 2] = float("nan")
    arguments[0] = x.requires_grad_()
    dirty = torch.ops.fastrnn.layer_forward(*arguments)
    for c, d in zip(clean[:3], dirty[:3], strict=True):
        assert torch.equal(c, d)
    sum(tensor.sum() for tensor in dirty[:3]).backward()
    assert not x.grad[:2, 0].isnan().any()
    assert torch.equal(x.grad[2:, 1], torch.zeros_like(x.grad[2:, 1]))
    assert not arguments[2].grad.isnan().any()


@pytest.mark.parametrize("cell", CELLS)
def test_groups_with_inputs_of_their_own_equal_separate_layers(cell: str) -> None:
    K, T, B, I, H, G = GATES[cell], 3, 2, 4, 5, 3
    x = torch.randn(T, B, G, I, dtype=torch.float64, requires_grad=True)
    weight_ih = torch.randn(G, K * H, I, dtype=torch.float64, requires_grad=True)
    weight_hh = torch.randn(G, K * H, H, dtype=torch.float64, requires_grad=True)
    state = torch.randn(G, B, H, dtype=torch.float64)

    def layer(groups: slice, own_x: torch.Tensor, reverse: tuple[bool, ...]) -> torch.Tensor:
        c0 = state[groups] if cell == "lstm" else None
        return layer_forward(
            Layer(
                cell=cell,
                x=own_x,
                weight_ih=weight_ih[groups],
                weight_hh=weight_hh[groups],
                bias=None,
                h0=state[groups],
                c0=c0,
                weight_hr=None,
                lengths=None,
                reverse=reverse,
                precision="ieee",
                save=True,
            ),
            "reference",
        )[0]

    together = layer(slice(0, G), x, (False, True, False))
    apart = [layer(slice(g, g + 1), x[:, :, g], (g == 1,)) for g in range(G)]
    apart_output = torch.cat(apart, 2)
    torch.testing.assert_close(together, apart_output)
    leaves = (x, weight_ih, weight_hh)
    got = torch.autograd.grad(together.square().sum(), leaves)
    want = torch.autograd.grad(apart_output.square().sum(), leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("spec", [Spec("rnn_tanh", 3, 4), Spec("lstm", 3, 4, 2, 2, True, True)])
def test_compile_without_graph_break_equals_eager(spec: Spec) -> None:
    problem = testing.random_problem(spec, 5, 2)
    leaves = [weight.clone().requires_grad_() for weight in problem.weights]

    def call(x: torch.Tensor, weights: list[torch.Tensor]) -> torch.Tensor:
        output, _ = calls.run(
            spec, x, None, weights, batch_first=True, dropout=0.0, training=True, backend="auto"
        )
        return output

    want = call(problem.x, leaves)
    want_gradients = torch.autograd.grad(want.square().sum(), leaves)
    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    got = compiled(problem.x, leaves)
    got_gradients = torch.autograd.grad(got.square().sum(), leaves)
    torch.testing.assert_close(got, want)
    for g, w in zip(got_gradients, want_gradients, strict=True):
        torch.testing.assert_close(g, w)


def test_compile_follows_the_context() -> None:
    """Another override compiles anew instead of running the backend of the first."""
    spec = Spec("rnn_tanh", 3, 4)
    problem = testing.random_problem(spec, 3, 2)

    def call(x: torch.Tensor) -> torch.Tensor:
        output, _ = functional.rnn(x, None, problem.weights)
        return output

    torch.compiler.reset()
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    want = call(problem.x)
    torch.testing.assert_close(compiled(problem.x), want)
    with (
        dispatch.use_backend("triton"),
        pytest.raises(Exception, match=r"'triton' .* cannot run"),
    ):
        compiled(problem.x)


@pytest.mark.parametrize("cell", CELLS)
def test_autocast_computes_in_its_dtype_and_returns_gradients_in_the_parameters(cell: str) -> None:
    spec = Spec(cell, 6, 8)
    problem = testing.random_problem(spec, 4, 3, dtype=torch.float32)
    leaves = [weight.clone().requires_grad_() for weight in problem.weights]
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = calls.run(
            spec, problem.x, None, leaves, batch_first=False, dropout=0.0, training=True,
            backend="reference",
        )  # fmt: skip
    assert output.dtype == torch.bfloat16
    gradients = torch.autograd.grad(output.float().square().sum(), leaves)
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    want = testing.truth(problem._replace(hx=None), gradients=False)
    allowed = testing.tolerance(torch.bfloat16, 4)
    got = testing.Result(output.detach(), want.states, {})
    testing.assert_close(got, want, allowed)


def test_layer_without_gradient_saves_nothing_and_frees_everything() -> None:
    arguments = list(layer_arguments("lstm"))
    arguments = [a.detach() if isinstance(a, torch.Tensor) else a for a in arguments]
    arguments[FIELDS.index("save")] = False
    outputs = torch.ops.fastrnn.layer_forward(*arguments)
    assert [tensor.numel() for tensor in outputs[3:]] == [0, 0, 0, 0]
    alive = weakref.ref(outputs[0])
    del outputs
    gc.collect()
    assert alive() is None


def test_second_backward_without_retain_graph_is_torchs_error() -> None:
    arguments = layer_arguments("rnn_tanh")
    output = torch.ops.fastrnn.layer_forward(*arguments)[0]
    output.sum().backward(retain_graph=True)
    first = arguments[0].grad.clone()
    output.sum().backward()
    torch.testing.assert_close(arguments[0].grad, 2 * first)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        output.sum().backward()


@pytest.mark.parametrize(
    ("lengths", "resets"),
    [(None, None), ([4, 0, 2], None), ([4, 0, 2], RESETS)],
    ids=["equal", "lengths", "resets"],
)
@pytest.mark.parametrize(("cell", "proj"), [(c, 0) for c in CELLS] + [("lstm", 2)])
def test_gradient_that_can_be_differentiated_again_is_the_same_gradient(
    cell: str, proj: int, lengths: list[int] | None, resets: list[list[int]] | None
) -> None:
    """gradgradcheck cannot see this: it compares the written-out form with itself."""
    arguments = layer_arguments(cell, groups=2, proj=proj, lengths=lengths, resets=resets)
    leaves = [a for a in arguments[:9] if isinstance(a, torch.Tensor)]
    outputs = torch.ops.fastrnn.layer_forward(*arguments)[: 3 if cell == "lstm" else 2]
    upstream = [torch.randn_like(output) for output in outputs]
    once = torch.autograd.grad(outputs, leaves, upstream, retain_graph=True)
    twice = torch.autograd.grad(outputs, leaves, upstream, create_graph=True)
    for o, t in zip(once, twice, strict=True):
        torch.testing.assert_close(o, t)


@pytest.mark.parametrize("asked", range(5), ids=["x", "weight_ih", "weight_hh", "bias", "h0"])
def test_gradients_nobody_asked_for_are_not_computed(
    monkeypatch: pytest.MonkeyPatch, asked: int
) -> None:
    calls: list[str] = []
    for name in ("input_gradient", "input_weight_gradient", "recurrent_weight_gradient"):
        function = getattr(backend_module, name)

        def spy(*args: object, name: str = name, function: object = function) -> torch.Tensor:
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(backend_module, name, spy)
    arguments = [
        a.detach().requires_grad_(i == asked) if isinstance(a, torch.Tensor) else a
        for i, a in enumerate(layer_arguments("rnn_tanh"))
    ]
    torch.ops.fastrnn.layer_forward(*arguments)[0].sum().backward()
    expected = ["input_gradient", "input_weight_gradient", "recurrent_weight_gradient"]
    assert calls == expected[asked : asked + 1][: asked < 3]
    assert [i for i in range(5) if arguments[i].grad is not None] == [asked]


def test_outputs_nobody_used_reach_the_backend_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[OutputGradients] = []
    backend = registry().backends["reference"]
    original = type(backend).layer_backward

    def spy(self: object, grad: OutputGradients, *rest: object) -> object:
        seen.append(grad)
        return original(self, grad, *rest)

    monkeypatch.setattr(type(backend), "layer_backward", spy)
    _, h_n, _, *_ = torch.ops.fastrnn.layer_forward(*layer_arguments("lstm"))
    h_n.sum().backward()
    assert [(g.output is None, g.h_n is None, g.c_n is None) for g in seen] == [(True, False, True)]
