"""`fastrnn doctor` on machines that are made up: what it finds in the way, and what to do."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from fastrnn import cli, doctor, doctor_devices, plugins
from fastrnn.dispatch import BackendError
from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend
from plugin_cases import installing, load

install = pytest.fixture(installing)
FOUND = {
    "torch": "2.13.0", "numpy": "2.4", "pluggy": "1.6", "triton": "3.7.1", "driver": "570.1",
    "gpus": [{"name": "H100", "arch": "sm_90", "memory_gib": 79.1}],
}  # fmt: skip
H100 = ["sm_80", "sm_90", "compute_90"]


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine: a CUDA build by default, with the GPU of FOUND, its driver and all it needs."""
    for name in (*doctor_devices.VISIBLE, "TRITON_INTERPRET", "CC"):
        monkeypatch.delenv(name, raising=False)

    def machine(
        *, cuda="12.8", hip=None, gpu=True, error=None, cudnn=91900, enabled=True, codes=H100,
        compiler=True, requires=("triton==3.7.1; platform_system == 'Linux'",), kfd=None,
    ):  # fmt: skip
        def init():
            if error:
                raise RuntimeError(error)

        def version():
            if isinstance(cudnn, Exception):
                raise cudnn
            return cudnn

        monkeypatch.setattr(torch.version, "cuda", cuda)
        monkeypatch.setattr(torch.version, "hip", hip)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
        monkeypatch.setattr(torch.cuda, "init", init)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: codes)
        monkeypatch.setattr(torch.backends.cudnn, "version", version)
        monkeypatch.setattr(torch.backends.cudnn, "enabled", enabled)
        monkeypatch.setattr(doctor_devices, "KFD", kfd or tmp_path / "no-kfd")
        monkeypatch.setattr(doctor_devices, "NVIDIA", tmp_path / "no-nvidia")
        which = (lambda name: "/bin/cc") if compiler else (lambda name: None)
        monkeypatch.setattr(doctor_devices.shutil, "which", which)
        monkeypatch.setattr(doctor_devices.metadata, "requires", lambda name: list(requires))

    return machine


def gpu_findings(**found):
    return {finding.topic: finding for finding in doctor_devices.gpu_findings({**FOUND, **found})}


def triton(**found):
    return doctor_devices.triton_finding({**FOUND, **found})


def test_a_machine_with_everything(machine):
    machine()
    found = gpu_findings()
    assert found["gpu"].value == "H100 (sm_90, 79.1 GiB); CUDA 12.8, driver 570.1"
    assert found["cudnn"].value == "91900"
    assert triton().value == "3.7.1"
    assert all(each.works and not each.advice for each in (*found.values(), triton()))


def test_rocm_has_miopen(machine):
    machine(cuda=None, hip="7.0", codes=["gfx942"], requires=("triton-rocm==3.7.1",))
    found = gpu_findings(gpus=[{"name": "MI300", "arch": "gfx942", "memory_gib": 192}], driver=None)
    assert found["gpu"].value == "MI300 (gfx942, 192 GiB); ROCm 7.0"
    assert (found["miopen"].value, found["miopen"].works) == ("91900", True)
    assert triton().works


@pytest.mark.parametrize(
    ("how", "value", "advice"),
    [
        ({"cudnn": None}, "no", "Reinstall torch"),
        ({"enabled": False}, "91900, disabled", "torch.backends.cudnn.enabled = True"),
        (
            {"cudnn": RuntimeError("cuDNN version incompatibility: compiled against (9, 19)")},
            "RuntimeError: cuDNN version incompatibility",
            "LD_LIBRARY_PATH",
        ),
    ],
)
def test_cudnn_that_is_not_right(machine, how, value, advice):
    machine(**how)
    finding = gpu_findings()["cudnn"]
    assert not finding.works
    assert finding.value.startswith(value)
    assert advice in finding.advice


@pytest.mark.parametrize(
    ("arch", "codes", "has"),
    [
        ("sm_90", ["sm_80", "sm_90"], True),
        ("sm_89", ["sm_80", "sm_90"], True),  # later, of its generation
        ("sm_75", ["sm_80", "sm_90"], False),
        ("sm_80", ["sm_86", "compute_90"], False),  # later ones
        ("sm_120", ["sm_80", "sm_90"], False),
        ("sm_120", ["sm_80", "compute_90"], True),  # compiled when it is loaded
        ("sm_100", ["sm_90a"], False),
        ("gfx942", ["gfx90a", "gfx942:xnack-"], True),
        ("gfx1100", ["gfx90a"], False),
        ("gfx1100", ["gfx11-generic"], True),
        ("sm_90", [], True),  # not said
    ],
)
def test_a_gpu_that_this_torch_has_no_code_for(machine, arch, codes, has):
    machine(codes=codes)
    finding = gpu_findings(gpus=[{"name": "It", "arch": arch, "memory_gib": 8}])["gpu"]
    assert finding.works == has
    assert (f"no code for {arch}" in finding.advice) != has


@pytest.mark.parametrize(
    ("how", "environment", "advice"),
    [
        (
            {"error": "The NVIDIA driver on your system is too old (found version 11040)."},
            {},
            "The driver is too old for this torch (CUDA 12.8): update it, or install a torch for "
            "an older CUDA",
        ),
        ({"error": "Found no NVIDIA driver on your system."}, {}, "No NVIDIA driver is loaded"),
        ({"error": "it is broken"}, {}, "torch says: it is broken"),
        ({}, {}, "check that `nvidia-smi` or `rocm-smi` lists one"),
        ({}, {"CUDA_VISIBLE_DEVICES": ""}, "CUDA_VISIBLE_DEVICES='' hides every GPU: unset it."),
        ({}, {"CUDA_VISIBLE_DEVICES": "-1"}, "CUDA_VISIBLE_DEVICES='-1' hides every GPU"),
        ({"cuda": None, "hip": "7.0"}, {"HIP_VISIBLE_DEVICES": " "}, "HIP_VISIBLE_DEVICES=' '"),
        (
            {"cuda": None, "hip": "7.0"},
            {"CUDA_VISIBLE_DEVICES": "0"},
            "built for ROCm 7.0 and sees",
        ),
    ],
)
def test_why_torch_sees_no_gpu(machine, monkeypatch, how, environment, advice):
    machine(gpu=False, **how)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    (finding,) = gpu_findings().values()
    assert (finding.value, finding.works) == ("none that torch can use", False)
    assert advice in finding.advice


def test_a_rocm_device_that_the_user_may_not_open(machine, monkeypatch, tmp_path):
    kfd = tmp_path / "kfd"
    kfd.touch()
    machine(gpu=False, cuda=None, hip="7.0", kfd=kfd)
    assert "check that" in gpu_findings()["gpu"].advice
    monkeypatch.setattr(doctor_devices.os, "access", lambda path, mode: path != kfd)
    assert f"may not open {kfd}: add them to the groups `render`" in gpu_findings()["gpu"].advice


def test_a_gpu_that_waits_for_another_torch(machine, tmp_path):
    kfd = tmp_path / "kfd"
    machine(gpu=False, cuda=None)
    assert gpu_findings()["gpu"].works
    kfd.touch()
    machine(gpu=False, cuda=None, kfd=kfd)
    finding = gpu_findings()["gpu"]
    assert not finding.works
    assert "install a torch built for CUDA or ROCm" in finding.advice


@pytest.mark.parametrize(
    ("how", "version", "environment", "value", "advice"),
    [
        ({}, None, {}, "not installed", "A torch for CUDA or ROCm brings Triton"),
        ({}, "3.6.0", {}, "3.6.0", "built for triton 3.7.1: `pip install triton==3.7.1`"),
        ({"requires": ()}, "3.5.1", {}, "3.5.1", "kernels are made for 3.6 or newer"),
        ({}, "3.7.1", {"TRITON_INTERPRET": "1"}, "3.7.1, interpreting", "Unset TRITON_INTERPRET"),
        ({"compiler": False}, "3.7.1", {}, "3.7.1, without a C compiler", "Install gcc or clang"),
    ],
)
def test_triton_that_is_not_right(machine, monkeypatch, how, version, environment, value, advice):
    machine(**how)
    for name, each in environment.items():
        monkeypatch.setenv(name, each)
    finding = triton(triton=version)
    assert (finding.value, finding.works) == (value, False)
    assert advice in finding.advice


def test_triton_that_is_right(machine, monkeypatch):
    machine(requires=("sympy", "pytorch-triton-rocm (==3.7.1) ; extra"))
    assert doctor_devices.required_triton() == ("pytorch-triton-rocm", "3.7.1")
    assert triton(triton="3.7.1+git1234").works  # a local version of the same
    machine(compiler=False)
    monkeypatch.setenv("CC", "/opt/cc")
    assert triton().works
    machine(gpu=False, compiler=False)
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # where there is no GPU, that is how to try it
    assert triton().works


def test_packages_that_are_missing_or_old():
    found = {**FOUND, "torch": "2.10.1+cu128", "numpy": None, "pluggy": "1.5"}
    torch_, numpy, pluggy = doctor_devices.package_findings(found)
    assert (torch_.value, torch_.works) == ("2.10.1+cu128", False)
    assert "made for 2.11 or newer: `pip install 'torch>=2.11'`" in torch_.advice
    assert (numpy.value, numpy.works, numpy.advice) == (
        "not installed", False, "`pip install numpy`.",
    )  # fmt: skip
    assert pluggy.works
    assert doctor_devices.numbers("dev") == ()


def test_cudnn_that_raises_does_not_end_the_environment(machine, monkeypatch):
    machine(cudnn=RuntimeError("mismatch"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(doctor, "_nvidia_smi", lambda field: None)
    assert doctor.environment()["cudnn"] is None


def test_a_preference_that_names_nobody(monkeypatch):
    assert doctor._preferred() == []
    monkeypatch.setenv("FASTRNN_BACKEND", "reference,auto")
    (finding,) = doctor._preferred()
    assert (finding.topic, finding.works) == ("FASTRNN_BACKEND", True)
    monkeypatch.setenv("FASTRNN_BACKEND", "cudnn")
    (finding,) = doctor._preferred()
    assert (finding.value, finding.works) == ("cudnn", False)
    assert "unknown backend 'cudnn'" in finding.advice


def test_a_plugin_that_is_in_use_in_part_is_a_finding(install, capsys):
    install("half_good")
    assert len(load()) == 2
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "[!!] plugin half-good: loaded: fastrnn_backends raised RuntimeError: and no more" in out


def test_a_backend_for_the_cpu_alone_works_where_there_is_a_gpu(monkeypatch):
    tried = []

    class ForCpu(ReferenceBackend):
        name = "for_cpu"

    def try_on(device, backend, cell, lengths):
        tried.append((device, cell, lengths))
        if device == "cuda":
            raise BackendError("needs cpu")
        return doctor.Finding(backend.name, "works")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(doctor, "_try_on", try_on)
    assert doctor.try_backend(ForCpu()).value == "works"
    assert tried[:2] == [("cuda", "lstm", None), ("cuda", "lstm", (5, 2, 3))]
    assert {tried[-1]} == {one for one in tried if one[0] == "cpu"} == {("cpu", "lstm", None)}
    assert {cell for _, cell, _ in tried} == set(plugins.registry().cells)


def test_findings_have_advice_where_something_is_wrong():
    plugins.reset()
    for finding in doctor.examine():
        assert dataclasses.asdict(finding).keys() == {"topic", "value", "works", "advice"}
        assert finding.works != bool(finding.advice)


def test_a_backend_for_rows_of_different_lengths_alone_works():
    backends = plugins.registry().backends
    finding = doctor.try_backend(backends["onednn"])
    assert finding.works
    assert "of rows of different lengths" in finding.value
    assert "lengths" not in doctor.try_backend(backends["aten"]).value


def test_a_backend_of_one_cell_works():
    class OfOneCell(ReferenceBackend):
        name = "of_one_cell"

        def can_run(self, request):
            return [] if request.cell == "rnn_relu" else ["rnn_relu only"]

    plugins.reset()
    backend = OfOneCell()

    class Plugin:
        @hookimpl
        def fastrnn_backends(self):
            return [backend]

    plugins.register(Plugin())
    finding = doctor.try_backend(backend)
    plugins.reset()
    assert finding.works
    assert finding.value.startswith("works: a small layer of rnn_relu on ")


def test_reasons_that_are_one_string_are_the_fault_of_the_backend():
    class Careless(ReferenceBackend):
        name = "careless"

        def unavailable(self):
            return "no magic"

    finding = doctor.try_backend(Careless())
    assert not finding.works
    assert finding.value == (
        "not available here: it raised TypeError: its reasons are 'no magic', expected a list of "
        "non-empty strings"
    )
