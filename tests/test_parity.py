"""Every CPU backend against both oracles: the float64 reference, and NumPy's equations.

`pytest --backend=NAME` runs these, and what is said of lengths, resets and states, through another.
"""

from __future__ import annotations

import itertools
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from derivatives import assert_first
from fastrnn import calls, functional, testing
from fastrnn.request import GATES, Spec

CELLS = sorted(GATES)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# torch says this itself, once, when it cannot take oneDNN for a projected LSTM
ONEDNN = "ignore:LSTM with projections is not supported with oneDNN"


def specs() -> list[Spec]:
    """Every combination of the options that change the arithmetic."""
    found = []
    options = itertools.product(CELLS, (1, 2), (True, False), (False, True), (0, 2))
    for cell, layers, bias, bidirectional, proj in options:
        if not proj or cell == "lstm":
            found.append(Spec(cell, 4, 5, proj, layers, bias, bidirectional))
    return found


def spec_id(spec: Spec) -> str:
    words = [spec.cell, f"L{spec.num_layers}"]
    words += ["bi"] if spec.bidirectional else []
    words += ["nobias"] if not spec.bias else []
    words += [f"P{spec.proj_size}"] if spec.proj_size else []
    return "-".join(words)


def numpy_result(oracle: ModuleType, problem: testing.Problem, lengths=None):
    spec, x, hx, weights = problem
    rows = spec.num_layers * spec.directions
    sizes = [spec.state_size, spec.hidden_size][: 2 if spec.has_cell_state else 1]
    states = [np.zeros((rows, x.shape[1], size)) for size in sizes]
    if hx is not None:
        states = [state.numpy() for state in hx]
    return oracle.run_stack(
        spec.cell, x.numpy(), [w.numpy() for w in weights], states, spec.num_layers,
        spec.bidirectional, spec.bias, bool(spec.proj_size), lengths,
    )  # fmt: skip


@pytest.mark.backends("reference")
@pytest.mark.parametrize("spec", specs(), ids=spec_id)
@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
def test_forward_equals_numpy(oracle: ModuleType, backend: str, spec: Spec, hx: bool) -> None:
    problem = testing.random_problem(spec, 7, 3, hx=hx)
    got = testing.run(problem, backend=backend, gradients=False)
    want = numpy_result(oracle, problem)
    for g, w in zip((got.output, *got.states), want, strict=True):
        # both sum the same products in float64, in another order
        np.testing.assert_allclose(g.numpy(), w, rtol=0, atol=1e-13)


@pytest.mark.backends("reference")
@settings(max_examples=40, deadline=None)
@given(
    cell=st.sampled_from(CELLS),
    seq_len=st.sampled_from([1, 2, 3, 17]),
    batch=st.sampled_from([1, 2, 3, 17]),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 17)),
    bidirectional=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equals_numpy_at_any_shape(
    oracle: ModuleType,
    backend: str,
    cell: str,
    seq_len: int,
    batch: int,
    sizes: tuple[int, int],
    bidirectional: bool,
    seed: int,
) -> None:
    spec = Spec(cell, *sizes, bidirectional=bidirectional)
    problem = testing.random_problem(spec, seq_len, batch, seed=seed)
    got = testing.run(problem, backend=backend, gradients=False)
    want = numpy_result(oracle, problem)
    for g, w in zip((got.output, *got.states), want, strict=True):
        np.testing.assert_allclose(g.numpy(), w, rtol=0, atol=1e-13)


@pytest.mark.backends("reference")
@pytest.mark.parametrize("spec", specs(), ids=spec_id)
def test_gradients_are_the_derivatives(backend: str, spec: Spec) -> None:
    """BPTT against finite differences of the forward pass, for every input."""
    problem = testing.random_problem(spec, *((3, 2) if spec.num_layers == 1 else (2, 1)))
    assert problem.hx is not None
    leaves = [problem.x, *problem.hx, *problem.weights]
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    states = len(problem.hx)

    def call(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        hx, weights = rest[:states], rest[states:]
        output, final = calls.run(
            spec, x, hx if states == 2 else hx[0], weights, batch_first=False, dropout=0.0,
            training=True, backend=backend,
        )  # fmt: skip
        return (output, *final) if isinstance(final, tuple) else (output, final)

    assert_first(call, leaves)


@pytest.mark.filterwarnings(ONEDNN)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("spec", specs(), ids=spec_id)
@pytest.mark.backends("reference", "aten")
def test_backends_agree_with_float64(
    poisoned: None, backend: str, spec: Spec, dtype: torch.dtype
) -> None:
    if backend == "aten" and spec.cell == "rnn_sigmoid":
        with pytest.raises(ValueError, match="torch has no rnn_sigmoid"):
            testing.run(testing.random_problem(spec, 2, 1, dtype=dtype), backend=backend)
        return
    problem = testing.random_problem(spec, 9, 3, dtype=dtype)
    got = testing.run(problem, backend=backend)
    testing.assert_close(got, testing.truth(problem), testing.tolerance(dtype, 9))


@pytest.mark.backends("reference")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("batch", [1, 17])
@pytest.mark.parametrize("seq_len", [1, 2, 17, 300])
def test_float32_error_grows_no_faster_than_allowed(
    backend: str, cell: str, seq_len: int, batch: int
) -> None:
    problem = testing.random_problem(Spec(cell, 6, 33), seq_len, batch, dtype=torch.float32)
    got = testing.run(problem, backend=backend)
    allowed = testing.tolerance(torch.float32, seq_len)
    testing.assert_close(got, testing.truth(problem), allowed)


@pytest.mark.backends("reference")
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("needed", list(itertools.product([False, True], repeat=4))[1:])
def test_gradients_that_are_asked_for_do_not_depend_on_the_others(
    backend: str, cell: str, needed: tuple[bool, ...]
) -> None:
    """x, hx, weights and biases, each asked for or not, in every combination."""
    spec = Spec(cell, 3, 4)
    problem = testing.random_problem(spec, 4, 2)
    assert problem.hx is not None
    want = testing.truth(problem).gradients
    named = {"x": problem.x}
    named |= {f"hx[{i}]": state for i, state in enumerate(problem.hx)}
    named |= {f"weights[{i}]": weight for i, weight in enumerate(problem.weights)}
    kinds = dict(zip(("x", "hx", "weights", "biases"), needed, strict=True))

    def asked(name: str) -> bool:
        kind = name.split("[")[0]
        return kinds["biases" if name in ("weights[2]", "weights[3]") else kind]

    leaves = {name: t.clone().requires_grad_(asked(name)) for name, t in named.items()}
    hx = tuple(leaves[f"hx[{i}]"] for i in range(len(problem.hx)))
    output, final = calls.run(
        spec, leaves["x"], hx if len(hx) == 2 else hx[0],
        [leaves[f"weights[{i}]"] for i in range(4)], batch_first=False, dropout=0.0,
        training=True, backend=backend,
    )  # fmt: skip
    outputs = (output, *final) if isinstance(final, tuple) else (output, final)
    generator = torch.Generator().manual_seed(0)
    upstream = [torch.randn(o.shape, generator=generator, dtype=torch.float64) for o in outputs]
    wanted = [name for name in leaves if asked(name)]
    got = torch.autograd.grad(outputs, [leaves[name] for name in wanted], upstream)
    for name, gradient in zip(wanted, got, strict=True):
        torch.testing.assert_close(gradient, want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.backends("reference")
@pytest.mark.parametrize("used", [(0,), (1,), (2,), (0, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("spec", [Spec("lstm", 3, 4), Spec("lstm", 3, 4, 2, 2, True, True)])
def test_backward_through_only_some_outputs(
    backend: str, spec: Spec, used: tuple[int, ...]
) -> None:
    """An output that nobody used counts as a gradient of zero."""
    problem = testing.random_problem(spec, 5, 2)
    leaves = [weight.clone().requires_grad_() for weight in problem.weights]

    def outputs(name: str) -> list[torch.Tensor]:
        output, (h_n, c_n) = functional.lstm(
            problem.x, problem.hx, leaves, num_layers=spec.num_layers,
            bidirectional=spec.bidirectional, training=True, backend=name,
        )  # fmt: skip
        return [(output, h_n, c_n)[i].square().sum() for i in used]

    got = torch.autograd.grad(sum(outputs(backend)), leaves, allow_unused=True)
    want = torch.autograd.grad(sum(outputs("aten")), leaves, allow_unused=True)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(torch.zeros_like(w) if g is None else g, w)


@pytest.mark.backends("reference")
@pytest.mark.filterwarnings(ONEDNN)
@pytest.mark.parametrize("spec", specs(), ids=spec_id)
def test_packed_equals_numpy_and_torch(oracle: ModuleType, backend: str, spec: Spec) -> None:
    lengths = [6, 4, 1]
    problem = testing.random_problem(spec, 6, 3)
    packed = torch.nn.utils.rnn.pack_padded_sequence(problem.x, torch.tensor(lengths))
    hx = problem.hx if spec.has_cell_state else problem.hx[0]
    results = {}
    backends = [backend] if spec.cell == "rnn_sigmoid" else [backend, "aten"]
    for name in backends:
        leaves = [weight.clone().requires_grad_() for weight in problem.weights]
        output, final = calls.run(
            spec, packed, hx, leaves, batch_first=False, dropout=0.0, training=True,
            backend=name,
        )  # fmt: skip
        outputs = (output.data, *final) if isinstance(final, tuple) else (output.data, final)
        gradients = torch.autograd.grad(sum(o.square().sum() for o in outputs), leaves)
        results[name] = (*outputs, *gradients)
    padded, *states = numpy_result(oracle, problem, lengths)
    output = torch.nn.utils.rnn.pack_padded_sequence(
        torch.from_numpy(padded), torch.tensor(lengths)
    )
    want = (output.data, *map(torch.from_numpy, states))
    for g, w in zip(results[backend][: len(want)], want, strict=True):
        torch.testing.assert_close(g, w, rtol=0, atol=1e-13)
    if "aten" in results:
        for g, w in zip(results[backend], results["aten"], strict=True):
            torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-13)


@pytest.mark.backends("reference")
def test_stored_value_keeps_its_gradient_for_5000_steps(backend: str) -> None:
    """Row S3: keep = 1, write = 0, read = 0 stores 4.2, and its gradient stays 1."""
    big = 1e4  # sigmoid(1e4) is exactly 1 and sigmoid(-1e4) exactly 0
    bias = torch.tensor([-big, big, 0.0, -big], dtype=torch.float64)
    weights = [torch.zeros(4, 1, dtype=torch.float64), torch.zeros(4, 1, dtype=torch.float64)]
    weights += [bias, torch.zeros(4, dtype=torch.float64)]
    c0 = torch.full((1, 1, 1), 4.2, dtype=torch.float64, requires_grad=True)
    x = torch.randn(5000, 1, 1, dtype=torch.float64)
    _, (_, c_n) = functional.lstm(
        x, (torch.zeros_like(c0), c0), weights, training=True, backend=backend
    )
    assert c_n.item() == 4.2
    assert torch.autograd.grad(c_n, c0)[0].item() == 1.0


@pytest.mark.backends("reference", "aten")
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh", "rnn_relu"])
def test_nan_comes_out_where_torch_has_it(cell: str, backend: str) -> None:
    """A NaN in one row at one step: that row from then on, and nothing else."""
    problem = testing.random_problem(Spec(cell, 3, 4), 6, 3)
    problem.x[2, 1, 0] = float("nan")
    output = testing.run(problem, backend=backend, gradients=False).output
    want = torch.zeros(6, 3, 4, dtype=torch.bool)
    want[2:, 1] = True
    assert torch.equal(output.isnan(), want)


@pytest.mark.backends("reference")
@pytest.mark.parametrize("cell", CELLS)
def test_huge_inputs_saturate_without_nan(backend: str, cell: str) -> None:
    problem = testing.random_problem(Spec(cell, 3, 4), 6, 3)
    problem.x.copy_(torch.where(problem.x > 0, 1e4, -1e4))
    got = testing.run(problem, backend=backend)
    assert all(not tensor.isnan().any() for tensor in (got.output, *got.states))
    assert all(not gradient.isnan().any() for gradient in got.gradients.values())


@pytest.mark.backends("reference", "aten")
def test_same_bits_on_every_run(backend: str) -> None:
    problem = testing.random_problem(
        Spec("rnn_tanh", 8, 33, 0, 2, True, True), 17, 5, dtype=torch.float32
    )
    first = testing.run(problem, backend=backend)
    for _ in range(5):
        again = testing.run(problem, backend=backend)
        assert torch.equal(first.output, again.output)
        for name, gradient in first.gradients.items():
            assert torch.equal(gradient, again.gradients[name]), name
