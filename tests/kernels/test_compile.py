"""Every kernel, compiled for real GPUs on a machine that need not have one.

What the compiler reports is checked: shared memory, registers, spills, vector loads. How fast or
how right the result is takes a GPU to say; `test_interpreter.py` checks the equations.
"""

import json
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles: run without TRITON_INTERPRET", allow_module_level=True)

import triton

from fastrnn_kernels import aot, aot_specs, grid, model, resident, step, step_backward, table
from fastrnn_kernels.configs import TARGET_LIMITS
from fastrnn_kernels.plan import REGIMES

pytestmark = pytest.mark.usefixtures("fresh_cache")

Spec = aot_specs.Spec

GATE = aot_specs.gate()
FIGURES = Path(__file__).parent / "compiled" / f"triton-{triton.__version__}.json"


@pytest.fixture(scope="module")
def recorded():
    if not FIGURES.exists():
        pytest.skip(f"no figures are recorded for Triton {triton.__version__}")
    return json.loads(FIGURES.read_text())


@pytest.mark.parametrize(
    ("target", "spec"), [(target, spec) for target in GATE for spec in GATE[target]], ids=str
)
def test_compiles_within_the_limits_and_as_recorded(target, spec, recorded):
    report = aot.compile_spec(spec, target)
    bound = report.config.shared_memory(spec.problem)
    assert report.shared <= bound <= TARGET_LIMITS[target].shared_memory
    assert report.registers is not None
    assert report.registers <= (512 if target.startswith("gfx") else 255)
    if target == "sm_90":
        assert report.spilled == 0
    assert report.figures() == recorded[target][str(spec)], (
        "what is compiled changed; if for the better, record it: "
        f"python -m fastrnn_kernels.aot --record {FIGURES.relative_to(FIGURES.parents[3])}"
    )


def test_recorded_figures_are_those_of_the_gate(recorded):
    assert recorded.keys() == GATE.keys()
    for target, figures in recorded.items():
        assert figures.keys() == {str(spec) for spec in GATE[target]}
        spilling = {name: row["spilled"] for name, row in figures.items() if row["spilled"]}
        assert not spilling or target != "sm_90"
        assert any("grid" in name for name in figures) == target.startswith("sm")
        assert any("resident" in name for name in figures)


@pytest.mark.parametrize(
    ("spec", "exchanges"),
    [
        (Spec("lstm", "forward", "fp32", 512, 16, "tf32", regime="grid"), 1),
        (Spec("rnn_tanh", "forward", "fp32", 512, 16, "tf32", regime="grid"), 1),
        (Spec("lstm", "backward", "fp32", 192, 16, "tf32", regime="grid"), 1),
        (Spec("rnn_tanh", "backward", "bf16", 512, 16, regime="grid"), 1),
        (Spec("lstm", "backward", "bf16", 1024, 16, regime="grid"), 2),
        (Spec("rnn_tanh", "backward", "bf16", 2048, 256, regime="grid"), 2),
    ],
    ids=str,
)
def test_grid_waits_before_it_loads_and_stores_before_it_arrives(spec, exchanges):
    report = aot.compile_spec(spec, "sm_90")
    assert (report.blocks.get("SPLITS", 1) > 1) == (exchanges == 2)
    assert "cp.async" not in report.asm, "loaded ahead of the wait"
    assert report.asm.count("ld.acquire.gpu") == 2 * exchanges, "the first poll and the loop"
    # The blocks that the polling ends in, each from its label to the next.
    blocks = re.split(r"^\$L__BB\d+_\d+:", report.asm, flags=re.MULTILINE)
    blocks = [block for block in blocks if "ld.global.cg" in block]
    assert len(blocks) == exchanges
    for block in blocks:
        found = re.findall(r"\s(ld\.global\.cg|bar\.sync|atom\.\S*release|st\.global)", block)
        assert found[0] == "bar.sync", "all threads wait for the one that polls"
        release = next(n for n, what in enumerate(found) if what.startswith("atom"))
        before = [what for what in found[:release] if what != "bar.sync"]
        loads = before.count("ld.global.cg")
        assert before[:loads] == ["ld.global.cg"] * loads
        assert set(before[loads:]) == {"st.global"}, "what is exchanged is read, then stored"
        assert found[release - 1] == "bar.sync", "arrives when all threads have stored it"


def test_grid_reads_nothing_twice_but_what_is_new():
    spec = Spec("lstm", "forward", "bf16", 512, regime="grid")
    _, loop = aot.compile_spec(spec, "sm_90").asm.split("Loop Header: Depth=1", maxsplit=1)
    # Four gates of gates_x, and c from one of two places; W_hh stays where it is.
    assert len(re.findall(r"\sld\.global\.(?!cg)", loop)) == 6


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.skipif(not triton.__version__.startswith("3.7"), reason="counted in Triton 3.7's")
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh"])
def test_barriers_of_a_step_are_those_of_the_model(cell, regime, direction):
    spec = Spec(cell, direction, "bf16", 64 if regime == "resident" else 512, regime=regime)
    report = aot.compile_spec(spec, "sm_90")
    text = report.asm
    if regime == "resident":  # beside the loop over time are others
        label = re.search(r"^(\$L__BB\d+_\d+):.*Loop Header", text, flags=re.MULTILINE)
        text = text[label.start() : re.search(rf"bra\S* \t?{re.escape(label[1])};", text).end()]
    exchanges = 0 if regime != "grid" else 2 if report.blocks.get("SPLITS", 1) > 1 else 1
    assert text.count("bar.sync") - 2 * exchanges == model.barriers(regime, spec.problem)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_float64_compiles(direction):
    assert aot.compile_spec(Spec("lstm", direction, "fp64", 20), "sm_90").spilled == 0


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_pointers_from_a_table_cost_no_vector_loads(direction):
    def accesses(from_table):
        spec = Spec("lstm", direction, "bf16", 512, from_table=from_table)
        text = aot.compile_spec(spec, "sm_90").asm
        access = r"(?:ld|st)\.global\S*|cp\.async\.c\w\S* \[[^]]*\], \[[^]]*\], \S+"
        found = re.findall(access, text)
        # The scalar 64-bit loads are the table's.
        return sorted(re.sub(r"\[[^]]*\]", "[]", a) for a in found if a != "ld.global.b64")

    direct = accesses(from_table=False)
    assert accesses(from_table=True) == direct
    assert any("0x10" in a for a in direct), "16-byte copies of weights into shared memory"


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize(
    ("regime", "dtype", "H"),
    [("grid", "bf16", 512), ("grid", "fp32", 512), ("resident", "bf16", 64), ("step", "bf16", 512)],
)
def test_marks_leave_products_their_matrix_loads(regime, dtype, H, direction):
    spec = Spec("lstm", direction, dtype, H, precision="tf32", regime=regime)
    plain, marked = (
        aot.compile_spec(replace(spec, marked=is_marked), "sm_90").asm.count("ldmatrix")
        for is_marked in (False, True)
    )
    assert 0 < plain <= marked


def test_waits_are_bounded_in_debug_mode_only():
    spec = Spec("lstm", "forward", "bf16", 64, regime="grid")
    message = "waited too long"
    encoded = ", ".join(str(ord(letter)) for letter in message)

    def bounded(debug):
        return encoded in aot.compile_spec(spec, "sm_90", debug=debug).asm

    assert bounded(debug=True)
    assert not bounded(debug=False)


def test_tf32_is_used_where_asked_and_nowhere_else():
    for precision, expected in (("ieee", False), ("tf32", True), ("tf32x3", True)):
        spec = Spec("lstm", "forward", "fp32", 128, precision=precision)
        assert ("tf32" in aot.compile_spec(spec, "sm_90").asm) is expected


@pytest.mark.parametrize(
    "kernel",
    [
        step.forward_kernel,
        step_backward.backward_kernel,
        grid.forward_grid,
        resident.forward_resident,
        table.forward_from_table,
        table.backward_from_table,
        table.fill_table,
        table.advance_table,
    ],
    ids=lambda kernel: kernel.fn.__name__,
)
def test_no_run_time_number_is_specialised_on(kernel):
    # Tensors come first; their alignment is all that Triton may look at.
    names = [parameter.name for parameter in kernel.params]
    tensors = names[: names.index("T")] if "T" in names else ["table"]
    for parameter in kernel.params:
        if not parameter.is_constexpr and parameter.name not in tensors:
            assert parameter.do_not_specialize, parameter.name


def test_command_line_prints_a_row_per_kernel(capsys):
    assert aot.main(["--target", "sm_90", "--match", "rnn_relu-forward-bf16-H70-B16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("sm_90, Triton ")
    assert [line.split()[0] for line in lines[2:]] == [
        "rnn_relu-forward-bf16-H70-B16-step",
        "rnn_relu-forward-bf16-H70-B16-table",
        "rnn_relu-forward-bf16-H70-B16-resident",
        "rnn_relu-forward-bf16-H70-B16-grid",
    ]


def test_command_line_counts_what_fails(capsys, monkeypatch):
    def fail(spec, target):
        raise RuntimeError("no compiler today")

    monkeypatch.setattr(aot, "compile_spec", fail)
    assert aot.main(["--match", "rnn_relu-forward-bf16-H70-B16"]) == 4
    assert "RuntimeError: no compiler today" in capsys.readouterr().out
