"""The part of a call's cost that no backend can avoid: its matrix products."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from fastrnn.request import Cost

if TYPE_CHECKING:
    from fastrnn.request import Request

TYPICAL = 128
"""Steps and rows assumed where a compiled graph leaves them open (`None` in the request)."""

SELDOM = 100
"""Steps between two resets of a row, of which a call only says that there are some."""

CPU_OPERATIONS = 60e9
"""Float32 operations a second of one core with AVX2 in large products (8 lanes, 2 fused
multiply-adds a cycle, about 3 GHz, less what packing costs); float64 halves it."""
HALVES = (torch.float16, torch.bfloat16)
"""Dtypes of 16 bits, of which a CPU multiplies twice as many a second, if it can."""
EMULATED = 0.1
"""What share of float32's operations torch makes of them if it cannot."""
HALF_PRODUCT, HALF_ALONE = 18e-6, 4096
"""Seconds that one of their products takes more if it can, with what is done to what it makes, and
multiply-adds up to which it does not."""
WIDENED, WIDENED_TRAINING = 1.5e-6, 12e-6
"""Seconds of casting a tensor to float32, or back; in training with its gradient."""
CPU_BYTES = 50e9
"""Bytes a second at which one core reads weights that stay in its second-level cache."""
ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
"""Of LSTMs whose rows are of one length: torch runs them on CPUs by oneDNN."""
CPU_CACHE, CPU_MEMORY = 2e6, 14e9
"""Bytes of weights that stay there, and bytes a second of larger ones, which a small product waits
for in every step."""
PACKING, CPU_STREAM = 200e-6, 8e9
"""Of sorting and packing padded rows, and bytes a second at which large arrays are copied."""


def steps(request: Request) -> int:
    """T times layers: steps that follow one another."""
    return (TYPICAL if request.seq_len is None else request.seq_len) * request.num_layers


def rows(request: Request) -> int:
    """B."""
    return TYPICAL if request.batch is None else request.batch


def calls(request: Request) -> float:
    """How many times what it takes to call one layer in one direction a stack takes.

    A further layer or direction takes about a half of it, on every path of a CPU.
    """
    return (1 + request.num_layers * request.directions) / 2


def restarting(request: Request) -> float:
    """Steps, of all layers and directions, at which some row is taken to start over."""
    if not request.resets:
        return 0.0
    return steps(request) * request.directions * min(rows(request) / SELDOM, 1.0)


def recurrent_weights(request: Request) -> int:
    """Elements of W_hh of one layer and direction."""
    return request.gates * request.hidden_size * request.state_size


def cpu_product(request: Request) -> float:
    """Seconds of one step's recurrent product on the CPU: arithmetic, or reading W_hh in cache.

    In one direction: a call has `steps` of them in each.
    """
    weights, size = recurrent_weights(request), request.dtype.itemsize
    arithmetic = 2 * rows(request) * weights / _operations(request.dtype)
    threads = max(request.threads, 1)
    return max(arithmetic / threads, weights * size / CPU_BYTES)


def cpu_input_product(request: Request) -> float:
    """Seconds of one step's product with the inputs on the CPU, of the first layer, likewise."""
    weights = request.gates * request.hidden_size * request.input_size
    arithmetic = 2 * rows(request) * weights / _operations(request.dtype)
    return arithmetic / max(request.threads, 1)


def cpu_step(request: Request) -> float:
    """The same where weights are fetched for each product, as for those of torch and NumPy."""
    weights = recurrent_weights(request)
    size = weights * request.dtype.itemsize
    seconds = cpu_product(request) + (size / CPU_MEMORY if size > CPU_CACHE else 0.0)
    if request.dtype in HALVES and rows(request) * weights > HALF_ALONE:
        seconds += HALF_PRODUCT if _multiplies(request.dtype) else 0.0
    return seconds


def _operations(dtype: torch.dtype) -> float:
    """A second, of one core in large products."""
    if dtype in HALVES and not _multiplies(dtype):
        return EMULATED * CPU_OPERATIONS
    return CPU_OPERATIONS * 4 / dtype.itemsize


@lru_cache(maxsize=2)
def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has instructions for products of such numbers, and torch uses them."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call] # torch's
        return False
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def in_full(request: Request) -> Request:
    """The same call in float32, if it is one of 16 bits."""
    return request._replace(dtype=torch.float32) if request.dtype in HALVES else request


def widened(full: Cost, request: Request) -> Cost:
    """What a call of 16 bits costs in float32: `full`, and casts of what it brings and makes.

    Args:
        full: of the same call in float32; see `in_full`.
        request: the call.
    """
    layers = request.num_layers * request.directions
    weights = layers * recurrent_weights(request) * (1 + request.input_size / request.state_size)
    width = request.input_size + request.directions * request.hidden_size
    places = steps(request) / request.num_layers * rows(request) * width
    tensors = 4 + layers * (4 if request.bias else 2)
    one, passes = (WIDENED_TRAINING, 2) if request.needs_grad else (WIDENED, 1)
    seconds = tensors * one + passes * 6 * (places + weights) / CPU_STREAM
    return Cost(full.seconds + seconds, f"{full.why}, in float32")


def packing(request: Request) -> float:
    """Seconds of packing padded rows, and of padding what they make; gradients likewise."""
    width = request.input_size + request.directions * request.hidden_size
    copied = steps(request) / request.num_layers * rows(request) * width * request.dtype.itemsize
    passes = 4 if request.needs_grad else 2
    return PACKING + passes * copied / CPU_STREAM


def is_onednns(request: Request) -> bool:
    """Whether torch's own path on CPUs would be oneDNN, if rows are of one length."""
    return request.cell == "lstm" and request.dtype in ONEDNN_DTYPES and not request.proj_size


def beside_onednn(request: Request) -> float:
    """`cpu_step` for forward products; where the rival is oneDNN, which gains more from threads.

    Two threads take as long as one for the product of a few dozen rows by BLAS, or longer.
    """
    return cpu_step(request._replace(threads=1) if is_onednns(request) else request)
