"""`InitialState`: the state before the first step, as parameters that training finds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastrnn.checks import check_type
from fastrnn.recurrent import Recurrent

_INITS = ("zeros", "normal")


class InitialState(nn.Module):
    """A trainable initial state of a recurrent layer, the same for every row of a batch.

    Backpropagation reaches the state before the first step like any other, so it can be learned:
    the activities with which a network best begins. It is passed as `hx`, every time:

        >>> lstm = fastrnn.LSTM(10, 20, num_layers=2)
        >>> initial = fastrnn.InitialState(lstm)
        >>> output, state = lstm(torch.randn(5, 3, 10), initial(3))

    With `resets=` every row that starts over starts from this state, whose gradient is the sum over
    all rows and all of their starts. Where rows enter in another one, as in the middle of an
    episode, it is the `reset_state=`: `initial(1)`, one row for all.

    In the shapes below L, D, H stand for layers, directions and hidden units, P for the width of h:
    H, or the projection's.

    Args:
        layer: a `fastrnn.RNN` or `LSTM`, or torch.nn's `RNN`, `LSTM` or `GRU`. Only its sizes,
            device and dtype are read; it does not become a part of this module.
        init: `zeros`, or `normal` for values drawn from N(0, std ** 2).
        trainable: whether the state is learned. If not, it is a constant that is kept in the
            state_dict all the same.
        std: the standard deviation for `normal`; by default a tenth of what a tanh can reach.

    Attributes:
        h0: (L * D, 1, P), layers and directions in the order of torch.nn's states.
        c0: (L * D, 1, H), of an LSTM; else None.

    Raises:
        ValueError: `init` is unknown or `std` negative.
        TypeError: `layer` is no recurrent layer, or `trainable` no bool.
    """

    c0: nn.Parameter | None

    def __init__(
        self,
        layer: Recurrent | nn.RNNBase,
        init: str = "zeros",
        trainable: bool = True,
        std: float = 0.1,
    ) -> None:
        super().__init__()
        if not isinstance(layer, Recurrent | nn.RNNBase):
            raise TypeError(
                "layer should be a fastrnn.RNN or LSTM, or a torch.nn.RNN, LSTM or GRU, "
                f"got: {type(layer).__name__}"
            )
        if init not in _INITS:
            raise ValueError(f"Unknown init '{init}'. Select from 'zeros' or 'normal'.")
        check_type("trainable", trainable, bool)
        if std < 0:
            raise ValueError(f"std should not be negative, got: {std}")
        self.init = init
        self.std = std
        rows = layer.num_layers * (2 if layer.bidirectional else 1)
        weight = next(layer.parameters())  # an attribute may be computed, and draw, when it is read

        def parameter(width: int) -> nn.Parameter:
            state = torch.empty(rows, 1, width, device=weight.device, dtype=weight.dtype)
            return nn.Parameter(state, requires_grad=trainable)

        self.h0 = parameter(layer.proj_size or layer.hidden_size)
        pair = layer._spec.has_cell_state if isinstance(layer, Recurrent) else layer.mode == "LSTM"
        c0 = parameter(layer.hidden_size) if pair else None
        self.register_parameter("c0", c0)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin anew, as `init` says."""
        for state in self.parameters():
            if self.init == "normal":
                nn.init.normal_(state, std=self.std)
            else:
                nn.init.zeros_(state)

    def extra_repr(self) -> str:
        """The shapes of the states, and what differs from the defaults."""
        shown = [f"{name}={tuple(state.shape)}" for name, state in self.named_parameters()]
        shown += [f"init=normal, std={self.std}"] if self.init == "normal" else []
        shown += [] if self.h0.requires_grad else ["trainable=False"]
        return ", ".join(shown)

    def forward(self, batch_size: int | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """The state for a batch, differentiable.

        Args:
            batch_size: B, also where the layer is `batch_first`; of a PackedSequence the number of
                its sequences, `int(packed.batch_sizes[0])`. None for unbatched input.

        Returns:
            What the layer takes as `hx`: h0 (L * D, B, P), of an LSTM the pair of it and c0
            (L * D, B, H), all without B if unbatched.

        Raises:
            ValueError: `batch_size` is negative.
            TypeError: `batch_size` is neither None nor an int.
        """
        if batch_size is not None:
            check_type("batch_size", batch_size, int)
            if batch_size < 0:
                raise ValueError(f"batch_size should not be negative, got: {batch_size}")
        h0 = _for_batch(self.h0, batch_size)
        return h0 if self.c0 is None else (h0, _for_batch(self.c0, batch_size))


def _for_batch(state: Tensor, batch_size: int | None) -> Tensor:
    if batch_size is None:
        return state.squeeze(1)
    # cuDNN refuses a state whose rows share memory
    return state.expand(-1, batch_size, -1).contiguous()
