"""Recurrent dropout and zoneout on a real GPU, against layers written out in float64.

Run by `make gpu-check`; see test_gpu_regimes.py.
"""

import os

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") == "1":
    pytest.skip("runs on a GPU: run without TRITON_INTERPRET", allow_module_level=True)

from fastrnn.testing.layer_cases import LayerCase, assert_layer_true
from fastrnn.testing.subjects import Subject
from fastrnn_kernels.plan import REGIMES
from gpu_cases import DEVICE, on_gpu, skip_where_impossible
from regulariser_cases import CHOICES, asked

pytestmark = on_gpu


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("marked", [False, True], ids=["plain", "marked"])
@pytest.mark.parametrize("choice", ["recurrent_dropout", "zoneout", "all"])
@pytest.mark.parametrize(
    ("cell", "T", "B", "H", "dtype"),
    [
        ("lstm", 17, 20, 64, torch.bfloat16),
        ("lstm", 40, 3, 33, torch.float32),
        ("lstm", 5, 40, 512, torch.float16),
        ("rnn_tanh", 17, 17, 100, torch.bfloat16),
        ("rnn_relu", 3, 33, 256, torch.float32),
    ],
    ids=str,
)
def test_layers_with_the_same_masks(cell, T, B, H, dtype, choice, marked, regime, only):
    subject = type("Typed", (Subject,), {"dtype": dtype})("triton", DEVICE)
    # two groups: the second one runs backwards
    both = ("forward", "backward")
    skip_where_impossible(regime, cell, B, H, 2, dtype, subject.precision(), both)
    only(regime)
    case = LayerCase(
        cell, T, B, H=H, lengths=marked, resets=marked, options=asked(cell, **CHOICES[choice])
    )
    assert_layer_true(subject, case)
