"""A layer of torch's beside one on `rows`, or `numba`, in float64, and what both make."""

from __future__ import annotations

from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn
from fastrnn_rows import direction

CELLS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
}


def modules(cell: str, *sizes: int, backend: str = "rows", **how: Any) -> list[Any]:
    """Torch's and ours, with the same weights, in float64."""
    name, own = CELLS[cell]
    torch.manual_seed(0)
    theirs = getattr(torch.nn, name)(*sizes, **own, **how).double()
    ours = getattr(fastrnn, name)(*sizes, backend=backend, **own, **how).double()
    ours.load_state_dict(theirs.state_dict())
    return [theirs, ours]


def packed_rows(lengths: list[int], width: int = 3) -> PackedSequence:
    x = torch.randn(
        max(lengths), len(lengths), width, generator=torch.Generator().manual_seed(0)
    ).double()
    return pack_padded_sequence(x, lengths, enforce_sorted=False)


def start(module: Any, batch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    slots = module.num_layers * (1 + module.bidirectional)
    shape = (slots, batch, module.hidden_size)
    number = 2 if isinstance(module, torch.nn.LSTM | fastrnn.LSTM) else 1
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for _ in range(number)
    ]


def results(module: Any, rows: PackedSequence | Tensor, used: str = "yhc", **how: Any) -> Any:
    """Outputs and final states, and the gradients of those that are used."""
    packed = isinstance(rows, PackedSequence)
    data = (rows.data if packed else rows).detach().clone().requires_grad_()
    batch = int(rows.batch_sizes[0]) if packed else rows.shape[0 if module.batch_first else 1]
    states = start(module, batch)
    hx = tuple(states) if len(states) == 2 else states[0]
    output, final = module(rows._replace(data=data) if packed else data, hx, **how)
    made = [output.data if packed else output, *(final if isinstance(final, tuple) else (final,))]
    leaves = [data, *states, *module.parameters()]
    chosen = [m for m, name in zip(made, "yhc", strict=False) if name in used]
    upstream = [
        torch.randn(m.shape, generator=torch.Generator().manual_seed(2)).double() for m in chosen
    ]
    return made, torch.autograd.grad(chosen, leaves, upstream, allow_unused=True)


def assert_same(got: Any, want: Any) -> None:
    for parts in zip(got, want, strict=True):
        for one, other in zip(*parts, strict=True):
            if one is None or other is None:  # nothing that is used depends on it
                assert (one if other is None else other) is None or not (one or other).any()
                continue
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)


def rows_of_steps(layer: Any, resets: Tensor) -> list[int]:
    """How many rows each step takes on `rows` of a layer in one direction, with resets (T, B)."""
    layer.backend = "rows"
    with mock.patch.object(direction, "run", wraps=direction.run) as run:
        layer(torch.randn(*resets.shape, layer.input_size), resets=resets)
    run.assert_called_once()
    sizes: list[int] = run.call_args.args[1].sizes
    return sizes
