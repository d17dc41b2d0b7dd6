"""The table "us a step" of kernels/README.md is what the model says."""

import re
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="needs Triton (pip install 'fastrnn[triton]')")

from fastrnn_kernels.configs import TARGET_LIMITS, Problem
from fastrnn_kernels.plan import plan

README = Path(__file__).resolve().parents[2] / "kernels" / "README.md"
CELLS = {"LSTM": 4, "RNN tanh": 1}
MODES = {
    "bf16": (torch.bfloat16, "ieee"),
    "fp32 as tf32": (torch.float32, "tf32"),
    "fp32 ieee": (torch.float32, "ieee"),
}


def table():
    """Hidden sizes, and (direction, name, figures) of each row."""
    lines = README.read_text(encoding="utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith("| us a step |"))
    sizes, direction, rows = [int(H) for H in re.findall(r"\d+", lines[start])], "forward", []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        name, *figures = (cell.strip() for cell in line.strip("|").split("|"))
        if name == "**back**":
            direction = "backward"
        else:
            rows.append((direction, name, figures))
    return sizes, rows


SIZES, ROWS = table()


@pytest.mark.parametrize(("direction", "name", "figures"), ROWS, ids=lambda value: str(value)[:30])
def test_row(direction, name, figures):
    cell, mode, B = re.fullmatch(r"(.+?) (bf16|fp32.*), B = (\d+)", name).groups()
    K, (dtype, precision) = CELLS[cell], MODES[mode]
    said = []
    for H in SIZES:
        problem = Problem.of(direction, K, H, int(B), 1, dtype, precision, cell_state=K == 4)
        found = plan(problem, TARGET_LIMITS["sm_90"])
        us = found.estimate.step * 1e6
        figure = f"{us:.2f}" if us < 10 else f"{us:.1f}"
        said.append(f"*{figure}*" if found.config.regime == "step" else figure)
    assert figures == said


def test_the_table_has_both_directions_of_every_row():
    forward, backward = ([n for d, n, _ in ROWS if d == which] for which in ("forward", "backward"))
    assert len(SIZES) == 9
    assert len(forward) == 6
    assert forward == backward
