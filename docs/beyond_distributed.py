"""One of two processes that share a batch; what it has found, a file for beyond_programs.py.

python beyond_distributed.py RANK STORE RESULTS
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any

import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from beyond_programs import BOTH, shared_input
from beyond_rows import LIBRARIES, first_line, make


def gradients(library: ModuleType, how: str, cell: str, rank: int) -> list[torch.Tensor]:
    """Whole gradients of the mean over all rows, of which this process sees every second."""
    layer = make(library, cell)
    run: Any = layer
    if how == "ddp":
        run = DistributedDataParallel(layer)
    else:
        fully_shard(layer)
    output = run(shared_input()[:, rank::2])[0]
    output.square().sum(0).mean().backward()
    found = [weight.grad for weight in layer.parameters()]
    return [each.full_tensor() if hasattr(each, "full_tensor") else each for each in found]


def main() -> None:
    """Every library, method and cell."""
    rank, store, results = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    found: dict[str, Any] = {}
    for name, library in LIBRARIES.items():
        for how in ("ddp", "fsdp"):
            for cell in BOTH:
                try:
                    got: Any = gradients(library, how, cell, rank)
                except Exception as error:
                    got = first_line(error)
                found[f"{name} {how} {cell}"] = got
    torch.save(found, results)
    torch.distributed.barrier()
    sys.stderr.flush()
    # without the interpreter's teardown, in which gloo's threads abort the process now and then
    os._exit(0)


if __name__ == "__main__":
    main()
