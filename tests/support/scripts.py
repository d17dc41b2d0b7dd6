"""The scripts of examples/, imported as if Python ran them, and run in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def script(name: str) -> Any:
    """A script by its name; only within `of_their_own`."""
    return importlib.import_module(name)


@contextmanager
def of_their_own() -> Iterator[None]:
    """Within it scripts find one another, and have seed, threads and imports to themselves.

    Each sets them for its own process; here they are everybody's.
    """
    threads, before = torch.get_num_threads(), set(sys.modules)
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        patch.syspath_prepend(str(EXAMPLES))
        torch.manual_seed(0)
        yield
    torch.set_num_threads(threads)
    for name in {path.stem for path in EXAMPLES.glob("*.py")} - before:
        sys.modules.pop(name, None)


def refused(main: Callable[[Sequence[str]], object], options: Sequence[str], capsys: Any) -> str:
    """What is told on stderr of a wrong command line; nothing else is, and the status is 2."""
    with pytest.raises(SystemExit) as stopped:
        main(options)
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    return str(err)
