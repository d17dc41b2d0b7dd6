"""Train an LSTM in several processes that share the batch: DDP, or FSDP2 with `--fsdp`.

    torchrun --nproc-per-node 2 examples/train_ddp.py           # a copy of the weights in each
    torchrun --nproc-per-node 2 examples/train_ddp.py --fsdp    # a part of them in each

Processes talk by NCCL where there is a GPU for each, else by gloo on the CPU.

The task is the adding problem (Hochreiter and Schmidhuber, 1997): of a sequence of random numbers
two are marked, and their sum is asked for at the end. Who always answers 1 has a mean squared
error of 1/6; less takes a memory. fastrnn needs nothing for this: its layers are modules with
ordinary parameters.

Exit status: 0 if all processes end with the same weights, 1 if they do not, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import mse_loss
from torch.nn.parallel import DistributedDataParallel

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence


class Adder(nn.Module):
    """An LSTM that reads the sequence, and a linear layer that answers at its end."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(2, hidden_size, final_only=True)
        self.head = nn.Linear(hidden_size, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Answers (B, 1) to sequences x (T, B, 2)."""
        _, (h_n, _) = self.lstm(x)
        answers: Tensor = self.head(h_n[-1])
        return answers


def problems(steps: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (T, B, 2) of numbers in [0, 1] and marks, one in each half; their sums (B, 1)."""
    numbers = torch.rand(steps, batch, generator=generator)
    marks = torch.zeros(steps, batch)
    half = steps // 2
    for begin, end in ((0, half), (half, steps)):
        marks[torch.randint(begin, end, (batch,), generator=generator), torch.arange(batch)] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(0).unsqueeze(1)


def shard(model: Adder) -> nn.Module:
    """FSDP2: each module's weights are gathered when it runs, and dropped after it."""
    fully_shard(model.lstm)
    fully_shard(model)
    return model


def agree(model: nn.Module) -> bool:
    """Whether the weights, gathered, are the same bits in all processes."""
    same = True
    for parameter in model.parameters():
        weight = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        least, most = weight.detach().clone(), weight.detach().clone()
        dist.all_reduce(least, dist.ReduceOp.MIN)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        same = same and torch.equal(least, most)
    return same


def train(args: argparse.Namespace, device: torch.device) -> bool:
    """Train; rank 0 prints losses. Returns whether all processes have the same weights."""
    rank = dist.get_rank()
    torch.manual_seed(args.seed)  # the same first weights, as FSDP2 takes a part from each process
    model = Adder(args.hidden).to(device)
    trained = shard(model) if args.fsdp else DistributedDataParallel(model)
    optimizer = torch.optim.Adam(trained.parameters(), args.lr)
    generator = torch.Generator().manual_seed(args.seed + 1 + rank)  # each its own part of a batch
    for step in range(1, args.steps + 1):
        x, sums = problems(args.length, args.batch, generator)
        loss = mse_loss(trained(x.to(device)), sums.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if step % max(args.steps // 10, 1) == 0:
            mean = loss.detach() / dist.get_world_size()
            dist.all_reduce(mean)
            if rank == 0:
                print(f"step {step}/{args.steps}: mean squared error {mean.item():.4f}", flush=True)
    return agree(model)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Options; those that make no sense end the program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--fsdp", action="store_true", help="FSDP2 instead of DDP")
    parser.add_argument("--steps", type=int, default=1000, help="of training (%(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="rows per process (%(default)s)")
    parser.add_argument("--length", type=int, default=30, help="of a sequence (%(default)s)")
    parser.add_argument("--hidden", type=int, default=64, help="hidden units (%(default)s)")
    parser.add_argument("--lr", type=float, default=5e-3, help="learning rate (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (%(default)s)")
    args = parser.parse_args(argv)
    for name, least in (("steps", 1), ("batch", 1), ("length", 2), ("hidden", 1)):
        if getattr(args, name) < least:
            parser.error(f"argument --{name}: expected {least} or more, got {getattr(args, name)}")
    if "LOCAL_RANK" not in os.environ:
        parser.error("start it with torchrun: see the top of this file")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Set up this process's place among the others and train; returns the exit status."""
    args = parse(argv)
    local, processes = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if torch.cuda.is_available() and torch.cuda.device_count() >= processes:
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    same = train(args, device)
    if dist.get_rank() == 0:
        kind = "FSDP2" if args.fsdp else "DDP"
        told = "the same weights" if same else "DIFFERENT weights"
        print(f"{kind}, {dist.get_world_size()} processes on {device.type}: {told} in all")
    dist.destroy_process_group()
    return 0 if same else 1


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    # not by sys.exit: in the interpreter's teardown, torch's gloo threads abort a process now and
    # then, with torch.nn.LSTM alone just as well
    os._exit(status)
