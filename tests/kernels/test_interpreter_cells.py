"""Cells of plugins in the fused kernels, in Triton's interpreter: a GRU, and peepholes.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_cells.py``; see test_interpreter.py.
"""

import importlib
import os
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_cells.py",
        allow_module_level=True,
    )

import fastrnn
import fastrnn_kernels as kernels
from cell_cases import gradients, leaves_of, run
from fastrnn import testing
from fastrnn.options import Options
from fastrnn.request import Spec
from fastrnn_cells.peephole_kernel import PEEPHOLE_LSTM
from interpreter_cases import BF16, F32, F64, TILES

pytestmark = pytest.mark.usefixtures("poisoned", "no_graphs")
BOTH = ("gru", "peephole_lstm")


def ends_of(T, B):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, T + 1, (B,), generator=generator)
    lengths[0], lengths[-1] = 0, T
    return {"lengths": lengths, "resets": torch.rand(T, B, generator=generator) < 0.3}


def both(spec, T, B, dtype, **how):
    """What Triton makes of a problem, and the reference in float64, and the gradients of either."""
    x, hx, weights = leaves_of(spec, T, B, dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, *hx, *weights)]
    got = run(spec, x, hx, weights, "triton", **how)
    states = 1 + len(hx)
    want = run(spec, exact[0], exact[1:states], exact[states:], "reference", **how)
    return (got, gradients(got, [x, *hx, *weights])), (want, gradients(want, exact))


def assert_close(got, want, dtype, T):
    allowed = testing.tolerance(dtype, T)
    for parts, wanted, bound in zip(got, want, (allowed.output, allowed.gradient), strict=True):
        for g, w in zip(parts, wanted, strict=True):
            assert g.dtype == dtype
            size = max(1.0, float(w.detach().abs().max()))
            torch.testing.assert_close(g.double(), w, rtol=0, atol=bound * size)


@pytest.mark.parametrize("regime", TILES, indirect=True)
@pytest.mark.parametrize("ends", [False, True], ids=["equal", "ends"])
@pytest.mark.parametrize(
    ("T", "B", "H", "dtype", "bidirectional"),
    [(3, 3, 18, F64, True), (2, 17, 5, F32, False), (3, 2, 20, BF16, True)],
    ids=["float64", "float32", "bfloat16"],
)
@pytest.mark.parametrize("cell", BOTH)
def test_parity(cell, T, B, H, dtype, bidirectional, ends, regime):
    spec = Spec(cell, 3, H, bidirectional=bidirectional)
    got, want = both(spec, T, B, dtype, **(ends_of(T, B) if ends else {}))
    assert_close(got, want, dtype, T)


@pytest.mark.parametrize("cell", BOTH)
def test_states_of_every_step_and_recompute(cell):
    spec = Spec(cell, 2, 5)
    for options in (Options(all_states=True), Options(recompute=2)):
        got, want = both(spec, 5, 2, F64, options=options)
        assert_close(got, want, F64, 5)


def test_frozen_weights_of_the_cell():
    spec = Spec("peephole_lstm", 2, 5)
    x, hx, weights = leaves_of(spec, 3, 2)
    weights[4].requires_grad_(False)
    leaves = [x, *hx, *weights[:4]]
    got = gradients(run(spec, x, hx, weights, "triton"), leaves)
    want = gradients(run(spec, x, hx, weights, "reference"), leaves)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


@pytest.mark.parametrize("wanted", [False, True])
def test_gates_are_kept_for_the_gradient_of_a_cells_weights(wanted, monkeypatch):
    """And only for that: else gate gradients take their memory."""
    backward, seen = kernels.backward, []

    def spy(*arguments, **how):
        seen.append(how["overwrite"])
        return backward(*arguments, **how)

    monkeypatch.setattr(kernels, "backward", spy)
    spec = Spec("peephole_lstm", 2, 5)
    x, hx, weights = leaves_of(spec, 2, 2)
    weights[4].requires_grad_(wanted)
    run(spec, x, hx, weights, "triton")[0].sum().backward()
    assert seen == [not wanted]


def test_the_clip_of_a_gru():
    got, want = both(Spec("gru", 2, 5), 4, 2, F64, options=Options(error_clip=0.05))
    assert_close(got, want, F64, 4)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, r"cell_weight: expected a tensor of shape \(1, 3, 5\), got None"),
        ({"cell_weight": torch.ones(1, 2, 5)}, r"cell_weight: expected shape \(1, 3, 5\), got"),
    ],
)
def test_wrong_weights_of_a_cell(given, message):
    x, w, state = torch.ones(2, 1, 1, 20), torch.ones(1, 20, 5), torch.ones(1, 1, 5)
    with pytest.raises(ValueError, match=message):
        kernels.forward(PEEPHOLE_LSTM, x, w, state, state, **given)


def test_weights_that_a_cell_has_not():
    x, w, state = torch.ones(2, 1, 1, 20), torch.ones(1, 20, 5), torch.ones(1, 1, 5)
    with pytest.raises(ValueError, match="cell_weight: expected None, lstm has none, got a tensor"):
        kernels.forward("lstm", x, w, state, state, cell_weight=torch.ones(1, 3, 5))


def test_weights_of_a_cell_and_chained_groups():
    x, w, state = torch.ones(2, 1, 1, 20), torch.ones(2, 20, 5), torch.ones(2, 1, 5)
    own = {"cell_weight": torch.ones(2, 3, 5), "weight_chain": torch.ones(1, 20, 5)}
    with pytest.raises(ValueError, match="weight_chain: expected None, peephole_lstm has weights"):
        kernels.forward(PEEPHOLE_LSTM, x, w, state, state, **own)


@pytest.fixture
def light(tmp_path, monkeypatch):
    """The cell that plugins/README.md makes: two gates, no weights, one state."""
    text = (Path(__file__).parents[2] / "plugins" / "README.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text.split("\n## Cells\n")[1], re.DOTALL)
    names = ("my_cells", "my_cells_kernel")
    for name, block in zip(names, blocks, strict=True):
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    fastrnn.register(importlib.import_module("my_cells"))
    yield "ligru"
    fastrnn.unregister("my_cells")
    for name in names:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("regime", TILES, indirect=True)
@pytest.mark.parametrize("ends", [False, True], ids=["equal", "ends"])
def test_the_example_in_words(light, ends, regime):
    spec = Spec(light, 3, 18, bidirectional=True)
    got, want = both(spec, 3, 3, F64, **(ends_of(3, 3) if ends else {}))
    assert_close(got, want, F64, 3)
