"""Layers of plugins' cells on the reference backend: a GRU, an LSTM with peepholes, and others.

The numbers are those of the papers' formulas in NumPy, and of torch.nn where it has the layer
(`test_torch_results.py` has `fastrnn.GRU` in all of its forms).
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, jvp, vmap

import fastrnn
from cell_cases import gradients, leaves_of, numpy_run, run
from derivatives import assert_first, assert_second
from fastrnn import unrolled
from fastrnn.backend import Layer
from fastrnn.cell import Cell, cell_of
from fastrnn.options import Options
from fastrnn.request import Spec

T, B, I, H = 4, 3, 2, 5
RESETS = torch.tensor([[0, 1, 0], [1, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
ENDS = [(None, None), ([4, 0, 2], None), (None, RESETS), ([4, 0, 3], RESETS)]
BOTH = ["gru", "peephole_lstm"]
CLIP = 0.02


def assert_same(got: Any, want: Any) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-11)


def softsign(
    pre: tuple[torch.Tensor, ...], c_prev: torch.Tensor, weights: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.nn.functional.softsign(weights[0] * pre[0] + pre[1]), c_prev


def unbounded(
    pre: tuple[torch.Tensor, ...], c_prev: torch.Tensor, weights: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    c = c_prev.sigmoid() + pre[0] * pre[1] + pre[2]
    return c.sin(), c


class Strange:
    """Cells as no backend knows them: without a state but with a weight, and of three gates."""

    @fastrnn.hookimpl
    def fastrnn_cells(self) -> list[Cell]:
        return [
            Cell("softsign", 2, False, softsign, weights=1),
            Cell("unbounded", 3, True, unbounded),
        ]


@pytest.fixture
def strange() -> Any:
    fastrnn.register(Strange())
    yield ["softsign", "unbounded"]
    fastrnn.unregister("Strange")


@pytest.mark.parametrize(("lengths", "resets"), ENDS)
@pytest.mark.parametrize(("layers", "both", "bias"), [(1, False, True), (2, True, False)])
@pytest.mark.parametrize("cell", BOTH)
def test_follows_the_formulas(
    cell: str, layers: int, both: bool, bias: bool, lengths: Any, resets: Any
) -> None:
    spec = Spec(cell, I, H, 0, layers, bias, both)
    x, hx, weights = leaves_of(spec, T, B)
    how = {"lengths": lengths, "resets": resets}
    assert_same(
        run(spec, x, hx, weights, "reference", **how), numpy_run(spec, x, hx, weights, **how)
    )


def assert_equal_written_out(spec: Spec, training: bool = True, **how: Any) -> None:
    """What is returned, and all gradients, against the layer written out step by step."""
    x, hx, weights = leaves_of(spec, T, B)
    leaves = [x, *hx, *weights]
    torch.manual_seed(0)
    got = run(spec, x, hx, weights, "reference", **how)
    d_got = gradients(got, leaves)
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fastrnn.stack.layer_forward", written_out)
        want = run(spec, x, hx, weights, "reference", **how)
        d_want = gradients(want, leaves)
    assert_same(got, want)
    assert_same(d_got, d_want)


def written_out(layer: Layer, backend: str) -> tuple[Any, ...]:
    output, h_n, *rest = unrolled.run(layer)
    c_n, cells = rest or (None, None)
    return output, h_n, c_n, cells if layer.all_states else None


@pytest.mark.parametrize(("lengths", "resets"), ENDS)
@pytest.mark.parametrize("cell", [*BOTH, "softsign", "unbounded"])
def test_gradients(cell: str, lengths: Any, resets: Any, strange: list[str]) -> None:
    spec = Spec(cell, I, H, num_layers=2, bidirectional=True)
    assert_equal_written_out(spec, lengths=lengths, resets=resets)


@pytest.mark.parametrize(("lengths", "resets"), [ENDS[0], ENDS[3]], ids=["equal", "ends"])
@pytest.mark.parametrize(
    "options",
    [
        Options(all_states=True),
        Options(final_only=True),
        Options(recurrent_dropout=0.5),
        Options(zoneout=(0.3, 0.3)),
        Options(error_clip=CLIP),
        Options(recurrent_dropout=0.2, zoneout=(0.2, 0.2), error_clip=CLIP, all_states=True),
    ],
    ids=["all states", "final only", "recurrent dropout", "zoneout", "clip", "all"],
)
@pytest.mark.parametrize("cell", [*BOTH, "softsign"])
def test_options(cell: str, options: Options, lengths: Any, resets: Any, strange: Any) -> None:
    spec = Spec(cell, I, H, bidirectional=True)
    assert_equal_written_out(spec, lengths=lengths, resets=resets, options=options)


@pytest.mark.parametrize("lengths", [None, [4, 0, 3]])
@pytest.mark.parametrize("cell", [*BOTH, "softsign"])
def test_recompute(cell: str, lengths: Any, strange: Any) -> None:
    spec = Spec(cell, I, H, num_layers=2, bidirectional=True)
    x, hx, weights = leaves_of(spec, T, B)
    made = [
        gradients(run(spec, x, hx, weights, "reference", lengths=lengths, options=options),
                  [x, *hx, *weights])
        for options in (Options(), Options(recompute=3))
    ]  # fmt: skip
    assert_same(*made)


@pytest.mark.parametrize("cell", [*BOTH, "softsign"])
def test_gradcheck(cell: str, strange: Any) -> None:
    spec = Spec(cell, 1, 1, bidirectional=True)
    x, hx, weights = leaves_of(spec, 2, 2)

    def call(x: torch.Tensor, *rest: torch.Tensor) -> Any:
        how = {"lengths": [2, 1], "resets": RESETS[:2, :2]}
        return tuple(run(spec, x, [*rest[: len(hx)]], [*rest[len(hx) :]], "reference", **how))

    leaves = (x, *hx, *weights)
    assert_first(call, leaves)
    assert_second(call, leaves)


def module_of(cell: str, **how: Any) -> nn.Module:
    torch.manual_seed(0)
    if cell == "gru":
        return fastrnn.GRU(I, H, dtype=torch.float64, **how)
    return fastrnn.CellRNN(cell, I, H, dtype=torch.float64, **how)


def flat(made: Any) -> list[torch.Tensor]:
    output, states = made
    return [output, *(states if isinstance(states, tuple) else (states,))]


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("own_weights", [False, True])
@pytest.mark.parametrize("cell", BOTH)
def test_vmap(cell: str, own_weights: bool, backend: str) -> None:
    """Over inputs, and over weights, those of the cell among them: values and gradients."""
    modules = [module_of(cell, bidirectional=True, backend=backend) for _ in range(3)]
    weights = {
        name: torch.stack([m.get_parameter(name).detach() * (1 + i) for i, m in enumerate(modules)])
        for name, _ in modules[0].named_parameters()
    }
    own = {name: each if own_weights else each[0] for name, each in weights.items()}
    x = torch.randn(3, T, B, I, dtype=torch.float64)

    def loss(weights: Any, x: torch.Tensor) -> torch.Tensor:
        return sum(each.square().sum() for each in flat(functional_call(modules[0], weights, (x,))))

    dims = 0 if own_weights else None
    value = vmap(torch.func.grad(loss, argnums=(0, 1)), in_dims=(dims, 0))(own, x)
    for v in range(3):
        one = {name: each[v] if own_weights else each for name, each in own.items()}
        want, d_x = torch.func.grad(loss, argnums=(0, 1))(one, x[v])
        assert_same([value[0][name][v] for name in want], want.values())
        assert_same([value[1][v]], [d_x])


def test_vmap_over_the_weights_of_a_cell_alone() -> None:
    module = module_of("peephole_lstm").requires_grad_(False)
    many = torch.randn(3, 3, H, dtype=torch.float64)
    x = torch.randn(3, T, B, I, dtype=torch.float64)

    def loss(own: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return functional_call(module, {"weight_cell_l0": own}, (x,))[0].square().sum()

    for dims in ((0, 0), (None, 0), (0, None)):
        given = [each if dim == 0 else each[0] for each, dim in zip((many, x), dims, strict=True)]
        got = vmap(torch.func.grad(loss), in_dims=dims)(*given)
        for v in range(3):
            one = [each[v] if dim == 0 else each for each, dim in zip(given, dims, strict=True)]
            torch.testing.assert_close(got[v], torch.func.grad(loss)(*one))


def test_zoneout_of_a_gru_mixes_its_one_state() -> None:
    """The h that a step sees point-wise is the mix, too, not what the cell made."""
    module = module_of("gru", zoneout=0.3, backend="reference").eval()
    cell = nn.GRUCell(I, H, dtype=torch.float64)
    cell.load_state_dict({n.removesuffix("_l0"): w for n, w in module.state_dict().items()})
    x, h = torch.randn(T, B, I, dtype=torch.float64), torch.zeros(B, H, dtype=torch.float64)
    output, h_n = module(x)
    for t in range(T):
        h = 0.3 * h + 0.7 * cell(x[t], h)
        torch.testing.assert_close(output[t], h)
    torch.testing.assert_close(h_n[0], h)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("cell", BOTH)
def test_tangents(cell: str) -> None:
    module = module_of(cell)
    x, direction = torch.randn(2, T, B, I, dtype=torch.float64)
    _, tangent = jvp(lambda x: module(x)[0], (x,), (direction,))
    step = 1e-6
    difference = (module(x + step * direction)[0] - module(x - step * direction)[0]) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cell", BOTH)
def test_compiles_into_one_graph(cell: str) -> None:
    torch.compiler.reset()
    module = module_of(cell, bidirectional=True)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    parameters = list(module.parameters())
    for steps in (T, T + 3):
        x = torch.randn(steps, B, I, dtype=torch.float64)
        got, want = flat(compiled(x)), flat(module(x))
        assert_same(got, want)
        assert_same(gradients(got, parameters), gradients(want, parameters))


@pytest.mark.parametrize("cell", BOTH)
def test_opcheck(cell: str) -> None:
    known, G = cell_of(cell), 2

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=True)

    own = leaf(G, known.weights, H) if known.weights else None
    arguments = (
        leaf(T, B, I), leaf(G, 4 * H, I), leaf(G, 4 * H, H), leaf(G, 4 * H), leaf(G, B, H),
        leaf(G, B, H), None, None, own, torch.tensor([4, 0, 2]), RESETS, None, None, None, cell,
        [False, True], "ieee", 0, False, True, 0.0, False, "reference",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.fastrnn.layer_forward.default, arguments)


def test_gru_functional_and_state_dict() -> None:
    theirs = nn.GRU(I, H, 2, bidirectional=True, batch_first=True)
    ours = fastrnn.GRU(I, H, 2, bidirectional=True, batch_first=True, backend="reference")
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x, h0 = torch.randn(B, T, I), torch.randn(4, B, H)
    weights = list(theirs.parameters())
    how = {"num_layers": 2, "bidirectional": True, "batch_first": True}
    for backend in ("auto", "reference"):
        got = fastrnn.gru(x, h0, weights, backend=backend, **how)
        torch.testing.assert_close(got, theirs(x, h0))
    torch.testing.assert_close(ours(x, h0), theirs(x, h0))
    assert repr(ours) == repr(theirs)[:-1] + ", backend=reference)"


def test_cell_rnn_as_a_function_and_as_a_module() -> None:
    module = fastrnn.CellRNN("peephole_lstm", I, H, 2, bidirectional=True, zoneout=(0.1, 0.2))
    names = [name for name, _ in module.named_parameters()]
    assert names[4:6] == ["weight_cell_l0", "weight_ih_l0_reverse"]
    assert module.weight_cell_l1_reverse.shape == (3, H)
    x = torch.randn(T, B, I)
    got = fastrnn.cell_rnn(
        "peephole_lstm", x, None, list(module.parameters()), num_layers=2, bidirectional=True,
        zoneout=(0.1, 0.2),
    )  # fmt: skip
    torch.testing.assert_close(got, module.eval()(x))
    assert repr(module).startswith("CellRNN(peephole_lstm, 2, 5, num_layers=2")


def test_a_cell_rnn_of_a_known_cell_is_that_layer() -> None:
    x = torch.randn(T, B, I)
    for cell, layer in (("lstm", fastrnn.LSTM(I, H)), ("gru", fastrnn.GRU(I, H))):
        module = fastrnn.CellRNN(cell, I, H)
        module.load_state_dict(layer.state_dict())
        assert all(map(torch.equal, flat(module(x)), flat(layer(x))))


def test_the_state_of_a_gru_is_one_tensor_and_that_of_peepholes_two() -> None:
    x = torch.randn(T, B, I)
    with pytest.raises(ValueError, match="GRU: hx should be one tensor h_0, got tuple"):
        fastrnn.GRU(I, H, backend="reference")(x, (torch.zeros(1, B, H),) * 2)
    module = fastrnn.CellRNN("peephole_lstm", I, H)
    with pytest.raises(ValueError, match="PEEPHOLE_LSTM: hx should be a pair"):
        module(x, (torch.zeros(1, B, H),))
    *_, every = fastrnn.GRU(I, H)(x, return_all_states=True)
    assert every.shape == (1, T, B, H)
    initial = fastrnn.InitialState(module)
    assert initial(B)[1].shape == (1, B, H)


@pytest.mark.parametrize(
    ("error", "message", "make"),
    [
        (ValueError, "cell: got 'ltsm', expected one of lstm, rnn_tanh,",
         lambda: fastrnn.CellRNN("ltsm", 1, 1)),
        (TypeError, "cell should be of type str, got: int", lambda: fastrnn.CellRNN(3, 1, 1)),
        (ValueError, "proj_size argument is only supported for LSTM",
         lambda: fastrnn.GRU(1, 1, proj_size=1)),
        (TypeError, "unexpected keyword argument 'nonlinearity'",
         lambda: fastrnn.GRU(1, 1, nonlinearity="relu")),
        (ValueError, r"expected 3 \(weight_ih, weight_hh, weight_cell for each",
         lambda: fastrnn.cell_rnn("peephole_lstm", torch.zeros(1, 1, 1), None, [], bias=False)),
        (TypeError, "layer should be a fastrnn.RNN, LSTM or GRU, got: CellRNN",
         lambda: fastrnn.Stepper(fastrnn.CellRNN("peephole_lstm", 1, 1))),
        (TypeError, "layer should be a fastrnn.RNN or LSTM, .* got: CellRNN",
         lambda: fastrnn.diagnostics.gradient_flow(fastrnn.CellRNN("gru", 1, 1), None, None)),
    ],
)  # fmt: skip
def test_refusals(error: type[Exception], message: str, make: Any) -> None:
    with pytest.raises(error, match=message):
        make()
