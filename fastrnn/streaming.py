"""Truncated backpropagation through time: a sequence in windows, the state carried between them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, cast, overload

import torch
from torch.nn.utils.rnn import PackedSequence

from fastrnn import checks, masks
from fastrnn.recurrent import Recurrent

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fastrnn.masks import Lengths
    from fastrnn.modules import LSTM, RNN
    from fastrnn.request import Spec

S = TypeVar("S")


class Window(NamedTuple, Generic[S]):
    """One window of a sequence; see `windows`."""

    start: int
    """The window is the steps from here."""
    stop: int
    """Up to, and without, here."""
    output: Tensor | None
    """As the layer returns it, for these steps; None if `final_only`."""
    state: S
    """After the window, shaped as the layer's; the next window takes a detached copy of it."""
    targets: Tensor | None
    """These steps of `targets`."""
    lengths: Tensor | None
    """(B,) int64: how many of these steps each row has; (1,) unbatched; None without `lengths`."""


@overload
def windows(
    layer: LSTM,
    input: Tensor,
    hx: tuple[Tensor, Tensor] | None = None,
    *,
    window: int,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    targets: Tensor | None = None,
) -> Iterator[Window[tuple[Tensor, Tensor]]]: ...


@overload
def windows(
    layer: RNN,
    input: Tensor,
    hx: Tensor | None = None,
    *,
    window: int,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    targets: Tensor | None = None,
) -> Iterator[Window[Tensor]]: ...


def windows(
    layer: LSTM | RNN,
    input: Tensor,
    hx: Any = None,
    *,
    window: int,
    lengths: Lengths | None = None,
    resets: Tensor | None = None,
    targets: Tensor | None = None,
) -> Iterator[Window[Any]]:
    """Run `layer` over a sequence window by window: truncated backpropagation through time.

    Outputs are those of one call over the whole sequence. The state is carried from window to
    window, its gradient is not: an error is propagated back to the start of its own window. Call
    `backward` in the body of the loop, and what the window saved is freed there. With a window of
    T or more it is the call itself. Dropout and zoneout are drawn anew in each.

        for window in fastrnn.windows(lstm, x, window=100, targets=y):
            optimizer.zero_grad()
            loss(head(window.output), window.targets).backward()
            optimizer.step()

    `input` should not be computed from parameters, since `backward` in the first window would free
    that graph. With an embedding, write the loop yourself, which `detach` makes short:

        state = None
        for codes, targets in zip(text.split(100), y.split(100)):
            output, state = lstm(embedding(codes), state)
            loss(head(output), targets).backward()
            state = fastrnn.detach(state)

    Args:
        layer: a `fastrnn.LSTM` or `RNN`, not bidirectional.
        input: as for the layer: (T, B, I), (B, T, I) if `batch_first`, or (T, I) unbatched.
        hx: as for the layer. The first window's gradient reaches it, and so do those of steps that
            start over from it.
        window: steps in a window, at least 1; the last one may be shorter.
        lengths: as for the layer, in steps of the whole sequence. A row may end within a window;
            its state then stays as it is.
        resets: as for the layer. A row starts over from `hx`, whatever the window: in those after
            the first that have a reset, `hx` is the layer's `reset_state`. On a GPU that is all of
            them unless `resets` is kept on the CPU, where looking waits for nothing.
        targets: (T, ...), (B, T, ...) if `batch_first`, to be sliced like the input.

    Returns:
        An iterator; each window is run when it is asked for.

    Raises:
        TypeError: `layer` is none of fastrnn's, `input` a PackedSequence, or `window` no int.
        ValueError: `layer` is bidirectional, `window` is below 1, or `targets` has not T steps.
        ValueError, TypeError, RuntimeError: as the layer raises for its arguments.
    """
    spec = one_direction(layer, "so that no window could be run before the last one")
    if isinstance(input, PackedSequence):
        raise TypeError(
            "input: got a PackedSequence, expected a tensor: rows end at different steps, so that "
            "there is no state of all rows between two windows; pad it and pass lengths"
        )
    if not isinstance(window, int) or isinstance(window, bool):
        raise TypeError(f"window should be of type int, got: {type(window).__name__}")
    if window < 1:
        raise ValueError(f"window: got {window}, expected 1 or more steps")
    if input.dim() not in (2, 3):
        raise checks.wrong_input_dims(spec, input.dim())
    unbatched = input.dim() == 2
    time = 1 if layer.batch_first and not unbatched else 0
    steps, batch = input.shape[time], 1 if unbatched else input.shape[1 - time]
    masks.check_combination(lengths, resets, packed=False, recompute=int(layer.recompute))
    if lengths is not None:
        lengths = masks.as_lengths(lengths, steps, batch, input.device, unbatched=unbatched)
    if resets is not None:
        how = {"batch_first": layer.batch_first, "unbatched": unbatched}
        masks.as_resets(resets, steps, batch, torch.device("meta"), **how)  # only to check them
    if targets is not None and targets.shape[time : time + 1] != (steps,):
        raise ValueError(
            f"targets: got shape {tuple(targets.shape)}, expected {steps} steps in dim {time}"
        )
    return _stream(layer, input, hx, time, window, lengths, resets, targets)


def _stream(
    layer: Recurrent,
    input: Tensor,
    hx: Any,
    time: int,
    window: int,
    lengths: Tensor | None,
    resets: Tensor | None,
    targets: Tensor | None,
) -> Iterator[Window[Any]]:
    steps, carried = input.shape[time], hx
    for start in range(0, max(steps, 1), window):  # without a step, the layer has torch's error
        size = min(window, steps - start)
        x = input.narrow(time, start, size)
        left = None if lengths is None else (lengths - start).clamp(0, size)
        marks = None if resets is None else resets.narrow(time, start, size)
        if marks is None or (marks.device.type == "cpu" and not marks.any()):
            output, state = layer(x, carried, lengths=left)
        elif start == 0:
            output, state = layer(x, hx, lengths=left, resets=marks)
        else:
            fresh = _zeros(carried) if hx is None else hx
            output, state = layer(x, carried, lengths=left, resets=marks, reset_state=fresh)
        part = None if targets is None else targets.narrow(time, start, size)
        yield Window(start, start + size, output, state, part, left)
        carried = detach(state)
        del output, state  # so that they are freed where the caller drops his


def _zeros(state: Any) -> Any:
    """What a layer starts from without `hx`."""
    if isinstance(state, tuple):
        return tuple(map(torch.zeros_like, state))
    return torch.zeros_like(state)


def detach(state: S) -> S:
    """The same state without its history: tensors in tuples and lists, however nested; or None.

    Nothing is copied. Raises TypeError if there is anything else in it.
    """
    if state is None:
        return state
    if isinstance(state, torch.Tensor):
        return cast("S", state.detach())
    if isinstance(state, tuple | list):
        parts = [detach(part) for part in state]
        named = getattr(state, "_make", type(state))
        return cast("S", named(parts))
    raise TypeError(
        f"state should be a tensor, or a tuple or list of them, got: {type(state).__name__}"
    )


def one_direction(layer: object, reason: str) -> Spec:
    """What a layer is made of, if it is one of fastrnn's and runs forwards in time only.

    Raises:
        TypeError: `layer` is none of fastrnn's.
        ValueError: it is bidirectional; `reason` completes the sentence on why that cannot be.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer should be a fastrnn.RNN or LSTM, got: {type(layer).__name__}")
    if layer.bidirectional:
        raise ValueError(
            "layer: got a bidirectional one, expected one direction: backwards in time, a step "
            f"needs those after it, {reason}"
        )
    return layer._spec
