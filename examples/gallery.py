"""What the scripts of the gallery share: the command line, and how their pictures look."""

from __future__ import annotations

import argparse
import importlib.util
import math
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.figure import Figure

WIDTH, DPI = 8.0, 150
"""Of a picture, in inches and dots per inch: 1200 pixels."""
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Of lines, distinct to colour-blind eyes, too (Okabe and Ito)."""


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and exits with 2."""

    def error(self, message: str) -> NoReturn:
        """Exit without a traceback, and without the usage before the line."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def integer(least: int) -> Any:
    """The type of an argument: an integer of at least `least`."""

    def convert(text: str) -> int:
        if not text.isdecimal() or len(text) > 18 or int(text) < least:
            raise argparse.ArgumentTypeError(
                f"expected an integer of at least {least}, got {text!r}"
            )
        return int(text)

    return convert


def above_zero(text: str) -> float:
    """The type of an argument: a positive number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return value


def numbers(text: str) -> list[float]:
    """The type of an argument: positive numbers, separated by commas."""
    return [above_zero(part) for part in text.split(",")]


def parser(script: str, doc: str | None, *, steps: int) -> Parser:
    """A command line with --steps, --seed, --device, --threads and --out; a script may add to it.

    Args:
        script: its `__file__`, after which the picture is named.
        doc: its docstring, of which the first line is shown.
        steps: how many steps of training there are by default.
    """
    name = Path(script).stem
    made = Parser(
        prog=f"{name}.py",
        description=(doc or "").split("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = made.add_argument
    add("--steps", type=integer(1), default=steps, help="steps of training")
    add("--seed", type=integer(0), default=0, help="of weights and data")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    # Networks this small gain little from more, and lose much where threads wait for one another.
    add("--threads", type=integer(1), default=1, help="of torch on a CPU")
    add("--out", type=Path, default=Path(f"{name}.png"), help="where the picture is drawn")
    return made


def parse(made: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse, and set torch's seed and threads; exits with status 2 if something cannot be.

    Args:
        made: what `parser` returned.
        argv: the words of the command line; None for this process's.
    """
    args = made.parse_args(argv)
    if importlib.util.find_spec("matplotlib") is None:
        made.error("argument --out: drawing needs matplotlib: pip install 'fastrnn[bench]'")
    if args.out.is_dir() or args.out.suffix not in (".png", ".pdf", ".svg"):
        made.error(f"argument --out: expected a file .png, .pdf or .svg, got {str(args.out)!r}")
    try:
        args.out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        made.error(f"argument --out: {error}")
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        made.error(f"argument --device: {args.device!r} cannot be used: {reason}")
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    return args


def picture(height: float = 4.5, rows: int = 1, columns: int = 1, **grid: Any) -> tuple[Any, Any]:
    """A figure and its axes, an array of them if there are several.

    Args:
        height: in inches, of the whole.
        rows: of axes.
        columns: of axes.
        grid: more for matplotlib's `Figure.subplots`, such as `width_ratios`.
    """
    import matplotlib
    from cycler import cycler
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # for good, not in a context: labels and legends are styled when they are added
    style: Any = {
        "font.size": 9,
        "axes.titlesize": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": cycler(color=COLOURS),
        "lines.linewidth": 1.3,
        "legend.frameon": False,
    }
    matplotlib.rcParams.update(style)
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    return figure, figure.subplots(rows, columns, **grid)


def save(figure: Figure, path: Path) -> None:
    """Write the picture, the same bytes for the same picture, and say where it is."""
    if path.suffix == ".png":  # with a palette it takes a third of the space
        from PIL import Image

        drawn = BytesIO()
        figure.savefig(drawn, dpi=DPI)
        Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)
    else:  # a date would make every picture a new one
        date = "CreationDate" if path.suffix == ".pdf" else "Date"
        figure.savefig(path, metadata={date: None})
    print(f"picture: {path}")
