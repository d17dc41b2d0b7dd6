"""The README's Python runs, in order, and prints what the README says it prints."""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

import pages
from fastrnn import plugins
from fastrnn.bench import Row
from fastrnn.bench_report import report
from fastrnn.benchmark import Case
from fastrnn.floor import Floor

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
MEASURED = ROOT / "benchmarks/results/cpu-xeon-2-cores/readme-bench.json"


@pytest.fixture
def two_threads(monkeypatch):
    """Estimates depend on the threads; the README's were printed with two.

    It runs on one all the same: two wait for each other where other processes have the cores.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    yield
    monkeypatch.undo()
    torch.set_num_threads(before)
    plugins.reset()  # the README registers a plugin


def test_python_blocks_print_what_follows_them(two_threads: None) -> None:
    ran, compared = pages.run(README)
    assert ran >= 5
    assert compared >= 4


def test_the_sample_table_is_what_the_committed_file_has() -> None:
    records = json.loads(MEASURED.read_text(encoding="utf-8"))["results"]
    _, *lines = report([row_of(record) for record in records]).split("\n")
    text = README.read_text(encoding="utf-8")
    assert "\n".join(lines) in text  # the line before has this machine's threads and torch
    assert text.count(" of floor: ") == 1


def row_of(record: dict[str, Any]) -> Row:
    """The row that `fastrnn bench --json` wrote."""
    apart = {"case", "samples", "floor"}
    kept = {each.name: record[each.name] for each in fields(Row) if each.name not in apart}
    return Row(
        Case(*(record[name] for name in Case._fields)),
        samples=record["samples_s"],
        floor=Floor(*(record[f"floor_{name}_s"] for name in Floor._fields)),
        **kept,
    )


def test_what_it_shows_and_links_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)", README.read_text(encoding="utf-8"))
    assert len(links) > 10
    missing = [link for link in links if "://" not in link and not (ROOT / link).exists()]
    assert missing == []


def speedup(rows: list[dict[str, Any]], **chosen: object) -> str:
    """torch.nn's time over fastrnn's, the geometric mean of the rows with these fields."""
    ratios = [
        row["ratio"]
        for row in rows
        if all(row[name] == value for name, value in chosen.items() if name != "elman")
        and (not chosen.get("elman") or row["cell"].startswith("rnn"))
    ]
    return f"{1 / statistics.geometric_mean(ratios):.2f}"


def grid_column(name: str) -> list[str]:
    """A column of the README's table of `auto_cpu`, from a file of results."""
    content = json.loads((MEASURED.parent / name).read_text(encoding="utf-8"))
    rows = content["rows"]
    behind = [row["ratio"] for row in rows if row["behind"]]
    elman, gru = {"elman": True, "mode": "train"}, {"cell": "gru", "mode": "train"}
    by_steps = [speedup(rows, **elman, kind="padded", T=T) for T in (1, 20, 100, 512)]
    return [
        f"{len(rows):,}",
        f"{len(behind)}, by {max(behind) - 1:.0%} at most" if behind else "0",
        " / ".join(by_steps),
        speedup(rows, **elman, kind="padded"),
        speedup(rows, **elman, kind="packed"),
        " / ".join(
            speedup(rows, elman=True, mode="forward", kind=kind) for kind in ("padded", "packed")
        ),
        speedup(rows, cell="lstm", mode="train", kind="packed"),
        f"{speedup(rows, **gru, kind='padded')} / {speedup(rows, **gru, kind='packed')}",
        f"{speedup(rows, mode='train', kind='packed')} / "
        f"{speedup(rows, mode='forward', kind='packed')}",
        f"{speedup(rows, kind='layer')} / {speedup(rows, kind='stepper')}",
        speedup(rows),
    ]


GRID_ROWS = (
    "cases",
    "behind by more than 3 % and twice the noise",
    "training of Elman RNNs, T = 1 / 20 / 100 / 512",
    "all of it",
    "training of packed Elman RNNs",
    "Elman RNNs without gradients, padded / packed",
    "training of packed LSTMs",
    "training of GRUs, padded / packed",
    "all that is packed, in training / forward",
    "a single step: the layer / a `Stepper`",
    "all cases",
)


def test_the_grid_is_that_of_the_files() -> None:
    columns = [grid_column(f"auto-{threads}.json") for threads in ("1-thread", "2-threads")]
    lines = [
        f"| {what} | {one} | {two} |" for what, one, two in zip(GRID_ROWS, *columns, strict=True)
    ]
    assert "\n".join(lines) in README.read_text(encoding="utf-8")


COMPILED = {
    "training of Elman RNNs": ("rnn", "train"),
    "Elman RNNs without gradients": ("rnn", "forward"),
    "training of GRUs": ("gru", "train"),
    "GRUs without gradients": ("gru", "forward"),
    "training of LSTMs": ("lstm", "train"),
    "LSTMs without gradients": ("lstm", "forward"),
}


RESULTS = MEASURED.parent.parent
LOOPS = (
    ("cpu-xeon-2-cores", "auto-1-thread"),
    ("cpu-epyc-2-cores", "auto-1-thread"),
    ("cpu-epyc-2-cores", "auto-2-threads"),
)


def measured_cases(machine: str, name: str) -> dict[tuple[str | int, ...], dict[str, Any]]:
    rows = json.loads((RESULTS / machine / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    return {tuple(row[key] for key in ("cell", "mode", "kind", "T", "B", "H")): row for row in rows}


def compiled_table() -> list[str]:
    """The README's table of what goes to `numba`, and on one machine what it takes without it."""
    without = measured_cases(*LOOPS[0])
    columns = [measured_cases(machine, f"{name}-numba") for machine, name in LOOPS]
    lines = []
    for what, (cell, mode) in COMPILED.items():
        for kind in ("padded", "packed"):
            found = [f"{what}, {kind}"]
            for number, column in enumerate(columns):
                cases = [
                    case
                    for case, row in column.items()
                    if row["backend"] == "numba"
                    and (str(case[0]).startswith(cell), *case[1:3]) == (True, mode, kind)
                ]
                found.append(f"{len(cases)}")
                for rows in (column,) if number else (without, column):
                    found.append(speedup([rows[case] for case in cases]) if cases else "-")
            lines.append("| " + " | ".join(found) + " |")
    one, two, three = (f"{len(column):,}" for column in columns)
    lines.append(f"| all cases, wherever they go | {one} | | | {two} | | {three} | |")
    behind = [[row["ratio"] for row in each.values() if row["behind"]] for each in columns]
    one, two, three = (f"{len(b)}" + (f", by {max(b) - 1:.0%}" if b else "") for b in behind)
    lines.append(f"| of them behind, by how much at most | {one} | | | {two} | | {three} | |")
    return lines


def test_what_compiled_loops_gain_is_that_of_the_files() -> None:
    assert "\n".join(compiled_table()) in README.read_text(encoding="utf-8")


MARKS = {
    "lengths of T, all of them": "lengths of T",
    "lengths from T down to 1": "lengths to T",
    "a mask of no resets": "no resets",
    "a reset in 100 steps": "resets / 100",
    "a reset in 10 steps": "resets / 10",
}
MARKED = ("lstm", "gru", "rnn_tanh")


def marks_table(name: str) -> list[str]:
    """What marks cost, from a file of `marks_cost`."""
    path = MEASURED.parent / name
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]

    def cell(mark: str, **chosen: str) -> str:
        found = [row for row in rows if all(row[name] == value for name, value in chosen.items())]
        ratios = [row[mark]["ratio"] for row in found]
        assert len(ratios) == 18
        return f"{statistics.geometric_mean(ratios):.2f} ({max(ratios):.1f})"

    columns = [(name, mode) for name in MARKED for mode in ("train", "forward")]
    lines = [
        [what, *(cell(mark, cell=name, mode=mode) for name, mode in columns)]
        for what, mark in MARKS.items()
    ]
    return ["| " + " | ".join(line) + " |" for line in lines]


def test_what_marks_cost_is_that_of_the_files() -> None:
    for name in ("marks-1-thread.json", "marks-1-thread-numba.json"):
        assert "\n".join(marks_table(name)) in README.read_text(encoding="utf-8")
