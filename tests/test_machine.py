"""Where measurements are looked for, and which machine they are of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from fastrnn import machine, measured
from measured_cases import REQUEST, SECONDS, read_anew, remember, seconds


def test_the_cache_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "/named")
    assert machine.cache_directory() == Path("/named")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "~/there")
    assert machine.cache_directory() == Path("/home/somebody/there")
    monkeypatch.setenv("FASTRNN_CACHE_DIR", "")
    assert machine.cache_directory() == Path("/xdg/fastrnn")
    for unset in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", unset)
        assert machine.cache_directory() == Path("/home/somebody/.cache/fastrnn")


def test_without_a_home_there_are_estimates(monkeypatch):
    monkeypatch.delenv("FASTRNN_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does if there is none
    assert machine.cache_directory() is None
    assert seconds() == {}
    with pytest.raises(OSError, match="no home directory to keep measurements in; set FASTRNN_CA"):
        remember()
    assert measured.forget("cpu", "") is None


def test_the_tests_have_directories_of_their_own(tmp_path):
    assert tmp_path.parent == Path(os.environ["FASTRNN_CACHE_DIR"]).parent.parent


@pytest.fixture
def gpus(monkeypatch):
    """Make torch see GPUs: pairs of name and architecture."""

    def gpus(*found):
        properties = [type("P", (), {"name": name}) for name, _ in found]
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(found))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
        monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
        monkeypatch.setattr(machine, "arch_of", lambda device: found[device.index][1])

    return gpus


def test_a_gpu_is_known_by_name_and_architecture(gpus):
    gpus(("H100", "sm_90"), ("A100", "sm_80"), ("H100", "sm_90"))
    assert machine.present_devices() == [("cpu", ""), ("cuda", "sm_90"), ("cuda", "sm_80")]
    assert machine.machine("cuda", "sm_90").name == "H100"
    assert machine.machine("cuda", "sm_80").name == "A100"
    assert machine.machine("cuda", "sm_100") is None
    assert machine.machine("mps", "") is None
    here = REQUEST._replace(device="cuda", arch="sm_90", threads=0)
    remember(here)
    assert read_anew(here) == SECONDS
    assert read_anew(here._replace(arch="sm_80")) == {}
    measured.reset()
    gpus(("H200", "sm_90"))
    assert seconds(here) == {}


def test_gpus_of_one_architecture_that_are_seen_together_are_one_machine(gpus):
    gpus(("H200", "sm_90"), ("H100", "sm_90"))
    assert machine.machine("cuda", "sm_90").name == "H100 + H200"
    gpus(("", "gfx942"))
    assert machine.machine("cuda", "gfx942").name == "gfx942"


def test_a_cpu_always_has_a_name(monkeypatch):
    assert machine.machine("cpu", "").name
    monkeypatch.setattr(machine, "cpu_model", lambda: "")
    assert machine.machine("cpu", "").name == "unknown CPU"
