"""examples/char_lm.py, run small in this process: what it prints, writes and refuses."""

import math

import pytest
import torch

import fastrnn
from scripts import of_their_own, refused, script

SMALL = [
    *("--steps", "6", "--hidden", "16", "--length", "12", "--batch", "4", "--text", "400000"),
    *("--own-steps", "3", "--characters", "40", "--device", "cpu"),
]


@pytest.fixture
def char_lm():
    """The example as a module."""
    with of_their_own():
        yield script("char_lm")


@pytest.fixture
def run(char_lm, tmp_path, capsys):
    """Runs the example with SMALL and more options: (exit status, stdout, stderr)."""

    def run(*options):
        status = char_lm.main([*SMALL, "--out", str(tmp_path / "new" / "curves.png"), *options])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def break_convert(monkeypatch, fault):
    """Let `fault` loose on the LSTM after fastrnn.convert."""
    convert = fastrnn.convert

    def broken(model, **options):
        model = convert(model, **options)
        fault(model.lstm)
        return model

    monkeypatch.setattr(fastrnn, "convert", broken)


@pytest.mark.parametrize("backend", ["auto", "reference", "aten"])
def test_the_two_trainings_agree(run, tmp_path, backend):
    status, out, err = run("--backend", backend)
    assert status == 0, out
    assert out.endswith("the two trainings agree\n")
    assert "bits/char" in out
    assert "tokens/s" in out
    assert "backend: " in out
    assert "  |     def __init__(self" in out
    assert "step 6/6" in err
    assert (tmp_path / "new" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_where_auto_takes_torchs_code_our_own_is_compared_as_well(run):
    with fastrnn.use_backend("aten"):
        status, out, err = run()
    assert status == 0, out
    assert "that is torch's own code, so again with 'rows', 3 steps" in out
    assert "step 3/3" in err


def test_same_seed_same_output(run):
    def timeless(out):
        """Without the speeds, which the clock decides."""
        return [line for line in out.split("\n") if not line.startswith(("torch.nn ", "fastrnn "))]

    first, second, other = run(), run(), run("--seed", "1")
    assert timeless(first[1]) == timeless(second[1])
    assert timeless(first[1]) != timeless(other[1])


def scale_a_gradient(lstm):
    lstm.weight_hh_l0.register_hook(lambda gradient: gradient * 1.001)


def lose_a_gradient(lstm):
    lstm.bias_ih_l0.register_hook(lambda gradient: gradient * math.nan)


def move_a_weight(lstm):
    with torch.no_grad():
        lstm.weight_ih_l0.mul_(1.001)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (scale_a_gradient, "gradient of lstm.weight_hh_l0 in the first step"),
        (lose_a_gradient, "gradient of lstm.bias_ih_l0 in the first step"),
        (move_a_weight, "loss in step"),
    ],
)
def test_a_fault_is_told_and_the_exit_status_is_1(run, monkeypatch, fault, told):
    break_convert(monkeypatch, fault)
    status, out, _ = run("--backend", "reference")
    assert status == 1
    assert "DISAGREE" in out
    assert told in out
    assert "trainings agree" not in out


def test_a_fault_of_our_own_backend_alone_is_told(run, monkeypatch):
    convert = fastrnn.convert

    def broken(model, *, backend):
        model = convert(model, backend=backend)
        if backend == "rows":
            scale_a_gradient(model.lstm)
        return model

    monkeypatch.setattr(fastrnn, "convert", broken)
    with fastrnn.use_backend("aten"):
        status, out, _ = run()
    assert status == 1
    assert "backend rows: gradient of lstm.weight_hh_l0" in out


def test_means_that_drift_apart_are_told(char_lm):
    assert char_lm.drifted("x", 2.0, 2.01) == []
    assert char_lm.drifted("x", 2.0, 2.03) == ["x: 2.0000 and 2.0300, more than 1% apart"]
    assert char_lm.drifted("x", 2.0, math.nan) != []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--steps", "0"), "argument --steps: expected a positive integer, got '0'"),
        (("--hidden", "x"), "argument --hidden: expected a positive integer, got 'x'"),
        (("--lr", "-1"), "argument --lr: expected a positive number, got '-1'"),
        (("--temperature", "nan"), "argument --temperature: expected a positive number, got 'nan'"),
        (("--device", "nonsense"), "argument --device: 'nonsense' cannot be used: "),
        (("--backend", "nonsense"), "argument --backend: unknown backend 'nonsense'"),
        (("--length", "99999999"), "argument --length: "),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
    ],
)
def test_wrong_options_are_named(char_lm, capsys, options, told):
    assert told in refused(char_lm.main, options, capsys)


def test_corpus_is_split_by_whole_modules(char_lm, tmp_path):
    for number in range(30):
        (tmp_path / f"m{number:02}.py").write_text(f"{number:02}\tü\n" * 10)
    (tmp_path / "_generated.py").write_text("never\n")
    train, validation, modules = char_lm.read_corpus(10_000, tmp_path)
    assert modules == 30
    held_out = char_lm.decode(validation.tolist())
    assert held_out == "".join(f"{n:02}  ?\n" * 10 for n in (9, 19, 29))
    assert len(train) == 9 * len(validation)
    cut = char_lm.read_corpus(1_500, tmp_path)
    assert len(cut.train) + len(cut.validation) == 1_500


def test_no_source_text_is_told_plainly(char_lm, tmp_path):
    with pytest.raises(FileNotFoundError, match="no source text"):
        char_lm.read_corpus(1_000, tmp_path)
