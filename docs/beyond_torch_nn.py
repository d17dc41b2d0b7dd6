"""What torch.nn's recurrent layers cannot give and fastrnn's can, tried out here and now.

    python docs/beyond_torch_nn.py           # run every row, write beyond_torch_nn.md
    python docs/beyond_torch_nn.py --check   # run every row, compare with what is written there

Takes about a minute on a CPU. `--check` compares outcomes, not the texts of exceptions, which
differ between versions of torch; it prints what differs and exits with 1.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

# in the order of the table
import beyond_sequences  # isort: skip
import beyond_derivatives  # isort: skip
import beyond_programs  # isort: skip
import beyond_layers  # isort: skip
from beyond_rows import LIBRARIES, ROWS, Outcome, Row

__all__ = ["beyond_derivatives", "beyond_layers", "beyond_programs", "beyond_sequences"]

TABLE = Path(__file__).with_suffix(".md")
Outcomes = Mapping[str, Outcome]
"""By library."""

BEFORE = """# Beyond torch.nn

What `torch.nn.LSTM` and `torch.nn.RNN` are asked for, and what becomes of it there and with
`fastrnn.LSTM` and `fastrnn.RNN`. Every cell is the outcome of code that ran: this file is written
by `python docs/beyond_torch_nn.py`. Nothing but what is in the column "how it was tried" was
tried.

- **passes**: the result is that of an independent slow truth, such as the layer's equations step
  by step.
- **passes by hand**: it is, too, but it took more than a call of the layer, which is named. Where a
  call does not do, what the documentation offers otherwise was tried.
- **fails**: the first line of the exception.
- **wrong**: it ran, and the result is not what was asked for.
- **no such argument**: and no other way was found that leaves the layer in place.

A row that names a function of torch's asks for that function; a loop around the layer that computes
the same does not count there.

All of it ran on one thread of a CPU, with {versions}, and with the backend that `auto` chose unless
a cell names another. Nothing in this table was timed: a Python loop of one-step calls that passes
may be many times slower than one call.
"""

AFTER = """
Not run here:

1. On CUDA, cuDNN's backward pass needs a forward pass in training mode ("cudnn RNN backward can
   only be called in training mode", says torch's source, `RNN.cpp`). The issues are about that.
2. On CUDA, cuDNN has no second derivative. The issues are about that.
3. On CUDA, cuDNN refused an LSTM of more than 65,535 steps in the issue.

Rows about what does not depend on the layer are there because they are asked for; where both sides
pass, fastrnn has nothing to add but that it holds for it, too.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the rows; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--check", action="store_true", help="compare with the table, write nothing"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there, too")
    options = parser.parse_args(arguments)
    results = {}
    for row in ROWS:
        results[row.name] = attempt(row)
        told = ", ".join(f"{name} {each.kind}" for name, each in results[row.name].items())
        print(f"{row.name}: {told}", file=sys.stderr, flush=True)
    if options.json:
        options.json.write_text(json.dumps(as_json(results), indent=1) + "\n", encoding="utf-8")
    if not options.check:
        TABLE.write_text(markdown(results), encoding="utf-8")
        return 0
    found = differences(results, committed(TABLE.read_text(encoding="utf-8")))
    print("\n".join(found) or f"{len(results)} rows are as written")
    return 1 if found else 0


def attempt(row: Row) -> dict[str, Outcome]:
    """What becomes of a row with each library."""
    return {name: row.run(library) for name, library in LIBRARIES.items()}


def versions() -> str:
    """Of what outcomes depend on."""
    return f"torch {torch.__version__.split('+')[0]}"


def markdown(results: Mapping[str, Outcomes]) -> str:
    """The whole page."""
    lines = ["| asked for | torch.nn | fastrnn | how it was tried | requests |"]
    lines += ["|---|---|---|---|---|"]
    for row in ROWS:
        cells = [row.name, *map(str, results[row.name].values()), row.how]
        links = ", ".join(link(request) for request in row.requests)
        lines += [f"| {' | '.join([*cells, links])} |"]
    return "\n".join([BEFORE.format(versions=versions()), *lines, AFTER])


def link(request: int | str) -> str:
    """An issue's number as a link."""
    repository, number = ("pytorch/pytorch", request)
    if isinstance(request, str):
        repository, number = request.split("#")
    shown = f"#{number}" if isinstance(request, int) else request
    return f"[{shown}](https://github.com/{repository}/issues/{number})"


def committed(page: str) -> dict[str, dict[str, str]]:
    """The kinds of outcome on a page, by row and library."""
    found = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == 5 and cells[0] not in ("asked for", "---"):
            kinds = [kind_of(cell) for cell in cells[1:3]]
            found[cells[0]] = dict(zip(LIBRARIES, kinds, strict=True))
    return found


def kind_of(cell: str) -> str:
    """The kind of outcome that a cell shows."""
    beginnings = {
        "passes by hand: ": "by hand",
        "passes": "passes",
        "fails: ": "fails",
        "wrong: ": "wrong",
        "no such argument: ": "missing",
    }
    return next(kind for words, kind in beginnings.items() if cell.startswith(words))


def differences(
    results: Mapping[str, Outcomes], written: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """What differs from the table, a line each."""
    found = [f"- {name}: is no row any more" for name in written if name not in results]
    for name, outcomes in results.items():
        if name not in written:
            found.append(f"+ {name}: is not in the table")
            continue
        for library, outcome in outcomes.items():
            was = written[name][library]
            if outcome.kind != was:
                found += [f"- {name}: {library}: {was}", f"+ {name}: {library}: {outcome}"]
    return found


def as_json(results: Mapping[str, Outcomes]) -> dict[str, object]:
    """Outcomes and what they depend on."""
    rows = [
        {"row": name, **{library: each._asdict() for library, each in outcomes.items()}}
        for name, outcomes in results.items()
    ]
    return {"versions": versions(), "device": "cpu", "rows": rows}


if __name__ == "__main__":
    torch.set_num_threads(1)  # steps are small, and threads that wait for each other are slow
    sys.exit(main())
