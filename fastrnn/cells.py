"""`RNNCell`, `LSTMCell` and `GRUCell`: one time step.

They have no backends: a single step is one call of torch's fused cell, and there is no loop over
time for a kernel to keep its weights and state on chip for. They are here so that replacing
`torch.nn` by `fastrnn` needs no exceptions, and for the sigmoid cell, which torch lacks.

Written in the part of Python that torch.jit.script compiles, as torch's cells are: so no
`from __future__ import annotations`, whose strings it cannot read.
"""

import math

import torch
from torch import Tensor, nn


class _Cell(nn.Module):
    """What the cells share: the parameters."""

    input_size: int
    hidden_size: int
    bias: bool
    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool,
        gates: int,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = gates * hidden_size

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.register_parameter("weight_ih", parameter(rows, input_size))
        self.register_parameter("weight_hh", parameter(rows, hidden_size))
        self.register_parameter("bias_ih", parameter(rows) if bias else None)
        self.register_parameter("bias_hh", parameter(rows) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-k, k) with k = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        """Torch's text."""
        text = f"{self.input_size}, {self.hidden_size}"
        return text if self.bias is True else f"{text}, bias={self.bias}"


class RNNCell(_Cell):
    r"""One step of an Elman RNN: torch.nn.RNNCell, with a sigmoid beside tanh and ReLU.

        h' = act(W_ih x + b_ih + W_hh h + b_hh)

    Below B, I, H stand for the batch, `input_size` and `hidden_size`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        nonlinearity: `tanh`, `relu` or, other than in torch, `sigmoid`.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight_ih: W_ih, (H, I).
        weight_hh: W_hh, (H, H).
        bias_ih: b_ih, (H,), or None.
        bias_hh: b_hh, (H,), or None.

    Example:
        >>> cell = fastrnn.RNNCell(10, 20)
        >>> cell(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    nonlinearity: str

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def extra_repr(self) -> str:
        """Torch's text."""
        text = super().extra_repr()
        if self.nonlinearity == "tanh":
            return text
        return f"{text}, nonlinearity={self.nonlinearity}"

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Make one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: h, (B, H), or (H,) unbatched; zero if None.

        Returns:
            h', shaped as h.

        Raises:
            ValueError: wrong dims.
            RuntimeError: wrong sizes, or an unknown nonlinearity.
        """
        unbatched = input.dim() == 1
        input, hx = _rows("RNNCell", input, hx, self.hidden_size)
        w_ih, w_hh, b_ih, b_hh = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        if self.nonlinearity == "tanh":
            h = torch.rnn_tanh_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
        elif self.nonlinearity == "relu":
            h = torch.rnn_relu_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
        elif self.nonlinearity == "sigmoid":
            h = _sigmoid_cell(input, hx, w_ih, w_hh, b_ih, b_hh)
        else:
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return h.squeeze(0) if unbatched else h


class LSTMCell(_Cell):
    r"""One step of an LSTM: torch.nn.LSTMCell.

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g =    tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    Parameters hold the four gates below one another, in the order i, f, g, o. Below B, I, H
    stand for the batch, `input_size` and `hidden_size`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight_ih: (W_ii|W_if|W_ig|W_io), (4 * H, I).
        weight_hh: (W_hi|W_hf|W_hg|W_ho), (4 * H, H).
        bias_ih: (b_ii|b_if|b_ig|b_io), (4 * H,), or None.
        bias_hh: (b_hi|b_hf|b_hg|b_ho), (4 * H,), or None.

    Example:
        >>> cell = fastrnn.LSTMCell(10, 20)
        >>> h, c = cell(torch.randn(3, 10))
        >>> h.shape, c.shape
        (torch.Size([3, 20]), torch.Size([3, 20]))
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Make one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: h and c, each (B, H), or (H,) unbatched; zero if None.

        Returns:
            h' and c', each shaped as h.

        Raises:
            ValueError: wrong dims.
            RuntimeError: wrong sizes.
        """
        if input.dim() not in (1, 2):
            raise ValueError(f"LSTMCell: Expected input to be 1D or 2D, got {input.dim()}D instead")
        if hx is not None:
            for index, state in enumerate(hx):
                if state.dim() not in (1, 2):
                    raise ValueError(
                        f"LSTMCell: Expected hx[{index}] to be 1D or 2D, got {state.dim()}D instead"
                    )
        unbatched = input.dim() == 1
        if unbatched:
            input = input.unsqueeze(0)
        if hx is None:
            zeros = input.new_zeros(input.shape[0], self.hidden_size)
            hx = (zeros, zeros)
        elif unbatched:
            hx = (hx[0].unsqueeze(0), hx[1].unsqueeze(0))
        h, c = torch.lstm_cell(
            input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        )
        return (h.squeeze(0), c.squeeze(0)) if unbatched else (h, c)


class GRUCell(_Cell):
    r"""One step of a GRU: torch.nn.GRUCell.

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n =    tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    Parameters hold the three gates below one another, in the order r, z, n. Below B, I, H stand
    for the batch, `input_size` and `hidden_size`.

    Args:
        input_size: I.
        hidden_size: H.
        bias: whether there are b_ih and b_hh.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight_ih: (W_ir|W_iz|W_in), (3 * H, I).
        weight_hh: (W_hr|W_hz|W_hn), (3 * H, H).
        bias_ih: (b_ir|b_iz|b_in), (3 * H,), or None.
        bias_hh: (b_hr|b_hz|b_hn), (3 * H,), or None.

    Example:
        >>> cell = fastrnn.GRUCell(10, 20)
        >>> cell(torch.randn(3, 10)).shape
        torch.Size([3, 20])
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Make one step.

        Args:
            input: (B, I), or (I,) unbatched.
            hx: h, (B, H), or (H,) unbatched; zero if None.

        Returns:
            h', shaped as h.

        Raises:
            ValueError: wrong dims.
            RuntimeError: wrong sizes.
        """
        unbatched = input.dim() == 1
        input, hx = _rows("GRUCell", input, hx, self.hidden_size)
        h = torch.gru_cell(input, hx, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh)
        return h.squeeze(0) if unbatched else h


def _rows(name: str, input: Tensor, hx: Tensor | None, hidden_size: int) -> tuple[Tensor, Tensor]:
    """Input and state (B, ...) of a cell with one state, whatever the dims of what is given."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    if hx is not None and hx.dim() not in (1, 2):
        raise ValueError(f"{name}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")
    unbatched = input.dim() == 1
    if unbatched:
        input = input.unsqueeze(0)
    if hx is None:
        hx = input.new_zeros(input.shape[0], hidden_size)
    elif unbatched:
        hx = hx.unsqueeze(0)
    return input, hx


def _sigmoid_cell(
    input: Tensor,
    hx: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
) -> Tensor:
    """The cell that torch lacks, with the checks that torch's others make."""
    inputs, hidden_size = weight_ih.size(1), weight_hh.size(1)
    if input.size(1) != inputs:
        raise RuntimeError(
            f"input has inconsistent input_size: got {input.size(1)} expected {inputs}"
        )
    if input.size(0) != hx.size(0):
        raise RuntimeError(
            f"Input batch size {input.size(0)} doesn't match hidden0 batch size {hx.size(0)}"
        )
    if hx.size(1) != hidden_size:
        raise RuntimeError(
            f"hidden0 has inconsistent hidden_size: got {hx.size(1)}, expected {hidden_size}"
        )
    gates_x = nn.functional.linear(input, weight_ih, bias_ih)
    return torch.sigmoid(gates_x + nn.functional.linear(hx, weight_hh, bias_hh))
