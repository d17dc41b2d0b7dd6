"""The few shapes that the pictures in docs/pictures are made of, as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, GREY, PAPER = "#1f2430", "#5d6677", "#ffffff"
WEIGHTS, STATE, MEMORY, PLAIN = "#f3c98b", "#a9d6b8", "#c9d4ee", "#eef0f4"
"""Fills: W_hh, h and c, what lies in L2 or device memory, and the rest."""
FONT = "font-family='system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif'"


def picture(width: int, height: int, title: str, shapes: Sequence[str]) -> str:
    """A picture on paper of its own, so that it reads on dark pages, too.

    Args:
        width: in pixels.
        height: in pixels.
        title: what it shows, for those who do not see it.
        shapes: of the functions below.
    """
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' "
        f"width='{width}' height='{height}' role='img' aria-label='{escape(title, quote=True)}'>"
    )
    arrow = (
        "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' "
        f"markerHeight='7' orient='auto-start-reverse'><path d='M0 0L8 4L0 8z' fill='{INK}'/>"
        "</marker></defs>"
    )
    paper = f"<rect width='{width}' height='{height}' rx='8' fill='{PAPER}'/>"
    return "\n".join([head, arrow, paper, *shapes, "</svg>\n"])


def box(
    x: float, y: float, width: float, height: float, lines: Sequence[str] = (), fill: str = PLAIN
) -> str:
    """A box with lines of text in its middle."""
    shape = (
        f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' rx='4' fill='{fill}' "
        f"stroke='{GREY}'/>"
    )
    middle = y + height / 2 - 8 * (len(lines) - 1)
    words = [text(x + width / 2, middle + 16 * n, line) for n, line in enumerate(lines)]
    return "\n".join([shape, *words])


def text(
    x: float, y: float, words: str, anchor: str = "middle", colour: str = INK, size: int = 13
) -> str:
    """A line of text with its middle, start or end at x, and y at half its height."""
    return (
        f"<text x='{x:g}' y='{y:g}' dy='.35em' text-anchor='{anchor}' fill='{colour}' "
        f"font-size='{size}' {FONT}>{escape(words)}</text>"
    )


def bar(x: float, y: float, width: float, height: float, fill: str) -> str:
    """A bar of a chart, or a line of a scale."""
    return f"<rect x='{x:g}' y='{y:g}' width='{width:g}' height='{height:g}' fill='{fill}'/>"


def arrow(x: float, y: float, to_x: float, to_y: float, both: bool = False) -> str:
    """A straight arrow, with a tip at one end or at both."""
    start = " marker-start='url(#tip)'" if both else ""
    return (
        f"<line x1='{x:g}' y1='{y:g}' x2='{to_x:g}' y2='{to_y:g}' stroke='{INK}' "
        f"stroke-width='1.5' marker-end='url(#tip)'{start}/>"
    )
