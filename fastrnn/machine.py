"""Which machine this is, as far as a measurement depends on it, and where measurements are kept."""

from __future__ import annotations

import hashlib
import os
import platform
import re
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import torch

from fastrnn._version import __version__
from fastrnn.precision import arch_of

CACHE_VARIABLE = "FASTRNN_CACHE_DIR"
# triton under its name in each kind of torch build
_TRITONS = ("triton", "triton-rocm", "pytorch-triton-rocm", "triton-xpu", "pytorch-triton-xpu")


class Machine(NamedTuple):
    """What must be the same for a measurement to hold."""

    device: str
    """`cpu` or `cuda`."""
    name: str
    """The CPU's model, or the GPU's name."""
    torch: str
    triton: str
    """Empty if Triton is not installed."""
    fastrnn: str

    @property
    def file_name(self) -> str:
        """A name that people can read, and a digest that tells machines apart for certain."""
        words = [self.name, "torch", self.torch, "triton", self.triton or "none"]
        words += ["fastrnn", self.fastrnn]
        slug = re.sub(r"[^a-z0-9.]+", "-", " ".join(words).lower()).strip("-")
        digest = hashlib.sha256("\n".join(self).encode()).hexdigest()
        return f"{slug[:150]}-{digest[:8]}.json"

    def describe(self) -> str:
        """One line for a person."""
        triton = f", Triton {self.triton}" if self.triton else ""
        return f"{self.name}, torch {self.torch}{triton}, fastrnn {self.fastrnn}"


def machine(device: str, arch: str) -> Machine | None:
    """This machine, as seen by calls on one of its devices; None if it has no such device.

    A request knows a GPU's architecture but not which GPU it is. Different GPUs of one
    architecture are therefore one machine, named after all that this process sees.

    Args:
        device: torch's device type.
        arch: `sm_90`, `gfx942`, ...; empty for the CPU.
    """
    if device == "cpu":
        name = cpu_model() or "unknown CPU"
    elif device == "cuda" and torch.cuda.is_available():
        names = {
            str(torch.cuda.get_device_properties(index).name)
            for index in range(torch.cuda.device_count())
            if arch_of(torch.device("cuda", index)) == arch
        }
        if not names:
            return None
        name = " + ".join(sorted(names)) or arch  # some drivers give no name
    else:
        return None
    return Machine(device, name, str(torch.__version__), triton_version() or "", __version__)


def present_devices() -> list[tuple[str, str]]:
    """Device type and architecture of everything here that can be measured: the CPU, then GPUs."""
    found = [("cpu", "")]
    if torch.cuda.is_available():
        devices = (torch.device("cuda", index) for index in range(torch.cuda.device_count()))
        found += dict.fromkeys(("cuda", arch_of(device)) for device in devices)
    return found


def cache_directory() -> Path | None:
    """Where fastrnn keeps what it measured; need not exist. None where there is no home.

    FASTRNN_CACHE_DIR, else `fastrnn` in XDG_CACHE_HOME or in ~/.cache: on every platform, as
    torch's own caches are.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(os.path.expanduser(named))
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if Path(xdg).is_absolute():  # a relative one is to be ignored, says its specification
        return Path(xdg, "fastrnn")
    home = Path(os.path.expanduser("~"))
    return home / ".cache" / "fastrnn" if home.is_absolute() else None


def cpu_model() -> str:
    """The CPU's model in words; its architecture where the system does not say more."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as lines:
            # only up to the first: the kernel writes this file anew for every core
            names = (line.split(":", 1)[1].strip() for line in lines if line[:10] == "model name")
            model = next(names, "")
    except OSError:  # not Linux
        model = ""
    return model or platform.processor() or platform.machine()


def distribution_version(distribution: str) -> str | None:
    """The version of an installed distribution; None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def triton_version() -> str | None:
    """Triton's version, whatever its distribution is called in this build of torch."""
    return next((version for version in map(distribution_version, _TRITONS) if version), None)
