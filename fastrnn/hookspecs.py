"""The hooks a plugin may implement, with `fastrnn.hookimpl`, in the entry-point group `fastrnn`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastrnn.backend import Backend
    from fastrnn.request import Candidate, Request

PROJECT = "fastrnn"
hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def fastrnn_backends() -> Iterable[Backend]:
    """Return (or yield) the backends that this plugin brings.

    Called once, when backends are first needed. A name that is already taken is refused and
    reported; nothing is replaced. Import heavy packages inside the backend's methods, not here:
    listing backends must stay cheap.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def fastrnn_choose_backend(request: Request, candidates: tuple[Candidate, ...]) -> str | None:
    """Name the backend that should run `request`, or return None to leave it to others.

    `candidates` are the backends that can run it, each with its estimated cost. Asked only where
    neither argument, context nor environment named a backend; the answer is cached per request.
    """
    raise NotImplementedError
