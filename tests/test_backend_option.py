"""`pytest --backend=NAME`: this project's parity tests through any backend."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def parity(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", *arguments],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_parity_runs_through_the_backend_that_is_named() -> None:
    """As an argument of tests that take one, and where a call leaves the choice."""
    files = (f"tests/test_{name}.py" for name in ("parity", "lengths", "resets", "all_states"))
    code, text = parity(
        *files, "--backend=aten", "-k", "nan_comes_out or huge_inputs or test_autocast"
    )
    assert code == 0, text
    for cell in ("lstm", "rnn_tanh", "rnn_relu"):
        assert f"test_nan_comes_out_where_torch_has_it[aten-{cell}] PASSED" in text
    assert "[reference" not in text
    for reason in (
        "torch has no rnn_sigmoid", "lengths of padded rows", "resets were given",
        "states of every step",
    ):  # fmt: skip
        assert f"aten: cannot run: {reason}" in text
    assert "6 passed, 4 skipped" in text


def test_unknown_name_is_refused_before_anything_runs() -> None:
    code, text = parity("tests/test_parity.py", "--backend=nobody")
    assert code == 4
    assert "--backend: unknown backend 'nobody'" in text
    assert "collected" not in text
