"""The command line: data on stdout, everything else on stderr, and no traceback for users."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastrnn
from cli_cases import Broken, a_broken_plugin, running
from fastrnn import dispatch, doctor, plugins
from plugin_cases import BUILTINS

ROOT = Path(__file__).parent.parent

broken = pytest.fixture(a_broken_plugin)
run = pytest.fixture(running)


def test_it_is_a_module_and_says_its_version():
    done = subprocess.run(
        [sys.executable, "-m", "fastrnn", "--version"], capture_output=True, text=True, check=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))},
    )  # fmt: skip
    assert done.stdout == f"fastrnn {fastrnn.__version__}\n"


def test_a_reader_that_leaves_is_no_error():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write) as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "fastrnn", "backends"], stdout=pipe, stderr=subprocess.PIPE,
            text=True, check=False, cwd=ROOT, env=environment,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(os.name != "posix", reason="closes a file descriptor as shells do")
def test_a_closed_stdout_is_no_error():
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, sys.path))}
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m fastrnn backends >&-', sys.executable], stderr=subprocess.PIPE,
        text=True, check=False, cwd=ROOT, env=environment,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_what_a_plugin_prints_when_it_is_imported_is_no_data(run, monkeypatch):
    def load():
        print("hello from a plugin")
        return original()

    original = plugins._first_registry
    monkeypatch.setattr(plugins, "_first_registry", load)
    plugins.reset()
    code, out, err = run("backends", "--json")
    assert (code, err) == (0, "hello from a plugin\n")
    assert json.loads(out)[0]["available"]


def test_backends(run, broken, monkeypatch):
    monkeypatch.setattr(Broken, "here", ("no magic",))
    code, out, err = run("backends")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*BUILTINS, "broken"]
    assert f"fastrnn {fastrnn.__version__}" in lines[2]
    assert "breaker" in lines[-1]
    assert "no: no magic" in lines[-1]
    code, out, err = run("backends", "--json")
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert found[-1] == {
        "name": "broken", "plugin": "breaker", "distribution": "", "version": "",
        "summary": "for tests", "available": False, "reasons": ["no magic"],
    }  # fmt: skip
    assert found[0]["available"]


def test_a_backend_whose_check_raises_is_listed(run, broken, monkeypatch):
    def unavailable(self):
        raise OSError("gone")

    monkeypatch.setattr(Broken, "unavailable", unavailable)
    assert "no: it raised OSError: gone" in run("backends")[1]


def test_plugins_says_why_one_was_not_loaded(run, monkeypatch):
    monkeypatch.setitem(plugins.BUILTINS, "triton", "fastrnn_no_such_module")
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "aten")
    plugins.reset()
    try:
        code, out, err = run("plugins")
        again = run("plugins", "--json")
    finally:
        plugins.reset()
    assert code == 0
    assert err.startswith("fastrnn: warning: plugin 'triton' of fastrnn ")
    assert err.count("\n") == 1
    states = [line.split()[3] for line in out.splitlines()[2:]]
    assert states == ["loaded", "disabled", "loaded", "loaded", "failed", "loaded"]
    assert "gru, peephole_lstm" in out
    assert "its import raised ModuleNotFoundError" in out
    assert again[2] == ""  # once
    assert [record["state"] for record in json.loads(again[1])] == states


def test_a_plugins_warning_is_no_error_even_if_warnings_are(run, monkeypatch):
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "reference")
    plugins.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            code, _, err = run("backends")
    finally:
        plugins.reset()
    assert (code, err.count("cannot be disabled")) == (0, 1)


def test_explain(run):
    code, out, err = run("explain", "--T", "10", "--B", "4", "--I", "3", "--H", "5", "--packed")
    assert (code, err) == (0, "")
    first, second, *rest = out.splitlines()
    assert first == (
        "request: lstm T=10 B=4 I=3 H=5, float32 on cpu, variable lengths, forward only, eval mode"
    )
    assert second.endswith("(lowest estimated cost)")
    assert len(rest) == len(BUILTINS)


def test_explain_is_what_a_call_decides(run):
    out = run("explain", "--T", "3", "--B", "2", "--I", "3", "--H", "4", "--json")[1]
    explained = json.loads(out)
    seen = []
    original = fastrnn.calls.decide
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastrnn.calls, "decide", lambda *a: seen.append(original(*a)) or seen[0])
        with torch.no_grad():
            fastrnn.LSTM(3, 4).eval()(torch.randn(3, 2, 3))
    assert {**seen[0].request._asdict(), "dtype": "torch.float32"} == explained["request"]
    assert seen[0].backend == explained["backend"]


def test_explain_with_what_torch_does_not_have(run):
    options = "--lengths --resets --all-states --recurrent-dropout --zoneout --error-clip"
    code, out, err = run("explain", *options.split(), "--mode", "train")
    assert (code, err) == (0, "")
    words = (
        "lengths, resets, all states, recurrent dropout, zoneout, error clip, forward and backward"
    )
    assert out.splitlines()[0].endswith(words)
    assert out.splitlines()[1].startswith("backend: reference")
    (aten,) = (line for line in out.splitlines() if line.startswith("  - aten:"))
    for option in ("lengths", "resets", "states of every step", "recurrent_dropout", "zoneout"):
        assert option in aten
    # nothing is drawn, and nothing clipped, where there is no training
    assert (
        run("explain", *options.split())[1]
        .splitlines()[0]
        .endswith("lengths, resets, all states, zoneout, forward only, eval mode")
    )
    out = run("explain", "--recompute", "64", "--mode", "train")[1]
    assert "recompute=64" in out.splitlines()[0]


def test_explain_for_a_device_that_is_not_here(run):
    options = "--device cuda --arch gfx942 --dtype float16 --mode train --bidirectional --json"
    code, out, err = run("explain", *options.split())
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["request"]["arch"] == "gfx942"
    assert found["request"]["needs_grad"]
    assert found["request"]["threads"] == 0
    reasons = {candidate["name"]: candidate["reasons"] for candidate in found["candidates"]}
    assert [not reasons[name] for name in ("reference", "aten", "triton")] == [True] * 3
    assert "device is cuda; needs cpu" in reasons["onednn"]
    out = run("explain", "--device", "cuda", "--arch", "sm_90", "--cell", "rnn_sigmoid")[1]
    assert "backend: triton (lowest estimated cost)" in out
    assert "(as on a machine that has such a device" in out


def test_explain_with_a_backend_that_cannot_run(run):
    code, out, err = run("explain", "--backend", "aten", "--cell", "rnn_sigmoid")
    assert (code, out) == (1, "")
    assert err.startswith("fastrnn: error: backend 'aten' (from argument) cannot run this request")
    assert "- aten: cannot run: torch has no rnn_sigmoid" in err
    assert "Traceback" not in err
    code, out, _ = run("explain", "--backend", "aten,auto", "--cell", "rnn_sigmoid")
    assert (code, "backend: reference" in out) == (0, True)


def test_explain_of_a_compiled_call_knows_no_sizes(run):
    out = run("explain", "--compile")[1]
    assert "T=any B=any" in out


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("expalin", "argument COMMAND: invalid choice: 'expalin' (choose from"),
        ("explain --T 0", "argument --T: got '0', expected an integer of at least 1"),
        ("explain --T 1e3", "argument --T: got '1e3', expected an integer of at least 1"),
        ("explain --proj -1", "argument --proj"),
        ("explain --proj 9 --H 8", "argument --proj: got 9, expected less than --H 8"),
        ("explain --proj 3 --cell rnn_relu", "argument --proj: got 3 with rnn_relu, expected 0"),
        ("explain --dropout 2", "argument --dropout: got '2', expected a number from 0 to 1"),
        ("explain --dropout x", "argument --dropout: got 'x', expected a number from 0 to 1"),
        ("explain --lengths --packed", "argument --lengths: not allowed with argument --packed"),
        ("explain --resets --recompute 9", "argument --resets: not allowed with argument --rec"),
        ("explain --cell gruu", "argument --cell: got 'gruu', expected one of lstm, rnn_tanh"),
        ("explain --dtype int8", "argument --dtype: invalid choice: 'int8' (choose from"),
        ("explain --arch h100", "argument --arch: got 'h100', expected an architecture such as"),
        ("explain --arch sm_90", "argument --arch: got sm_90, expected none with --device cpu"),
        ("explain --backend x,auto", "argument --backend: got 'x', expected one of reference, "),
        ("explain --frobnicate", "unrecognized arguments: --frobnicate"),
        ("bench --T 5,x", "argument --T: got 'x', expected an integer of at least 1"),
        ("bench --cell lstm,gruu", "argument --cell: got 'gruu', expected one of lstm, rnn_tanh"),
        ("bench --backends auto", "argument --backends: got 'auto', expected one of reference"),
        ("bench --preset huge", "argument --preset: got 'huge', expected a preset: quick, cpu"),
        ("bench --device tpu", "argument --device: got 'tpu', expected cpu"),
        ("bench --json no/such/x", "argument --json: got 'no/such/x', expected a file in a"),
    ],
)
def test_wrong_arguments_are_one_line_that_says_what_was_expected(run, arguments, text):
    code, out, err = run(*arguments.split())
    assert (code, out) == (2, "")
    assert err.startswith("fastrnn")
    assert f": error: {text}" in err
    assert err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU whose architecture is known")
def test_explain_for_cuda_needs_an_architecture(run):
    code, _, err = run("explain", "--device", "cuda")
    assert code == 2
    assert "argument --arch: got nothing and no GPU is here, expected one such as sm_90" in err


def test_doctor(run):
    code, out, err = run("doctor")
    assert (code, err) == (0, "")
    for topic in ("torch", "triton", "python", "numpy", "pluggy", "gpu", "cpu", "onednn"):
        assert f"] {topic}: " in out
    assert "[ok] backend reference: works: " in out


def test_doctor_json(run):
    code, out, _ = run("doctor", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["usable"] is True
    assert found["environment"]["torch"] == torch.__version__
    assert {finding["topic"] for finding in found["findings"]} >= {"gpu", "backend aten"}


def test_doctor_says_what_to_do(run, broken, monkeypatch):
    out = run("doctor")[1]
    lines = out.splitlines()
    place = next(i for i, line in enumerate(lines) if "backend broken" in line)
    assert lines[place].startswith("[!!] backend broken: WRONG RESULTS on ")
    assert "Do not use it" in lines[place + 1]
    monkeypatch.setattr(Broken, "here", ("no magic",))
    assert "[!!] backend broken: not available here: no magic" in run("doctor")[1]
    monkeypatch.setattr(Broken, "here", ())
    monkeypatch.setattr(Broken, "can_run", lambda self, request: ["too small"])
    dispatch.clear_cache()
    assert "broken: cannot run: too small" in run("doctor")[1]
    monkeypatch.setattr(Broken, "can_run", lambda self, request: [])
    dispatch.clear_cache()
    monkeypatch.setattr(Broken, "recurrence_forward", lambda self, *a: 1 / 0)
    assert "[!!] backend broken: failed on " in run("doctor")[1]
    monkeypatch.setattr(doctor, "triton_version", lambda: None)
    assert "[!!] triton: not installed\n     Needed on GPUs only" in run("doctor")[1]


def test_doctor_fails_without_a_backend_that_works(run, monkeypatch):
    monkeypatch.setattr(
        doctor, "try_backend", lambda b: doctor.Finding(f"backend {b.name}", "no", False, "x")
    )
    code, _, err = run("doctor")
    assert (code, err) == (1, "fastrnn: error: no backend works here\n")
    code, out, _ = run("doctor", "--json")
    assert (code, json.loads(out)["usable"]) == (1, False)
