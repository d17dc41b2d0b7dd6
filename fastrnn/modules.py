"""`RNN` and `LSTM`: torch.nn's layers, parameter for parameter, over fastrnn's backends.

Plain modules rather than subclasses of torch.nn's: Dynamo refuses every instance of those under
`torch.compile(fullgraph=True)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from fastrnn.checks import refuse_unsupported
from fastrnn.dispatch import AUTO
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.nn.utils.rnn import PackedSequence

    from fastrnn.masks import Lengths

_MODES = {"tanh": "RNN_TANH", "relu": "RNN_RELU", "sigmoid": "RNN_SIGMOID"}


class RNN(Recurrent):
    r"""A multi-layer Elman RNN: torch.nn.RNN, with a choice of backends and of a sigmoid.

    For every step t of each layer,

        h(t) = act(W_ih x(t) + b_ih + W_hh h(t-1) + b_hh)

    where act is tanh, ReLU or the logistic sigmoid, x(t) is the input, or the output of the layer
    below with dropout, and h(0) is `hx` or zero.

    In the shapes below T, B, I, H, L stand for steps, batch, `input_size`, `hidden_size` and
    `num_layers`, and D for 2 if `bidirectional`, else 1.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, layers stacked.
        nonlinearity: `tanh`, `relu` or, other than in torch, `sigmoid`.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (B, T, ...) rather than (T, B, ...). States
            are not affected.
        dropout: probability of zeroing an output of any layer but the last, in training mode.
        bidirectional: whether every layer also runs backwards in time.
        device: of the parameters.
        dtype: of the parameters; any floating-point dtype that a backend can compute in.
        backend: `auto`, or the name of a backend, or several in order of preference, separated
            by commas. May be set later, too: `module.backend = "reference"`.
        final_only: whether only the final states are of use, as where a sequence is classified:
            the output is then None, and outside of training it is never held in memory (but by
            `aten`, where torch's code makes all of it). May be set later.
        recompute: whether training gives time for memory: it keeps h at every k-th step, and
            the backward pass runs k steps at a time forward once more. True is 128 steps, a
            number is k. Gradients are the same but for rounding. May be set later.
        recurrent_dropout: probability that a unit of h is hidden from W_hh, in training mode: one
            draw for each row and unit that holds for the whole sequence (Gal and Ghahramani,
            2016). What is kept is scaled by 1 / (1 - p). The output is untouched. May be set later,
            and so may the next two.
        zoneout: probability that a unit of h does not take its new value at a step and keeps the
            one before, in training mode; in eval mode the two are mixed in these shares (Krueger
            et al., 2017).
        error_clip: bound on the gradient of every unit's pre-activation, at every step on its way
            back through time, before it goes on to weights, inputs and the step before (Graves,
            2013); None for none. That holds for every backward pass through the layer, also one
            that differentiates a gradient; forward mode differentiates it as it is.

    Attributes:
        weight_ih_l[k]: W_ih of layer k, (H, I) for k = 0, else (H, D * H).
        weight_hh_l[k]: W_hh of layer k, (H, H).
        bias_ih_l[k]: b_ih of layer k, (H,).
        bias_hh_l[k]: b_hh of layer k, (H,).
        weight_ih_l[k]_reverse: and so on, of the direction backwards in time.

    Raises:
        ValueError: a size, `dropout`, `nonlinearity` or `recompute` is out of range.
        TypeError: an argument is of the wrong type.
        BackendError: `backend` names an unknown one.

    Example:
        >>> rnn = fastrnn.RNN(10, 20, num_layers=2)
        >>> output, h_n = rnn(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]))
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
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
        if nonlinearity not in _MODES:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'."
            )
        super().__init__(
            _MODES[nonlinearity],
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
        self.nonlinearity = nonlinearity

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
        """Run the layers over whole sequences.

        Args:
            input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
                In the dtype of the parameters, unless autocast is on.
            hx: h(0), (L * D, B, H), or (L * D, H) unbatched; zeros if None.
            lengths: (B,), the steps of each row where rows end before T: a list or tuple of ints,
                or an integer tensor on any device. Rows come in any order, and may have no step.
                Past its end a row's output is zero, whatever the input holds there, and its final
                states are those of its own last step, or `hx` if it has none; a direction backwards
                in time starts at the row's own end. Nothing waits for a tensor on a GPU: its values
                are not checked but clamped to 0 to T, and so are those of any tensor under
                torch.compile. Unbatched, a number or (1,). Not for a PackedSequence.
            resets: (T, B) bool, (B, T) if `batch_first`, (T,) unbatched. Where true, the step does
                not follow on the one before: the row starts over from `hx`, as an environment does
                with a new episode. Gradients go to `hx` and not to the step before. In a direction
                backwards in time the step before is t + 1. Ignored past a row's length. Not for a
                PackedSequence, nor with `recompute`.
            reset_state: from which rows start over instead of `hx`: shaped as `hx`, or with one
                row for all, (L, 1, H). For a sequence that begins in the middle of an episode, with
                the state that the last one left as `hx`, and zeros, or a learned state, here.
                Gradients go to either by what started from it. A row that starts over takes as
                much as two. Not in two directions.
            return_all_states: whether to return h of every layer and direction at every step, too.

        Returns:
            output, the last layer's h(t), shaped as `input` with D * H features, or None if
            `final_only`, and h_n, every layer's last h(t), shaped as `hx`. With
            `return_all_states` a third, every layer's every h(t): (L * D, T, B, H), (L * D, B, T,
            H) if `batch_first`, (L * D, T, H) unbatched, zero past a row's length; of a
            PackedSequence padded. Gradients go through it. It may share its memory with the output.

        Raises:
            ValueError: wrong dims or dtype of `input`; wrong number, values or shape of `lengths`,
                `resets` or `reset_state`, or with what they cannot be combined.
            TypeError: `lengths` holds no integers, `resets` is no bool tensor, or `reset_state`
                not what `hx` is.
            RuntimeError: wrong sizes of `input` or `hx`.
            BackendError: the named backends cannot run this call; says why each cannot.
        """
        return self._run(input, hx, lengths, resets, reset_state, return_all_states)


class LSTM(Recurrent):
    r"""A multi-layer LSTM: torch.nn.LSTM, with a choice of backends.

    For every step t of each layer,

        i(t) = sigmoid(W_ii x(t) + b_ii + W_hi h(t-1) + b_hi)
        f(t) = sigmoid(W_if x(t) + b_if + W_hf h(t-1) + b_hf)
        g(t) =    tanh(W_ig x(t) + b_ig + W_hg h(t-1) + b_hg)
        o(t) = sigmoid(W_io x(t) + b_io + W_ho h(t-1) + b_ho)
        c(t) = f(t) * c(t-1) + i(t) * g(t)
        h(t) = o(t) * tanh(c(t)), or W_hr (o(t) * tanh(c(t))) if `proj_size` > 0

    where x(t) is the input, or the output of the layer below with dropout, and h(0), c(0) are
    `hx` or zero. Parameters hold the four gates below one another, in the order i, f, g, o.

    In the shapes below T, B, I, H, L stand for steps, batch, `input_size`, `hidden_size` and
    `num_layers`, P for `proj_size` if that is positive, else H, and D for 2 if `bidirectional`,
    else 1.

    Args:
        input_size: I.
        hidden_size: H.
        num_layers: L, layers stacked.
        bias: whether there are b_ih and b_hh.
        batch_first: whether input and output are (B, T, ...) rather than (T, B, ...). States
            are not affected.
        dropout: probability of zeroing an output of any layer but the last, in training mode.
        bidirectional: whether every layer also runs backwards in time.
        proj_size: width of h if it is projected; less than H. 0 for no projection.
        device: of the parameters.
        dtype: of the parameters; any floating-point dtype that a backend can compute in.
        backend: `auto`, or the name of a backend, or several in order of preference, separated
            by commas. May be set later, too: `module.backend = "reference"`.
        final_only: whether only the final states are of use, as where a sequence is classified:
            the output is then None, and outside of training it is never held in memory (but by
            `aten`, where torch's code makes all of it). May be set later.
        recompute: whether training gives time for memory: it keeps h and c at every k-th step, and
            the backward pass runs k steps at a time forward once more. True is 128 steps, a
            number is k. Gradients are the same but for rounding. May be set later.
        recurrent_dropout: probability that a unit of h is hidden from W_hh, in training mode: one
            draw for each row and unit that holds for the whole sequence (Gal and Ghahramani,
            2016). What is kept is scaled by 1 / (1 - p). The output is untouched. May be set later,
            and so may the next two.
        zoneout: probability that a unit of h, and one of c, does not take its new value at a step
            and keeps the one before, in training mode; in eval mode the two are mixed in these
            shares (Krueger et al., 2017). Or a pair of probabilities, for h and for c.
        error_clip: bound on the gradient of every gate's pre-activation, at every step on its way
            back through time, before it goes on to weights, inputs and the step before (Graves,
            2013); None for none. That holds for every backward pass through the layer, also one
            that differentiates a gradient; forward mode differentiates it as it is.

    Attributes:
        weight_ih_l[k]: (W_ii|W_if|W_ig|W_io) of layer k, (4 * H, I) for k = 0, else
            (4 * H, D * P).
        weight_hh_l[k]: (W_hi|W_hf|W_hg|W_ho) of layer k, (4 * H, P).
        bias_ih_l[k]: (b_ii|b_if|b_ig|b_io) of layer k, (4 * H,).
        bias_hh_l[k]: (b_hi|b_hf|b_hg|b_ho) of layer k, (4 * H,).
        weight_hr_l[k]: W_hr of layer k, (P, H); only if projected.
        weight_ih_l[k]_reverse: and so on, of the direction backwards in time.

    Raises:
        ValueError: a size, `dropout` or `recompute` is out of range.
        TypeError: an argument is of the wrong type.
        BackendError: `backend` names an unknown one.

    Example:
        >>> lstm = fastrnn.LSTM(10, 20, num_layers=2)
        >>> output, (h_n, c_n) = lstm(torch.randn(5, 3, 10))
        >>> output.shape, h_n.shape, c_n.shape
        (torch.Size([5, 3, 20]), torch.Size([2, 3, 20]), torch.Size([2, 3, 20]))
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
        proj_size: int = 0,
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
        super().__init__(
            "LSTM",
            input_size,
            hidden_size,
            num_layers,
            bias,
            batch_first,
            dropout,
            bidirectional,
            proj_size,
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
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_all_states: Literal[False] = False,
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        return_all_states: Literal[False] = False,
    ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...

    @overload
    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_all_states: bool,
    ) -> tuple[Any, ...]: ...

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        lengths: Lengths | None = None,
        resets: Tensor | None = None,
        reset_state: tuple[Tensor, Tensor] | None = None,
        return_all_states: bool = False,
    ) -> tuple[Any, ...]:
        """Run the layers over whole sequences.

        Args:
            input: (T, B, I), (B, T, I) if `batch_first`, (T, I) unbatched, or a PackedSequence.
                In the dtype of the parameters, unless autocast is on.
            hx: h(0) (L * D, B, P) and c(0) (L * D, B, H), both without B if unbatched; zeros if
                None.
            lengths: (B,), the steps of each row where rows end before T; see `RNN.forward`.
            resets: (T, B) bool, the steps before which a row starts over from `hx`; see
                `RNN.forward`.
            reset_state: h (L, B, P) and c (L, B, H) from which rows start over instead of `hx`, or
                one row of either for all; see `RNN.forward`.
            return_all_states: whether to return h and c of every layer and direction at every
                step, too.

        Returns:
            output, the last layer's h(t), shaped as `input` with D * P features, or None if
            `final_only`, and (h_n, c_n), every layer's last h(t) and c(t), shaped as `hx`. With
            `return_all_states` a third, every layer's every h(t) and c(t): (L * D, T, B, P) and
            (L * D, T, B, H), laid out as `RNN.forward` says.

        Raises:
            ValueError: wrong dims or dtype of `input`; wrong number, values or shape of `lengths`,
                `resets` or `reset_state`, or with what they cannot be combined.
            TypeError: `lengths` holds no integers, `resets` is no bool tensor, or `reset_state`
                not what `hx` is.
            RuntimeError: wrong sizes of `input` or `hx`.
            BackendError: the named backends cannot run this call; says why each cannot.
        """
        return self._run(input, hx, lengths, resets, reset_state, return_all_states)
