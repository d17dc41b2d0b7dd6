"""Options and modules that the tests of regularisers share."""

from __future__ import annotations

from typing import Any

import torch

import fastrnn
from fastrnn.options import Options

CELLS = [("lstm", 0), ("lstm", 2), ("rnn_tanh", 0), ("rnn_relu", 0), ("rnn_sigmoid", 0)]
CHOICES = {
    "recurrent_dropout": {"recurrent_dropout": 0.4},
    "zoneout": {"zoneout": (0.3, 0.2)},
    "zoneout of h": {"zoneout": (0.3, 0.0)},
    "zoneout of c": {"zoneout": (0.0, 0.4)},
    "error_clip": {"error_clip": 0.05},
    "all": {"recurrent_dropout": 0.3, "zoneout": (0.3, 0.2), "error_clip": 0.05},
}
NAMES = ["recurrent_dropout", "zoneout", "error_clip"]
MODULES = [fastrnn.LSTM, fastrnn.RNN]


def asked(cell: str, **how: Any) -> Options:
    """Options; an Elman RNN has no c to keep."""
    made = Options(**how)
    return made if cell == "lstm" else made._replace(zoneout=(made.zoneout[0], 0.0))


def module_of(kind: type, **how: Any) -> Any:
    torch.manual_seed(0)
    return kind(3, 4, 2, dtype=torch.float64, backend="reference", **how)


def x_of(T: int = 5, B: int = 2) -> torch.Tensor:
    return torch.randn(T, B, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def flat(made: tuple[Any, ...]) -> list[torch.Tensor]:
    """Whatever a call returned, in a row."""
    return [
        t for part in made for t in (part if isinstance(part, tuple) else (part,)) if t is not None
    ]


def weights_of(module: Any) -> list[torch.Tensor]:
    return list(module.parameters())
