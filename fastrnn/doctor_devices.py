"""What `fastrnn doctor` says of packages, GPUs and Triton: what is there, what is in the way."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from fastrnn.discovery import describe, one_line

GET_TORCH = "https://pytorch.org/get-started/locally"
LEAST = {"torch": (2, 11), "numpy": (), "pluggy": (1, 5)}
"""Versions that the distribution asks for."""
LEAST_TRITON = (3, 6)
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES")
KFD = Path("/dev/kfd")
NVIDIA = Path("/proc/driver/nvidia")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    value: str
    works: bool = True
    advice: str = ""
    """What to do if it does not work; empty if it does."""


def package_findings(found: dict[str, object]) -> list[Finding]:
    """Of the packages that fastrnn depends on; `found` is `doctor.environment()`."""
    findings = []
    for name, least in LEAST.items():
        version, wanted = found[name], ".".join(map(str, least))
        if version is None:
            findings.append(Finding(name, "not installed", False, f"`pip install {name}`."))
        elif numbers(str(version)) < least:
            advice = f"fastrnn is made for {wanted} or newer: `pip install '{name}>={wanted}'`."
            findings.append(Finding(name, str(version), False, advice))
        else:
            findings.append(Finding(name, str(version)))
    return findings


def numbers(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (2, 13, 0) of 2.13.0+cpu."""
    leading = re.match(r"\d+(\.\d+)*", version)
    return tuple(map(int, leading[0].split("."))) if leading else ()


def onednn_finding(found: dict[str, object]) -> Finding:
    """Of what torch runs RNNs with on a CPU."""
    if found["onednn"]:
        return Finding("onednn", "yes")
    advice = f"RNNs on this CPU are slower; a torch from {GET_TORCH} has oneDNN on most CPUs."
    return Finding("onednn", "no", False, advice)


def gpu_findings(found: dict[str, object]) -> list[Finding]:
    """Of GPUs, the driver, and cuDNN or MIOpen."""
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if torch.cuda.is_available():
        gpus = found["gpus"]
        assert isinstance(gpus, list)
        described = [f"{g['name']} ({g['arch']}, {g['memory_gib']} GiB)" for g in gpus]
        driver = f", driver {found['driver']}" if found["driver"] else ""
        value = f"{'; '.join(described)}; {build}{driver}"
        foreign = sorted({g["arch"] for g in gpus if not has_code_for(g["arch"])})
        advice = (
            f"This torch has no code for {', '.join(foreign)}; install one that has: {GET_TORCH}."
        )
        return [Finding("gpu", value, not foreign, advice if foreign else ""), _cudnn()]
    present = NVIDIA.exists() or KFD.exists()
    if torch.version.cuda is None and torch.version.hip is None:
        advice = f"To use a GPU, install a torch built for CUDA or ROCm: {GET_TORCH}."
        value = "none that torch can use (torch is built for the CPU)"
        return [Finding("gpu", value, not present, advice if present else "")]
    return [Finding("gpu", "none that torch can use", False, _why_no_gpu(build))]


def has_code_for(arch: str) -> bool:
    """Whether this build of torch has code that a GPU can run, of its own or an older like it."""
    names = {name.split(":")[0] for name in torch.cuda.get_arch_list()}
    if not names or arch in names:
        return True
    own = re.fullmatch(r"sm_(\d+)(\d)", arch)
    if own is None:  # AMD's run their own code, or that of all of their kind
        return any("generic" in name for name in names)
    gpu = int(own[1]), int(own[2])
    for other in filter(None, (re.fullmatch(r"(sm|compute)_(\d+)(\d)", name) for name in names)):
        code = int(other[2]), int(other[3])
        # machine code runs on later GPUs of its generation, and PTX is compiled for any later one
        if code <= gpu and (other[1] == "compute" or code[0] == gpu[0]):
            return True
    return False


def _why_no_gpu(build: str) -> str:
    """What is in the way of a torch that is built for GPUs, as far as one can tell."""
    for variable in VISIBLE:
        value = os.environ.get(variable)
        if value is not None and (not value.strip() or value.strip().startswith("-1")):
            return f"{variable}={value!r} hides every GPU: unset it."
    if torch.version.hip is not None and KFD.exists() and not os.access(KFD, os.R_OK | os.W_OK):
        return (
            f"This user may not open {KFD}: add them to the groups `render` and `video`, and log "
            "in anew."
        )
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        told = ""
    except Exception as error:
        told = one_line(error)
    if "driver" in told and "too old" in told:
        return (
            f"The driver is too old for this torch ({build}): update it, or install a torch for an "
            f"older CUDA: {GET_TORCH}. torch says: {told}"
        )
    if "no NVIDIA driver" in told:
        return (
            f"No NVIDIA driver is loaded: install one, and see that `nvidia-smi` works ({build})."
        )
    words = f" torch says: {told}" if told else ""
    return (
        f"torch is built for {build} and sees no GPU: check that `nvidia-smi` or `rocm-smi` lists "
        "one, that its driver is new enough for this torch, and that CUDA_VISIBLE_DEVICES or "
        f"HIP_VISIBLE_DEVICES does not hide it.{words}"
    )


def cudnn_version() -> tuple[int | None, str]:
    """Its version, or None; and why there is none, where torch says."""
    try:
        return torch.backends.cudnn.version(), ""  # type: ignore[no-untyped-call]
    except Exception as error:  # the library that was found is not the one that torch is built for
        return None, describe(error)


def _cudnn() -> Finding:
    """Of the library behind the backend `aten`; on ROCm it is MIOpen, by the same interface."""
    name = "miopen" if torch.version.hip is not None else "cudnn"
    version, error = cudnn_version()
    if error:
        advice = (
            "Another version of it is found before torch's own; leave it out of LD_LIBRARY_PATH, "
            f"or reinstall torch from {GET_TORCH}."
        )
        return Finding(name, error, False, advice)
    if version is None:
        brings = f"Reinstall torch from {GET_TORCH}; it brings one."
        return Finding(name, "no", False, brings)
    if not torch.backends.cudnn.enabled:
        advice = "The backend `aten` is slow without it: set torch.backends.cudnn.enabled = True."
        return Finding(name, f"{version}, disabled", False, advice)
    return Finding(name, str(version))


def triton_finding(found: dict[str, object]) -> Finding:
    """Of Triton: is it there, the one that torch was built with, and able to compile."""
    has_gpu, installed = torch.cuda.is_available(), found["triton"]
    if installed is None:
        advice = f"A torch for CUDA or ROCm brings Triton: {GET_TORCH}." if has_gpu else (
            "Needed on GPUs only; on Linux `pip install 'fastrnn[triton]'` lets the kernels run "
            "in its interpreter (TRITON_INTERPRET=1)."
        )  # fmt: skip
        return Finding("triton", "not installed", False, advice)
    version = str(installed)
    wanted = required_triton()
    if wanted and numbers(wanted[1]) != numbers(version):
        advice = (
            f"This torch is built for {wanted[0]} {wanted[1]}: `pip install {'=='.join(wanted)}`."
        )
        return Finding("triton", version, False, advice)
    if numbers(version) < LEAST_TRITON:
        least = ".".join(map(str, LEAST_TRITON))
        advice = f"fastrnn's kernels are made for {least} or newer; a newer torch brings it."
        return Finding("triton", version, False, advice)
    if has_gpu and os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):
        advice = "Unset TRITON_INTERPRET: with it, kernels run in Python, far more slowly."
        return Finding("triton", f"{version}, interpreting", False, advice)
    compilers = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    if has_gpu and not compilers and not os.environ.get("CC"):
        advice = "Install gcc or clang, which Triton needs to build its launcher, or set CC."
        return Finding("triton", f"{version}, without a C compiler", False, advice)
    return Finding("triton", version)


def required_triton() -> tuple[str, str] | None:
    """The distribution and version of Triton that torch asks for; None if it asks for none."""
    try:
        requirements = metadata.requires("torch") or []
    except metadata.PackageNotFoundError:
        return None
    for requirement in requirements:
        found = re.match(r"((?:pytorch-)?triton[a-z-]*)\s*\(?==\s*([\w.+]+)", requirement)
        if found:
            return found[1], found[2]
    return None
