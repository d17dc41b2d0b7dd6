"""What this machine has, what works on it, and what to do about what does not."""

from __future__ import annotations

import itertools
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastrnn import measured, testing
from fastrnn._version import __version__
from fastrnn.discovery import describe, one_line
from fastrnn.dispatch import ENVIRONMENT_VARIABLE, BackendError, checked_reasons, parse_names
from fastrnn.doctor_devices import (
    Finding,
    cudnn_version,
    gpu_findings,
    onednn_finding,
    package_findings,
    triton_finding,
)
from fastrnn.machine import cpu_model, distribution_version, present_devices, triton_version
from fastrnn.plugins import registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.request import Spec

if TYPE_CHECKING:
    from fastrnn.backend import Backend


def environment() -> dict[str, object]:
    """What a figure was measured on and with: versions, hardware, threads, commit and date."""
    found: dict[str, object] = {
        "fastrnn": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "triton": triton_version(),
        "numpy": distribution_version("numpy"),
        "numba": distribution_version("numba"),
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
        found["cudnn"], _ = cudnn_version()
        found["gpus"] = [_gpu(index) for index in range(torch.cuda.device_count())]
        found["driver"] = _nvidia_smi("driver_version")
        found["clocks_mhz"] = {
            name: _nvidia_smi(f"clocks.{name}") for name in ("sm", "mem", "max.sm", "max.mem")
        }
    return found


def examine() -> list[Finding]:
    """Look at everything, and run a small LSTM through each backend."""
    found = environment()
    findings = [Finding(topic, str(found[topic])) for topic in ("fastrnn", "python", "platform")]
    findings += package_findings(found)
    findings.append(
        Finding("cpu", f"{found['cpu']}, {found['cpu_count']} logical CPUs, {found['threads']} "
                f"threads, {found['cpu_capability']}")
    )  # fmt: skip
    findings += [onednn_finding(found), *gpu_findings(found), triton_finding(found)]
    findings += [_measurements(*device) for device in present_devices()]
    findings += [
        Finding(f"plugin {record.name}", f"{record.state}: {record.reason}", False, record.advice())
        for record in registry().plugins
        if record.reason and record.state != "disabled"
    ]
    findings += _preferred()
    return findings + [try_backend(backend) for backend in registry().backends.values()]


def unavailable(backend: Backend) -> list[str]:
    """`backend.unavailable()`; one that raises is not available, and the exception is why."""
    try:
        return list(checked_reasons(backend.unavailable()))
    except Exception as error:
        return [f"it raised {describe(error)}"]


def try_backend(backend: Backend) -> Finding:
    """Run a small layer forward and backward through `backend` and compare with float64.

    An LSTM, or the first cell that it can run, padded or of rows of different lengths.
    """
    topic = f"backend {backend.name}"
    reasons = unavailable(backend)
    if reasons:
        advice = "To use it, change that; the other backends do not need it."
        return Finding(topic, f"not available here: {'; '.join(reasons)}", False, advice)
    devices = ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",)
    cells = sorted(registry().cells, key=lambda cell: cell != "lstm")
    refusals = []
    # one that is for the CPU alone works, on a machine with a GPU too, and so does one that is for
    # some cell alone, or for rows of different lengths
    for device, cell, lengths in itertools.product(devices, cells, (None, (5, 2, 3))):
        try:
            return _try_on(device, backend, cell, lengths)
        except BackendError as error:
            refusals.append(str(error))
    return Finding(topic, f"cannot run a small layer on {devices[0]}", False, refusals[0])


def _try_on(device: str, backend: Backend, cell: str, lengths: tuple[int, ...] | None) -> Finding:
    topic = f"backend {backend.name}"
    problem = testing.random_problem(Spec(cell, 8, 16), 5, 3, dtype=torch.float32, device=device)
    precision = float32_precision() if device == "cuda" else "ieee"
    allowed = testing.tolerance(torch.float32, 5, precision)
    try:
        got = testing.run(problem, backend=backend.name, lengths=lengths)
        testing.assert_close(got, testing.truth(problem, lengths=lengths), allowed)
    except BackendError:
        raise
    except AssertionError as error:
        advice = "Do not use it, and report this with the output of `fastrnn doctor --json`."
        return Finding(topic, f"WRONG RESULTS on {device}: {one_line(error)}", False, advice)
    except Exception as error:
        return Finding(topic, f"failed on {device}", False, _sentence(describe(error)))
    name = {"lstm": "LSTM", "gru": "GRU"}.get(cell, f"layer of {cell}")
    what = f"a small {name} on {device}" + (", of rows of different lengths," if lengths else ",")
    return Finding(topic, f"works: {what} forward and backward, is right")


def _preferred() -> list[Finding]:
    """What FASTRNN_BACKEND names, if it is set."""
    names = os.environ.get(ENVIRONMENT_VARIABLE)
    if not names:
        return []
    try:
        parse_names(names)
    except BackendError as error:
        advice = f"Every call fails: {one_line(error)}. Change or unset it."
        return [Finding(ENVIRONMENT_VARIABLE, names, False, advice)]
    return [Finding(ENVIRONMENT_VARIABLE, f"{names}, which every call takes that names no other")]


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
