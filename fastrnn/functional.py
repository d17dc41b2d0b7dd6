"""Stateless recurrent layers, in torch's calling conventions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fastrnn import checks
from fastrnn.calls import run
from fastrnn.dispatch import AUTO
from fastrnn.options import options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from fastrnn.masks import Lengths

_CELLS = {"tanh": "rnn_tanh", "relu": "rnn_relu", "sigmoid": "rnn_sigmoid"}


def lstm(
    input: Tensor | PackedSequence,
    hx: tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    backend: str = AUTO,
    final_only: bool = False,
    recompute: bool | int = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    reset_state: tuple[Tensor, Tensor] | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    error_clip: float | None = None,
    return_all_states: bool = False,
) -> tuple[Any, ...]:
    """LSTM without a module.

    The equations are those of `fastrnn.LSTM`; T, B, I, H, P, D stand for steps, batch, inputs,
    hidden units, width of h (H, or the projection's) and directions.

    Args:
        input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
        hx: h0 (num_layers * D, B, P) and c0 (num_layers * D, B, H), without B if unbatched;
            zeros if None.
        weights: flat, in torch's order: per layer and direction w_ih (4H, I or D * P), w_hh
            (4H, P), then b_ih (4H) and b_hh (4H) if `bias`, then w_hr (P, H) if projected.
            Rows are in gate order i, f, g, o.
        num_layers: layers stacked.
        bias: whether `weights` holds biases.
        batch_first: whether `input` and output are (B, T, ...).
        dropout: probability between layers, applied if `training`.
        training: whether dropout applies.
        bidirectional: whether every layer also runs backwards in time.
        backend: `auto`, or the name of a backend, or several separated by commas.
        final_only: whether only the final states are of use; the output is then None.
        recompute: whether training saves memory: True, or the number of steps between the states
            it keeps; see `fastrnn.LSTM`.
        lengths: (B,) integers, the steps of each row of a padded input; see `fastrnn.LSTM.forward`.
        resets: (T, B) bool, where rows start over; see `fastrnn.LSTM.forward`.
        reset_state: from which rows start over instead of `hx`; see `fastrnn.LSTM.forward`.
        recurrent_dropout: see `fastrnn.LSTM`; applied if `training`.
        zoneout: see `fastrnn.LSTM`; drawn if `training`.
        error_clip: see `fastrnn.LSTM`.
        return_all_states: whether to return h and c of every step too; see `fastrnn.LSTM.forward`.

    Returns:
        output (T, B, D * P), shaped as `input` is, or None if `final_only`, and (h_n, c_n), shaped
        as `hx` is. With `return_all_states`, a pair of their like with every step, too.

    Raises:
        ValueError, RuntimeError: as torch.nn.LSTM raises for wrong inputs or states, and for
            weights that do not belong together; ValueError too for an option that is out of range,
            and as `fastrnn.LSTM.forward` raises for `lengths`, `resets` and `reset_state`.
        TypeError: an option is of the wrong type, `lengths` holds no integers, `resets` is no bool
            tensor, or `reset_state` not what `hx` is.
        BackendError: `backend` names none that can run this call.
    """
    asked = options(final_only, recompute, recurrent_dropout, zoneout, error_clip, True)
    spec = checks.spec_of_weights("lstm", weights, num_layers, bias, bidirectional)
    return run(
        spec, input, hx, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, lengths=lengths, resets=resets, reset_state=reset_state,
        options=asked._replace(all_states=return_all_states),
    )  # fmt: skip


def rnn(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    *,
    nonlinearity: str = "tanh",
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    backend: str = AUTO,
    final_only: bool = False,
    recompute: bool | int = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float = 0.0,
    error_clip: float | None = None,
    return_all_states: bool = False,
) -> tuple[Any, ...]:
    """Elman RNN without a module; `lstm`'s arguments, but for these.

    Args:
        input: as for `lstm`.
        hx: h0 (num_layers * D, B, H), without B if unbatched; zeros if None.
        weights: flat, in torch's order: per layer and direction w_ih (H, I or D * H), w_hh
            (H, H), then b_ih (H) and b_hh (H) if `bias`.
        nonlinearity: `tanh`, `relu` or `sigmoid`.
        num_layers: as for `lstm`.
        bias: as for `lstm`.
        batch_first: as for `lstm`.
        dropout: as for `lstm`.
        training: as for `lstm`.
        bidirectional: as for `lstm`.
        backend: as for `lstm`.
        final_only: as for `lstm`.
        recompute: as for `lstm`.
        lengths: as for `lstm`.
        resets: as for `lstm`.
        reset_state: as for `lstm`.
        recurrent_dropout: as for `lstm`.
        zoneout: as for `lstm`, but one probability.
        error_clip: as for `lstm`.
        return_all_states: as for `lstm`.

    Returns:
        output (T, B, D * H), shaped as `input` is, or None if `final_only`, and h_n, shaped as
        `hx` is. With `return_all_states`, h of every step, too.

    Raises:
        ValueError, RuntimeError: as torch.nn.RNN raises for wrong inputs or states, for an
            unknown nonlinearity, and for weights that do not belong together; ValueError too
            for options, `lengths`, `resets` and `reset_state`, as for `lstm`.
        TypeError: as for `lstm`.
        BackendError: `backend` names none that can run this call.
    """
    if nonlinearity not in _CELLS:
        raise ValueError(
            f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'."
        )
    cell = _CELLS[nonlinearity]
    asked = options(final_only, recompute, recurrent_dropout, zoneout, error_clip, False)
    spec = checks.spec_of_weights(cell, weights, num_layers, bias, bidirectional)
    return run(
        spec, input, hx, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, lengths=lengths, resets=resets, reset_state=reset_state,
        options=asked._replace(all_states=return_all_states),
    )  # fmt: skip


def gru(
    input: Tensor | PackedSequence,
    hx: Tensor | None,
    weights: Sequence[Tensor],
    **how: Any,
) -> tuple[Any, ...]:
    """GRU without a module: `cell_rnn` of the cell `gru`.

    Args:
        input: as for `lstm`.
        hx: h0 (num_layers * D, B, H), without B if unbatched; zeros if None.
        weights: flat, in torch's order: per layer and direction w_ih (3H, I or D * H), w_hh
            (3H, H), then b_ih (3H) and b_hh (3H) if `bias`. Rows are in gate order r, z, n.
        **how: `lstm`'s keyword arguments; `zoneout` is one probability.

    Returns:
        output (T, B, D * H), shaped as `input` is, or None if `final_only`, and h_n, shaped as `hx`
        is. With `return_all_states`, h of every step, too.

    Raises:
        ValueError, RuntimeError: as torch.nn.GRU raises for wrong inputs or states; else as `lstm`.
        TypeError: as for `lstm`.
        BackendError: `backend` names none that can run this call.
    """
    return cell_rnn("gru", input, hx, weights, **how)


def cell_rnn(
    cell: str,
    input: Tensor | PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    weights: Sequence[Tensor],
    *,
    num_layers: int = 1,
    bias: bool = True,
    batch_first: bool = False,
    dropout: float = 0.0,
    training: bool = False,
    bidirectional: bool = False,
    backend: str = AUTO,
    final_only: bool = False,
    recompute: bool | int = False,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | tuple[Tensor, Tensor] | None = None,
    recurrent_dropout: float = 0.0,
    zoneout: float | tuple[float, float] = 0.0,
    error_clip: float | None = None,
    return_all_states: bool = False,
) -> tuple[Any, ...]:
    """A recurrent network of any cell without a module; `lstm`'s arguments, but for these.

    Args:
        cell: the cell's name; see `fastrnn.CellRNN`.
        input: as for `lstm`.
        hx: h0, or (h0, c0) of a cell with a pair of states; zeros if None.
        weights: flat: per layer and direction w_ih (K * H, I or D * H), w_hh (K * H, H), then b_ih
            (K * H) and b_hh (K * H) if `bias`, then the cell's own (Q, H) if it has some.
        num_layers: as for `lstm`, and so for all that follow.
        bias: whether `weights` holds biases.
        batch_first: whether `input` and output are (B, T, ...).
        dropout: probability between layers, applied if `training`.
        training: whether dropout applies.
        bidirectional: whether every layer also runs backwards in time.
        backend: `auto`, or the name of a backend, or several separated by commas.
        final_only: whether only the final states are of use.
        recompute: whether training saves memory.
        lengths: (B,) integers, the steps of each row of a padded input.
        resets: (T, B) bool, where rows start over.
        reset_state: from which rows start over instead of `hx`; see `fastrnn.LSTM.forward`.
        recurrent_dropout: probability that a unit of h is hidden from W_hh, if `training`.
        zoneout: probability that a unit keeps its state, or a pair, for h and for c.
        error_clip: bound on every gate's gradient.
        return_all_states: whether to return the states of every step too.

    Returns:
        output (T, B, D * H), shaped as `input` is, or None if `final_only`, and the final states,
        shaped as `hx` is. With `return_all_states`, those of every step, too.

    Raises:
        ValueError: `cell` is unknown; else as for `lstm`.
        RuntimeError: as for `lstm`.
        TypeError: as for `lstm`.
        BackendError: `backend` names none that can run this call.
    """
    spec = checks.spec_of_weights(cell, weights, num_layers, bias, bidirectional)
    asked = options(
        final_only, recompute, recurrent_dropout, zoneout, error_clip, spec.has_cell_state
    )
    return run(
        spec, input, hx, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, lengths=lengths, resets=resets, reset_state=reset_state,
        options=asked._replace(all_states=return_all_states),
    )  # fmt: skip
