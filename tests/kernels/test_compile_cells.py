"""Kernels of plugins' cells, compiled for an H100, as `test_compile.py` does those of the others.

Where what is compiled changes for the better, record it with `record()` below.
"""

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("compiles: run without TRITON_INTERPRET", allow_module_level=True)

import triton

from fastrnn_cells.gru_kernel import GRU
from fastrnn_cells.peephole_kernel import PEEPHOLE_LSTM
from fastrnn_kernels import aot, aot_specs
from fastrnn_kernels.configs import TARGET_LIMITS

pytestmark = pytest.mark.usefixtures("fresh_cache")

TARGET = "sm_90"
FIGURES = Path(__file__).parent / "compiled" / f"cells-triton-{triton.__version__}.json"
SPECS = [
    aot_specs.Spec(cell, direction, dtype, H, B, precision, from_table, regime, marked=marked)
    for cell in (GRU, PEEPHOLE_LSTM)
    for direction in ("forward", "backward")
    for regime, dtype, H, B, precision, from_table, marked in (
        ("step", "bf16", 1024, 256, "ieee", True, False),
        ("grid", "bf16", 512, 16, "ieee", False, False),
        ("grid", "fp32", 512, 16, "tf32", False, True),
        ("resident", "bf16", 64, 16, "ieee", False, False),
    )
]


@pytest.fixture(scope="module")
def recorded():
    if not FIGURES.exists():
        pytest.skip(f"no figures are recorded for Triton {triton.__version__}")
    return json.loads(FIGURES.read_text())[TARGET]


def record():
    aot.record(FIGURES, {TARGET: SPECS})


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_compiles_within_the_limits_and_as_recorded(spec, recorded):
    report = aot.compile_spec(spec, TARGET)
    bound = report.config.shared_memory(spec.problem)
    assert report.shared <= bound <= TARGET_LIMITS[TARGET].shared_memory
    assert report.registers <= 255
    assert report.spilled == 0
    assert report.figures() == recorded[str(spec)]
