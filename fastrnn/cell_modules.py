"""`GRU`, and `CellRNN`, a layer of any cell that a plugin brings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from fastrnn.cell import cell_of
from fastrnn.checks import check_type, refuse_unsupported
from fastrnn.dispatch import AUTO
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from fastrnn.masks import Lengths


class GRU(Recurrent):
    r"""A multi-layer GRU: torch.nn.GRU, with a choice of backends.

    For every step t of each layer,

        r(t) = sigmoid(W_ir x(t) + b_ir + W_hr h(t-1) + b_hr)
        z(t) = sigmoid(W_iz x(t) + b_iz + W_hz h(t-1) + b_hz)
        n(t) = tanh(W_in x(t) + b_in + r(t) * (W_hn h(t-1) + b_hn))
        h(t) = (1 - z(t)) * n(t) + z(t) * h(t-1)

    where x(t) is the input, or the output of the layer below with dropout, and h(0) is `hx` or
    zero. Parameters hold the three gates below one another, in the order r, z, n.

    In the shapes below T, B, I, H, L stand for steps, batch, `input_size`, `hidden_size` and
    `num_layers`, and D for 2 if `bidirectional`, else 1.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, layers stacked.
        bias: whether there are b_i and b_h.
        batch_first: whether input and output are (B, T, ...) rather than (T, B, ...). States
            are not affected.
        dropout: probability of zeroing an output of any layer but the last, in training mode.
        bidirectional: whether every layer also runs backwards in time.
        device: of the parameters.
        dtype: of the parameters; any floating-point dtype that a backend can compute in.
        backend: see `RNN`, and so for the next three.
        final_only: whether only the final states are of use; the output is then None.
        recompute: whether training gives time for memory: True, or steps between the states kept.
        recurrent_dropout: probability that a unit of h is hidden from W_hh, in training mode.
        zoneout: probability that a unit of h keeps its value of the step before; see `RNN`.
        error_clip: bound on the gradient of every gate's pre-activation, of n of either half; see
            `RNN`.

    Attributes:
        weight_ih_l[k]: (W_ir|W_iz|W_in) of layer k, (3 * H, I) for k = 0, else (3 * H, D * H).
        weight_hh_l[k]: (W_hr|W_hz|W_hn) of layer k, (3 * H, H).
        bias_ih_l[k]: (b_ir|b_iz|b_in) of layer k, (3 * H,).
        bias_hh_l[k]: (b_hr|b_hz|b_hn) of layer k, (3 * H,).
        weight_ih_l[k]_reverse: and so on, of the direction backwards in time.

    Raises:
        ValueError: a size, `dropout` or `recompute` is out of range.
        TypeError: an argument is of the wrong type.
        BackendError: `backend` names an unknown one.

    Example:
        >>> gru = fastrnn.GRU(10, 20, num_layers=2)
        >>> output, h_n = gru(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = AUTO,
        final_only: bool = False,
        recompute: bool | int = False,
        recurrent_dropout: float = 0.0,
        zoneout: float = 0.0,
        error_clip: float | None = None,
        **unsupported: Any,
    ) -> None:
        refuse_unsupported(type(self), unsupported)
        super().__init__(
            "GRU",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            backend,
            final_only=final_only,
            recompute=recompute,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            error_clip=error_clip,
        )

    @overload
    def forward(
        self,
        input: Tensor,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_all_states: Literal[False] = False,
    ) -> tuple[Tensor, Tensor]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: Tensor | None = None,
        *,
        return_all_states: Literal[False] = False,
    ) -> tuple[PackedSequence, Tensor]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_all_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | None = None,
        return_all_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over whole sequences; arguments, results and errors as of `RNN.forward`.

        Args:
            input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
            hx: h(0), (L * D, B, H), or (L * D, H) unbatched; zeros if None.
            lengths: (B,), the steps of each row where rows end before T.
            resets: (T, B) bool, the steps before which a row starts over from `hx`.
            reset_state: shaped as `hx`, from which rows start over instead.
            return_all_states: whether to return h of every layer and direction at every step, too.

        Returns:
            output, the last layer's h(t), shaped as `input` with D * H features, or None if
            `final_only`, and h_n, every layer's last h(t), shaped as `hx`.
        """
        return self._run(input, hx, lengths, resets, reset_state, return_all_states)


class CellRNN(Recurrent):
    """A multi-layer recurrent network of a cell that is named: a plugin's, or any other.

    A plugin brings cells by the hook `fastrnn_cells`; `fastrnn.cell.Cell` says what one is. Beside
    them there are `peephole_lstm`, and the cells of the other layers. What else a layer has is the
    same for every cell: directions, dropout, PackedSequence, lengths, resets, regularisers.

    T, B, I, H, L, D as for `RNN`; K stands for the gates of the cell and Q for its own weights.

    Args:
        cell: the cell's name.
        input_size: I.
        hidden_size: H.
        num_layers: as for `RNN`, and so for all that follow.
        bias: whether there are biases.
        batch_first: whether input and output are (B, T, ...).
        dropout: probability of zeroing an output of any layer but the last, in training mode.
        bidirectional: whether every layer also runs backwards in time.
        device: of the parameters.
        dtype: of the parameters.
        backend: see `RNN`. Of the backends that are built in, `reference` runs every cell and
            `triton` those that name a kernel; a plugin's backend says itself which it runs.
        final_only: whether only the final states are of use; the output is then None.
        recompute: whether training gives time for memory.
        recurrent_dropout: probability that a unit of h is hidden from W_hh, in training mode.
        zoneout: probability that a unit keeps its state; of a cell with a pair of states also a
            pair, for h and for c.
        error_clip: bound on the gradient of every gate's pre-activation.

    Attributes:
        weight_ih_l[k]: (K * H, I) for k = 0, else (K * H, D * H): the cell's gates below one
            another, in its order. Of a `gru` three gates, as `GRU` has them.
        weight_hh_l[k]: (K * H, H).
        bias_ih_l[k]: (K * H,).
        bias_hh_l[k]: (K * H,).
        weight_cell_l[k]: (Q, H), if the cell has weights of its own: of `peephole_lstm` those of
            the gates i, f and o.
        weight_ih_l[k]_reverse: and so on, of the direction backwards in time.

    Raises:
        ValueError: `cell` is unknown, or a size, `dropout` or `recompute` is out of range.
        TypeError: an argument is of the wrong type.
        BackendError: `backend` names an unknown one.

    Example:
        >>> rnn = fastrnn.CellRNN("peephole_lstm", 10, 20)
        >>> output, (h_n, c_n) = rnn(torch.randn(5, 3, 10))
        >>> rnn.weight_cell_l0.shape
        torch.Size([3, 20])
    """

    cell: str

    def __init__(
        self,
        cell: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = AUTO,
        final_only: bool = False,
        recompute: bool | int = False,
        recurrent_dropout: float = 0.0,
        zoneout: float | tuple[float, float] = 0.0,
        error_clip: float | None = None,
    ) -> None:
        check_type("cell", cell, str)
        super().__init__(
            cell_of(cell).name.upper(),
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            0,
            device,
            dtype,
            backend,
            final_only=final_only,
            recompute=recompute,
            recurrent_dropout=recurrent_dropout,
            zoneout=zoneout,
            error_clip=error_clip,
        )
        self.cell = cell

    def extra_repr(self) -> str:
        """The cell, and what `RNN` shows."""
        return f"{self.cell}, {super().extra_repr()}"

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: Tensor | tuple[Tensor, Tensor] | None = None,
        return_all_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over whole sequences; as `RNN.forward`, or `LSTM.forward` for a pair.

        Args:
            input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
            hx: h(0) (L * D, B, H), of a cell with a pair of states h(0) and c(0); both without B if
                unbatched; zeros if None.
            lengths: (B,), the steps of each row where rows end before T.
            resets: (T, B) bool, the steps before which a row starts over from `hx`.
            reset_state: shaped as `hx`, from which rows start over instead.
            return_all_states: whether to return the states of every step, too.

        Returns:
            output, shaped as `input` with D * H features, or None if `final_only`, and the final
            states, shaped as `hx`.
        """
        return self._run(input, hx, lengths, resets, reset_state, return_all_states)
