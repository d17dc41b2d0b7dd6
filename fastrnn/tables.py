"""Plain text for a terminal or a file: aligned tables, no colours, no dependencies."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def table(header: Sequence[str], rows: Sequence[Sequence[str]], align: str = "") -> str:
    """Lines of columns, each as wide as its widest cell.

    Args:
        header: one title per column.
        rows: cells, as many per row as there are titles.
        align: a letter per column, `l` or `r`; left where it says nothing.
    """
    lines = [list(header), *(list(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    lines.insert(1, ["-" * width for width in widths])
    sides = align.ljust(len(header), "l")
    return "\n".join(
        "  ".join(
            cell.rjust(width) if side == "r" else cell.ljust(width)
            for cell, width, side in zip(line, widths, sides, strict=True)
        ).rstrip()
        for line in lines
    )
