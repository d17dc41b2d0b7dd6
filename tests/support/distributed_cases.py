"""Small trainings that one process can do, or two that share the batch; run as a program, a rank.

python distributed_cases.py RANK STORE RESULTS
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

import fastrnn
from fastrnn.streaming import windows

RANKS, T, B, I, H = 2, 6, 4, 3, 5
DOUBLE = {"dtype": torch.float64}
LENGTHS = [6, 2, 0, 5]


class Model(nn.Module):
    """A layer and a read-out."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        features = layer(torch.zeros(1, 1, I, **DOUBLE))[0].shape[-1]
        self.head = nn.Linear(features, 2, **DOUBLE)

    def forward(self, x: Tensor, lengths: list[int] | None = None) -> Tensor:
        return self.head(self.layer(x, lengths=lengths)[0])


class Case(NamedTuple):
    layer: Callable[[], nn.Module]
    sharded: bool
    """By FSDP2, else copied by DDP."""
    lengths: list[int] | None = None
    window: int | None = None
    """Of truncated backpropagation, in which the layer is trained alone."""


CASES = {
    "ddp lstm": Case(lambda: fastrnn.LSTM(I, H, 2, **DOUBLE), False),
    "ddp rnn lengths": Case(lambda: fastrnn.RNN(I, H, **DOUBLE), False, LENGTHS),
    "fsdp lstm lengths": Case(
        lambda: fastrnn.LSTM(I, H, 2, bidirectional=True, proj_size=3, **DOUBLE), True, LENGTHS
    ),
    "fsdp rnn": Case(lambda: fastrnn.RNN(I, H, 2, "sigmoid", **DOUBLE), True),
    "fsdp lstm windows": Case(lambda: fastrnn.LSTM(I, H, **DOUBLE), True, window=4),
}


class Trained(NamedTuple):
    """Whole tensors by name, also where a process has only its shard of them."""

    gradients: dict[str, Tensor]
    """Of the first step."""
    weights: dict[str, Tensor]


def whole(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def train(case: Case, rank: int | None = None) -> Trained:
    """Four steps on the whole batch; with a rank, on every second row in a process of several."""
    torch.manual_seed(0)
    layer = case.layer()
    model = run = layer if case.window else Model(layer)
    x, y = torch.randn(T, B, I, **DOUBLE), torch.randn(T, B, 1, **DOUBLE)
    rows = slice(None) if rank is None else slice(rank, None, RANKS)
    lengths = None if case.lengths is None else case.lengths[rows]
    if rank is not None and case.sharded:
        fully_shard(layer)
        if model is not layer:
            fully_shard(model)
    elif rank is not None:
        run = nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.5, momentum=0.9)
    gradients: dict[str, Tensor] = {}
    for _ in range(4):
        optimizer.zero_grad()
        if case.window:
            for window in windows(layer, x[:, rows], window=case.window, targets=y[:, rows]):
                (window.output - window.targets).square().mean().backward()
        else:
            (run(x[:, rows], lengths) - y[:, rows]).square().mean().backward()
        if not gradients:
            gradients = {name: whole(p.grad) for name, p in model.named_parameters()}
        optimizer.step()
    return Trained(gradients, {name: whole(p) for name, p in model.named_parameters()})


def main() -> None:
    rank, store, results = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.save({name: train(case, rank)._asdict() for name, case in CASES.items()}, results)
    torch.distributed.barrier()
    sys.stderr.flush()
    # Without the interpreter's teardown, in which torch's gloo threads abort the process now and
    # then: 6 of 70 runs of a program with DDP around torch.nn.LSTM, and without fastrnn, did.
    os._exit(0)


if __name__ == "__main__":
    main()
