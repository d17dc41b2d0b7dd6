"""The truth, the reference backend in float64, and how a result is compared with it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch

from fastrnn import calls
from fastrnn.cell import cell_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from fastrnn.request import Spec
    from fastrnn.testing.tolerances import Tolerance


class Problem(NamedTuple):
    """The tensors of one call."""

    spec: Spec
    x: Tensor
    """(T, B, I)"""
    hx: tuple[Tensor, ...] | None
    weights: tuple[Tensor, ...]


def weight_shapes(spec: Spec) -> list[tuple[int, ...]]:
    """The shapes of a stack's weights, flat in torch's order."""
    rows = spec.gates * spec.hidden_size
    shapes: list[tuple[int, ...]] = []
    for slot in range(spec.num_layers * spec.directions):
        first = slot < spec.directions
        inputs = spec.input_size if first else spec.state_size * spec.directions
        shapes += [(rows, inputs), (rows, spec.state_size)]
        shapes += [(rows,), (rows,)] if spec.bias else []
        shapes += [(spec.proj_size, spec.hidden_size)] if spec.proj_size else []
        own = cell_of(spec.cell).weights
        shapes += [(own, spec.hidden_size)] if own else []
    return shapes


def random_problem(
    spec: Spec,
    seq_len: int,
    batch: int,
    *,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    hx: bool = True,
    seed: int = 0,
) -> Problem:
    """Normal inputs and states, and weights uniform in +-1/sqrt(H) as torch.nn draws them.

    Args:
        spec: the stack.
        seq_len: T.
        batch: B.
        dtype: of all tensors.
        device: of all tensors; the values do not depend on it.
        hx: whether initial states are given.
        seed: of the values.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device, dtype)

    bound = 1 / math.sqrt(spec.hidden_size)
    weights = tuple(
        ((torch.rand(shape, generator=generator) * 2 - 1) * bound).to(device, dtype)
        for shape in weight_shapes(spec)
    )
    rows = spec.num_layers * spec.directions
    states = None
    if hx:
        sizes = [spec.state_size, spec.hidden_size] if spec.has_cell_state else [spec.hidden_size]
        states = tuple(normal(rows, batch, size) for size in sizes)
    return Problem(spec, normal(seq_len, batch, spec.input_size), states, weights)


class Result(NamedTuple):
    """Outputs, final states and, if asked for, gradients of one call."""

    output: Tensor
    states: tuple[Tensor, ...]
    gradients: dict[str, Tensor]


def run(
    problem: Problem,
    *,
    backend: str,
    gradients: bool = True,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
) -> Result:
    """Run one call and backpropagate a fixed random gradient into every output and state.

    Args:
        problem: what to run.
        backend: the backend's name.
        gradients: whether to run the backward pass.
        seed: of the random gradients.
        lengths: steps of each row; None if every row has T.
    """
    spec, x, hx, weights = problem
    leaves = {"x": x, **{f"weights[{i}]": w for i, w in enumerate(weights)}}
    leaves |= {f"hx[{i}]": s for i, s in enumerate(hx or ())}
    leaves = {
        name: leaf.detach().clone().requires_grad_(gradients) for name, leaf in leaves.items()
    }
    own_hx = tuple(leaves[f"hx[{i}]"] for i in range(len(hx))) if hx else None
    output, states = calls.run(
        spec,
        leaves["x"],
        own_hx if own_hx is None or spec.has_cell_state else own_hx[0],  # type: ignore[arg-type] # a pair for an LSTM
        [leaves[f"weights[{i}]"] for i in range(len(weights))],
        batch_first=False, dropout=0.0, training=True, backend=backend, lengths=lengths,
    )  # fmt: skip
    assert isinstance(output, torch.Tensor)
    finals = states if isinstance(states, tuple) else (states,)
    found: dict[str, Tensor] = {}
    if gradients:
        generator = torch.Generator().manual_seed(seed)
        outputs = (output, *finals)
        upstream = [
            torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o) for o in outputs
        ]
        got = torch.autograd.grad(outputs, list(leaves.values()), upstream)
        found = dict(zip(leaves, got, strict=True))
    return Result(output.detach(), tuple(state.detach() for state in finals), found)


def truth(
    problem: Problem,
    *,
    gradients: bool = True,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
) -> Result:
    """`run` of the reference backend in float64 on the CPU."""

    def exact(tensor: Tensor) -> Tensor:
        return tensor.detach().to("cpu", torch.float64)

    spec, x, hx, weights = problem
    states = None if hx is None else tuple(exact(state) for state in hx)
    in_float64 = Problem(spec, exact(x), states, tuple(exact(weight) for weight in weights))
    return run(in_float64, backend="reference", gradients=gradients, seed=seed, lengths=lengths)


class Difference(NamedTuple):
    """One compared tensor: its error, what was allowed, and where the error is largest."""

    name: str
    error: float
    allowed: float
    where: tuple[int, ...]

    @property
    def within(self) -> bool:
        """Whether the error is allowed; an error that is not a number never is."""
        return self.error <= self.allowed


def compare(got: Result, want: Result, allowed: Tolerance) -> list[Difference]:
    """Compare every output, state and gradient with the truth, each with its own allowance.

    Args:
        got: the result under test, of any dtype and device.
        want: the truth, in float64.
        allowed: relative tolerances; see `Tolerance` for what they are relative to.
    """
    pairs = [("output", got.output, want.output, False)]
    pairs += [
        (f"state[{i}]", g, w, False)
        for i, (g, w) in enumerate(zip(got.states, want.states, strict=True))
    ]
    pairs += [(f"d {name}", got.gradients[name], w, True) for name, w in want.gradients.items()]
    return [_difference(*pair, allowed) for pair in pairs]


def _difference(
    name: str, got: Tensor, want: Tensor, is_gradient: bool, allowed: Tolerance
) -> Difference:
    if got.shape != want.shape:
        raise AssertionError(f"{name}: shape {tuple(got.shape)}, expected {tuple(want.shape)}")
    if want.numel() == 0:
        return Difference(name, 0.0, 0.0, ())
    apart = (got.to("cpu", torch.float64) - want).abs()
    largest = float(want.abs().max())
    scale = largest if is_gradient else max(largest, 1.0)
    index = int(apart.nan_to_num(nan=math.inf).argmax())
    where = tuple(int(i) for i in torch.unravel_index(torch.tensor(index), want.shape))
    relative = allowed.gradient if is_gradient else allowed.output
    return Difference(name, float(apart.flatten()[index]), relative * scale, where)


def assert_close(got: Result, want: Result, allowed: Tolerance) -> None:
    """`compare`, and raise with every tensor that is out of tolerance.

    Raises:
        AssertionError: names each tensor, its largest error, where it is and what was allowed.
    """
    wrong = [d for d in compare(got, want, allowed) if not d.within]
    if wrong:
        lines = [
            f"  {d.name}: off by {d.error:.3e} at {d.where}, allowed {d.allowed:.3e}" for d in wrong
        ]
        raise AssertionError("out of tolerance:\n" + "\n".join(lines))
