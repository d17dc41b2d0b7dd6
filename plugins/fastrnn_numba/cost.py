"""What a call costs in compiled loops, and how many threads share one.

Rows of different lengths are taken to end evenly spread over the T steps. The constants were
fitted on a two-core x86 machine with AVX-512 to ratios: to what the fastest of the other backends
takes, in the units of that one's estimate; see `fastrnn_aten.cpu`. Those of threads that share a
layer's rows were fitted on another such machine, to what all backends take there. Those of LSTMs
are smaller for the sake of oneDNN's, whose steps are estimated at a half of what they take here.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

from fastrnn.request import Cost
from fastrnn.roofline import (
    HALVES,
    PACKING,
    calls,
    cpu_input_product,
    cpu_product,
    cpu_step,
    in_full,
    packing,
    recurrent_weights,
    rows,
    steps,
    widened,
)

if TYPE_CHECKING:
    from fastrnn.request import Request


class Loop(NamedTuple):
    """Seconds of a cell's loop, forward alone and in training."""

    call: float
    call_training: float
    step: float
    """Beside its product and its units, either way."""
    unit: float
    """Of a unit of a row at a step."""
    unit_training: float
    product: float
    """What share of `cpu_product` a product takes."""
    products: float
    """As many are training: forward, back, and the gradients of W_hh."""
    wait: float
    """And of the rest of `cpu_step`, which is W_hh from memory."""
    laying_out: float
    """Bytes of a small W_hh a second, each way."""


ELMAN = Loop(42e-6, 155e-6, 0.02e-6, 0.1e-9, 1.2e-9, 0.78, 3, 0.75, 4e9)
LOOPS = {
    "lstm": Loop(33e-6, 36e-6, 0.05e-6, 1.0e-9, 0.1e-9, 0.49, 2.87, 0.46, 5e10),
    "gru": Loop(55e-6, 210e-6, 0.1e-6, 0.1e-9, 4.2e-9, 0.79, 3, 0.45, 4e9),
}
FRESH = 5.6e6
"""Bytes of W_hh at which it takes twice as long as in proportion: memory is new to the process."""
FEW_STEPS, WHOLE = 5, 3
"""An LSTM of fewer has other rivals than oneDNN, whose estimates are what they take: by how much
its own has to be more, as nothing that is laid out is used again."""
UNEQUAL_LSTM = 0.8
"""That share of an LSTM's forward alone where rows have different lengths: what it is compared with
has rectangles of steps and rows, of which oneDNN makes less."""
PART = 4
"""Rows that one thread takes at least: those of a tile."""
FEW = 0.8
"""What share of that a product of fewer takes, which reads W_hh faster than others do."""
SHARING, SHARING_TRAINING = 0.15e-3, 0.5e-3
"""Seconds that it takes threads to share a layer's work, of which each then does as much."""
TOGETHER, MANY = 0.7, 64
"""What share of itself a product then takes beside those of BLAS, whose threads wait for each other
in every step, and rows of a step from which that does not count. oneDNN's do not."""
ALONE, FEW_ALONE, WAITS_ALONE, WAITS_ALONE_TRAINING = 1.3, 2.0, 3.7, 1.9
"""How much longer a product takes than others' that several threads share, one of few rows than
oneDNN's of large weights, and how much longer it waits for memory, forward and back; oneDNN's
training waits no longer than its forward pass."""
CACHED = 2**19
"""Bytes of W_ih, or of W_hh, that a cache has beside as many of the other."""
LITTLE = 2**20
"""Multiply-adds of all steps below which W_ih x takes less time than an operation of torch, even if
a step has fewer rows than a tile."""
APART = 3
"""How many times as long Elman networks of few rows are taken to, where `vmap` may have made many
of one: those are stepped one after another here, and by others side by side."""
MARGIN = 1.05
"""Where the estimates are close, torch's path keeps the call: `auto` must not lose to it."""


def estimate(request: Request) -> Cost:
    """Steps x (product + units), shared by threads; of 16 bits, those in float32."""
    if request.dtype in HALVES:
        return widened(estimate(in_full(request)), request)
    own, number = LOOPS.get(request.cell, ELMAN), threads(request)
    call = own.call_training if request.needs_grad else own.call
    ways = 2 if request.needs_grad else 1
    weights = recurrent_weights(request) * request.dtype.itemsize
    laying_out = ways * weights / own.laying_out * (1 + weights / FRESH)
    layers = request.num_layers * request.directions
    seconds = calls(request) * call + layers * laying_out + _work(request, number)
    if request.cell == "lstm" and steps(request) < FEW_STEPS * request.num_layers:
        seconds *= WHOLE
    if request.transformed and request.cell not in LOOPS and rows(request) < PART:
        seconds *= APART
    if request.padded:
        idle = steps(request) / request.num_layers * rows(request) / 2
        seconds += min(_idle(request, idle), packing(request))
    why = "compiled steps" + (" and BPTT" if request.needs_grad else "")
    return Cost(MARGIN * seconds, why)


@lru_cache(maxsize=256)
def threads(request: Request) -> int:
    """Among how many threads the rows are shared out."""
    number = min(request.threads, rows(request) // PART)
    return number if number > 1 and _work(request, number) < _work(request, 1) else 1


def packs(request: Request, idle: float) -> bool:
    """Whether padded rows are better packed, with so many places past their ends.

    Those take no steps either way, but a part in the products around the loops.
    """
    more = _idle(request, idle)
    return more > PACKING and more > packing(request)


def forms_inputs(weights: int, size: int, batch: int, places: int) -> bool:
    """Whether W_ih x is better formed in the loop, where W_ih stays in cache for all steps.

    Args:
        weights: elements of W_ih.
        size: bytes of one.
        batch: B.
        places: N.
    """
    return weights * size <= CACHED and (batch >= PART or places * weights < LITTLE)


def _idle(request: Request, idle: float) -> float:
    weights = request.gates * request.hidden_size * request.input_size
    places = round(steps(request) / request.num_layers * rows(request))
    within = forms_inputs(weights, request.dtype.itemsize, rows(request), places)
    products = (2 if request.needs_grad else 0) + (0 if within else 1)
    a_step = cpu_input_product(request) * max(request.threads, 1)
    return products * request.directions * a_step * idle / max(rows(request), 1)


def _work(request: Request, number: int) -> float:
    """Seconds of all steps, by so many threads."""
    own = LOOPS.get(request.cell, ELMAN)
    unequal = request.varlen and rows(request) > 1
    share = 0.5 if unequal else 1.0
    in_parts = unequal and request.cell == "lstm" and not request.needs_grad
    one = request._replace(threads=1)
    product = (UNEQUAL_LSTM if in_parts else own.product) * share * cpu_product(one)
    wait, unit = own.wait * share * (cpu_step(one) - cpu_product(one)), own.unit
    if rows(request) < PART:
        product *= FEW
    if request.threads > 1:
        by_onednn = request.cell == "lstm"
        large = recurrent_weights(request) * request.dtype.itemsize > CACHED
        if number > 1 and not by_onednn and share * rows(request) < MANY:
            product *= TOGETHER
        if number == 1:
            product *= FEW_ALONE if by_onednn and large and rows(request) < PART else ALONE
        differentiated = request.needs_grad and not by_onednn
        wait *= WAITS_ALONE_TRAINING if differentiated else WAITS_ALONE
    if request.needs_grad:
        product *= own.products - request.frozen
        wait *= 2  # gradients of weights are one product, after the loop
        unit = own.unit_training
    units = share * rows(request) * request.hidden_size
    seconds = own.step + product + wait + units * unit * request.dtype.itemsize / 4
    seconds *= steps(request) * request.directions
    if number == 1:
        return seconds
    sharing = SHARING_TRAINING if request.needs_grad else SHARING
    return request.num_layers * request.directions * sharing + seconds / number
