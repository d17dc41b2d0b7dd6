"""`JordanRNN`: a layer whose output is fed back, instead of its hidden state or beside it.

What comes back is g(W_ho h + b_o) for an output nonlinearity g of the user's choice, which no
kernel here knows; so this is torch's operations step by step. With a teacher nothing waits for an
output, and there is no such loop.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from fastrnn.checks import check_type
from fastrnn.functional import rnn
from fastrnn.precision import autocasts

if TYPE_CHECKING:
    from collections.abc import Callable

State = Tensor | tuple[Tensor, Tensor]

_HIDDEN: dict[str | None, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
}
_OUTPUT: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    **_HIDDEN,
    "softmax": partial(torch.softmax, dim=-1),
}


class JordanRNN(nn.Module):
    r"""A Jordan network: an RNN that is fed its own output of the step before.

    For every step t,

        h(t) = f(W_ih x(t) + b_h + W_oh y(t-1) [+ W_hh h(t-1)])
        y(t) = g(W_ho h(t) + b_o)

    where f is tanh, ReLU or the logistic sigmoid, g the identity, one of these or the softmax over
    the outputs, and y(0) is `state` or zero. The term in brackets is there with `hidden_feedback`:
    y is then a backprojection, fed back beside h.

    It runs as a Python loop of torch operations, not as a fused kernel, since what is fed back is
    arbitrary: a GPU waits for Python at each step. W_ih x(t) of all steps is one product before
    the loop. In the shapes below T, B, I, H, O stand for steps, batch, `input_size`,
    `hidden_size` and `output_size`.

    Args:
        input_size: I.
        hidden_size: H.
        output_size: O.
        nonlinearity: f: `tanh`, `relu` or `sigmoid`.
        output_nonlinearity: g: None for the identity, `tanh`, `sigmoid`, `relu` or `softmax`.
        bias: whether there are b_h and b_o.
        batch_first: whether input, output and teacher are (B, T, ...) rather than (T, B, ...).
            States are not affected.
        hidden_feedback: whether h(t-1) is fed back, too.
        device: of the parameters.
        dtype: of the parameters.

    Attributes:
        weight_ih: W_ih, (H, I).
        weight_oh: W_oh, (H, O).
        weight_hh: W_hh, (H, H), or None without `hidden_feedback`.
        weight_ho: W_ho, (O, H).
        bias_h: b_h, (H,), or None.
        bias_o: b_o, (O,), or None.

    Raises:
        ValueError: a size or a nonlinearity is not among those above.
        TypeError: an argument is of the wrong type.

    Source: M. I. Jordan, Serial order: a parallel distributed processing approach, ICS Report 8604,
    UC San Diego, 1986; backprojections: H. Jaeger, The "echo state" approach to analysing and
    training recurrent neural networks, GMD Report 148, 2001.

    Example:
        >>> net = fastrnn.JordanRNN(10, 20, 3)
        >>> output, y_n = net(torch.randn(5, 4, 10))
        >>> output.shape, y_n.shape
        (torch.Size([5, 4, 3]), torch.Size([4, 3]))
    """

    weight_hh: nn.Parameter | None
    bias_h: nn.Parameter | None
    bias_o: nn.Parameter | None

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        nonlinearity: str = "tanh",
        output_nonlinearity: str | None = None,
        bias: bool = True,
        batch_first: bool = False,
        hidden_feedback: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        sizes = {"input_size": input_size, "hidden_size": hidden_size, "output_size": output_size}
        for name, size in sizes.items():
            check_type(name, size, int)
            if size <= 0:
                raise ValueError(f"{name} must be greater than zero, got: {size}")
        flags = {"bias": bias, "batch_first": batch_first, "hidden_feedback": hidden_feedback}
        for name, flag in flags.items():
            check_type(name, flag, bool)
        if nonlinearity not in _HIDDEN:
            raise ValueError(
                f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh', 'relu' or 'sigmoid'."
            )
        if output_nonlinearity not in _OUTPUT:
            raise ValueError(
                f"Unknown output_nonlinearity '{output_nonlinearity}'. Select from None, 'tanh', "
                "'sigmoid', 'relu' or 'softmax'."
            )
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.output_size = output_size
        self.nonlinearity = nonlinearity
        self.output_nonlinearity = output_nonlinearity
        self.bias = bias
        self.batch_first = batch_first
        self.hidden_feedback = hidden_feedback

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        self.weight_ih = parameter(hidden_size, input_size)
        self.weight_oh = parameter(hidden_size, output_size)
        hidden = parameter(hidden_size, hidden_size) if hidden_feedback else None
        self.register_parameter("weight_hh", hidden)
        self.weight_ho = parameter(output_size, hidden_size)
        self.register_parameter("bias_h", parameter(hidden_size) if bias else None)
        self.register_parameter("bias_o", parameter(output_size) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-k, k) with k = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    def extra_repr(self) -> str:
        """The sizes, and what differs from the defaults."""
        defaults = {
            "nonlinearity": "tanh",
            "output_nonlinearity": None,
            "bias": True,
            "batch_first": False,
            "hidden_feedback": False,
        }
        values = {name: getattr(self, name) for name in defaults}
        shown = [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
        return ", ".join([f"{self.input_size}, {self.hidden_size}, {self.output_size}", *shown])

    def forward(
        self, input: Tensor, state: State | None = None, *, teacher: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Run the network over whole sequences.

        Args:
            input: (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched. In the dtype of the
                parameters, unless autocast is on.
            state: y(0), (B, O), or with `hidden_feedback` a pair of y(0) and h(0), (B, H), all
                without B if unbatched; zeros if None.
            teacher: the outputs that are wanted, shaped as `output`: fed back in place of y(1) to
                y(T-1). All steps are then computed at once, or with `hidden_feedback` by fastrnn's
                backends, as an Elman RNN is. To go on with the next part of a sequence, pass the
                teacher's last step as its y(0).

        Returns:
            output, y(1) to y(T), shaped as `input` with O features, and y(T), or with
            `hidden_feedback` (y(T), h(T)), shaped as `state`.

        Raises:
            ValueError: wrong dims, sizes or dtype of `input`, `state` or `teacher`.
            TypeError: one of them is not of the type above.
        """
        unbatched = self._check_input(input)
        x = self._time_major(input, unbatched)
        y, h = self._initial(state, x, unbatched)
        if teacher is None:
            output, y, h = self._run(x, y, h)
        else:
            expected = (*input.shape[:-1], self.output_size)
            wanted = self._time_major(_checked("teacher", teacher, expected, x), unbatched)
            output, y, h = self._run_taught(x, torch.cat((y.unsqueeze(0), wanted[:-1])), h)
        if unbatched:
            output, y, h = output.squeeze(1), y.squeeze(0), h.squeeze(0)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, ((y, h) if self.hidden_feedback else y)

    def _run(self, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output (T, B, O), y(T) and h(T), from x (T, B, I), y(0) and h(0)."""
        f, g = _HIDDEN[self.nonlinearity], _OUTPUT[self.output_nonlinearity]
        outputs = []
        for a in linear(x, self.weight_ih, self.bias_h).unbind(0):
            a = a + linear(y, self.weight_oh)
            if self.weight_hh is not None:
                a = a + linear(h, self.weight_hh)
            h = f(a)
            y = g(linear(h, self.weight_ho, self.bias_o))
            outputs.append(y)
        return torch.stack(outputs), y, h

    def _run_taught(self, x: Tensor, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same where y(0) to y(T-1), which are fed back, are known: y is (T, B, O)."""
        xy = torch.cat((x, y), 2)
        weight = torch.cat((self.weight_ih, self.weight_oh), 1)
        if self.weight_hh is None:
            hidden = _HIDDEN[self.nonlinearity](linear(xy, weight, self.bias_h))
        else:
            weights: list[Tensor] = [weight, self.weight_hh]
            if self.bias_h is not None:
                weights += [self.bias_h, torch.zeros_like(self.bias_h)]
            made, _ = rnn(
                xy, h.unsqueeze(0), weights, nonlinearity=self.nonlinearity, bias=self.bias
            )
            hidden = cast("Tensor", made)
        g = _OUTPUT[self.output_nonlinearity]
        output = g(linear(hidden, self.weight_ho, self.bias_o))
        return output, output[-1], hidden[-1]

    def _time_major(self, sequence: Tensor, unbatched: bool) -> Tensor:
        """(T, B, features), with a batch of one if there was none."""
        if unbatched:
            return sequence.unsqueeze(1)
        return sequence.transpose(0, 1) if self.batch_first else sequence

    def _initial(self, state: State | None, x: Tensor, unbatched: bool) -> tuple[Tensor, Tensor]:
        """y(0) (B, O) and h(0) (B, H), which is of no use without hidden feedback."""
        batch, sizes = x.shape[1], (self.output_size, self.hidden_size)
        if state is None:
            return x.new_zeros(batch, sizes[0]), x.new_zeros(batch, sizes[1])
        names, given = ["state"], [state]
        if self.hidden_feedback:
            if not isinstance(state, tuple | list) or len(state) != 2:
                raise TypeError(
                    "JordanRNN: with hidden_feedback, state should be a pair (y_0, h_0), "
                    f"got {_described(state)}"
                )
            names, given = ["state[0]", "state[1]"], list(state)
        states = []
        for name, tensor, size in zip(names, given, sizes, strict=False):
            checked = _checked(name, tensor, (size,) if unbatched else (batch, size), x)
            states.append(checked.unsqueeze(0) if unbatched else checked)
        return states[0], states[1] if self.hidden_feedback else x.new_zeros(batch, sizes[1])

    def _check_input(self, input: Tensor) -> bool:
        """Check dims, features and dtype; whether there is no batch."""
        if not isinstance(input, Tensor):
            raise TypeError(f"JordanRNN: input should be a Tensor, got {_described(input)}")
        dims = input.dim()
        if dims not in (2, 3):
            raise ValueError(f"JordanRNN: Expected input to be 2D or 3D, got {dims}D instead")
        if input.shape[-1] != self.input_size:
            raise ValueError(
                "JordanRNN: input.size(-1) must be equal to input_size. "
                f"Expected {self.input_size}, got {input.shape[-1]}"
            )
        if input.shape[1 if self.batch_first and dims == 3 else 0] == 0:
            raise ValueError("JordanRNN: Expected sequence length of input to be larger than 0")
        weight = self.weight_ih
        if input.dtype != weight.dtype and not autocasts(input.device.type):
            raise ValueError(
                f"JordanRNN: input dtype ({input.dtype}) does not match weight dtype "
                f"({weight.dtype}). Convert input: input.to({weight.dtype}), or convert model: "
                f"model.to({input.dtype})"
            )
        return dims == 2


def _checked(name: str, given: object, expected: tuple[int, ...], x: Tensor) -> Tensor:
    """What the user gave, if it is a tensor of the size expected and of x's dtype."""
    if not isinstance(given, Tensor):
        raise TypeError(f"JordanRNN: {name} should be a Tensor, got {_described(given)}")
    if given.shape != expected:
        raise ValueError(f"JordanRNN: Expected {name} size {expected}, got {tuple(given.shape)}")
    if given.dtype != x.dtype and not autocasts(x.device.type):
        raise ValueError(f"JordanRNN: Expected {name} dtype {x.dtype}, got {given.dtype}")
    return given


def _described(value: object) -> str:
    """What came in place of a tensor or of a pair."""
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} of length {len(value)}"
    return type(value).__name__
