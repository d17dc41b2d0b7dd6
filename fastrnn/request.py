"""What one call asks for (`Request`), and what was chosen for it and why (`Decision`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fastrnn.cell import BUILTIN, cell_of

if TYPE_CHECKING:
    import torch

GATES = {cell.name: cell.gates for cell in BUILTIN.values()}
"""Rows of the weights per hidden unit, by cell name, of the cells that every backend knows."""


OPTIONS = ("resets", "all_states", "recurrent_dropout", "zoneout", "error_clip")
"""Fields of a `Request` that a backend is asked for only if it says that it heeds them."""


class Spec(NamedTuple):
    """The static shape of a stack of recurrent layers: what a module fixes when it is built."""

    cell: str
    input_size: int
    hidden_size: int
    proj_size: int = 0
    num_layers: int = 1
    bias: bool = True
    bidirectional: bool = False

    @property
    def gates(self) -> int:
        """Rows of the weights per hidden unit: 4 for an LSTM, 1 for an Elman RNN, 3 for a GRU."""
        return cell_of(self.cell).parameter_rows

    @property
    def has_cell_state(self) -> bool:
        """Whether the state is a pair (h, c)."""
        return cell_of(self.cell).has_pair

    @property
    def state_size(self) -> int:
        """Width of h: the projection's if there is one, else the hidden size."""
        return self.proj_size or self.hidden_size

    @property
    def directions(self) -> int:
        """2 for a bidirectional stack, else 1."""
        return 2 if self.bidirectional else 1


class Request(NamedTuple):
    """Everything a backend may know before it answers whether it can run a call.

    Pure metadata: no tensor, no module. A named tuple rather than a dataclass because one is
    built and hashed on every call, and a tuple does both in well under a microsecond.
    """

    cell: str
    """The name of a `fastrnn.cell.Cell`: one of `GATES`, or a plugin's."""
    seq_len: int | None
    """T, in steps; None while `compiling`, so that no graph is specialised on it."""
    batch: int | None
    """B; None while `compiling`."""
    input_size: int
    hidden_size: int
    proj_size: int
    num_layers: int
    bidirectional: bool
    bias: bool
    dropout: float
    """Probability applied between layers in this call: 0 in eval mode or with one layer."""
    dtype: torch.dtype
    """Of the arithmetic: autocast's where it is on, else the input's."""
    device: str
    """torch's device type: `cpu`, `cuda` (ROCm too), `mps`, `xpu`, `meta`."""
    arch: str
    """`sm_90`, `gfx942`, ... for `cuda`; empty elsewhere."""
    precision: str
    """`ieee`, `tf32` or `tf32x3`: how float32 products are formed."""
    needs_grad: bool
    training: bool
    varlen: bool
    """Sequences of different lengths: a PackedSequence, or `padded`."""
    compiling: bool
    """Traced by torch.compile or torch.export."""
    threads: int
    """Intra-op threads torch may use on the CPU; 0 on other devices."""
    recompute: int = 0
    """Training keeps the states at every so many steps and recomputes what lies between them; 0
    keeps what the backward pass needs of every step. 0 too where no gradient is needed."""
    padded: bool = False
    """`lengths=` of padded rows rather than a PackedSequence; `varlen` is true as well."""
    resets: bool = False
    """`resets=`: rows start over from h0 and c0 within the sequence."""
    all_states: bool = False
    """States of every step are returned, of every layer and direction."""
    recurrent_dropout: bool = False
    """Units of h are hidden from W_hh; only in training mode."""
    zoneout: bool = False
    """Units keep the state of the step before, in training mode, or a share of it."""
    error_clip: bool = False
    """Gate gradients are bounded; only where a gradient is needed."""
    transformed: bool = False
    """Under `torch.func.vmap`, where T and B are those of one of many, or forward-mode derivatives:
    what fastrnn knows to do with a layer, and torch with its own operations."""
    frozen: bool = False
    """A gradient is needed, and none of a weight: of the input or of the initial states only."""

    @property
    def gates(self) -> int:
        """Rows of the weights per hidden unit, as a module holds them."""
        return cell_of(self.cell).parameter_rows

    @property
    def state_size(self) -> int:
        """Width of h: the projection's if there is one, else the hidden size."""
        return self.proj_size or self.hidden_size

    @property
    def directions(self) -> int:
        """2 for a bidirectional stack, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def stacks_plainly(self) -> bool:
        """Whether there are several layers, each of which takes all of what the one below made.

        Step by step as it is made: nothing is done in between, and no layer runs backwards. Of the
        cells that every backend knows.
        """
        between = self.bidirectional or self.dropout or self.proj_size or self.varlen
        otherwise = self.recompute or self.options or self.transformed or self.cell not in GATES
        return self.num_layers > 1 and not (between or otherwise)

    @property
    def options(self) -> tuple[str, ...]:
        """What is asked for of `OPTIONS`."""
        return tuple(name for name in OPTIONS if getattr(self, name))

    def describe(self) -> str:
        """One line for a person."""
        sizes = f"T={'any' if self.seq_len is None else self.seq_len} "
        sizes += f"B={'any' if self.batch is None else self.batch} "
        sizes += f"I={self.input_size} H={self.hidden_size}"
        extras = [
            f"proj_size={self.proj_size}" if self.proj_size else "",
            f"layers={self.num_layers}" if self.num_layers > 1 else "",
            "bidirectional" if self.bidirectional else "",
            "" if self.bias else "no bias",
            f"dropout={self.dropout:g}" if self.dropout else "",
            "lengths" if self.padded else "variable lengths" if self.varlen else "",
            *(name.replace("_", " ") for name in self.options),
            "transformed" if self.transformed else "",
            "forward and backward" if self.needs_grad else "forward only",
            f"recompute={self.recompute}" if self.recompute else "",
            "weights frozen" if self.frozen else "",
            "eval mode" if not self.training else "",
            "torch.compile" if self.compiling else "",
        ]
        where = self.device + (f" ({self.arch})" if self.arch else "")
        kind = str(self.dtype).removeprefix("torch.")
        if kind == "float32" and self.device != "cpu":
            kind += f" ({self.precision})"
        words = ", ".join(word for word in extras if word)
        return f"{self.cell} {sizes}, {kind} on {where}, {words}"


class Cost(NamedTuple):
    """A backend's own estimate of one call."""

    seconds: float
    why: str
    """How the estimate was made, in words."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One backend's answer to one request."""

    name: str
    reasons: tuple[str, ...]
    """Why it cannot run the request; empty if it can."""
    cost: Cost | None
    """Its estimate; None if it cannot run the request."""


@dataclass(frozen=True, slots=True)
class Decision:
    """Which backend runs a request, by which rule, and what spoke against every other."""

    request: Request
    backend: str
    rule: str
    candidates: tuple[Candidate, ...]
    layers_at_once: int = 1
    """Layers that it works on at the same time."""
    whole: bool = False
    """Whether it takes the call as a whole stack, and not layer by layer."""

    def explain(self) -> str:
        """Several lines for a person: the request, the choice, and a line per backend."""
        at_once = f", {self.layers_at_once} layers at once" if self.layers_at_once > 1 else ""
        return "\n".join(
            [
                f"request: {self.request.describe()}",
                f"backend: {self.backend} ({self.rule}){at_once}",
                *describe_candidates(self.candidates, chosen=self.backend),
            ]
        )

    def __str__(self) -> str:
        return self.explain()


def describe_candidates(candidates: tuple[Candidate, ...], chosen: str | None = None) -> list[str]:
    """One line per backend: its estimate, or every reason why it cannot run."""
    lines = []
    for candidate in candidates:
        mark = "*" if candidate.name == chosen else "-"
        if candidate.cost is not None:
            seconds, why = candidate.cost
            text = f"can run, estimated {seconds * 1e6:,.1f} us ({why})"
        else:
            text = "cannot run: " + "; ".join(candidate.reasons)
        lines.append(f"  {mark} {candidate.name}: {text}")
    return lines
