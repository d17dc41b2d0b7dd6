"""Cells of plugins, fused, on a real GPU against the reference in float64.

Run by `make gpu-check`; see test_gpu_regimes.py.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

from fastrnn import testing
from fastrnn.precision import float32_precision
from fastrnn.request import Spec
from fastrnn_kernels.plan import REGIMES
from fastrnn_triton.cells import kernel_cell
from gpu_cases import DEVICE, on_gpu, skip_where_impossible

pytestmark = on_gpu


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize(
    ("T", "B", "H", "dtype", "bidirectional"),
    [
        (17, 20, 64, torch.bfloat16, True),
        (40, 3, 33, torch.float32, True),
        (5, 40, 512, torch.float16, False),
        (1, 17, 70, torch.float32, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("cell", ["gru", "peephole_lstm"])
def test_parity(cell, T, B, H, dtype, bidirectional, regime, only):
    groups = 2 if bidirectional else 1
    precision = float32_precision()  # as the backend is asked for
    both = ("forward", "backward")
    skip_where_impossible(regime, kernel_cell(cell), B, H, groups, dtype, precision, both)
    spec = Spec(cell, 16, H, num_layers=2, bidirectional=bidirectional)
    problem = testing.random_problem(spec, T, B, dtype=dtype, device=DEVICE)
    only(regime)
    got = testing.run(problem, backend="triton")
    testing.assert_close(got, testing.truth(problem), testing.tolerance(dtype, T, precision))
