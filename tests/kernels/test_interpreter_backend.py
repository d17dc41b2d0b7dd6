"""The `triton` backend end to end in Triton's interpreter: layers, directions, autograd.

Run by ``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_backend.py``; see
`test_interpreter.py` for why.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_backend.py",
        allow_module_level=True,
    )

import fastrnn
from fastrnn import calls, dispatch, functional, testing
from fastrnn.request import GATES, Spec
from fastrnn_triton.backend import TritonBackend

pytestmark = pytest.mark.usefixtures("poisoned")

CELLS = sorted(GATES)
SPECS = [
    Spec("lstm", 3, 5),
    Spec("lstm", 4, 17, 0, 2, True, True),
    Spec("lstm", 2, 4, 0, 1, False, True),
    Spec("rnn_tanh", 3, 5, 0, 2, True, True),
    Spec("rnn_relu", 3, 20, 0, 1, False, True),
    Spec("rnn_sigmoid", 3, 5, 0, 2, True, False),
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def spec_id(spec):
    words = [spec.cell, f"H{spec.hidden_size}", f"L{spec.num_layers}"]
    words += ["bi"] if spec.bidirectional else []
    return "-".join(words + ([] if spec.bias else ["nobias"]))


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("spec", SPECS, ids=spec_id)
def test_agrees_with_float64(spec, dtype):
    problem = testing.random_problem(spec, 4, 3, dtype=dtype)
    got = testing.run(problem, backend="triton")
    testing.assert_close(got, testing.truth(problem), testing.tolerance(dtype, 4))


@pytest.mark.parametrize("cell", CELLS)
def test_gradcheck_through_the_operators(cell):
    spec = Spec(cell, 2, 3, bidirectional=True)
    problem = testing.random_problem(spec, 3, 2)
    leaves = [t.clone().requires_grad_() for t in (problem.x, *problem.hx, *problem.weights)]
    states = len(problem.hx)

    def call(x, *rest):
        hx, weights = rest[:states], rest[states:]
        output, final = calls.run(
            spec, x, hx if states == 2 else hx[0], weights, batch_first=False, dropout=0.0,
            training=True, backend="triton",
        )  # fmt: skip
        return (output, *final) if isinstance(final, tuple) else (output, final)

    # fast mode: one random projection of the Jacobian, since a step takes milliseconds here
    assert torch.autograd.gradcheck(call, leaves, atol=1e-7, fast_mode=True)


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
def test_recomputed_gradients_are_the_same(kind):
    plain = kind(3, 5, num_layers=2, bidirectional=True, backend="triton").double()
    saving = kind(3, 5, num_layers=2, bidirectional=True, backend="triton", recompute=2).double()
    saving.load_state_dict(plain.state_dict())
    x = torch.randn(5, 2, 3, dtype=torch.float64)
    found = []
    for layer in (plain, saving):
        own = x.clone().requires_grad_()
        layer(own)[0].sin().sum().backward()
        found.append([own.grad, *(weight.grad for weight in layer.parameters())])
    for got, want in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("dtype", "bias"), list(zip([torch.float64, *DTYPES], [True, False] * 2, strict=True)), ids=str
)
@pytest.mark.parametrize("cell", CELLS)
def test_layers_at_once(cell, bias, dtype, monkeypatch):
    """Five layers as 3 and 2, each a launch."""
    monkeypatch.setattr(TritonBackend, "layers_at_once", lambda self, request: 3)
    dispatch.clear_cache()
    spec = Spec(cell, 3, 5, num_layers=5, bias=bias)
    problem = testing.random_problem(spec, 3, 3, dtype=dtype)
    got = testing.run(problem, backend="triton")
    # A layer's rounding is the next one's input, five times.
    testing.assert_close(got, testing.truth(problem), testing.tolerance(dtype, 3 * 5))
    dispatch.clear_cache()


def test_layers_at_once_without_gradients_or_output(monkeypatch):
    whole = fastrnn.LSTM(3, 5, num_layers=2, backend="triton")
    x = torch.randn(4, 2, 3)
    with torch.no_grad():
        output, want = whole(x)
        monkeypatch.setattr(TritonBackend, "layers_at_once", lambda self, request: 2)
        dispatch.clear_cache()
        chained, got = whole(x)
        whole.final_only = True
        nothing, final = whole(x)
    dispatch.clear_cache()
    assert nothing is None
    torch.testing.assert_close(chained, output)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(final, want)


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
def test_final_states_alone(kind):
    whole = kind(3, 5, num_layers=2, bidirectional=True, backend="triton")
    final = kind(3, 5, num_layers=2, bidirectional=True, backend="triton", final_only=True)
    final.load_state_dict(whole.state_dict())
    x = torch.randn(5, 2, 3)
    for grad in (False, True):
        with torch.set_grad_enabled(grad):
            (_, want), (nothing, got) = whole(x), final(x)
        assert nothing is None
        for state, expected in zip(got, want, strict=True):
            assert torch.equal(state, expected)


def test_batch_first_unbatched_and_strided_input():
    layer = fastrnn.LSTM(3, 5, batch_first=True, backend="triton")
    want = torch.nn.LSTM(3, 5, batch_first=True)
    want.load_state_dict(layer.state_dict())
    for x in (torch.randn(2, 4, 3), torch.randn(4, 3), torch.randn(3, 4, 2).permute(2, 1, 0)):
        for got, expected in zip(layer(x)[0], want(x)[0], strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("asked", [0, 1, 2, 3], ids=["w_ih", "w_hh", "b_ih", "b_hh"])
def test_one_weight_alone_has_its_gradient(asked):
    spec = Spec("lstm", 3, 5)
    problem = testing.random_problem(spec, 4, 2, dtype=torch.float32)
    want = testing.truth(problem).gradients[f"weights[{asked}]"]
    weights = [w.clone().requires_grad_(i == asked) for i, w in enumerate(problem.weights)]
    output, (h_n, c_n) = functional.lstm(
        problem.x, problem.hx, weights, training=True, backend="triton"
    )
    generator = torch.Generator().manual_seed(0)
    upstream = [
        torch.randn(o.shape, generator=generator, dtype=torch.float64).float()
        for o in (output, h_n, c_n)
    ]
    (got,) = torch.autograd.grad((output, h_n, c_n), [weights[asked]], upstream)
    allowed = testing.tolerance(torch.float32, 4).gradient * float(want.abs().max())
    torch.testing.assert_close(got.double(), want, rtol=0, atol=allowed)


def test_auto_never_takes_the_interpreter():
    layer = fastrnn.RNN(3, 5)
    decision = fastrnn.explain(layer, torch.randn(4, 2, 3))
    assert decision.backend != "triton"
    (triton,) = [c for c in decision.candidates if c.name == "triton"]
    assert triton.cost is not None


def test_what_the_kernels_do_not_cover_is_said():
    layer = fastrnn.LSTM(4, 8, proj_size=2, backend="triton")
    with pytest.raises(fastrnn.BackendError, match="proj_size is 2; projections are not fused"):
        layer(torch.randn(3, 2, 4))


@pytest.mark.parametrize("how", ["lengths", "resets", "both", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
def test_lengths_and_resets(kind, bidirectional, how):
    """Outputs, states and every gradient, two layers, as the reference has them."""
    T, B, I, H = 6, 4, 3, 5
    shape = {"num_layers": 2, "bidirectional": bidirectional}
    layers = [kind(I, H, backend=name, **shape).double() for name in ("triton", "reference")]
    layers[1].load_state_dict(layers[0].state_dict())
    generator = torch.Generator().manual_seed(0)

    def normal(*sizes):
        return torch.randn(sizes, generator=generator, dtype=torch.float64)

    x, states = normal(T, B, I), [normal(2 + 2 * bidirectional, B, H) for _ in range(2)]
    given = {
        "lengths": torch.tensor([T, 0, 3, 1]) if how in ("lengths", "both") else None,
        "resets": torch.rand(T, B, generator=generator) < 0.3
        if how in ("resets", "both")
        else None,
    }
    results = []
    for layer in layers:
        leaves = [tensor.clone().requires_grad_() for tensor in (x, *states)]
        hx = tuple(leaves[1:]) if kind is fastrnn.LSTM else leaves[1]
        if how == "packed":
            pack = torch.nn.utils.rnn.pack_padded_sequence
            output, final = layer(pack(leaves[0], [T, 2, 3, 1], enforce_sorted=False), hx)
            output = output.data
        else:
            output, final = layer(leaves[0], hx, **given)
        final = final if isinstance(final, tuple) else (final,)
        weight = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).view_as(output)
        loss = (output * weight).sum() + sum(state.sin().sum() for state in final)
        wanted = leaves[: 1 + len(final)] + list(layer.parameters())
        results.append([output, *final, *torch.autograd.grad(loss, wanted)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("cell", ["LSTM", "RNN"])
def test_many_networks_and_many_samples_are_one_launch(cell):
    """torch.func.vmap over weights, over inputs, and gradients of every sample by itself."""
    networks = [getattr(fastrnn, cell)(3, 5).double() for _ in range(3)]
    weights, _ = torch.func.stack_module_state(networks)
    x = torch.randn(3, 2, 2, 3, dtype=torch.float64)

    def loss(weights, x):
        return torch.func.functional_call(networks[0], weights, (x,))[0].square().sum()

    one = {name: weight[0] for name, weight in weights.items()}
    found = []
    for backend in ("reference", "triton"):
        networks[0].backend = backend
        gradients = torch.func.grad(loss)
        every = torch.func.vmap(loss)(weights, x).sum()
        found.append(
            (
                torch.autograd.grad(every, list(weights.values())),
                torch.func.vmap(gradients, (0, None))(weights, x[0]),
                torch.func.vmap(gradients, (None, 0))(one, x),
                torch.func.vmap(loss, (None, 0))(one, x),
            )
        )
    torch.testing.assert_close(found[1], found[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_a_batch_of_no_rows(kind, dtype):
    for how in ({}, {"lengths": []}, {"resets": torch.zeros(5, 0, dtype=torch.bool)}):
        layer = kind(3, 4, num_layers=2, bidirectional=True, backend="triton", dtype=dtype)
        x = torch.randn(5, 0, 3, dtype=dtype, requires_grad=True)
        output, final = layer(x, **how)
        states = final if isinstance(final, tuple) else (final,)
        assert output.shape == (5, 0, 8)
        assert all(state.shape == (4, 0, 4) for state in states)
        output.sum().backward()
        assert x.grad.shape == x.shape
        assert not any(weight.grad.any() for weight in layer.parameters())


@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.GRU, fastrnn.RNN])
def test_rows_that_start_over_from_another_state(kind):
    layer = kind(3, 5, num_layers=2, backend="triton").double()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 3, dtype=torch.float64, generator=generator)
    resets = torch.rand(5, 3, generator=generator) < 0.3
    both = torch.randn(2, 2, 2, 3, 5, dtype=torch.float64, generator=generator).requires_grad_()
    hx, fresh = ([*each.unbind()] for each in both)
    if kind is not fastrnn.LSTM:
        hx, fresh = hx[:1], fresh[:1]
    found = []
    for layer.backend in ("triton", "reference"):
        as_hx = [tuple(each) if len(each) == 2 else each[0] for each in (hx, fresh)]
        output, _ = layer(x, as_hx[0], lengths=[5, 2, 4], resets=resets, reset_state=as_hx[1])
        leaves = [*hx, *fresh, *layer.parameters()]
        found.append([output, *torch.autograd.grad(output.sin().sum(), leaves)])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
