"""What the commands share: the parser, the types of arguments, and how JSON is printed."""

from __future__ import annotations

import argparse
import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import torch

from fastrnn.dispatch import AUTO
from fastrnn.plugins import registry

if TYPE_CHECKING:
    from collections.abc import Callable

_T = TypeVar("_T")
DTYPES = ("float32", "float16", "bfloat16", "float64")
EXAMPLE_ARCHS = "such as sm_90 or gfx942"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def print_json(content: object) -> int:
    """Print `content` and return the exit code 0."""
    print(json.dumps(content, indent=2, allow_nan=False))
    return 0


# Types of arguments: each takes a word of the command line and raises what argparse shows.


def integer(least: int) -> Callable[[str], int]:
    """An integer of at least `least`."""

    def integer(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise _wrong(f"an integer of at least {least}", text)
        return int(text)

    return integer


def probability(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise _wrong("a number from 0 to 1", text)
    return value


def arch(text: str) -> str:
    """A GPU's architecture."""
    if not re.fullmatch(r"sm_[0-9]{2,3}|gfx[0-9a-f]{3,4}", text):
        raise _wrong(f"an architecture {EXAMPLE_ARCHS}", text)
    return text


def cell(text: str) -> str:
    """A cell's name, a plugin's too."""
    if text not in registry().cells:
        raise _wrong(f"one of {', '.join(registry().cells)}", text)
    return text


def backend(text: str) -> str:
    """A backend's name."""
    if text not in registry().backends:
        raise _wrong(f"one of {', '.join(registry().backends)}", text)
    return text


def preference(text: str) -> str:
    """What the argument `backend` of a layer may be."""
    for name in text.split(","):
        if name.strip() != AUTO:
            backend(name.strip())
    return text


def comma_separated(one: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    """Several of `one`, each once."""

    def several(text: str) -> list[_T]:
        return [one(part.strip()) for part in dict.fromkeys(text.split(","))]

    return several


def present_device(text: str) -> str:
    """A device that this machine has."""
    if text == "cpu" or (text == "cuda" and torch.cuda.is_available()):
        return text
    here = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU here)"
    raise _wrong(here, text)


def writable(text: str) -> Path:
    """A file to write."""
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise _wrong("a file in a directory that exists", text)
    return path


def _wrong(expected: str, got: object) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {got!r}, expected {expected}")
