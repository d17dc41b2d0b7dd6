"""What the Triton plugin decides without a kernel: estimates, and configurations it kept."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fastrnn_triton
from fastrnn import machine
from fastrnn.request import Request
from fastrnn_kernels import GridConfig, ResidentConfig, StepConfig
from fastrnn_triton import cost, tuned
from fastrnn_triton.tuned import Found, Key

GRID = GridConfig(16, 8, 128, lanes=1, ahead=1)
KEY = Key.of("forward", "sm_90", "lstm", torch.bfloat16, "tf32", 512, 16, 1, 100)


def request(**changes: object) -> Request:
    asked = Request(
        cell="lstm", seq_len=100, batch=16, input_size=512, hidden_size=512, proj_size=0,
        num_layers=1, bidirectional=False, bias=True, dropout=0.0, dtype=torch.bfloat16,
        device="cuda", arch="sm_90", precision="tf32", needs_grad=False, training=False,
        varlen=False, compiling=False, threads=0,
    )  # fmt: skip
    return asked._replace(**changes)


@pytest.fixture
def h200(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with a GPU, as far as the plugin's file is concerned; returns the file."""

    def made_up(device: str, arch: str) -> machine.Machine | None:
        if (device, arch) != ("cuda", "sm_90"):
            return None
        return machine.Machine(device, "NVIDIA H200", "2.11.0", "3.6.0", "0")

    monkeypatch.setattr(tuned, "machine", made_up)
    monkeypatch.setattr(machine, "present_devices", lambda: [("cpu", ""), ("cuda", "sm_90")])
    monkeypatch.setenv("FASTRNN_CACHE_DIR", str(tmp_path))
    tuned.reset()
    found = made_up("cuda", "sm_90")
    assert found is not None
    return tmp_path / "triton" / found.file_name


@pytest.mark.parametrize(
    ("changes", "regime"),
    [
        ({}, "grid"),
        ({"hidden_size": 16}, "resident"),
        ({"seq_len": 1}, "step"),  # as the planner has it for one step
        ({"hidden_size": 3000}, "step"),
        ({"arch": "gfx942"}, "step"),
        ({"arch": "sm_75"}, "step"),  # nothing is known of it
        ({"dtype": torch.float32, "precision": "ieee"}, "step"),
        ({"seq_len": None, "batch": None, "compiling": True}, "grid"),
    ],
)
def test_an_estimate_says_its_regime_and_that_it_is_one(changes, regime):
    found = cost.estimate(request(**changes))
    assert found.why.startswith(f"{regime} regime, ")
    assert found.why.endswith("x4: unmeasured")
    assert 0 < found.seconds < 1


def test_what_makes_a_call_longer_makes_its_estimate_larger():
    base = cost.estimate(request()).seconds
    for changes in (
        {"seq_len": 200}, {"num_layers": 2}, {"needs_grad": True}, {"hidden_size": 1024},
        {"input_size": 8192}, {"batch": 512},
    ):  # fmt: skip
        assert cost.estimate(request(**changes)).seconds > base, changes
    assert "back" in cost.estimate(request(needs_grad=True)).why
    trained = [cost.estimate(request(needs_grad=True, recompute=k)).seconds for k in (0, 50, 5)]
    assert trained == sorted(trained)
    assert trained[0] < trained[1] < trained[2]
    # one launch for both directions
    both = cost.estimate(request(bidirectional=True)).seconds
    assert both < 1.3 * base


@pytest.mark.parametrize(
    ("changes", "layers"),
    [
        ({}, 2),
        ({"num_layers": 4}, 4),
        ({"num_layers": 4, "needs_grad": True}, 4),
        ({"num_layers": 5, "hidden_size": 640}, 3),  # what fits
        ({"hidden_size": 1024}, 1),
        ({"batch": 256}, 1),  # every multiprocessor is busy with one layer
        ({"hidden_size": 768, "needs_grad": True}, 2),
        ({"bidirectional": True}, 1),
        ({"dropout": 0.5}, 1),
        ({"needs_grad": True, "recompute": 50}, 1),
        ({"arch": "gfx942"}, 1),  # where programs cannot wait for each other
        ({"device": "cpu", "arch": ""}, 1),
        ({"seq_len": None, "batch": None, "compiling": True, "hidden_size": 128}, 2),
    ],
    ids=str,
)
def test_layers_run_at_once_where_the_model_says_it_pays(changes, layers):
    assert cost.layers_at_once(request(num_layers=2)._replace(**changes)) == layers


def test_an_estimate_counts_layers_that_run_at_once():
    one, two = (cost.estimate(request(num_layers=n, seq_len=1000)) for n in (1, 2))
    assert two.seconds < 1.4 * one.seconds
    assert "of 2 layers at once" in two.why
    apart = cost.estimate(request(num_layers=2, seq_len=1000, dropout=0.5))
    assert apart.seconds > 1.4 * two.seconds


def test_what_was_measured_decides_over_layers_at_once(h200):
    """All or none, since a measured time must not compete with an optimistic estimate."""
    asked = request(num_layers=2)
    assert cost.layers_at_once(asked) == 2
    tuned.remember(cost.key(asked, "forward"), Found(GRID, 5.0))
    assert cost.layers_at_once(asked) == 1  # the only one that is known
    assert cost.most_promising(asked) == 2  # for `fastrnn tune` to measure
    tuned.remember(cost.key(asked, "forward", 2), Found(GRID, 6.0))
    assert cost.layers_at_once(asked) == 2  # two layers in 6 us, not in 10
    tuned.remember(cost.key(asked, "forward", 2), Found(GRID, 11.0))
    assert cost.layers_at_once(asked) == 1


def test_found_configurations_are_kept_for_the_next_process(h200):
    assert tuned.lookup(KEY) is None
    others = [
        (KEY._replace(B=17), Found(StepConfig(16, 16, 64, num_stages=2), 9.5)),
        (KEY._replace(direction="backward"), Found(replace(GRID, splits=4), 3.0)),
        (KEY._replace(cell="rnn_tanh"), Found(ResidentConfig(16, 512, num_warps=8), 1.0)),
    ]
    for key, found in [(KEY, Found(GRID, 2.5)), *others]:
        tuned.remember(key, found)
    assert len(json.loads(h200.read_text())) == 4
    tuned.reset()
    assert tuned.lookup(KEY) == GRID
    for key, found in others:
        assert tuned.lookup(key) == found.config
    assert tuned.lookup(KEY._replace(G=2)) is None
    assert tuned.lookup(KEY._replace(arch="sm_80")) is None


def test_a_second_process_loses_nothing(h200):
    tuned.remember(KEY, Found(GRID, 2.5))
    theirs = tuned.Key(*KEY)._replace(H=1024)
    tuned._found["sm_90"] = {}  # this process read the file before theirs was written
    tuned.remember(theirs, Found(GRID, 3.0))
    tuned.reset()
    assert tuned.lookup(KEY) == tuned.lookup(theirs) == GRID


def test_precision_is_part_of_the_key_of_float32_only():
    assert KEY.precision == "ieee"
    kept = Key.of("forward", "sm_90", "lstm", torch.float32, "tf32", 512, 16, 1, 100)
    assert (kept.dtype, kept.precision) == ("float32", "tf32")


@pytest.mark.parametrize("text", ["", "{", "[1]", '[{"regime": "step"}]'])
def test_a_file_that_cannot_be_read_is_ignored(h200, text, caplog):
    h200.parent.mkdir()
    h200.write_text(text)
    with caplog.at_level(logging.DEBUG, "fastrnn"):
        assert tuned.lookup(KEY) is None
    assert f"{h200} is ignored" in caplog.text
    tuned.remember(KEY, Found(GRID, 2.5))
    tuned.reset()
    assert tuned.lookup(KEY) == GRID


def test_forgetting_says_what_was_deleted(h200):
    (backend,) = fastrnn_triton.fastrnn_backends()
    assert backend.forget() == []
    tuned.remember(KEY, Found(GRID, 2.5))
    assert backend.forget() == [h200]
    assert tuned.lookup(KEY) is None
    assert not h200.exists()


def test_without_a_gpu_or_a_home_nothing_is_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(tuned, "machine", lambda device, arch: None)
    tuned.reset()
    assert tuned.lookup(KEY) is None
    with pytest.raises(FileNotFoundError, match="no home directory"):
        tuned.remember(KEY, Found(GRID, 2.5))


def test_estimates_need_no_triton():
    import subprocess
    import sys

    code = (
        "import sys\n"
        "sys.modules['triton'] = None\n"
        "from fastrnn_kernels import plan, Problem\n"
        "from fastrnn_kernels.configs import TARGET_LIMITS\n"
        "print(plan(Problem('forward', 4, 512, 16, 1, 2), TARGET_LIMITS['sm_90']).config.regime)\n"
    )
    paths = "import sys; sys.path[:0] = " + repr(sys.path) + "\n"
    done = subprocess.run(
        [sys.executable, "-c", paths + code], capture_output=True, text=True, check=False
    )
    assert (done.stdout.strip(), done.stderr) == ("grid", "")
