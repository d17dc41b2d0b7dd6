"""All that `fastrnn bench` can measure, and beside what: its own presets and peers, and plugins'.

Plugins are asked when somebody benches. What is wrong with one of them is reported once, and
the rest is used.
"""

from __future__ import annotations

import reprlib
from typing import TypeVar

from fastrnn import bench_cases, bench_compiled, bench_flashrnn
from fastrnn.benchmark import Axes, Peer, Preset
from fastrnn.cli_common import DTYPES
from fastrnn.discovery import as_problem, reason
from fastrnn.plugins import registry

DEVICES = ("cpu", "cuda")

_Named = TypeVar("_Named", Peer, Preset)


ALL = "all"
"""What stands for every peer in `--peers`."""


def peers() -> dict[str, Peer]:
    """Every peer by name, torch.nn's first."""
    taken = {**dict.fromkeys(registry().backends, "a backend"), ALL: "all of them"}
    own: tuple[Peer, ...] = (*bench_cases.PEERS, bench_compiled.PEER)
    if bench_flashrnn.installed():
        own += (bench_flashrnn.PEER,)
    return _all("fastrnn_benchmark_peers", Peer, own, taken)


def presets() -> dict[str, Preset]:
    """Every preset by name, fastrnn's own first."""
    own: tuple[Preset, ...] = bench_cases.PRESETS
    if bench_flashrnn.installed():
        own += (bench_flashrnn.PRESET,)
    return _all("fastrnn_benchmark_cases", Preset, own, {})


def _all(
    hook: str, kind: type[_Named], own: tuple[_Named, ...], taken: dict[str, str]
) -> dict[str, _Named]:
    found = {each.name: each for each in own}
    for record, items, problems in registry().answers(hook):
        for each in items:
            try:
                item = _checked(each, kind, hook)
                if item.name in found or item.name in taken:
                    whose = taken.get(item.name, f"another {kind.__name__.lower()}")
                    raise ValueError(f"the name {item.name!r} is that of {whose}")
                found[item.name] = item
            except Exception as error:
                problems.append(as_problem(error))
        if problems:
            registry().report(record, f"not all of its benchmarks are used: {reason(problems)}")
    return found


def _checked(item: object, kind: type[_Named], hook: str) -> _Named:
    if not isinstance(item, kind):
        got = reprlib.repr(item)
        raise TypeError(f"{hook} returned {got}, expected instances of {kind.__name__}")
    name: object = item.name
    if not isinstance(name, str) or not name or "," in name:
        raise ValueError(
            f"{hook}: the name {name!r} is not allowed; expected a str without a comma"
        )
    if isinstance(item, Preset):
        _check_axes(item)
    return item


def _check_axes(preset: Preset) -> None:
    axes = Axes(*preset.axes)
    if not all(axes):
        raise ValueError(f"preset {preset.name!r}: an axis is empty: {axes}")
    known = registry().cells
    unknown = [cell for cell in axes.cell if cell not in known]
    if unknown:
        raise ValueError(
            f"preset {preset.name!r}: no cell {unknown[0]!r}; expected one of {', '.join(known)}"
        )
    for dtype in preset.dtypes:
        if dtype not in DTYPES:
            raise ValueError(
                f"preset {preset.name!r}: no dtype {dtype!r}; expected one of {', '.join(DTYPES)}"
            )
    if preset.device not in DEVICES:
        raise ValueError(
            f"preset {preset.name!r}: the device is {preset.device!r}; expected cpu or cuda"
        )
    sizes = [*axes.T, *axes.B, *axes.H, preset.layers, preset.input_size or 1]
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        raise ValueError(f"preset {preset.name!r}: a size is not an integer of at least 1: {axes}")
