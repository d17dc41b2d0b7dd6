"""What `fastrnn bench` prints: a group of lines per case, and what the columns mean."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from fastrnn.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrnn.bench import Row
    from fastrnn.benchmark import Case
    from fastrnn.floor import Floor

LEGEND = """\
auto: * is what backend='auto' chooses. ms: the median, and 20..80 % of the samples.
speed-up: over torch.nn. error: the largest against float64, in parts of what is allowed; above 1 is
wrong and gets no time."""
FLOOR_LEGEND = """\
GFLOP/s: of the matrix products. MiB: the most memory that torch holds during a call, beside input
and weights{how}. floor: no implementation can be faster on this machine, by
the largest of three bounds: arithmetic at the rate of a large product, memory at the bandwidth of a
copy, dependent steps ({steps}). of floor: the floor's time over this one's."""
NOTE = 130
"""Letters of a note at the most; files have the whole."""
TOO_HIGH = """\
A floor that is above a time (of floor: more than 100 %) is too high: the machine was busy when its
rates were measured."""
COUNTED = {"cpu": ", by its profiler", "cuda": ", by its allocator's counter"}


def report(rows: Sequence[Row]) -> str:
    """The table for a person, and below it what could not run and why."""
    case = rows[0].case
    with_floor = any(row.floor is not None for row in rows)
    dtypes = ", ".join(dict.fromkeys(row.case.dtype for row in rows))
    threads = f", {torch.get_num_threads()} threads" if case.device == "cpu" else ""
    return "\n".join(
        [
            f"{dtypes} on {case.device}{threads}, torch {torch.__version__}",
            *_lines(rows, with_floor, "," in dtypes),
            "",
            LEGEND,
            *([_floor_legend(case)] if with_floor else []),
            *([TOO_HIGH] if any(row.figures().get("floor_share", 0) > 1 for row in rows) else []),
            *_left_out(rows),
        ]
    )


def _lines(rows: Sequence[Row], with_floor: bool, with_dtype: bool) -> list[str]:
    """The header, and each case as a line of its own above those of its implementations."""
    header = ["", "auto", "ms", "20..80 % ms", "speed-up", "us/step"]
    header += ["GFLOP/s", "of floor", "MiB"] if with_floor else []
    header += ["error"]
    shown = [row for row in rows if row.status != "cannot run"]
    cells = [_cells(row, with_floor) for row in shown]
    title, rule, *lines = table([*header, "note"], cells, "ll" + "r" * (len(header) - 2)).split(
        "\n"
    )
    found = [title.removesuffix("note").rstrip() if not any(c[-1] for c in cells) else title, rule]
    if not any(line[-1] for line in cells):
        found[1] = rule.rsplit("  ", 1)[0]
    pairs = zip(shown, lines, strict=True)
    for case, group in itertools.groupby(pairs, key=lambda pair: pair[0].case):
        of_case = list(group)
        name = f"{case} {case.dtype}" if with_dtype else str(case)
        floor = of_case[0][0].floor
        found += ["", name if floor is None else f"{name}: {_bounds(floor)}"]
        found += [line for _, line in of_case]
    return found


def _cells(row: Row, with_floor: bool) -> list[str]:
    quantiles, figures = row.quantiles(), row.figures()
    middle = spread = "-"
    if quantiles:
        low, median, high = (1e3 * seconds for seconds in quantiles)
        middle, spread = f"{median:.3f}", f"{low:.3f}..{high:.3f}"
    cells = [
        f"  {row.implementation}",
        "*" if row.auto else "",
        middle,
        spread,
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
        f"{figures['us_per_step']:.2f}" if quantiles else "-",
    ]
    if with_floor:
        share = figures.get("floor_share")
        cells += [
            f"{figures['gflops']:.1f}" if quantiles else "-",
            "-" if share is None else f"{100 * share:.1f} %",
            "-" if row.peak_bytes is None else f"{row.peak_bytes / 2**20:.2f}",
        ]
    cells.append("-" if row.error is None else f"{row.error:.3f}")
    return [*cells, "" if row.status == "ok" else _note(row)]


def _note(row: Row) -> str:
    """What is wrong, in so many letters: a compiler's complaints fill pages."""
    text = f"{row.status.upper()}: {row.reason}"
    return text if len(text) <= NOTE else text[: NOTE - 3] + "..."


def _bounds(floor: Floor) -> str:
    parts = ", ".join(f"{name} {1e3 * value:.3f}" for name, value in floor._asdict().items())
    return f"floor {1e3 * floor.seconds:.3f} ms ({parts})"


def _floor_legend(case: Case) -> str:
    kind = torch.device(case.device).type
    steps = "measured" if kind == "cpu" else "assumed: the kernels' cost model"
    return FLOOR_LEGEND.format(how=COUNTED[kind], steps=steps)


def _left_out(rows: Sequence[Row]) -> list[str]:
    counts: dict[tuple[str, str], int] = {}
    for row in rows:
        if row.status == "cannot run":
            key = row.implementation, row.reason
            counts[key] = counts.get(key, 0) + 1
    return [
        f"{name} cannot run {count} of the cases: {reason}"
        for (name, reason), count in counts.items()
    ]
