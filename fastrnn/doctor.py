"""What this machine has, what works on it, and what to do about what does not."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastrnn import measured, testing
from fastrnn._version import __version__
from fastrnn.discovery import describe, one_line
from fastrnn.dispatch import BackendError
from fastrnn.machine import cpu_model, distribution_version, present_devices, triton_version
from fastrnn.plugins import registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.request import Spec

if TYPE_CHECKING:
    from fastrnn.backend import Backend

_GET_TORCH = "https://pytorch.org/get-started/locally"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    topic: str
    value: str
    works: bool = True
    advice: str = ""
    """What to do if it does not work; empty if it does."""


def environment() -> dict[str, object]:
    """What a figure was measured on and with: versions, hardware, threads, commit and date."""
    found: dict[str, object] = {
        "fastrnn": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton_version(),
        "numpy": distribution_version("numpy"),
        "pluggy": distribution_version("pluggy"),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),  # type: ignore[no-untyped-call]
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "cudnn": None,
        "gpus": [],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if torch.cuda.is_available():
        found["cudnn"] = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
        found["driver"] = _nvidia_smi("driver_version")
        found["clocks_mhz"] = {
            name: _nvidia_smi(f"clocks.{name}") for name in ("sm", "mem", "max.sm", "max.mem")
        }
    return found


def examine() -> list[Finding]:
    """Look at everything, and run a small LSTM through each backend."""
    found = environment()
    findings = [
        Finding(topic, str(found[topic]))
        for topic in ("fastrnn", "python", "torch", "numpy", "pluggy", "platform")
    ]
    findings.append(
        Finding("cpu", f"{found['cpu']}, {found['cpu_count']} logical CPUs, {found['threads']} "
                f"threads, {found['cpu_capability']}")
    )  # fmt: skip
    findings += [_onednn(found), *_gpus(found), _triton(found)]
    findings += [_measurements(*device) for device in present_devices()]
    findings += [
        Finding(f"plugin {record.name}", f"{record.state}: {record.reason}", False, record.advice())
        for record in registry().plugins
        if record.state == "failed"
    ]
    return findings + [try_backend(backend) for backend in registry().backends.values()]


def unavailable(backend: Backend) -> list[str]:
    """`backend.unavailable()`; one that raises is not available, and the exception is why."""
    try:
        return list(backend.unavailable())
    except Exception as error:
        return [f"it raised {describe(error)}"]


def try_backend(backend: Backend) -> Finding:
    """Run a small LSTM forward and backward through `backend` and compare with float64."""
    topic = f"backend {backend.name}"
    reasons = unavailable(backend)
    if reasons:
        advice = "To use it, change that; the other backends do not need it."
        return Finding(topic, f"not available here: {'; '.join(reasons)}", False, advice)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = testing.random_problem(Spec("lstm", 8, 16), 5, 3, dtype=torch.float32, device=device)
    precision = float32_precision() if device == "cuda" else "ieee"
    allowed = testing.tolerance(torch.float32, 5, precision)
    try:
        got = testing.run(problem, backend=backend.name)
        testing.assert_close(got, testing.truth(problem), allowed)
    except BackendError as error:
        return Finding(topic, f"cannot run a small LSTM on {device}", False, str(error))
    except AssertionError as error:
        advice = "Do not use it, and report this with the output of `fastrnn doctor --json`."
        return Finding(topic, f"WRONG RESULTS on {device}: {one_line(error)}", False, advice)
    except Exception as error:
        return Finding(topic, f"failed on {device}", False, _sentence(describe(error)))
    return Finding(topic, f"works: a small LSTM on {device}, forward and backward, is right")


def _onednn(found: dict[str, object]) -> Finding:
    if found["onednn"]:
        return Finding("onednn", "yes")
    advice = f"RNNs on this CPU are slower; a torch from {_GET_TORCH} has oneDNN on most CPUs."
    return Finding("onednn", "no", False, advice)


def _gpus(found: dict[str, object]) -> list[Finding]:
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else f"ROCm {torch.version.hip}"
    if torch.cuda.is_available():
        gpus = found["gpus"]
        assert isinstance(gpus, list)
        described = [f"{g['name']} ({g['arch']}, {g['memory_gib']} GiB)" for g in gpus]
        driver = f", driver {found['driver']}" if found["driver"] else ""
        return [
            Finding("gpu", f"{'; '.join(described)}; {build}{driver}"),
            Finding("cudnn", str(found["cudnn"])) if found["cudnn"] else Finding(
                "cudnn", "no", False, f"Reinstall torch from {_GET_TORCH}; it brings cuDNN."),
        ]  # fmt: skip
    hardware = Path("/proc/driver/nvidia").exists() or Path("/dev/kfd").exists()
    if torch.version.cuda is None and torch.version.hip is None:
        advice = f"To use a GPU, install a torch built for CUDA or ROCm: {_GET_TORCH}."
        return [Finding("gpu", "none that torch can use (torch is built for the CPU)",
                        works=not hardware, advice=advice if hardware else "")]  # fmt: skip
    advice = (
        f"torch is built for {build} and sees no GPU: check that `nvidia-smi` or `rocm-smi` lists "
        "one, that its driver is new enough for this torch, and that CUDA_VISIBLE_DEVICES or "
        "HIP_VISIBLE_DEVICES does not hide it."
    )
    return [Finding("gpu", "none that torch can use", False, advice)]


def _triton(found: dict[str, object]) -> Finding:
    version, has_gpu = found["triton"], torch.cuda.is_available()
    if version is None:
        advice = f"A torch for CUDA or ROCm brings Triton: {_GET_TORCH}." if has_gpu else (
            "Needed on GPUs only; on Linux `pip install 'fastrnn[triton]'` lets the kernels run "
            "in its interpreter (TRITON_INTERPRET=1)."
        )  # fmt: skip
        return Finding("triton", "not installed", False, advice)
    if has_gpu and not any(shutil.which(name) for name in ("cc", "gcc", "clang")):
        advice = "Install gcc or clang, which Triton needs to build its launcher, or set CC."
        if not os.environ.get("CC"):
            return Finding("triton", f"{version}, without a C compiler", False, advice)
    return Finding("triton", str(version))


def _measurements(device: str, arch: str) -> Finding:
    """How many problems `fastrnn tune` has measured on a device, and how long ago."""
    found = measured.store(device, arch)
    assert found is not None  # the device is here
    topic = f"measurements on {device}" + (f" ({arch})" if arch else "")
    if found.complaint:
        advice = "`fastrnn tune --forget` removes it, and `fastrnn tune` measures anew."
        return Finding(topic, f"{found.path} is ignored: {found.complaint}", False, advice)
    dates = [each.date for _, timings in found.records() for each in timings.values()]
    if not dates:
        return Finding(topic, "none; auto goes by estimates until `fastrnn tune` has measured")
    count = len(list(found.records()))
    age = datetime.now(UTC) - datetime.fromisoformat(min(dates))
    return Finding(topic, f"{count} problems, the oldest {age.days} days ago, in {found.path}")


def _gpu(index: int) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(index)
    return {
        "name": properties.name,
        "arch": arch_of(torch.device("cuda", index)),
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "multiprocessors": properties.multi_processor_count,
    }


def _nvidia_smi(field: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    output = _output(command)
    return output.splitlines()[0].strip() if output else None


def _commit() -> str | None:
    """The commit of the checkout that fastrnn is imported from, `+` where it was changed."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    commit = _output(["git", "-C", str(root), "rev-parse", "HEAD"])
    changed = _output(["git", "--no-optional-locks", "-C", str(root), "status", "--porcelain"])
    return commit and commit + ("+" if changed else "")


def _output(command: list[str]) -> str | None:
    """What a command prints; None if it is missing, fails, or takes more than 10 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
