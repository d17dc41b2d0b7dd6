"""Is `auto` ever slower than torch.nn on this CPU? A grid of shapes, in pairs, with its own noise.

    python -m benchmarks.auto_cpu --threads 1 --out benchmarks/results/cpu/FILE.json

Figures are medians over rounds (`pairs`): `ratio` of fastrnn's time to torch.nn's, `noise` of one
torch.nn to another, which is how far a ratio can be off for no reason. A case that looks behind is
measured twice more with new layers, since where memory happens to lie counts for some per cent, and
the median of the three ratios stands. A case is behind if that is above 1.03 and its excess over 1
more than twice its noise.

No case has a figure whose results differ: it is a failed one.

`--out` is written after every case, and a run goes on with what it finds there. Ctrl-C ends it.
With `--costs-changed` it may be of another commit that differs in what `auto` chooses: cases that
go to the same backend as then keep their figures, and have that commit beside them.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import auto_summary, pairs
from benchmarks.auto_cases import (
    CELLS,
    KINDS,
    MODES,
    Case,
    assert_right,
    expected_seconds,
    grid,
    pair,
)
from fastrnn.bench import as_installed
from fastrnn.discovery import describe
from fastrnn.doctor import environment

BEHIND = 1.03
SAME = ("fastrnn", "commit", "torch", "cpu", "threads")
"""What of the environment must be the same for a file to go on."""
MODULE_SECONDS = 0.05
"""What it takes to make the modules of a case, about."""


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write; exits with 1 if a case is behind or failed, 130 after Ctrl-C."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    try:
        new = {"environment": environment(), "rows": []}
        with as_installed():
            result = resume(options.out, new, costs_changed=options.costs_changed)
    except (OSError, ValueError) as error:
        print(f"auto_cpu: error: {error}", file=sys.stderr)
        return 2
    done = {case_of(row) for row in result["rows"]}
    chosen, left_out = choose(options)
    left = [case for case in chosen if case not in done]
    print(f"{len(left)} cases, {minutes(left, options.seconds):.0f} minutes, about", flush=True)
    if options.dry_run:
        print("\n".join(f"{case}, a call {expected_seconds(case):.2g} s" for case in left))
        return 0
    interrupted = False
    try:
        with as_installed():
            for case in left:
                row = row_of(case, options.seconds)
                result["rows"].append(row)
                write(options.out, result, left_out)
                print(auto_summary.line(row), flush=True)
    except KeyboardInterrupt:
        interrupted = True
    done = {case_of(row) for row in result["rows"]}
    left_out["not reached"] = [case for case in chosen if case not in done]
    left_out = {why: [c for c in cases if c not in done] for why, cases in left_out.items()}
    write(options.out, result, left_out)
    print(auto_summary.summary(result["rows"], left_out))
    bad = any(row.get("behind") or "failed" in row for row in result["rows"])
    return 130 if interrupted else int(bad)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="auto_cpu", description=(__doc__ or "").split("\n")[0])
    kinds = list(dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds))
    parser.add_argument("--threads", type=positive, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.5, help="per case, about (see pairs)")
    parser.add_argument("--out", type=Path, help="JSON; goes on with what is there")
    parser.add_argument("--costs-changed", action="store_true",
                        help="keep an earlier commit's figures of what it chose alike")  # fmt: skip
    parser.add_argument("--cell", choices=CELLS, action="append", help="more than once for more")
    parser.add_argument("--mode", choices=MODES, action="append")
    parser.add_argument("--kind", choices=kinds, action="append")
    parser.add_argument("--max-seconds-per-call", type=float, default=math.inf, metavar="S",
                        help="leave out what is expected to take longer")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="list the cases, dearest last")
    return parser.parse_args(arguments)


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int of 1 or more, got {text!r}")
    return int(text)


def choose(options: argparse.Namespace) -> tuple[list[Case], dict[str, list[Case]]]:
    """The cases to measure, and those that are not, by the reason."""
    chosen: list[Case] = []
    left_out: dict[str, list[Case]] = {}
    limit = options.max_seconds_per_call
    for case in grid():
        why = None
        for name in ("cell", "mode", "kind"):
            asked = getattr(options, name)
            if asked and getattr(case, name) not in asked:
                why = f"--{name} {' '.join(asked)}"
        if why is None and expected_seconds(case) > limit:
            why = f"a call is expected to take more than {limit:g} s"
        if why is None:
            chosen.append(case)
        else:
            left_out.setdefault(why, []).append(case)
    return chosen, left_out


def minutes(cases: list[Case], seconds: float) -> float:
    """How long it takes to measure them, about, with one thread."""
    total = 0.0
    for case in cases:
        once = expected_seconds(case)
        if once > pairs.ENDLESS_SECONDS:
            calls = 6
        elif once > pairs.LONG_SECONDS:
            calls = 3 + 4 * max(3, round(seconds / (4 * once)))
        else:
            calls = 13 + max(28, math.ceil(seconds / once))
        total += MODULE_SECONDS + calls * once
    return total / 60


def row_of(case: Case, seconds: float) -> dict[str, Any]:
    """A case and what was found, or what it raised: one failure does not end a grid."""
    try:
        return {**case._asdict(), **measure_again_if_behind(case, seconds)}
    except Exception as error:
        return {**case._asdict(), "failed": describe(error)}


def measure_again_if_behind(case: Case, seconds: float) -> dict[str, Any]:
    """The first measurement, or the middle one of three where the first looks behind."""
    found = [measure(case, seconds)]
    while found[0]["behind"] and len(found) < 3:
        found.append(measure(case, seconds))
    middle = sorted(found, key=lambda row: row["ratio"])[len(found) // 2]
    return {**middle, "ratios": [row["ratio"] for row in found]}


def measure(case: Case, seconds: float) -> dict[str, Any]:
    """Ratios of fastrnn and of torch.nn itself to torch.nn, and which backend `auto` took."""
    theirs, ours, backend = pair(case)
    found = pairs.measure(theirs, ours, seconds, partial(assert_right, case, backend))
    return {
        "backend": backend,
        "torch_nn_us": found.theirs_us,
        "ratio": found.ratio,
        "noise": found.noise,
        "rounds": found.rounds,
        "behind": found.ratio > BEHIND and found.ratio - 1 > 2 * found.noise,
    }


def case_of(row: dict[str, Any]) -> Case:
    """The case that a row is of."""
    return Case(*(row[name] for name in Case._fields))


def resume(
    path: Path | None, new: dict[str, Any], *, costs_changed: bool = False
) -> dict[str, Any]:
    """What a former run left in the file, or a new result.

    Args:
        path: the file, which need not be there.
        new: what there is without it.
        costs_changed: take one of another commit, without the rows of what `auto` would now give
            to another backend.

    Raises:
        ValueError: the file is none of this command, or of another machine, version, commit or
            number of threads.
    """
    same = [name for name in SAME if not (costs_changed and name == "commit")]
    if path is None or not path.exists():
        return new
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        settings = [(name, found["environment"][name], new["environment"][name]) for name in same]
        for row in found["rows"]:
            case_of(row)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--out: {path} is no file of this command: {describe(error)}") from None
    for name, before, now in settings:
        if name == "commit":  # the file itself may be what the checkout is changed by
            before, now = (text and text.removesuffix("+") for text in (before, now))
        if before != now:
            raise ValueError(
                f"--out: {path} was measured with {name} {before!r}, now it is {now!r}: "
                "name another file"
            )
    found["rows"] = [row for row in found["rows"] if "failed" not in row]
    if costs_changed:
        commit = found["environment"]["commit"]
        kept = [row for row in found["rows"] if row["backend"] == pair(case_of(row)).backend]
        return {**new, "rows": [{"commit": commit, **row} for row in kept]}
    return found


def write(path: Path | None, result: dict[str, Any], left_out: dict[str, list[Case]]) -> None:
    """Write the file as a whole or not at all."""
    if path is None:
        return
    names = {why: list(map(str, cases)) for why, cases in left_out.items()}
    behind = sum(row.get("behind", False) for row in result["rows"])
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    content = {**result, "behind": behind, "left_out": names}
    new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    os.replace(new, path)


if __name__ == "__main__":
    sys.exit(main())
