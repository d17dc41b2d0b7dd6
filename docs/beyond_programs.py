"""Rows on what runs a layer: compilers, dtypes, several processes, and the same bits again."""

# mypy: allow-untyped-calls
# (some methods of torch's tensors are not annotated)

from __future__ import annotations

import logging
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim, export

from beyond_rows import (
    LIBRARIES,
    B,
    I,
    T,
    Wrong,
    close,
    derivatives,
    double,
    make,
    normal,
    row,
    slow,
)

BOTH = ("LSTM", "RNN")
ROUNDING = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of gradients too, which are sums over all steps and rows."""


@row(
    "`torch.compile(fullgraph=True)`, dynamic T and B, forward and backward",
    "three pairs of T and B through `mark_dynamic`, graphs counted; against the equations; "
    "torch.nn with Dynamo's experimental `allow_rnn`, without which it is refused",
    91439, 158007, 141184,
)  # fmt: skip
def compiled(library: Any) -> None:
    logging.disable(logging.ERROR)  # what is raised says enough
    try:
        with torch._dynamo.config.patch(allow_rnn=library is torch.nn):
            compile_both(library)
    finally:
        logging.disable(logging.NOTSET)


def compile_both(library: Any) -> None:
    for cell in BOTH:
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        layer = make(library, cell)
        run = torch.compile(layer, backend=counter, fullgraph=True)
        for steps, rows in ((5, 3), (9, 2), (4, 7)):
            x = normal(steps, rows, I)
            torch._dynamo.mark_dynamic(x, (0, 1))
            inputs = [x, *layer.parameters()]
            got, want = run(x), slow(layer, x)[:2]
            close(got, want)
            close(derivatives(got, inputs), derivatives(want, inputs))
        if counter.frame_count != 1:
            raise Wrong(f"{counter.frame_count} graphs for three shapes")


@row(
    "`torch.export` with dynamic T and B",
    "exported at one T and B, run at others; against the equations",
    118740, 24235,
)  # fmt: skip
def exported(library: Any) -> None:
    for cell in BOTH:
        layer = make(library, cell)
        sizes = {"input": {0: Dim("T", min=2, max=999), 1: Dim("B", min=2, max=999)}}
        program = export(layer, (torch.zeros(5, 3, I).double(),), dynamic_shapes=sizes)
        for steps, rows in ((5, 3), (9, 2), (4, 7)):
            x = normal(steps, rows, I).detach()
            close(program.module()(x), slow(layer, x)[:2])


@row(
    "Autocast to bfloat16",
    "on the CPU, forward and backward, the output is bfloat16; against the equations",
    88136, 36428,
    quick=True,
)  # fmt: skip
def autocast(library: Any) -> None:
    for cell in BOTH:
        layer = make(library, cell, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = layer(x := normal(T, B, I, dtype=torch.float32))[0]
        if output.dtype != torch.bfloat16:
            raise Wrong(f"the output is {output.dtype}")
        near(layer, x, output, torch.bfloat16)


def near(layer: Any, x: torch.Tensor, output: torch.Tensor, dtype: torch.dtype) -> None:
    """Raise Wrong unless output and gradients are the equations' but for rounding."""
    exact, weights = x.detach().double().requires_grad_(), double(layer)
    want = slow(layer, exact, weights=weights)[0]
    close(output, want, ROUNDING[dtype])
    got = derivatives(output, [x, *layer.parameters()])
    close(got, derivatives(want, [exact, *weights.values()]), ROUNDING[dtype])


@row(
    "float64, bfloat16 and float16 layers",
    "on the CPU, forward and backward; against the equations in float64",
    quick=True,
)
def dtypes(library: Any) -> None:
    for dtype in ROUNDING:
        for cell in BOTH:
            layer, x = make(library, cell, dtype=dtype), normal(T, B, I, dtype=dtype)
            near(layer, x, layer(x)[0], dtype)


@row(
    "An input of another dtype is refused, in torch's words",
    "float64 into a float32 layer: the error's text is that of torch.nn's",
    quick=True,
)
def mixed_dtypes(library: Any) -> None:
    for cell in BOTH:
        texts = []
        for each in (torch.nn, library):
            try:
                make(each, cell, dtype=torch.float32)(normal(T, B, I))
            except (ValueError, RuntimeError) as error:
                texts.append(f"{type(error).__name__}: {error}")
        if len(texts) != 2 or texts[0] != texts[1]:
            raise Wrong(f"other words: {texts}")


@row(
    "The same bits in every run",
    "five runs, output and gradients, float32 and float64; one process, the same threads",
    35661, 104697,
    quick=True,
)  # fmt: skip
def same_bits(library: Any) -> None:
    for dtype in (torch.float32, torch.float64):
        for cell in BOTH:
            layer = make(library, cell, 32, 48, 2, bidirectional=True, dtype=dtype)
            x = normal(20, 9, 32, dtype=dtype)
            inputs = [x, *layer.parameters()]
            runs = []
            for _ in range(5):
                output = layer(x)[0]
                runs.append([output, *derivatives(output, inputs)])
            if not all(all(map(torch.equal, runs[0], run)) for run in runs[1:]):
                raise Wrong("other bits")


@row(
    "DistributedDataParallel",
    "two processes with half of the batch each (gloo): gradients are those of all of it",
)
def ddp(library: Any) -> None:
    distributed(library, "ddp")


@row(
    "FSDP2 (`fully_shard`)",
    "two processes with half of the batch each (gloo): gradients are those of all of it",
)
def fsdp(library: Any) -> None:
    distributed(library, "fsdp")


def distributed(library: Any, how: str) -> None:
    name = next(name for name, each in LIBRARIES.items() if each is library)
    for by_case in in_two_processes():
        for cell in BOTH:
            found = by_case[f"{name} {how} {cell}"]
            if isinstance(found, str):
                raise Wrong(f"{cell}: {found}")
            layer, x = make(library, cell), shared_input()
            loss = slow(layer, x)[0].square().sum(0).mean()
            close(found, torch.autograd.grad(loss, list(layer.parameters())))


def shared_input() -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(T, 4, I, generator=generator, dtype=torch.float64)


@cache
def in_two_processes() -> list[dict[str, Any]]:
    """Of every rank: gradients, or an error's text, by library, method and cell."""
    worker = Path(__file__).with_name("beyond_distributed.py")
    with tempfile.TemporaryDirectory() as folder:
        path = os.pathsep.join([*filter(None, sys.path), str(worker.parent)])
        own = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        files = [Path(folder, str(rank)) for rank in range(2)]
        processes = [
            subprocess.Popen(
                [sys.executable, str(worker), str(rank), f"file://{folder}/store", str(file)],
                env=own,
                stderr=subprocess.PIPE,
                text=True,
            )
            for rank, file in enumerate(files)
        ]
        try:
            told = [process.communicate(timeout=120)[1] for process in processes]
        finally:
            for process in processes:
                process.kill()  # one that failed leaves the other waiting
        if any(process.returncode for process in processes):
            raise RuntimeError("\n".join(told))
        return [torch.load(file) for file in files]
