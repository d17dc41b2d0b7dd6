"""What a call may ask for that torch.nn does not have: one named tuple, checked when it is made."""

from __future__ import annotations

import operator
from typing import NamedTuple

from fastrnn.chunked import STEPS


class Options(NamedTuple):
    """Off, all of them, by default. A module makes one when it is built and not in a call."""

    final_only: bool = False
    """Nobody reads the output."""
    recompute: int = 0
    """Steps between the states that training keeps; 0 if it keeps what every step needs."""
    recurrent_dropout: float = 0.0
    """Probability that a unit of h is hidden from W_hh, in training: for a whole sequence."""
    zoneout: tuple[float, float] = (0.0, 0.0)
    """Probabilities that a unit of h, and of c, stays as it was at the step before."""
    error_clip: float = 0.0
    """Bound on every gate gradient on its way back through time; 0 for none."""
    all_states: bool = False
    """h and c of every step, layer and direction are returned too."""


def options(
    final_only: object,
    recompute: object,
    recurrent_dropout: object,
    zoneout: object,
    error_clip: object,
    has_cell_state: bool,
) -> Options:
    """Checked options, from arguments as users give them.

    Args:
        final_only: a bool.
        recompute: a bool, or a number of steps.
        recurrent_dropout: a probability.
        zoneout: a probability, or for an LSTM a pair of them, for h and for c.
        error_clip: a positive number, or None.
        has_cell_state: whether there is c.

    Raises:
        TypeError: one of them is of another type.
        ValueError: one of them is out of range.
    """
    if not isinstance(final_only, bool):
        raise TypeError(f"final_only should be of type bool, got: {type(final_only).__name__}")
    pair = zoneout if has_cell_state and isinstance(zoneout, tuple | list) else (zoneout, zoneout)
    if len(pair) != 2:
        raise ValueError(
            f"zoneout should be a probability or two of them, for h and for c, got {zoneout}"
        )
    return Options(
        final_only,
        recompute_steps(recompute),
        probability("recurrent_dropout", recurrent_dropout),
        (probability("zoneout", pair[0]), probability("zoneout", pair[1])),
        _bound(error_clip),
    )


def constants(asked: Options) -> Options:
    """The same, where torch.compile may have made symbols of the numbers."""
    return Options(
        asked.final_only,
        operator.index(asked.recompute),
        as_constant(asked.recurrent_dropout),
        (as_constant(asked.zoneout[0]), as_constant(asked.zoneout[1])),
        as_constant(asked.error_clip),
        asked.all_states,
    )


def as_constant(number: float) -> float:
    """A float, also of a symbol of torch.compile's; Dynamo keeps float(number) a symbol."""
    numerator, denominator = number.as_integer_ratio()
    return numerator / denominator


def recompute_steps(recompute: object) -> int:
    """The steps between the states that training keeps; 0 if it keeps what every step needs.

    Raises:
        TypeError: `recompute` is neither a bool nor an int.
        ValueError: it is a number below 1.
    """
    if isinstance(recompute, bool):
        return STEPS if recompute else 0
    if not isinstance(recompute, int):
        raise TypeError(f"recompute should be of type bool or int, got: {type(recompute).__name__}")
    if recompute < 1:
        raise ValueError(
            "recompute should be True, False or a number of steps that is greater than zero, "
            f"got: {recompute}"
        )
    return recompute


def probability(name: str, value: object) -> float:
    """The argument called `name`, checked.

    Raises:
        TypeError: `value` is no number.
        ValueError: it is not in [0, 1].
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} should be a number, got: {type(value).__name__}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} should be a probability, in range [0, 1], got: {value}")
    return float(value)


def _bound(error_clip: object) -> float:
    if error_clip is None:
        return 0.0
    if not isinstance(error_clip, int | float) or isinstance(error_clip, bool):
        raise TypeError(f"error_clip should be a number or None, got: {type(error_clip).__name__}")
    if not error_clip > 0:
        raise ValueError(f"error_clip should be greater than zero, or None, got: {error_clip}")
    return float(error_clip)
