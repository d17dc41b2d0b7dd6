"""Rows on sequences: their ends, starts, states and sizes."""

# mypy: allow-untyped-calls
# (some methods of torch's tensors are not annotated)

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from beyond_rows import (
    B,
    H,
    I,
    T,
    Wrong,
    close,
    derivatives,
    double,
    make,
    normal,
    peak_and_count,
    row,
    slow,
    tensors,
)
from fastrnn.stepper import Stepper
from fastrnn.streaming import windows

BOTH = ("LSTM", "RNN")
LOOP = "a Python loop of one-step calls"


@row(
    "Rows of different lengths, in any order, one without a step",
    "padded input, two directions, states and gradients; against masks step by step",
    43227, 4582, 149194,
    quick=True,
)  # fmt: skip
def lengths_of_rows(library: Any) -> str | None:
    lengths = [2, T, 0]
    means = None
    for cell in BOTH:
        layer, x = make(library, cell, bidirectional=True), normal(T, B, I)
        if library is torch.nn:
            means = "the rows that have steps packed, the rest put in between"
            some = torch.tensor(lengths) > 0
            kept = torch.tensor(lengths)[some]
            packed = pack_padded_sequence(x[:, some], kept, enforce_sorted=False)
            out, state = layer(packed)
            output = x.new_zeros(T, B, 2 * H)
            output[:, some] = pad_packed_sequence(out, total_length=T)[0]
            states = [each.new_zeros(2, B, H) for each in tensors(state)]
            for full, each in zip(states, tensors(state), strict=True):
                full[:, some] = each
            got: Any = (output, states)
        else:
            got = layer(x, lengths=lengths)
        want = slow(layer, x, lengths=lengths)[:2]
        close(got, want)
        inputs = [x, *layer.parameters()]
        close(derivatives(got, inputs), derivatives(want, inputs))
    return means


@row(
    "PackedSequence in and out, two directions",
    "packed input, unpacked output and states; against masks step by step",
    quick=True,
)
def packed(library: Any) -> None:
    lengths = [2, T, 4]
    for cell in BOTH:
        layer, x = make(library, cell, bidirectional=True), normal(T, B, I)
        out, state = layer(pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False))
        got = pad_packed_sequence(out)[0], state
        want = slow(layer, x, lengths=lengths)[:2]
        close(got, want)
        close(derivatives(got, [x]), derivatives(want, [x]))


@row(
    "A row without a step in a PackedSequence",
    "made by torch's `pack_padded_sequence`, for both; fastrnn's `lengths=` is the first row",
    4582, 11514, 149227,
    quick=True,
)  # fmt: skip
def packed_without_a_step(library: Any) -> None:
    layer, x = make(library, "LSTM"), normal(T, B, I)
    out, _ = layer(pack_padded_sequence(x, torch.tensor([T, 0, 2]), enforce_sorted=False))
    close(pad_packed_sequence(out)[0], slow(layer, x, lengths=[T, 0, 2])[0])


@row(
    "Rows that start over within a sequence (episodes)",
    "a mask of starts, gradients to hx, too; against masks step by step",
    "pytorch/rl#2009",
    quick=True,
)
def resets(library: Any) -> str | None:
    return started_over(library, from_another=False)


@row(
    "Rows that start over from another state than they entered in (rollouts)",
    "the state carried from the rollout before, zeros or a learned state after a reset, gradients "
    "to both; against masks step by step",
    "pytorch/rl#2009",
    quick=True,
)
def reset_state(library: Any) -> str | None:
    return started_over(library, from_another=True)


def started_over(library: Any, *, from_another: bool) -> str | None:
    mask = torch.rand(T, B) < 0.4
    mask[2, 1] = True
    for cell in BOTH:
        layer, x = make(library, cell), normal(T, B, I)
        number = 2 if cell == "LSTM" else 1
        start = tuple(normal(1, B, H) for _ in range(number))
        fresh = tuple(normal(1, B, H) for _ in range(number)) if from_another else start
        if library is torch.nn:
            state: Any = start
            outputs = []
            for t in range(T):
                again = mask[t].view(1, B, 1)
                old = [torch.where(again, a, b) for a, b in zip(fresh, state, strict=True)]
                output, state = layer(x[t : t + 1], tuple(old) if cell == "LSTM" else old[0])
                state = tensors(state)
                outputs.append(output)
            got: Any = (torch.cat(outputs), state)
        else:
            hx, over = (each if cell == "LSTM" else each[0] for each in (start, fresh))
            how = {"reset_state": over} if from_another else {}
            got = layer(x, hx, resets=mask, **how)
        want = slow(layer, x, start, resets=mask, fresh=fresh)[:2]
        close(got, want)
        inputs = [x, *start, *(fresh if from_another else ()), *layer.parameters()]
        close(derivatives(got, inputs), derivatives(want, inputs))
    return LOOP if library is torch.nn else None


@row(
    "h and c of every layer at every step, with gradients",
    "two layers; against the equations step by step",
    31423, 8938,
    quick=True,
)  # fmt: skip
def all_states(library: Any) -> str | None:
    for cell in BOTH:
        layer, x = make(library, cell, I, H, 2), normal(T, B, I)
        if library is torch.nn:
            state, visited = None, []
            for t in range(T):
                _, state = layer(x[t : t + 1], state)
                visited.append(tensors(state))
            got: Any = [torch.stack(each, 1) for each in zip(*visited, strict=True)]
        else:
            got = layer(x, return_all_states=True)[2]
        want = slow(layer, x)[2]
        close(got, want)
        inputs = [x, *layer.parameters()]
        close(derivatives(got, inputs), derivatives(want, inputs))
    return LOOP if library is torch.nn else None


@row(
    "The final states only, the output not held in memory",
    "inference, T = 60: the peak of memory is lower than a plain call's by the output's size",
)
def final_only(library: Any) -> str | None:
    if library is torch.nn:
        without_output(library, lambda layer, x: by_steps(layer, x))
        return LOOP
    try:
        without_output(library, lambda layer, x: layer(x)[1], final_only=True)
    except Wrong as error:
        how = {"final_only": True, "backend": "reference"}
        without_output(library, lambda layer, x: layer(x)[1], **how)
        return f'`backend="reference"`; with `auto`, torch\'s code runs, {error}'
    return None


@torch.no_grad()
def without_output(library: Any, final: Callable[[Any, Tensor], Any], **how: Any) -> None:
    steps, rows, units = 60, 4, 16
    x = torch.randn(steps, rows, 1).double()
    plain = make(library, "LSTM", 1, units, **({"backend": how["backend"]} if len(how) > 1 else {}))
    layer = make(library, "LSTM", 1, units, **how)
    close(final(layer, x), slow(layer, x)[1])
    peak, _ = peak_and_count(lambda: final(layer, x))
    most, _ = peak_and_count(lambda: plain(x))
    size = steps * rows * units * x.itemsize
    if peak > most - 0.9 * size:
        raise Wrong(f"whose peak is {peak / size:.1f} times the output, {most / size:.1f} before")


def by_steps(layer: Any, x: Tensor) -> Any:
    state = None
    for part in x.split(1):
        _, state = layer(part, state)
    return state


@row(
    "Truncated backpropagation through time",
    "windows of 4 steps, gradients of each; against equations that forget in between",
    quick=True,
)
def truncated(library: Any) -> str | None:
    for cell in BOTH:
        layer, x = make(library, cell), normal(10, B, I)
        weights = list(layer.parameters())
        parts: list[Any] = []
        if library is torch.nn:
            state = None
            for part in x.split(4):
                output, state = layer(part, state)
                parts.append(derivatives(output, weights))
                detached = tuple(each.detach() for each in tensors(state))
                state = detached if cell == "LSTM" else detached[0]
        else:
            for window in windows(layer, x, window=4):
                assert window.output is not None
                parts.append(derivatives(window.output, weights))
        carried: Any = None
        for part, got in zip(x.split(4), parts, strict=True):
            output, final, _ = slow(layer, part, carried)
            close(got, derivatives(output, weights))
            carried = tuple(each.detach() for each in final)
    return "a Python loop that detaches the state" if library is torch.nn else None


@row(
    "Inference step by step without an allocation",
    "20 steps, torch's profiler of memory; against the equations step by step",
    quick=True,
)
@torch.no_grad()
def stepper(library: Any) -> None:
    layer, x = make(library, "LSTM"), torch.randn(20, 1, I).double()
    outputs = torch.empty(20, 1, H, dtype=torch.float64)
    if library is torch.nn:

        def run() -> None:
            state = None
            for t in range(20):
                output, state = layer(x[t : t + 1], state)
                outputs[t].copy_(output[0])
    else:
        step = Stepper(layer)

        def run() -> None:
            step.reset()
            for t in range(20):
                outputs[t].copy_(step(x[t]))

    run()
    _, count = peak_and_count(run)
    close(outputs, slow(layer, x)[0])
    if count:
        raise Wrong(f"{count} allocations in 20 steps")


@row(
    "70,000 steps",
    "float32, forward and backward, one unit, on the CPU (3); against the equations in Python's "
    "floats, differentiated by hand",
    133751,
)
def many_steps(library: Any) -> None:
    for cell in BOTH:
        layer = make(library, cell, 1, 1, dtype=torch.float32)
        x = torch.randn(70_000, 1, 1).requires_grad_()
        got = layer(x)[0]
        y, d_x = (scalar_lstm if cell == "LSTM" else scalar_rnn)(layer, x.flatten().tolist())
        close(got.flatten(), torch.tensor(y), 1e-5)
        close(derivatives(got, [x])[0].flatten(), torch.tensor(d_x), 1e-4)


def scalar_rnn(layer: Any, x: list[float]) -> tuple[list[float], list[float]]:
    """Output, and the derivative of sum(sin(output)) with respect to x."""
    w, u, b, b2 = (weight.item() for weight in layer.parameters())
    y, h = [], 0.0
    for value in x:
        y.append(h := math.tanh(w * value + b + u * h + b2))
    d_x, carry = [0.0] * len(x), 0.0
    for t in reversed(range(len(x))):
        d_a = (math.cos(y[t]) + carry) * (1 - y[t] ** 2)
        d_x[t], carry = w * d_a, u * d_a
    return y, d_x


def scalar_lstm(layer: Any, x: list[float]) -> tuple[list[float], list[float]]:
    """Output, and the derivative of sum(sin(output)) with respect to x."""
    w, u, b, b2 = (weight.flatten().tolist() for weight in layer.parameters())
    steps, h, c = [], 0.0, 0.0
    for value in x:
        a = [w[k] * value + b[k] + u[k] * h + b2[k] for k in range(4)]
        i, f, o = (1 / (1 + math.exp(-a[k])) for k in (0, 1, 3))
        g, before = math.tanh(a[2]), c
        c = f * c + i * g
        h = o * math.tanh(c)
        steps.append((i, f, g, o, before, c, h))
    d_x, d_h, d_c = [0.0] * len(x), 0.0, 0.0
    for t in reversed(range(len(x))):
        i, f, g, o, before, c, h = steps[t]
        d_h += math.cos(h)
        d_c += d_h * o * (1 - math.tanh(c) ** 2)
        d_a = (
            d_c * g * i * (1 - i),
            d_c * before * f * (1 - f),
            d_c * i * (1 - g * g),
            d_h * math.tanh(c) * o * (1 - o),
        )
        d_x[t] = sum(map(operator.mul, w, d_a))
        d_h, d_c = sum(map(operator.mul, u, d_a)), d_c * f
    return [step[-1] for step in steps], d_x


@row("100,000 rows", "float32, forward and backward, H = 2; against the equations in float64")
def many_rows(library: Any) -> None:
    for cell in BOTH:
        layer = make(library, cell, 1, 2, dtype=torch.float32)
        x = normal(3, 100_000, 1, dtype=torch.float32)
        exact = x.detach().double().requires_grad_()
        got, want = layer(x)[0], slow(layer, exact, weights=double(layer))[0]
        close(got, want, 1e-5)
        close(derivatives(got, [x]), derivatives(want, [exact]), 1e-4)


@row(
    "A batch of no rows",
    "float32 and float64, output, states and gradients of no rows; weights' are zero",
    quick=True,
)
def no_rows(library: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        for cell in BOTH:
            layer, x = make(library, cell, dtype=dtype), normal(T, 0, I, dtype=dtype)
            got = layer(x)
            close(got, slow(layer, x)[:2])
            zeros = [torch.zeros_like(w) for w in layer.parameters()]
            close(derivatives(got, [x, *layer.parameters()]), [torch.zeros_like(x), *zeros])


@row(
    "No steps are an error that says so",
    "input of no steps: the error's text",
    quick=True,
)
def no_steps(library: Any) -> None:
    for cell in BOTH:
        try:
            make(library, cell)(torch.zeros(0, B, I).double())
        except RuntimeError as error:
            if "sequence length" not in str(error):
                raise
        else:
            raise Wrong("no error")
