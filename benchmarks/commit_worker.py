"""Times calls of the fastrnn that PYTHONPATH names, as `compare_commits` asks.

Line by line: a request is JSON on standard input, its answer JSON on a pipe of its own, since
anybody may print to standard output. The first line says where fastrnn lies; `make` builds a case
and answers with the backend that runs it; `time` runs it so many times and answers with seconds per
call; what raises is an `error`.

Run as a file of its own, the same for all commits, so that of fastrnn it uses only what they all
have: the layers and `explain`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import fastrnn

WARM_UP = 3


def main() -> None:
    """Answer until standard input ends."""
    parser = argparse.ArgumentParser(prog="commit_worker")
    parser.add_argument("--answers", type=int, required=True, help="a file descriptor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    answers = open(options.answers, "w", encoding="utf-8")  # noqa: SIM115 (until the end)

    def call() -> object:
        raise ValueError("nothing was made")

    def answer(**found: object) -> None:
        print(json.dumps(found), file=answers, flush=True)

    answer(file=fastrnn.__file__)
    for line in sys.stdin:
        request = json.loads(line)
        try:
            if "make" in request:
                call, backend = make(options.device, **request["make"])
                for _ in range(WARM_UP):
                    call()
                answer(backend=backend)
            else:
                answer(seconds=seconds(call, request["time"], options.device))
        except Exception as error:
            answer(error=" ".join(f"{type(error).__name__}: {error}".split()))


def make(
    device: str, cell: str, mode: str, T: int, B: int, H: int, backend: str, dtype: str
) -> tuple[Callable[[], object], str]:
    """A call, and the backend that will run it."""
    torch.manual_seed(0)
    how: dict[str, Any] = {"backend": backend}
    if cell.startswith("rnn_"):
        how["nonlinearity"] = cell.removeprefix("rnn_")
    kind = getattr(fastrnn, "RNN" if cell.startswith("rnn_") else cell.upper())
    training = mode != "forward"
    layer = kind(H, H, **how).to(device, getattr(torch, dtype)).train(training)
    x: Tensor | PackedSequence = torch.randn(T, B, H).to(device, getattr(torch, dtype))
    if mode == "packed":
        lengths = torch.linspace(T, 1, B).round().long()
        x = pack_padded_sequence(x.data, lengths, enforce_sorted=True)
    with torch.set_grad_enabled(training):
        chosen = fastrnn.explain(layer, x).backend

    def forward() -> object:
        with torch.no_grad():
            return layer(x)

    leaves = list(layer.parameters())
    upstream = torch.ones_like(x.data)  # the output is as wide as the input

    def train() -> object:
        output, _ = layer(x)
        return torch.autograd.grad(output.data if mode == "packed" else output, leaves, upstream)

    return (train if training else forward), chosen


def seconds(call: Callable[[], object], count: int, device: str) -> float:
    """Seconds per call; what a GPU has been given to do is waited for."""
    call()  # the first after a while asleep finds cold caches
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    for _ in range(count):
        call()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) / count


if __name__ == "__main__":
    main()
