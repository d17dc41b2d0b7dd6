"""What the backends were measured to take on this machine, kept in a file between processes.

`fastrnn tune` writes it, and `auto` reads it, once a process, at the first decision. There is one
file per device and versions of torch, Triton and fastrnn, so that nothing outlives what it was
measured with. Whatever is wrong with a file, a forward call goes on with the estimates.
"""

from __future__ import annotations

import json
import logging
import math
import reprlib
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from fastrnn import roofline
from fastrnn.discovery import describe
from fastrnn.machine import CACHE_VARIABLE, Machine, cache_directory, machine
from fastrnn.request import Cost, Request
from fastrnn.storage import locked, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fastrnn.discovery import PluginRecord
    from fastrnn.request import Candidate

SCHEMA = 1
"""Of the file; one with another number is ignored."""
NEAR = 2
"""A measurement speaks for sizes up to this factor from its own, in T and in B."""
# of a request's fields, those that its time does not depend on, or hardly
_IMMATERIAL = {"dropout": 0.0, "training": False, "compiling": False}
_SAME = [f for f in Request._fields if f not in ("seq_len", "batch", *_IMMATERIAL)]

_log = logging.getLogger("fastrnn")


class Timing(NamedTuple):
    """One backend's measurement of one problem."""

    seconds: float
    """Median of one call."""
    version: str
    """Name and version of the distribution that the backend is from; see `versions`."""
    date: str
    """When, UTC, in ISO format."""


class Size(NamedTuple):
    """The sizes between which measurements carry over."""

    T: int
    B: int


# The problems by what must be the same, then by size, then by backend. The first key is a request
# that says nothing about size.
Problems = dict[Request, dict[Size, dict[str, Timing]]]


@dataclass
class Store:
    """What was measured on one machine."""

    machine: Machine
    path: Path | None
    """Its file, which need not exist; None where there is no place for one."""
    problems: Problems = field(default_factory=dict)
    complaint: str = ""
    """Why the file could not be read; empty if it could, or is not there."""

    def as_json(self) -> list[dict[str, object]]:
        """Every problem as the file has it."""
        return [_record(request, by_backend) for request, by_backend in self.records()]

    def records(self) -> Iterator[tuple[Request, dict[str, Timing]]]:
        """Every problem as a request, and its timings by backend."""
        for kind, sizes in self.problems.items():
            for (T, B), by_backend in sizes.items():
                yield kind._replace(seq_len=T, batch=B, training=kind.needs_grad), by_backend


_stores: dict[tuple[str, str], Store | None] = {}


def store(device: str, arch: str) -> Store | None:
    """What was measured on a device of this machine; read from its file once a process.

    Args:
        device: torch's device type.
        arch: `sm_90`, `gfx942`, ...; empty for the CPU.

    Returns:
        None if this machine has no such device.
    """
    key = device, arch
    if key not in _stores:
        owner = machine(device, arch)
        _stores[key] = None if owner is None else _load(owner)
    return _stores[key]


def reset() -> None:
    """Forget what was read; the next decision reads anew."""
    _stores.clear()


def versions(plugins: Sequence[PluginRecord], cell: str) -> dict[str, str]:
    """Name and version of the distributions of every backend that is from one, and of the cell.

    What is registered from Python is left out, of such a cell every backend: nothing says whether
    its code is still the same.
    """
    of_cell = ""
    for plugin in plugins:
        if cell in plugin.cells:
            if not plugin.distribution:
                return {}
            of_cell = f"{plugin.distribution} {plugin.version}"
    found = {}
    for plugin in plugins:
        own = f"{plugin.distribution} {plugin.version}"
        text = own if of_cell in ("", own) else f"{own}, {of_cell}"
        found.update(dict.fromkeys(plugin.backends if plugin.distribution else (), text))
    return found


def competitors(
    candidates: Iterable[Candidate], plugins: Sequence[PluginRecord], cell: str
) -> dict[str, str]:
    """The backends that `auto` has to compare, each with its version as in `versions`, or empty.

    Those that can run the request, but for one that charges infinity: it does not want to be
    chosen, whatever it was measured to take.
    """
    known = versions(plugins, cell)
    return {
        candidate.name: known.get(candidate.name, "")
        for candidate in candidates
        if candidate.cost is not None and math.isfinite(candidate.cost.seconds)
    }


def lookup(request: Request, able: Mapping[str, str]) -> dict[str, Cost]:
    """Measured costs of all backends that can run `request`, or of none.

    All, and from one stored problem: a measured 100 us must not compete with an estimated 50 us,
    nor with 50 us measured at a smaller size. So of the problems that differ from `request` only
    in T and B, by a factor of at most `NEAR` each, and that have a timing of every backend in
    `able`, the nearest in (log T, log B) counts. A timing of another version of a backend is none.

    Seconds are scaled by T, because steps follow one another, and not by B: rows run side by side,
    and until the hardware is full a step takes as long as it takes to read W_hh, whatever B.
    Either way all backends are scaled alike, so that their order is always one that was measured.

    A graph that torch.compile makes leaves T and B open. It takes the problem nearest to the
    sizes that estimates assume there, however far.

    Args:
        request: what a call on this machine asks for.
        able: the backends that can run it, each with its version, as from `competitors`. An
            empty version matches no timing.
    """
    found = store(request.device, request.arch) if able else None
    if found is None:
        return {}
    T = roofline.TYPICAL if request.seq_len is None else request.seq_len
    B = roofline.TYPICAL if request.batch is None else request.batch
    if not T or not B:
        return {}
    near = {
        size: by_backend
        for size, by_backend in found.problems.get(_kind(request), {}).items()
        if (request.compiling or (_is_near(T, size.T) and _is_near(B, size.B)))
        and all(n in by_backend and by_backend[n].version == able[n] for n in able)
    }
    if not near:
        return {}
    size = min(near, key=lambda s: (math.hypot(math.log(T / s.T), math.log(B / s.B)), s))
    return {name: _cost(near[size][name], size, T) for name in able}


def timings(request: Request) -> dict[str, Timing]:
    """What is known of just this problem, by backend."""
    found = store(request.device, request.arch)
    if found is None or request.seq_len is None or request.batch is None:
        return {}
    return found.problems.get(_kind(request), {}).get(Size(request.seq_len, request.batch), {})


def prepare(request: Request) -> None:
    """See that `remember` could keep what is about to be measured; makes the folder.

    Args:
        request: a problem on a device of this machine.

    Raises:
        OSError: there is no place for the file, or one cannot write there.
    """
    current = store(request.device, request.arch)
    folder = None if current is None else _place(current).parent
    try:
        if folder is not None:
            with locked(folder), tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        text = f"measurements cannot be kept in {folder} ({CACHE_VARIABLE} names another folder)"
        raise OSError(f"{text}: {describe(error)}") from error


def remember(
    request: Request, seconds: Mapping[str, float | None], version: Mapping[str, str], *, keep: bool
) -> Store:
    """Take the medians of one problem into account, from now on and, if `keep`, for good.

    What the file holds by then is kept, also of other backends of the same problem.

    Args:
        request: the problem; its T and B are known.
        seconds: per backend. None for one that turned out to be wrong or to fail: what was known
            of it is forgotten. One that `version` lacks is left out.
        version: as from `versions`.
        keep: whether to write it to the file.

    Raises:
        ValueError: this machine lacks the device, or T or B is not known.
        OSError: the file cannot be written, or there is no place for it.
    """
    current = store(request.device, request.arch)
    if current is None:
        raise ValueError(f"request: got one for {request.device}, which this machine does not have")
    if request.seq_len is None or request.batch is None:
        raise ValueError("request: got one without T and B, expected one that was measured")
    kind, size = _kind(request), Size(request.seq_len, request.batch)
    date = datetime.now(UTC).isoformat(timespec="seconds")
    new = {
        name: None if median is None else Timing(median, version[name], date)
        for name, median in seconds.items()
        if name in version
    }
    _update(current.problems, kind, size, new)
    if keep and new:
        _save(current, kind, size, new)
    return current


def forget(device: str, arch: str) -> Path | None:
    """Delete the measurements of a device of this machine.

    Returns:
        The file that was deleted; None if there was none.

    Raises:
        OSError: it cannot be deleted.
    """
    current = store(device, arch)
    reset()
    if current is None or current.path is None:
        return None
    try:
        current.path.unlink()
    except FileNotFoundError:
        return None
    return current.path


def _kind(request: Request) -> Request:
    """What of a request must be the same."""
    threads = request.threads
    if request.compiling and request.device == "cpu":
        threads = threads or torch.get_num_threads()  # requests of graphs do not say
    return request._replace(seq_len=None, batch=None, threads=threads, **_IMMATERIAL)  # type: ignore[arg-type] # by name


def _is_near(size: int, measured: int) -> bool:
    return size <= NEAR * measured and measured <= NEAR * size


def _cost(timing: Timing, size: Size, steps: int) -> Cost:
    seconds, _, date = timing
    why = f"measured on this machine: {seconds * 1e6:,.1f} us at T={size.T} B={size.B}, {date[:10]}"
    return Cost(seconds * steps / size.T, why)


def _update(
    problems: Problems, kind: Request, size: Size, new: Mapping[str, Timing | None]
) -> None:
    known = problems.get(kind, {}).get(size, {})
    left = {name: timing for name, timing in {**known, **new}.items() if timing is not None}
    if left:
        problems.setdefault(kind, {})[size] = left
    elif known:
        del problems[kind][size]


def _load(owner: Machine) -> Store:
    folder = cache_directory()
    found = Store(owner, None if folder is None else folder / owner.file_name)
    if found.path is None:
        return found
    try:
        found.problems = _read(found.path, owner)
    except FileNotFoundError:
        pass
    except Exception as error:  # whatever is in it must not stop a forward call
        found.complaint = describe(error)
        _log.debug("%s is ignored: %s", found.path, found.complaint)
    return found


def _read(path: Path, owner: Machine) -> Problems:
    content = json.loads(path.read_text(encoding="utf-8"))
    if (content["schema"], content["machine"]) != (SCHEMA, owner._asdict()):
        _log.debug("%s is ignored: it is of another machine, version or schema", path)
        return {}
    problems: Problems = {}
    for record in content["problems"]:
        kind = _kind_of_record(record)
        size = Size(int(record["seq_len"]), int(record["batch"]))
        timings = {name: Timing(**timing) for name, timing in record["backends"].items()}
        if min(size) < 1 or not all(map(_is_sound, timings.values())):
            raise ValueError(f"a problem has impossible sizes or timings: {reprlib.repr(record)}")
        _update(problems, kind, size, timings)
    return problems


def _is_sound(timing: Timing) -> bool:
    known = bool(timing.version) and datetime.fromisoformat(timing.date).tzinfo is not None
    return known and 0 < timing.seconds < math.inf


def _kind_of_record(record: dict[str, Any]) -> Request:
    # a file that is older than a field is of problems without what the field asks for
    known = {**Request._field_defaults, **record}
    same = {name: known[name] for name in _SAME}
    dtype = getattr(torch, same["dtype"])
    if not isinstance(dtype, torch.dtype) or not isinstance(same["cell"], str):
        raise ValueError(f"a problem has no dtype or no cell: {reprlib.repr(record)}")
    return Request(**{**same, "dtype": dtype, "seq_len": None, "batch": None, **_IMMATERIAL})


def _save(current: Store, kind: Request, size: Size, new: Mapping[str, Timing | None]) -> None:
    """Add `new` to what is in the file by now, and take over what others have added to it."""
    path = _place(current)
    with locked(path.parent):
        there = _load(current.machine)
        _update(there.problems, kind, size, new)
        current.problems, current.complaint = there.problems, ""
        content = {
            "schema": SCHEMA,
            "machine": current.machine._asdict(),
            "problems": current.as_json(),
        }
        write_json(path, content)


def _place(current: Store) -> Path:
    if current.path is None:
        raise FileNotFoundError(f"no home directory to keep measurements in; set {CACHE_VARIABLE}")
    return current.path


def _record(request: Request, timings: dict[str, Timing]) -> dict[str, object]:
    fields = {name: getattr(request, name) for name in ("seq_len", "batch", *_SAME)}
    fields["dtype"] = str(request.dtype).removeprefix("torch.")
    return {**fields, "backends": {name: timing._asdict() for name, timing in timings.items()}}
