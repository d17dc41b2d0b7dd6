"""What a row of the table is, how it is judged, and the slow truth it is held against."""

from __future__ import annotations

import itertools
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import fastrnn

LIBRARIES: dict[str, ModuleType] = {"torch.nn": torch.nn, "fastrnn": fastrnn}
T, B, I, H = 6, 3, 4, 5


class Wrong(AssertionError):
    """It ran, and the result is not what was asked for."""


class Outcome(NamedTuple):
    """What became of one attempt."""

    kind: str
    """`passes`, `by hand`, `fails`, `wrong` or `missing`."""
    told: str = ""
    """By what means, or what went wrong."""

    def __str__(self) -> str:
        """A cell of the table."""
        words = {
            "passes": "passes",
            "by hand": f"passes by hand: {self.told}",
            "fails": f"fails: `{self.told}`",
            "wrong": f"wrong: {self.told}",
            "missing": f"no such argument: {self.told}",
        }
        return words[self.kind].replace("|", "\\|")


class Row(NamedTuple):
    """One line of the table."""

    name: str
    how: str
    """How it is tried."""
    requests: tuple[int | str, ...]
    """Issues of PyTorch's, or of another project as owner/name#number."""
    quick: bool
    """Takes little enough to be one of the tests."""
    attempt: Callable[[Any], str | None]
    """Given `torch.nn` or `fastrnn`. Raises, or returns by what means other than a call."""

    def run(self, library: ModuleType) -> Outcome:
        """Try it."""
        torch.manual_seed(0)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                means = self.attempt(library)
        except Wrong as error:
            return Outcome("wrong", str(error))
        except Exception as error:
            if unknown := re.search(r"unexpected keyword argument '(\w+)'", str(error)):
                return Outcome("missing", f"`{unknown[1]}`")
            return Outcome("fails", first_line(error))
        return Outcome("by hand", means) if means else Outcome("passes")


ROWS: list[Row] = []


def row(
    name: str, how: str, *requests: int | str, quick: bool = False
) -> Callable[[Callable[[Any], str | None]], Callable[[Any], str | None]]:
    """Make a row of the function below; rows come in the order in which they are written."""

    def add(attempt: Callable[[Any], str | None]) -> Callable[[Any], str | None]:
        ROWS.append(Row(name, how, requests, quick, attempt))
        return attempt

    return add


def first_line(error: Exception, most: int = 140) -> str:
    """The type and the beginning of the text of an exception, as one line of Markdown code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    told = told.replace("`", "'")
    return told if len(told) <= most else told[: most - 4].rstrip() + " ..."


def make(library: Any, cell: str, *sizes: int, **how: Any) -> Any:
    """A layer, in float64 unless `how` says otherwise, with the same weights in every call."""
    torch.manual_seed(1)
    return getattr(library, cell)(*(sizes or (I, H)), **{"dtype": torch.float64, **how})


def normal(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """A leaf that wants its gradient."""
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def tensors(*nested: Any) -> list[Tensor]:
    """All tensors in tuples and lists, however nested."""
    flat = [[each] if isinstance(each, Tensor) else tensors(*each) for each in nested]
    return list(itertools.chain(*flat))


def close(got: Any, want: Any, tolerance: float = 1e-9) -> None:
    """Raise Wrong unless all tensors of both are equal but for rounding; in whatever dtype."""
    pairs = list(zip(tensors(got), tensors(want), strict=True))
    for one, other in pairs:
        if one.shape != other.shape:
            raise Wrong(f"shape {tuple(one.shape)}, expected {tuple(other.shape)}")
        off = (one.double() - other.double()).abs().max().item() if one.numel() else 0.0
        if not off <= tolerance * max(1.0, other.abs().max().item() if other.numel() else 0.0):
            raise Wrong(f"off by {off:.1e}")


def derivatives(result: Any, inputs: Iterable[Tensor], **how: Any) -> tuple[Tensor, ...]:
    """Of a sum to which every element of every result contributes in its own way."""
    sines = [each.double().sin().sum() for each in tensors(result)]
    total = torch.stack([weight * part for weight, part in enumerate(sines, 1)]).sum()
    return torch.autograd.grad(total, list(inputs), **how)


def double(layer: Any) -> dict[str, Tensor]:
    """The layer's weights by name, as float64 leaves of their own."""
    return {n: w.detach().double().requires_grad_() for n, w in layer.named_parameters()}


Change = Callable[[Tensor], Tensor]


def slow(
    layer: nn.Module,
    x: Tensor,
    hx: Tensor | tuple[Tensor, ...] | None = None,
    *,
    weights: dict[str, Tensor] | None = None,
    lengths: Sequence[int] | None = None,
    resets: Tensor | None = None,
    fresh: Sequence[Tensor] | None = None,
    gates: Change = lambda a: a,
    recur: Change = lambda h: h,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """The truth: an RNN's or LSTM's equations, one step after the other, with explicit masks.

    Args:
        layer: whose sizes and, unless `weights` are given, weights are read.
        x: (T, B, I).
        hx: h0 (L * D, B, H), of an LSTM with c0 in a tuple; zeros if None.
        weights: by name.
        lengths: B numbers of steps.
        resets: (T, B) bool.
        fresh: from which rows start over, as `hx`; `hx` itself if None.
        gates: what becomes of pre-activations (B, K * H).
        recur: what becomes of h (B, H) on its way to W_hh.

    Returns:
        output (T, B, D * H), the final states, (L * D, B, H) each, and those of every step,
        (L * D, T, B, H) each.
    """
    own: Any = layer
    w = dict(layer.named_parameters()) if weights is None else weights
    steps, rows, _ = x.shape
    directions = 2 if own.bidirectional else 1
    if hx is None:
        zero = x.new_zeros(own.num_layers * directions, rows, own.hidden_size)
        hx = (zero, zero) if own.mode == "LSTM" else (zero,)
    starts = (hx,) if isinstance(hx, Tensor) else hx
    ends = torch.tensor([steps] * rows if lengths is None else lengths)
    final, every = [], []
    outputs = [x]
    for slot in range(own.num_layers * directions):
        k, backwards = divmod(slot, directions)
        if not backwards:
            below, outputs = torch.cat(outputs, 2), []
        name = f"l{k}_reverse" if backwards else f"l{k}"
        start = state = tuple(each[slot] for each in starts)
        over = start if fresh is None else tuple(each[slot] for each in fresh)
        made = [start] * steps
        for t in reversed(range(steps)) if backwards else range(steps):
            alive = (t < ends).unsqueeze(1)
            old = state
            if resets is not None:
                again = resets[t].unsqueeze(1) & alive
                old = tuple(torch.where(again, a, b) for a, b in zip(over, state, strict=True))
            a = below[t] @ w[f"weight_ih_{name}"].T + w[f"bias_ih_{name}"]
            a = gates(a + recur(old[0]) @ w[f"weight_hh_{name}"].T + w[f"bias_hh_{name}"])
            new = cell(own.mode, a, old)
            state = tuple(torch.where(alive, a, b) for a, b in zip(new, old, strict=True))
            made[t] = tuple(torch.where(alive, each, 0.0) for each in state)
        final.append(state)
        every.append([torch.stack(each) for each in zip(*made, strict=True)])
        outputs.append(every[-1][0])
    by_kind = [torch.stack(each) for each in zip(*final, strict=True)]
    return torch.cat(outputs, 2), by_kind, [torch.stack(each) for each in zip(*every, strict=True)]


def cell(mode: str, a: Tensor, old: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(h,) or (h, c) after a step, from pre-activations."""
    if mode == "LSTM":
        i, f, g, o = a.chunk(4, 1)
        c = f.sigmoid() * old[1] + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c
    functions = {"RNN_TANH": torch.tanh, "RNN_RELU": torch.relu, "RNN_SIGMOID": torch.sigmoid}
    return (functions[mode](a),)


def peak_and_count(function: Callable[[], object]) -> tuple[int, int]:
    """The most bytes that torch held at a time while it ran, and how often it asked for some."""
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(activities=[cpu], profile_memory=True, acc_events=True) as profile:
        function()
    events: list[Any] = profile.profiler.kineto_results.events()
    memory = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    sizes = [size for _, size in sorted(memory, key=lambda event: event[0])]
    return max(itertools.accumulate(sizes), default=0), sum(size > 0 for size in sizes)


def saved_bytes(function: Callable[[], Any]) -> tuple[int, Any]:
    """What autograd keeps of a function for its backward pass, and the function's result."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        kept.append(tensor)  # or its address could come again
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()
    return sum(sizes.values()), result
