"""What is refused of layers that run at the same time, and with which words.

``TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_chain_arguments.py``; see
test_interpreter.py.
"""

import os
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip(
        "run by: TRITON_INTERPRET=1 pytest tests/kernels/test_interpreter_chain_arguments.py",
        allow_module_level=True,
    )

import fastrnn_kernels as kernels
from interpreter_cases import GRID, SHARED, SMALL

T, B, G, H, K = 3, 2, 3, 5, 4
FORWARD = {
    "cell": "lstm",
    "gates_x": torch.zeros(T, B, 1, K * H),
    "weight_hh": torch.zeros(G, K * H, H),
    "h0": torch.zeros(G, B, H),
    "c0": torch.zeros(G, B, H),
    "weight_chain": torch.zeros(G - 1, K * H, H),
    "bias_chain": torch.zeros(G - 1, K * H),
}
BACKWARD = {
    "cell": "lstm",
    "weight_hh": torch.zeros(G, K * H, H),
    "output": torch.zeros(T, B, G, H),
    "gates": torch.zeros(T, B, G, K * H),
    "cells": torch.zeros(T, B, G, H),
    "c0": torch.zeros(G, B, H),
    "weight_chain": torch.zeros(G - 1, K * H, H),
    "d_output": torch.zeros(T, B, 1, H),
}
BOTH = {
    r"weight_chain: expected shape \(2, 20, 5\), got \(3, 20, 5\)": {
        "weight_chain": torch.zeros(3, 20, 5)
    },
    r"weight_chain: expected shape \(2, 20, 5\), got \(2, 5, 20\)": {
        "weight_chain": torch.zeros(2, 5, 20)
    },
    "weight_chain: expected a contiguous tensor, got strides": {
        "weight_chain": torch.zeros(2, 5, 20).mT
    },
    "weight_chain: expected torch.float32 on cpu, got torch.float16": {
        "weight_chain": torch.zeros(2, 20, 5).half()
    },
    r"reverse: expected one direction for chained groups, got \[True, False, False\]": {
        "reverse": [True, False, False]
    },
    "reverse: expected 3 directions, one a group, got 1": {"reverse": [True]},
    "regime: expected 'grid' for chained groups, got 'step'": {"regime": "step"},
    "regime: expected 'grid' for chained groups, got 'resident'": {"regime": "resident"},
    "config: expected one of the regime 'grid', got StepConfig": {"config": SMALL},
    "config: expected one of the regime 'grid', got ResidentConfig": {
        "config": kernels.ResidentConfig(16, 16)
    },
    "launch: expected 'auto' in the regime 'grid', got 'graph'": {"launch": "graph"},
    "launch: expected 'auto' in the regime 'grid', got 'direct'": {"launch": "direct"},
}
FORWARD_ONLY = {
    r"gates_x: expected \(T, B, 1, K\*H\) and weight_hh \(G, K\*H, H\) for chained groups, got "
    r"\(3, 2, 3, 20\) and \(3, 20, 5\)": {"gates_x": torch.zeros(T, B, G, K * H)},
    r"gates_x: expected \(T, B, 1, K\*H\) .* got \(3, 2, 1, 20\) and \(20, 5\)": {
        "weight_hh": torch.zeros(K * H, H)
    },
    r"weight_hh: expected shape \(3, 20, 5\), got \(3, 20, 6\)": {
        "weight_hh": torch.zeros(G, K * H, H + 1)
    },
    r"h0: expected shape \(3, 2, 5\), got \(1, 2, 5\)": {"h0": torch.zeros(1, B, H)},
    r"c0: expected shape \(3, 2, 5\), got \(1, 2, 5\)": {"c0": torch.zeros(1, B, H)},
    r"bias_chain: expected shape \(2, 20\), got \(3, 20\)": {"bias_chain": torch.zeros(3, 20)},
    "bias_chain: expected a contiguous tensor": {"bias_chain": torch.zeros(20, 2).mT},
    "bias_chain: expected torch.float32 on cpu, got torch.float64": {
        "bias_chain": torch.zeros(2, 20).double()
    },
    "bias_chain: expected None without weight_chain, got a tensor": {
        "gates_x": torch.zeros(T, B, G, K * H),
        "weight_chain": None,
    },
    "keep_output: expected True for chained groups": {"keep_output": False},
    "config.splits: expected 1 in a forward pass, got 2": {"config": replace(SHARED, block_h=4)},
}
BACKWARD_ONLY = {
    r"d_output: expected shape \(3, 2, 1, 5\), got \(3, 2, 3, 5\)": {
        "d_output": torch.zeros(T, B, G, H)
    },
    r"d_h_n: expected shape \(3, 2, 5\), got \(1, 2, 5\)": {"d_h_n": torch.zeros(1, B, H)},
    r"d_c_n: expected shape \(3, 2, 5\), got \(1, 2, 5\)": {"d_c_n": torch.zeros(1, B, H)},
}


@pytest.mark.parametrize(("message", "change"), BOTH.items(), ids=BOTH)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_both_name_the_argument_at_fault(direction, message, change):
    good = FORWARD if direction == "forward" else BACKWARD
    with pytest.raises(ValueError, match=message):
        getattr(kernels, direction)(**(good | change))


@pytest.mark.parametrize(("message", "change"), FORWARD_ONLY.items(), ids=FORWARD_ONLY)
def test_forward_names_the_argument_at_fault(message, change):
    with pytest.raises(ValueError, match=message):
        kernels.forward(**(FORWARD | change))


@pytest.mark.parametrize(("message", "change"), BACKWARD_ONLY.items(), ids=BACKWARD_ONLY)
def test_backward_names_the_argument_at_fault(message, change):
    with pytest.raises(ValueError, match=message):
        kernels.backward(**(BACKWARD | change))


def test_one_group_is_no_chain():
    w, s, none = torch.zeros(1, K * H, H), torch.zeros(1, B, H), torch.zeros(0, K * H, H)
    with pytest.raises(ValueError, match="weight_chain: expected at least two groups, got 1"):
        kernels.forward("lstm", FORWARD["gates_x"], w, s, s, weight_chain=none)
    y, gates = torch.zeros(T, B, 1, H), torch.zeros(T, B, 1, K * H)
    with pytest.raises(ValueError, match="weight_chain: expected at least two groups, got 1"):
        kernels.backward("lstm", w, y, gates, y, s, weight_chain=none)


def test_what_is_given_above_is_right_but_for_the_change():
    made = kernels.forward(**FORWARD, regime="grid", config=replace(GRID, block_h=8))
    assert made.output.shape == (T, B, G, H)
    back = kernels.backward(**BACKWARD, regime="grid", config=GRID)
    assert back.d_gates.shape == (T, B, G, K * H)
