"""benchmarks/: what the command lines refuse."""

from __future__ import annotations

import pytest
import torch

from benchmarks import exchange, gpu_check, regimes, sanitize


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (exchange, []),
        (regimes, ["--mode", "train", "--out", "x"]),
        (sanitize, ["--out", "x"]),
        (gpu_check, []),
    ],
)
def test_without_a_gpu_the_exit_code_is_1_and_nothing_is_written(
    module, arguments, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert module.main(arguments) == 1
    captured = capsys.readouterr()
    assert "torch sees no CUDA" in captured.err
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (exchange, "--repeats 0", "argument --repeats: expected a positive integer, got '0'"),
        (regimes, "--mode train --out x --part 0/2", "expected I/N with 1 <= I <= N, got '0/2'"),
        (regimes, "--mode train --out x --part 3/2", "expected I/N with 1 <= I <= N, got '3/2'"),
        (regimes, "--mode train --out x --part one", "expected I/N with 1 <= I <= N, got 'one'"),
        (regimes, "--mode train", "argument --out: expected a file, got none"),
        (regimes, "--out x", "the following arguments are required: --mode"),
        (regimes, "--mode both", "argument --mode: invalid choice: 'both'"),
        (gpu_check, "--only tea", "argument --only: invalid choice: 'tea'"),
        (gpu_check, "--jobs 0", "argument --jobs: expected a positive integer, got '0'"),
    ],
)
def test_wrong_arguments(module, arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        module.main(arguments.split())
    assert message in capsys.readouterr().err
