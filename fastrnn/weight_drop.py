"""Weight drop: dropout of the recurrent weights themselves.

Merity, Keskar and Socher, "Regularizing and optimizing LSTM language models" (AWD-LSTM), ICLR 2018,
after the DropConnect of Wan et al., "Regularization of neural networks using DropConnect", 2013.
"""

# mypy: allow-untyped-calls
# (torch.nn.utils.parametrize is not annotated)

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.nn.utils import parametrize

from fastrnn.options import probability
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    from collections.abc import Iterator

Layer = TypeVar("Layer", bound=Recurrent)


class WeightDrop(nn.Module):
    """The parametrization that `weight_drop` puts on a weight."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, weight: Tensor) -> Tensor:
        """The weight of one call."""
        return dropout(weight, self.p, self.training)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What `layer.weight_hh_l0 = weight` assigns: the weight before anything is dropped."""
        return weight

    def extra_repr(self) -> str:
        """The probability."""
        return f"p={self.p}"


def weight_drop(layer: Layer, p: float = 0.5) -> Layer:
    """Drop entries of every W_hh of a layer, anew in each call, in training mode.

    Each entry of weight_hh_l[k] (and of its reverse) is zero with probability `p`, for all rows and
    steps of a call, and else scaled by 1 / (1 - p). In eval mode nothing is dropped. A backend sees
    only another weight, so any will do; no layer's `recurrent_dropout` is touched.

    It is a parametrization of torch's (`torch.nn.utils.parametrize`), with all that comes with
    it: what is trained, and saved in a state_dict, is layer.parametrizations.weight_hh_l0.original;
    `layer.weight_hh_l0` draws whenever it is read; the layer can be copied but not pickled, only
    its state_dict can; and `parametrize.remove_parametrizations(layer, "weight_hh_l0")` undoes it,
    in eval mode, or with leave_parametrized=False, for else it would leave a weight with entries
    dropped.

    Args:
        layer: a `fastrnn.RNN` or `fastrnn.LSTM`; changed in place.
        p: the probability.

    Returns:
        `layer`.

    Raises:
        TypeError: `layer` is none of fastrnn's, or `p` is no number.
        ValueError: `p` is not in [0, 1], or the layer's weights are dropped already.

    Example:
        >>> lstm = fastrnn.weight_drop(fastrnn.LSTM(10, 20, num_layers=2), p=0.5)
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(
            f"layer should be a fastrnn.RNN or LSTM, got: {type(layer).__name__}; "
            "fastrnn.convert makes them of torch.nn's"
        )
    p = probability("p", p)
    if has_weight_drop(layer):
        raise ValueError("layer: its weights are dropped already")
    for names in layer.grouped_names():
        # unsafe: without the calls that check shapes and draw from the generator
        parametrize.register_parametrization(layer, names[1], WeightDrop(p), unsafe=True)
    return layer


@contextmanager
def undropped(module: nn.Module) -> Iterator[None]:
    """Within this context weights are read as in eval mode, and nothing is drawn."""
    drops = [each for each in module.modules() if isinstance(each, WeightDrop) and each.training]
    for drop in drops:
        drop.training = False
    try:
        yield
    finally:
        for drop in drops:
            drop.training = True


def has_weight_drop(layer: nn.Module) -> bool:
    """Whether weights of a layer are dropped."""
    return any(isinstance(module, WeightDrop) for module in layer.modules())
