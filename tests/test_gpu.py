"""The Triton kernels and torch's path on a real GPU, against the float64 reference on the CPU.

Run by `make gpu-check`; skipped where torch sees no GPU. The interpreter cannot show races,
missing synchronisation, TF32 or what a CUDA graph keeps alive: this can.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator

import pytest
import torch

from fastrnn import functional, testing
from fastrnn.request import GATES, Spec

pytestmark = [
    pytest.mark.gpu,
    # torch's advice for callers of its functional form: these weights are leaves of their own
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
]

CELLS = sorted(GATES)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(1, 1, 1), (2, 3, 16), (3, 17, 33), (17, 2, 70), (40, 33, 256), (9, 130, 512)]
"""(T, B, H): odd ones, ones larger than every tile, and enough steps for a CUDA graph."""


@pytest.fixture(autouse=True)
def poisoned_device() -> None:
    """Leave NaN in the allocator's free blocks, so that an element nobody wrote shows."""
    blocks = [torch.full((2**power,), float("nan"), device="cuda") for power in range(4, 25)]
    del blocks


@pytest.fixture(params=["ieee", "tf32"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    """Torch's own setting for float32 in RNNs, which backends follow."""
    before = torch.backends.cudnn.rnn.fp32_precision
    torch.backends.cudnn.rnn.fp32_precision = request.param
    yield request.param
    torch.backends.cudnn.rnn.fp32_precision = before


def cuda_problem(
    spec: Spec, seq_len: int, batch: int, dtype: torch.dtype, *, hx: bool = True
) -> testing.Problem:
    return testing.random_problem(spec, seq_len, batch, dtype=dtype, device="cuda", hx=hx)


def check(problem: testing.Problem, backend: str, dtype: torch.dtype, precision: str) -> None:
    got = testing.run(problem, backend=backend)
    allowed = testing.tolerance(dtype, problem.x.shape[0], precision)
    testing.assert_close(got, testing.truth(problem), allowed)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("cell", CELLS)
def test_triton_parity(
    cell: str, dtype: torch.dtype, shape: tuple[int, int, int], precision: str
) -> None:
    seq_len, batch, hidden = shape
    problem = cuda_problem(Spec(cell, 20, hidden), seq_len, batch, dtype)
    check(problem, "triton", dtype, precision)


@pytest.mark.parametrize("options", list(itertools.product((1, 2), (False, True), (False, True))))
@pytest.mark.parametrize("cell", CELLS)
def test_triton_layers_bias_directions(
    cell: str, options: tuple[int, bool, bool], precision: str
) -> None:
    layers, bias, bidirectional = options
    spec = Spec(cell, 7, 40, 0, layers, bias, bidirectional)
    problem = cuda_problem(spec, 12, 5, torch.float32, hx=bias)
    check(problem, "triton", torch.float32, precision)


@pytest.mark.parametrize("cell", ["lstm", "rnn_tanh", "rnn_relu"])
def test_torchs_own_path_parity(cell: str, precision: str) -> None:
    problem = cuda_problem(Spec(cell, 20, 256), 20, 8, torch.float32)
    check(problem, "aten", torch.float32, precision)


def test_reference_parity() -> None:
    problem = cuda_problem(Spec("lstm", 20, 33), 9, 3, torch.float32)
    check(problem, "reference", torch.float32, "ieee")


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_backward_in_eval_mode(backend: str) -> None:
    """cuDNN refuses this when torch.nn asks; fastrnn asks it otherwise."""
    problem = cuda_problem(Spec("lstm", 8, 16), 5, 2, torch.float32)
    leaves = [weight.clone().requires_grad_() for weight in problem.weights]
    output, _ = functional.lstm(problem.x, None, leaves, training=False, backend=backend)
    assert torch.isfinite(torch.autograd.grad(output.sum(), leaves)[0]).all()


@pytest.mark.parametrize("cell", CELLS)
def test_same_bits_on_every_run(cell: str) -> None:
    """A race shows as two runs that differ."""
    problem = cuda_problem(Spec(cell, 64, 200, 0, 1, True, True), 50, 37, torch.float32)
    first = testing.run(problem, backend="triton")
    for _ in range(100):
        again = testing.run(problem, backend="triton")
        assert torch.equal(first.output, again.output)
        for name, gradient in first.gradients.items():
            assert torch.equal(gradient, again.gradients[name]), name


def test_two_threads_on_two_streams_do_not_mix() -> None:
    problems = [
        testing.random_problem(
            Spec("lstm", 32, 96), 40, 8, dtype=torch.float32, device="cuda", seed=seed
        )
        for seed in (1, 2)
    ]
    wanted = [testing.run(problem, backend="triton") for problem in problems]
    wrong: list[int] = []

    def work(index: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                got = testing.run(problems[index], backend="triton")
                torch.cuda.current_stream().synchronize()
                if not torch.equal(got.output, wanted[index].output):
                    wrong.append(index)

    threads = [threading.Thread(target=work, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_inside_a_users_cuda_graph() -> None:
    problem = cuda_problem(Spec("lstm", 16, 64), 20, 4, torch.float32)

    def call() -> torch.Tensor:
        with torch.no_grad():
            return functional.lstm(problem.x, problem.hx, problem.weights, backend="triton")[0]

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        want = call().clone()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    problem.x.neg_()
    changed = call().clone()
    graph.replay()
    torch.testing.assert_close(captured, changed)
    assert not torch.equal(want, captured)


def test_steps_inside_a_users_cuda_graph() -> None:
    """Longer than one of our own graphs, with new input, and in the place that one had."""
    import fastrnn_kernels

    given = [torch.randn(40, 3, 1, 80), torch.randn(1, 80, 20), *torch.randn(2, 1, 3, 20)]
    gates_x, *rest = (tensor.cuda() for tensor in given)

    def call() -> torch.Tensor:
        return fastrnn_kernels.forward("lstm", gates_x, *rest, launch="graph").output

    want = call().clone()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = call()
    for _ in range(2):
        gates_x.neg_()
        changed = call().clone()
        graph.replay()
        assert torch.equal(captured, changed)
    assert torch.equal(want, captured)


def test_a_hundred_lengths_and_batches_compile_nothing_new(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """T and B are run-time values of the kernels; B only chooses among a few tile sizes."""
    from triton import knobs

    compiled: list[str] = []

    def listen(*, src: object, **_: object) -> None:
        compiled.append(str(src))

    spec = Spec("rnn_tanh", 8, 48)
    for seq_len in (3, 50):  # one launch per step from Python, and through a graph
        testing.run(cuda_problem(spec, seq_len, 16, torch.float32), backend="triton")
    monkeypatch.setattr(knobs.compilation, "listener", listen)
    for seq_len in range(1, 101):
        testing.run(cuda_problem(spec, seq_len, 16, torch.float32), backend="triton")
    for batch in range(1, 17):
        testing.run(cuda_problem(spec, 40, batch, torch.float32), backend="triton")
    assert not compiled


def test_70000_steps() -> None:
    problem = cuda_problem(Spec("rnn_tanh", 4, 16), 70_000, 2, torch.float32, hx=False)
    check(problem, "triton", torch.float32, "tf32")


def test_auto_explains_and_runs_on_the_gpu() -> None:
    problem = cuda_problem(Spec("lstm", 16, 512), 30, 8, torch.bfloat16)
    check(problem, "auto", torch.bfloat16, "ieee")


@pytest.mark.parametrize("cell", CELLS)
def test_nan_comes_out_where_torch_has_it(cell: str) -> None:
    """On a GPU a maximum would drop NaN, and a careless tanh would make some."""
    problem = cuda_problem(Spec(cell, 3, 20), 6, 3, torch.float32)
    problem.x[2, 1, 0] = float("nan")
    problem.x[:, 2] = torch.where(problem.x[:, 2] > 0, 1e4, -1e4)
    output = testing.run(problem, backend="triton", gradients=False).output
    want = torch.zeros(6, 3, 20, dtype=torch.bool, device="cuda")
    want[2:, 1] = True
    assert torch.equal(output.isnan(), want)
