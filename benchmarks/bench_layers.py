"""Layers: each problem is a group, each implementation of it a benchmark.

An implementation is torch.nn, a backend that can run the problem, or `auto`. Its output, states and
gradients are compared with the reference in float64 first: a wrong one fails, and gets no time.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from benchmarks import rounds
from fastrnn import testing
from fastrnn.bench import Row, check_row, load_weights
from fastrnn.bench_cases import BASELINE, baseline, layer, request_for
from fastrnn.bench_memory import peak_bytes
from fastrnn.benchmark import Case
from fastrnn.dispatch import AUTO, decide

MODES = ("forward", "train")
CPU = {
    "quick": (("lstm", "rnn_tanh"), [(20, 1, 64), (50, 32, 128)]),
    "full": (
        ("lstm", "rnn_tanh", "rnn_relu"),
        list(itertools.product((1, 20, 100), (1, 8, 32), (32, 128, 512))),
    ),
}
"""Cells, and (T, B, H)."""
CUDA = {
    "quick": (("lstm", "rnn_tanh"), [(128, 16, 256), (128, 64, 1024)]),
    "full": (
        ("lstm", "rnn_tanh", "rnn_relu"),
        list(itertools.product((128, 1024), (16, 64), (64, 256, 512, 1024))),
    ),
}

pytestmark = pytest.mark.benchmark(disable_gc=True)


def problems(grid: str) -> list[Case]:
    """What is measured here."""
    devices = [("cpu", "float32", CPU)]
    if torch.cuda.is_available():
        devices.append(("cuda", "bfloat16", CUDA))
    return [
        Case(cell, mode, T, B, H, H, 1, False, dtype, device)
        for device, dtype, grids in devices
        for cell, mode, (T, B, H) in itertools.product(grids[grid][0], MODES, grids[grid][1])
    ]


def implementations(case: Case) -> list[str]:
    """torch.nn, the backends that can run a case, and `auto`."""
    able = [each.name for each in decide(request_for(case)).candidates if not each.reasons]
    return [BASELINE, *able, AUTO]


def name(case: Case) -> str:
    """The same in every commit, since by it pytest-benchmark finds what to compare with."""
    sizes = f"T{case.T}-B{case.B}-H{case.H}"
    return f"{case.device}-{case.dtype}-{case.cell}-{case.mode}-{sizes}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each implementation of each problem."""
    found = [
        pytest.param(case, implementation, id=f"{name(case)}-{implementation}")
        for case in problems(metafunc.config.getoption("--grid"))
        for implementation in implementations(case)
    ]
    metafunc.parametrize(("case", "implementation"), found)


def test_layer(benchmark: Any, case: Case, implementation: str) -> None:
    """Check an implementation, measure its memory, and time it."""
    torch.manual_seed(0)
    weights = [weight.detach() for weight in layer(case, "reference").parameters()]
    x = torch.randn(case.T, case.B, case.I).to(case.device, case.torch_dtype)
    module = baseline(case) if implementation == BASELINE else layer(case, implementation)
    load_weights(module, weights)
    row = Row(case, implementation)
    allowed = testing.tolerance(case.torch_dtype, case.T, request_for(case).precision)
    check_row(row, everything(module, x, case), truth(case, weights, x), allowed)
    if row.status != "ok":
        pytest.fail(f"{implementation} is wrong on {case}: {row.reason}", pytrace=False)
    call = call_of(module, x, case)
    benchmark.group = name(case)
    benchmark.extra_info.update(
        implementation=implementation,
        case=case._asdict(),
        error=row.error,
        peak_bytes=peak_bytes(call, case.device),
    )
    if implementation == AUTO:
        with torch.set_grad_enabled(case.mode == "train"):
            benchmark.extra_info["backend"] = fastrnn.explain(module, x).backend
    rounds.run(benchmark, call, case.device)


def truth(case: Case, weights: list[Tensor], x: Tensor) -> testing.Result:
    """What is right: the reference in float64 on the CPU."""
    exact = case._replace(dtype="float64", device="cpu")
    module = layer(exact, "reference")
    load_weights(module, weights)
    return everything(module, x.cpu().double(), exact)


def everything(module: nn.Module, x: Tensor, case: Case) -> testing.Result:
    """Output and final states, and in training the gradients of x and the weights."""
    training = case.mode == "train"
    x = x.clone().requires_grad_(training)
    with torch.set_grad_enabled(training):
        output, states = module(x)
    made = (output, *(states if isinstance(states, tuple) else (states,)))
    found: dict[str, Tensor] = {}
    if training:
        random = torch.Generator().manual_seed(1)
        upstream = [
            torch.randn(each.shape, generator=random, dtype=torch.float64).to(each) for each in made
        ]
        leaves = [x, *module.parameters()]
        gradients = torch.autograd.grad(made, leaves, upstream)
        found = dict(zip(map(str, range(len(leaves))), gradients, strict=True))
    output, *finals = (each.detach() for each in made)
    return testing.Result(output, tuple(finals), found)


def call_of(module: nn.Module, x: Tensor, case: Case) -> Callable[[], object]:
    """What is timed: forward without gradients, or forward and backward from the output."""
    if case.mode == "forward":

        def forward() -> object:
            with torch.no_grad():
                return module(x)

        return forward
    leaves = [x.clone().requires_grad_(), *module.parameters()]
    with torch.no_grad():
        upstream = torch.ones_like(module(x)[0])

    def train() -> object:
        return torch.autograd.grad(module(leaves[0])[0], leaves, upstream)

    return train
