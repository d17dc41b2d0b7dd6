"""Recurrent dropout and zoneout in every regime, in Triton's interpreter.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_regularisers.py``; see
test_interpreter.py.
"""

import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_regularisers.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from cell_cases import gradients, leaves_of, run
from fastrnn import testing
from fastrnn.options import Options
from fastrnn.plugins import registry
from fastrnn.request import Spec
from fastrnn.testing.layer_cases import LayerCase, assert_layer_true
from fastrnn.testing.subjects import Subject
from fastrnn_kernels import Noise
from fastrnn_kernels.plan import REGIMES
from fenced_memory import Fence
from interpreter_cases import BF16, F16, F32, F64, TILES
from regulariser_cases import CHOICES, asked
from written_out import assert_equal_written_out, random_resets

pytestmark = pytest.mark.usefixtures("poisoned", "no_graphs")


def subject_of(dtype):
    """The backend, asked for layers of this dtype and not of the most exact one."""
    return type("Typed", (Subject,), {"dtype": dtype})("triton")


@pytest.mark.parametrize("regime", TILES, indirect=True)
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize(
    ("choice", "cell", "T", "B", "H", "dtype"),
    [
        ("all", "lstm", 4, 3, 18, F64),
        ("recurrent_dropout", "lstm", 2, 17, 5, F32),
        ("zoneout", "lstm", 3, 2, 20, BF16),
        ("zoneout of h", "lstm", 3, 2, 5, F32),
        ("zoneout of c", "lstm", 1, 1, 18, F16),
        ("all", "rnn_tanh", 4, 3, 18, F64),
        ("recurrent_dropout", "rnn_relu", 3, 17, 3, F16),
        ("zoneout", "rnn_sigmoid", 1, 2, 20, F32),
        ("zoneout", "rnn_tanh", 3, 1, 5, BF16),
    ],
)
def test_layers_with_the_same_masks(cell, T, B, H, dtype, choice, marked, regime):
    case = LayerCase(
        cell,
        T,
        B,
        H=H,
        lengths=marked,
        resets=marked and T > 1,
        options=asked(cell, **CHOICES[choice]),
    )
    assert_layer_true(subject_of(dtype), case)


@pytest.mark.parametrize("regime", TILES, indirect=True)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_shares_of_states_in_eval_mode(cell, regime):
    """What is between kept and not: gradients need what the cell made."""
    assert_equal_written_out(
        Spec(cell, 2, 3, bidirectional=True), 4, 2, lengths=[4, 2], backend="triton",
        options=asked(cell, zoneout=(0.3, 0.2)), training=False,
    )  # fmt: skip


@pytest.mark.parametrize("regime", TILES, indirect=True)
@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    cell=st.sampled_from(["lstm", "rnn_tanh", "rnn_relu", "rnn_sigmoid"]),
    bidirectional=st.booleans(),
    layers=st.integers(1, 2),
    lengths=st.none() | st.lists(st.integers(0, 4), min_size=2, max_size=2).filter(any),
    resets=st.booleans(),
    recompute=st.sampled_from([0, 0, 1, 3]),
    final_only=st.booleans(),
    all_states=st.booleans(),
    recurrent_dropout=st.sampled_from([0.0, 0.4, 1.0]),
    zoneout=st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 2),
    error_clip=st.sampled_from([0.0, 0.02]),
    training=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_equal_a_loop_with_whatever_else_is_asked(
    regime, cell, bidirectional, layers, lengths, resets, training, seed, **how
):
    if resets:
        how["recompute"] = 0
    assert_equal_written_out(
        Spec(cell, 2, 3, 0, layers, True, bidirectional), 4, 2, lengths=lengths,
        resets=random_resets(4, 2) if resets else None, options=asked(cell, **how),
        training=training, seed=seed, backend="triton",
    )  # fmt: skip


@pytest.mark.parametrize("regime", TILES, indirect=True)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize(("cell", "zoneout"), [("gru", (0.3, 0.0)), ("peephole_lstm", (0.3, 0.4))])
def test_cells_of_plugins(cell, zoneout, training, regime):
    """Also the gradient of a cell's own weights, which is made of c before some is kept back."""
    spec = Spec(cell, 3, 18, bidirectional=True)
    options = Options(recurrent_dropout=0.4, zoneout=zoneout)
    x, hx, weights = leaves_of(spec, 4, 3)
    how = {"lengths": torch.tensor([4, 0, 3]), "resets": random_resets(4, 3)}
    results = []
    for backend in ("triton", "reference"):
        torch.manual_seed(0)
        made = run(spec, x, hx, weights, backend, options=options, training=training, **how)
        results.append([*made, *gradients(made, [x, *hx, *weights])])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def arguments(cell, T=3, B=2, H=5, dtype=F32):
    """Of `forward`, and every kind of noise that the cell can have."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.rand(shape, generator=generator).to(dtype)

    stateful = cell == "lstm"
    G, K = 2, 4 if stateful else 1
    noise = Noise(
        2 * draw(G, B, H).round(), draw(T, B, G, H), draw(T, B, G, H) if stateful else None
    )
    states = (draw(G, B, H), draw(G, B, H) if stateful else None)
    return (cell, draw(T, B, G, K * H), draw(G, K * H, H) - 0.5, *states), noise


def both_ways(given, noise, **how):
    made = kernels.forward(*given, noise=noise, save=True, **how)
    cell, _, weight_hh, _, c0 = given
    back = kernels.backward(
        cell, weight_hh, made.output, made.gates, made.cells, c0, noise=noise, made=made.made,
        d_output=torch.ones_like(made.output), d_h_n=torch.ones_like(made.h_n), **how,
    )  # fmt: skip
    return made, back


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("ends", [False, True])
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_nothing_beyond_the_tensors_is_read(cell, ends, regime, monkeypatch):
    (given, noise), how = arguments(cell), {"regime": regime}
    if ends:
        how |= {"lengths": torch.tensor([3, 1]), "resets": random_resets(3, 2)}
    Fence(monkeypatch)
    both_ways(given, noise, **how)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_masks_of_any_strides(cell):
    """In eval mode zoneout is one number, expanded."""
    given, noise = arguments(cell)
    noise = noise._replace(zoneout_h=torch.full((), 0.25).expand_as(noise.zoneout_h))
    want = both_ways(given, Noise(*(m if m is None else m.clone() for m in noise)))
    noise = noise._replace(recurrent_mask=noise.recurrent_mask.mT.contiguous().mT)
    got = both_ways(given, noise)
    for results, expected in zip(got, want, strict=True):
        for one, other in zip(results, expected, strict=True):
            assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("launch", ["direct", "graph"])
def test_one_call_is_not_taken_for_another(launch):
    """Each kind of noise is a kernel, and a graph, of its own."""
    given, noise = arguments("lstm")
    kinds = [Noise(), noise, *(Noise(**{name: m}) for name, m in noise._asdict().items())]
    found = [both_ways(given, kind, launch=launch)[1].d_gates for kind in kinds]
    for number, one in enumerate(found):
        assert not any(torch.equal(one, other) for other in found[:number])


def test_what_is_saved_is_what_was_said():
    """torch.compile allocates what `saved_like` says."""
    backend = registry().backends["triton"]
    for cell, zoneout, all_states in (
        ("lstm", (0.0, 0.0), True), ("lstm", (0.3, 0.0), False), ("lstm", (0.3, 0.3), False),
        ("lstm", (0.0, 0.3), True), ("rnn_tanh", (0.0, 0.0), False), ("rnn_tanh", (0.3, 0.0), True),
    ):  # fmt: skip
        case = LayerCase(cell, options=Options(zoneout=zoneout, all_states=all_states))
        layer = case.layer(F32, "cpu")
        said, saved = backend.saved_like(layer), backend.layer_forward(layer).saved
        assert [each.shape for each in said] == [each.shape for each in saved]
        assert len(saved) == (cell == "lstm") * (2 - all_states) + (zoneout[cell == "lstm"] > 0)


@pytest.mark.parametrize(
    ("cell", "change", "message"),
    [
        ("lstm", {"recurrent_mask": torch.ones(2, 3, 5)}, r"recurrent_mask: expected shape \(2, 2"),
        (
            "lstm",
            {"zoneout_h": torch.ones(3, 2, 2, 4)},
            r"zoneout_h: expected shape \(3, 2, 2, 5\)",
        ),
        ("lstm", {"zoneout_c": torch.ones(3, 2, 2, 5, dtype=F64)}, "zoneout_c: expected torch.flo"),
        ("rnn_tanh", {"zoneout_c": torch.ones(3, 2, 2, 5)}, "zoneout_c: expected None, rnn_tanh"),
    ],
)
def test_what_masks_cannot_be(cell, change, message):
    given, noise = arguments(cell)
    made, _ = both_ways(given, noise)
    wrong = noise._replace(**change)
    with pytest.raises(ValueError, match=f"^{message}"):
        kernels.forward(*given, noise=wrong)
    saved = (given[2], made.output, made.gates, made.cells, given[4])
    with pytest.raises(ValueError, match=f"^{message}"):
        kernels.backward(cell, *saved, noise=wrong, made=made.made)


def test_what_was_made_is_asked_for_where_it_is_needed_and_nowhere_else():
    given, noise = arguments("lstm")
    made, _ = both_ways(given, noise)
    saved = ("lstm", given[2], made.output, made.gates, made.cells, given[4])
    with pytest.raises(ValueError, match=r"^made: expected a tensor of shape .*, got None"):
        kernels.backward(*saved, noise=noise)
    with pytest.raises(ValueError, match=r"^made: expected None where nothing of it was kept back"):
        kernels.backward(*saved, noise=Noise(zoneout_h=noise.zoneout_h), made=made.made)


def test_chained_groups_have_no_noise():
    _, noise = arguments("rnn_tanh")
    x, w, state = torch.ones(3, 2, 1, 5), torch.ones(2, 5, 5), torch.ones(2, 2, 5)
    with pytest.raises(ValueError, match=r"^recurrent_mask: expected None for chained groups"):
        kernels.forward("rnn_tanh", x, w, state, weight_chain=w[1:], noise=noise)


def test_the_dispatcher_lets_triton_run_them():
    request = Subject("triton").request(testing.cases.Case(Spec("lstm", 3, 5)))
    for name in ("recurrent_dropout", "zoneout"):
        assert not Subject("triton").reasons(request._replace(**{name: True}))
