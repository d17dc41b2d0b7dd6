"""What a run of `auto_cpu` says: a line a case, means, targets, and what was left out."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from fastrnn.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from benchmarks.auto_cases import Case

ELMAN_TRAINING = 1.5
"""How much faster than torch.nn the training of an Elman RNN is to be, in the geometric mean."""
PACKED = 2.0
"""The same of PackedSequences."""
CHOSEN = "--"
"""What a reason begins with that is the user's own: the option, which names the cases."""


def name(row: dict[str, Any]) -> str:
    """A case, in columns."""
    case = f"{row['cell']:9}{row['mode']:8}{row['kind']:13}"
    return f"{case}T={row['T']:<4} B={row['B']:<4} H={row['H']:<5}"


def line(row: dict[str, Any]) -> str:
    """One case for a person."""
    if "failed" in row:
        return f"{name(row)} FAILED: {row['failed']}"
    figures = f"torch.nn {row['torch_nn_us']:12.1f} us  fastrnn/torch.nn {row['ratio']:.3f}"
    mark = "  BEHIND" if row["behind"] else ""
    return f"{name(row)} {figures} (noise {row['noise']:.3f}) {row['backend']}{mark}"


def summary(rows: Sequence[dict[str, Any]], left_out: Mapping[str, Sequence[Case]]) -> str:
    """Means by kind of case, every case that is behind or failed, targets, what was left out."""
    measured = [row for row in rows if "failed" not in row]
    parts = [means(measured)] if measured else ["no case was measured"]
    parts += [line(row) for row in rows if row.get("behind") or "failed" in row]
    parts += targets(measured)
    for why, cases in left_out.items():
        if cases:
            parts.append(f"left out, {len(cases)} cases: {why}")
            if not why.startswith(CHOSEN):
                parts += names(cases)
    return "\n".join(parts)


def names(cases: Sequence[Case]) -> list[str]:
    """Every case, a line for those that differ in sizes only."""
    groups: dict[str, list[str]] = {}
    for case in sorted(cases):
        sizes = f"({case.T}, {case.B}, {case.H})"
        groups.setdefault(f"{case.cell} {case.mode} {case.kind}", []).append(sizes)
    return [f"  {kind}, (T, B, H): {' '.join(sizes)}" for kind, sizes in groups.items()]


def means(rows: Sequence[dict[str, Any]]) -> str:
    """A table: geometric means by cell, mode and kind."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["cell"], row["mode"], row["kind"]), []).append(row)
    lines = []
    for key, group in sorted(groups.items()):
        ratios = [row["ratio"] for row in group]
        behind = sum(row["behind"] for row in group)
        lines.append(
            [*key, str(len(group)), f"{speedup(group):.2f}x", f"{max(ratios):.3f}", str(behind)]
        )
    header = ["cell", "mode", "kind", "cases", "speed-up", "worst ratio", "behind"]
    return table(header, lines, "lllrrrr")


def targets(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What is asked for, and whether it is met by what was measured."""

    def of(chosen: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        return [row for row in rows if chosen(row)]

    def verdict(met: bool) -> str:
        return "met" if met else "NOT MET"

    found = []
    behind = sum(row["behind"] for row in rows)
    found.append(f"no case behind: {behind} of {len(rows)} are: {verdict(not behind)}")
    elman = of(
        lambda row: (row["cell"][:3], row["mode"], row["kind"]) == ("rnn", "train", "padded")
    )
    for what, group, wanted in (
        ("Elman training, padded", elman, ELMAN_TRAINING),
        ("packed", of(lambda row: row["kind"] == "packed"), PACKED),
    ):
        if group:
            slower = sum(1 / row["ratio"] < wanted for row in group)
            found.append(
                f"{what}, {wanted:g}x in the geometric mean: {speedup(group):.2f}x, "
                f"{slower} of {len(group)} cases below: {verdict(speedup(group) >= wanted)}"
            )
    steps = of(lambda row: row["mode"] == "step")
    if steps:
        slower = sum(row["behind"] for row in steps)
        found.append(
            f"a single step no slower: {slower} of {len(steps)} cases are: {verdict(not slower)}"
        )
    return found


def speedup(rows: Sequence[dict[str, Any]]) -> float:
    """The geometric mean of torch.nn's time over fastrnn's."""
    return 1 / statistics.geometric_mean(row["ratio"] for row in rows)
