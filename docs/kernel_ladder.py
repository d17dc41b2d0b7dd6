"""What each idea of the kernels should gain, and what lies where: the figures of a page.

    python docs/kernel_ladder.py           # write the page's tables, and the pictures
    python docs/kernel_ladder.py --check   # say what differs, and exit with 1 if anything does

The figures are predictions of `fastrnn_kernels.model` for an H100 with published rates; operations
of plain torch are counted as they run, and each is charged what `fastrnn_reference.cost` charges.
No GPU is needed, and none has been asked.
"""

# mypy: allow-untyped-calls
# (TorchDispatchMode and Tensor.backward are not annotated)

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import kernel_pictures
from drawing import GREY, INK, bar, picture, text
from fastrnn_kernels import Problem, plan
from fastrnn_kernels.configs import TARGET_LIMITS, Direction
from fastrnn_kernels.model import Rates
from fastrnn_reference.cost import LAUNCH, OPERATIONS
from fastrnn_triton.cost import PRODUCTS

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "how_the_kernels_work.md"
PICTURES = DOCS / "pictures"
GPU = TARGET_LIMITS["sm_90"]
DIRECTIONS: tuple[Direction, ...] = ("forward", "backward")
SIZES = (64, 128, 256, 512, 1024)
DRAWN = 512
"""Hidden units of the picture."""
BATCH = 16
AT_ONCE = (2, 4)
"""Layers of a stack that are tried at once."""
BLOCK = re.compile(r"(?ms)^<!-- made: (\w+) -->\n.*?^<!-- end -->$")
Rung = Callable[[Direction, int], "float | None"]


def problem(direction: Direction, H: int, layers: int = 1) -> Problem:
    """An LSTM in bfloat16, or several layers of one that are run at once."""
    return Problem.of(
        direction, 4, H, BATCH, layers, torch.bfloat16, "ieee", cell_state=True, chained=layers > 1
    )


def cell_loop(direction: Direction, H: int) -> float:
    """Every step by itself, each operation launched from Python; differentiated by autograd."""
    return counted()[direction] * LAUNCH


def projected(direction: Direction, H: int) -> float:
    """Products with W_ih taken out of the loop, and its gradient written by hand."""
    return OPERATIONS["lstm"][direction == "backward"] * LAUNCH


def fused(direction: Direction, H: int) -> float:
    """One kernel a step, launched as a first kernel is."""
    rates = Rates()
    launched = replace(rates, launch=rates.start)
    return plan(problem(direction, H), GPU, "step", rates=launched).estimate.step


def graph(direction: Direction, H: int) -> float:
    """The same kernel from a CUDA graph."""
    return plan(problem(direction, H), GPU, "step").estimate.step


def on_chip(direction: Direction, H: int) -> float:
    """One launch for the sequence, by whichever regime should be the fastest."""
    return plan(problem(direction, H), GPU).estimate.step


def overlapped(direction: Direction, H: int) -> float | None:
    """Layers at once, per layer; None if not even two fit."""
    found = []
    for layers in AT_ONCE:
        try:
            found.append(plan(problem(direction, H, layers), GPU).estimate.step / layers)
        except ValueError:  # so many do not fit
            continue
    return min(found, default=None)


RUNGS: Mapping[str, Rung] = {
    "1. A loop over an LSTM cell": cell_loop,
    "2. Input products out of the loop": projected,
    "3. A fused kernel a step": fused,
    "4. Its launches in a CUDA graph": graph,
    "5. W_hh on chip, one launch": on_chip,
    "6. Layers at once": overlapped,
}


@cache
def counted() -> dict[Direction, float]:
    """Operations a step of a plain loop over the equations, other than views."""
    few, many = (run(T) for T in (4, 8))
    return {"forward": (many[0] - few[0]) / 4, "backward": (many[1] - few[1]) / 4}


def run(T: int) -> tuple[int, int]:
    """Operations of T steps of a plain loop, and of its backward pass."""
    x, w_ih, w_hh, b, h, c = (
        torch.zeros(size, requires_grad=True)
        for size in ((T, 1, 1), (4, 1), (4, 1), (4,), (1, 1), (1, 1))
    )
    outputs = []
    with Operations() as forward:
        for x_t in x.unbind():
            a = torch.addmm(b, x_t, w_ih.mT) + h @ w_hh.mT
            i, f, g, o = a.chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            outputs.append(h)
        loss = torch.stack(outputs).sum()
    with Operations() as backward:
        loss.backward()
    return forward.count, backward.count


class Operations(TorchDispatchMode):
    """Counts torch's operations, each of them a launch on a GPU; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run it."""
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def table(direction: Direction) -> str:
    """Microseconds a step and layer of every rung and size."""
    lines = [f"| us a step and layer | {' | '.join(f'H {H}' for H in SIZES)} |"]
    lines += ["|---" + "|--:" * len(SIZES) + "|"]
    for name, rung in RUNGS.items():
        figures = [figure(rung(direction, H)) for H in SIZES]
        lines.append(f"| {name} | {' | '.join(figures)} |")
    return "\n".join(lines)


def figure(seconds: float | None) -> str:
    """Microseconds with three digits, about."""
    if seconds is None:
        return "do not fit"
    us = seconds * 1e6
    return f"{us:.{2 if us < 10 else 1 if us < 30 else 0}f}"


def chosen(direction: Direction) -> str:
    """The regimes that the plan takes, each with its sizes."""
    sizes: dict[str, list[str]] = {}
    for H in SIZES:
        sizes.setdefault(plan(problem(direction, H), GPU).config.regime, []).append(str(H))
    return " and ".join(f"`{regime}` at H = {', '.join(at)}" for regime, at in sizes.items())


def facts() -> str:
    """What the tables are made of, as a list."""
    ours, hand, rates = counted(), OPERATIONS["lstm"], Rates()
    small, large = (2 * BATCH * H * 4 * H / PRODUCTS[2] * 1e6 for H in (SIZES[0], SIZES[-1]))
    regimes = "; ".join(f"{direction} {chosen(direction)}" for direction in DIRECTIONS)
    told = [
        f"Rungs 1 and 2 are launches: {LAUNCH * 1e6:g} us for an operation launched from Python. "
        f"The loop has {ours['forward']:g} a step forward and {ours['backward']:g} back, counted "
        "as they run; with the products taken out and the gradient written by hand, as the "
        f"`reference` backend has it, {hand[0]} and {hand[1]}.",
        f"Rung 3 is rung 4 with what the model charges for a first launch, {rates.start * 1e6:g} "
        f"us, in place of one from a graph, {rates.launch * 1e6:g} us.",
        f"Rung 5 is the plan's own choice: {regimes}.",
        f"Rung 6 is {' or '.join(map(str, AT_ONCE))} layers at once, whichever is faster, divided "
        "by their number.",
        "From rung 2 on, the product with W_ih of all steps is beside the loop: "
        f"{small:.3f} us a step at H = I = {SIZES[0]}, {large:.2f} us at {SIZES[-1]}.",
    ]
    return "\n".join(f"- {each}" for each in told)


def chart() -> str:
    """Every rung at one size, forward and back, as bars on a logarithmic scale."""
    left, top, row, decade, least = 290, 84, 44, 125, 0.3
    colours: dict[Direction, str] = {"forward": "#4051b5", "backward": "#a8b0dd"}
    shapes = [text(20, 26, f"Predicted us a step and layer, LSTM bf16, H = {DRAWN}, B = {BATCH}, "
                   "an H100", "start", size=15)]  # fmt: skip
    for index, (direction, colour) in enumerate(colours.items()):
        shapes += [bar(20 + 90 * index, 46, 12, 12, colour)]
        shapes += [text(38 + 90 * index, 52, direction, "start", GREY)]
    shapes.append(text(700, 52, "logarithmic scale", "end", GREY, 12))
    for n, (name, rung) in enumerate(RUNGS.items()):
        shapes.append(text(left - 12, top + n * row + 17, name, "end"))
        for index, (direction, colour) in enumerate(colours.items()):
            seconds = rung(direction, DRAWN)
            assert seconds is not None
            width = decade * torch.tensor(seconds * 1e6 / least).log10().item()
            y = top + n * row + 18 * index
            shapes += [bar(left, y, width, 16, colour)]
            shapes += [text(left + width + 6, y + 8, figure(seconds), "start", INK, 12)]
    return picture(720, top + len(RUNGS) * row + 10, "Predicted times of six designs", shapes)


def pictures() -> dict[str, str]:
    """Every picture by its file's name."""
    return {"ladder.svg": chart(), **kernel_pictures.pictures(problem, GPU)}


def filled(page: str) -> str:
    """The page with every marked block as it should be."""
    made = {"forward": lambda: table("forward"), "backward": lambda: table("backward")}
    blocks: dict[str, Callable[[], str]] = {**made, "facts": facts}

    def block(found: re.Match[str]) -> str:
        return f"<!-- made: {found[1]} -->\n\n{blocks[found[1]]()}\n\n<!-- end -->"

    return BLOCK.sub(block, page)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page's tables and the pictures, or compare with them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare with what is written")
    options = parser.parse_args(arguments)
    files = {PAGE: filled(PAGE.read_text(encoding="utf-8"))}
    files |= {PICTURES / name: svg for name, svg in pictures().items()}
    different = [
        path
        for path, made in files.items()
        if not path.exists() or path.read_text(encoding="utf-8") != made
    ]
    if options.check:
        print("\n".join(f"{path.name} differs" for path in different) or "all is as written")
        return 1 if different else 0
    for path in different:
        path.parent.mkdir(exist_ok=True)
        path.write_text(files[path], encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
