"""Launch configurations that `fastrnn tune` found to be the fastest on this machine.

One JSON file per GPU and versions of torch, Triton and fastrnn, beside fastrnn's own measurements.
What is found there takes the place of the planner's choice; nothing there, or nothing that can be
read, and the planner chooses. A configuration is checked against the device before it is used, as
any other.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrnn.machine import cache_directory, machine
from fastrnn.storage import locked, write_json

if TYPE_CHECKING:
    import torch

    from fastrnn_kernels import LaunchConfig
    from fastrnn_kernels.configs import Direction

_log = logging.getLogger("fastrnn")


class Key(NamedTuple):
    """What a configuration was found for."""

    direction: str
    arch: str
    cell: str
    dtype: str
    precision: str
    H: int
    B: int
    G: int
    steps: int
    """T as far as a plan depends on it: few steps are not worth loading weights for."""
    chained: bool
    """The groups are layers that are run at once."""

    @classmethod
    def of(
        cls,
        direction: Direction,
        arch: str,
        cell: str,
        dtype: torch.dtype,
        precision: str,
        H: int,
        B: int,
        G: int,
        T: int,
        *,
        chained: bool = False,
    ) -> Key:
        """Precision counts for float32 alone."""
        from fastrnn_kernels.plan import steps_class

        kind = str(dtype).removeprefix("torch.")
        if kind != "float32":
            precision = "ieee"
        return cls(direction, arch, cell, kind, precision, H, B, G, steps_class(T), chained)


class Found(NamedTuple):
    """The fastest configuration, and how fast it was."""

    config: LaunchConfig
    microseconds: float
    """Of a step."""


_found: dict[str, dict[Key, Found]] = {}
"""By architecture, as read or found in this process."""


def lookup(key: Key) -> LaunchConfig | None:
    """The configuration that was found for `key`, or None."""
    found = find(key)
    return None if found is None else found.config


def find(key: Key) -> Found | None:
    """What was found for `key`, or None."""
    return _of(key.arch).get(key)


def remember(key: Key, found: Found) -> None:
    """From now on, and in the file.

    Raises:
        OSError: the file cannot be written, or there is no place for it.
    """
    path = _path(key.arch)
    if path is None:
        raise FileNotFoundError("no home directory to keep launch configurations in")
    with locked(path.parent):
        known = {**_read(path), key: found}  # another process may have written since
        _found[key.arch] = known
        rows = [
            {
                **each._asdict(),
                "regime": found.config.regime,
                "config": asdict(found.config),
                "microseconds": found.microseconds,
            }
            for each, found in known.items()
        ]
        write_json(path, rows)


def forget() -> list[Path]:
    """Delete the files of this machine's GPUs; returns those that were there."""
    from fastrnn.machine import present_devices

    paths = [_path(arch) for device, arch in present_devices() if device == "cuda"]
    there = [path for path in paths if path is not None and path.exists()]
    for path in there:
        path.unlink()
    reset()
    return there


def reset() -> None:
    """Read the files anew when they are needed."""
    _found.clear()


def _of(arch: str) -> dict[Key, Found]:
    if arch not in _found:
        path = _path(arch)
        _found[arch] = {} if path is None else _read(path)
    return _found[arch]


def _path(arch: str) -> Path | None:
    owner, folder = machine("cuda", arch), cache_directory()
    return None if owner is None or folder is None else folder / "triton" / owner.file_name


def _read(path: Path) -> dict[Key, Found]:
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
        return {Key(*(row[name] for name in Key._fields)): _found_in(row) for row in rows}
    except FileNotFoundError:
        return {}
    except Exception as error:  # whatever is in it must not stop a forward call
        _log.debug("%s is ignored: %s: %s", path, type(error).__name__, error)
        return {}


def _found_in(row: dict[str, Any]) -> Found:
    from fastrnn_kernels import GridConfig, ResidentConfig, StepConfig

    kinds = {kind.regime: kind for kind in (GridConfig, ResidentConfig, StepConfig)}
    return Found(kinds[row["regime"]](**row["config"]), float(row["microseconds"]))
