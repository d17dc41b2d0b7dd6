"""Progress on stderr: a bar of rich's if it is installed and somebody watches, else lines."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType


class Progress:
    """A context within which every `step` says what begins now.

    Args:
        total: how many steps there will be.
    """

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._bar = _bar() if sys.stderr.isatty() else None
        self._task: Any = None

    def __enter__(self) -> Progress:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=self._total)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, text: str) -> None:
        """Begin the next step, called `text`."""
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, description=text)
        self._done += 1
        if self._bar is None:
            print(f"[{self._done}/{self._total}] {text}", file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Say something about the step that has begun."""
        if self._bar is not None:
            self._bar.update(self._task, description=text)
        else:
            print(f"  {text}", file=sys.stderr, flush=True)


def _bar() -> Any:
    try:
        from rich.console import Console
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    return Bar(console=Console(stderr=True), transient=True)  # obeys NO_COLOR by itself
