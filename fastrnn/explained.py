"""Which backend a call of a layer would run on, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn.calls import make_request
from fastrnn.dispatch import decide
from fastrnn.masks import check_combination
from fastrnn.recurrent import Recurrent
from fastrnn.weight_drop import undropped

if TYPE_CHECKING:
    from torch import nn

    from fastrnn.masks import Lengths
    from fastrnn.request import Decision


def explain(
    layer: nn.Module,
    input: Tensor | PackedSequence,
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
    *,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    reset_state: Tensor | tuple[Tensor, Tensor] | None = None,
    return_all_states: bool = False,
) -> Decision:
    """Which backend a call of `layer` would run on, by which rule, and why not on the others.

    Nothing is run, and shapes are not checked. Print the result, or read its fields.

    Args:
        layer: a `fastrnn.RNN` or `fastrnn.LSTM`.
        input: as for the call.
        hx: as for the call.
        lengths: as for the call; only whether there are some counts.
        resets: as for the call; only whether there are some counts.
        reset_state: as for the call, which has twice as many rows with it.
        return_all_states: as for the call.

    Raises:
        TypeError: `layer` is none of fastrnn's.
        ValueError: `lengths` or `resets` cannot be combined with the rest of the call.
        BackendError: no backend can run the call, or none of those that were named.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer should be a fastrnn.RNN or LSTM, got: {type(layer).__name__}")
    asked = layer._options._replace(all_states=return_all_states)
    packed = isinstance(input, PackedSequence)
    check_combination(
        lengths, resets, packed=packed, recompute=asked.recompute, reset_state=reset_state
    )
    states: tuple[Tensor, ...] = (hx,) if isinstance(hx, Tensor) else hx or ()
    states += (reset_state,) if isinstance(reset_state, Tensor) else reset_state or ()
    batch_sizes = None
    if isinstance(input, PackedSequence):
        input, batch_sizes, *_ = input
        states = states or (input.new_empty(0, int(batch_sizes[0]), 0),)
    elif input.dim() == 2:
        input = input.unsqueeze(0 if layer.batch_first else 1)
    with undropped(layer):  # else this draws, and the next call would be another one
        weights = layer._weights()
    request = make_request(
        layer._spec,
        input,
        batch_sizes,
        states,
        weights,
        layer.batch_first,
        layer.dropout,
        layer.training,
        asked,
        lengths is not None,
        resets is not None,
    )
    if reset_state is not None and request.batch is not None:
        request = request._replace(batch=2 * request.batch, varlen=True, padded=True)
    return decide(request, layer.backend)
