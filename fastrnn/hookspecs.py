"""The hooks a plugin may implement, with `fastrnn.hookimpl`, in the entry-point group `fastrnn`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fastrnn.backend import Backend
    from fastrnn.benchmark import Peer, Preset
    from fastrnn.cell import Cell
    from fastrnn.request import Candidate, Request

PROJECT = "fastrnn"
"""pluggy's name for this set of hooks."""
hookspec = pluggy.HookspecMarker(PROJECT)
"""Marks the hooks below."""
hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a plugin's function as the implementation of the hook of that name."""


@hookspec
def fastrnn_backends() -> Iterable[Backend]:
    """Return (or yield) the backends that this plugin brings.

    Called once, when backends are first needed. A name that is already taken is refused and
    reported; nothing is replaced. Import heavy packages inside the backend's methods, not here:
    listing backends must stay cheap.
    """
    raise NotImplementedError


@hookspec
def fastrnn_cells() -> Iterable[Cell]:
    """Return (or yield) the recurrent cells that this plugin brings.

    A layer of such a cell is `fastrnn.CellRNN(name, ...)`, and the reference backend runs it from
    `Cell.step`; the Triton backend fuses those that name a kernel. Called once, with
    `fastrnn_backends`, and like there a name that is taken is refused and reported. Import Triton
    in the module that `Cell.kernel` names, not here.
    """
    raise NotImplementedError


@hookspec(firstresult=True)
def fastrnn_choose_backend(request: Request, candidates: tuple[Candidate, ...]) -> str | None:
    """Name the backend that should run `request`, or return None to leave it to others.

    `candidates` are the backends that can run it, each with its estimated cost. Asked only where
    neither argument, context nor environment named a backend; the answer is cached per request.
    """
    raise NotImplementedError


@hookspec
def fastrnn_benchmark_cases() -> Iterable[Preset]:
    """Return (or yield) cases for `fastrnn bench --preset NAME` and `fastrnn tune --preset NAME`.

    Called by these commands only. A name that is taken is refused and reported.
    """
    raise NotImplementedError


@hookspec
def fastrnn_benchmark_peers() -> Iterable[Peer]:
    """Return (or yield) implementations that `fastrnn bench` compares the backends with.

    Called by that command only. A name that is taken, by a backend too, is refused and reported.
    Import heavy packages in `Peer.build`; what `Peer.can_run` says against a case is shown.
    """
    raise NotImplementedError
