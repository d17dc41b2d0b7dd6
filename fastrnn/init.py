"""Initialisers of recurrent layers, in the style of torch.nn.init: in place, without a gradient.

Every one takes a layer, works on all its layers and directions, and returns it: a `fastrnn.RNN`,
`LSTM`, a cell of these, or their likes of torch.nn; where no LSTM is asked for a GRU too,
and a `fastrnn.JordanRNN` that has the weight. Those of the recurrent matrix also take one such
matrix, weight_hh (K * H, H), and return it: every H rows of it are the block of a gate, of an LSTM
in the order i, f, g, o. Each block is initialised by itself, since each is the matrix of a
recurrence.

In an echo-state network the layer's random weights are fixed, and only what reads it is trained:

    >>> reservoir = fastrnn.RNN(1, 200)
    >>> _ = fastrnn.init.spectral_radius_(reservoir, 0.9, density=0.1).requires_grad_(False)

Frozen weights cost nothing: where nothing that enters the layer wants a gradient, it keeps nothing
for a backward pass and has none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fastrnn.cells import LSTMCell
from fastrnn.modules import LSTM
from fastrnn.weight_drop import WeightDrop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Target = TypeVar("Target", nn.Module, Tensor)
Layer = TypeVar("Layer", bound=nn.Module)

_DRAWS = 20
"""How often a sparse matrix is drawn until one has an eigenvalue that is not zero."""


def spectral_radius_(
    target: Target,
    radius: float,
    *,
    density: float = 1.0,
    generator: torch.Generator | None = None,
) -> Target:
    """Make weight_hh random, with eigenvalues the largest of which has magnitude `radius`.

    Each gate's block is drawn from N(0, 1), each entry being kept with probability `density`, and
    scaled by its spectral radius (found in float64 on the CPU, with work of order H ** 3). Below 1
    what enters such a network usually fades away, which echo-state networks need; near 1 it does so
    slowly.

    Args:
        target: a layer without projection, or weight_hh (K * H, H).
        radius: of every block; not negative.
        density: share of the entries that are not zero, in (0, 1].
        generator: as torch.nn.init takes it.

    Raises:
        ValueError: `radius` or `density` is out of range; `density` leaves H units without a
            cycle, so that all eigenvalues are 0; blocks are not square.
        TypeError: `target` is neither of the above.

    Source: H. Jaeger, The "echo state" approach to analysing and training recurrent neural
    networks, GMD Report 148, 2001.
    """
    if not 0 <= radius < math.inf:
        raise ValueError(f"radius should be a number that is not negative, got: {radius}")
    if not 0 < density <= 1:
        raise ValueError(f"density should be in range (0, 1], got: {density}")

    def draw(block: Tensor) -> Tensor:
        for _ in range(_DRAWS):
            drawn = torch.empty(block.shape, device=block.device, dtype=_exact(block))
            drawn.normal_(generator=generator)
            if density < 1:
                drawn *= torch.empty_like(drawn).bernoulli_(density, generator=generator)
            found = float(torch.linalg.eigvals(drawn.double().cpu()).abs().max())
            if found > 0:
                return drawn * (radius / found)
        raise ValueError(
            f"density={density} leaves {len(block)} units without a cycle among them: "
            "all eigenvalues are 0 and cannot be scaled"
        )

    return _fill_recurrent(target, draw, square=True)


def identity_(target: Target, scale: float = 1.0) -> Target:
    """Set each gate's block of weight_hh to the identity, times `scale`.

    For a ReLU network that keeps its state until the input changes it (IRNN), set the biases to
    zero, too. With a `scale` below 1 it forgets.

    Args:
        target: a layer without projection, or weight_hh (K * H, H).
        scale: of the identity.

    Raises:
        ValueError: blocks are not square.
        TypeError: `target` is neither of the above.

    Source: Q. V. Le, N. Jaitly, G. E. Hinton, A simple way to initialize recurrent networks of
    rectified linear units, arXiv:1504.00941, 2015.
    """
    return _fill_recurrent(
        target,
        lambda block: scale * torch.eye(len(block), device=block.device, dtype=block.dtype),
        square=True,
    )


def orthogonal_(
    target: Target, gain: float = 1.0, generator: torch.Generator | None = None
) -> Target:
    """Make each gate's block of weight_hh a random orthogonal matrix, times `gain`.

    Unlike torch.nn.init.orthogonal_ on the whole of an LSTM's weight_hh, each of whose blocks is
    then no orthogonal matrix.

    Args:
        target: a layer, or weight_hh (K * H, H). The blocks (H, P) of a projected LSTM get
            orthonormal columns.
        gain: of each block.
        generator: as torch.nn.init takes it.

    Raises:
        ValueError: the blocks of a matrix are not square.
        TypeError: `target` is neither of the above.

    Source: A. M. Saxe, J. L. McClelland, S. Ganguli, Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks, arXiv:1312.6120, 2013.
    """

    def draw(block: Tensor) -> Tensor:
        drawn = torch.empty(block.shape, device=block.device, dtype=_exact(block))
        return nn.init.orthogonal_(drawn, gain, generator)

    return _fill_recurrent(target, draw, square=False)


@torch.no_grad()
def xavier_uniform_(
    layer: Layer, gain: float = 1.0, generator: torch.Generator | None = None
) -> Layer:
    """Draw each gate's block of every weight_ih from U(-a, a), a = gain * sqrt(6 / (I + H)).

    Unlike torch.nn.init.xavier_uniform_ on the whole of an LSTM's weight_ih, which takes the four
    gates for 4 * H units and draws from an interval that is too small. I is the number of the
    layer's own inputs.

    Args:
        layer: a layer.
        gain: of every weight.
        generator: as torch.nn.init takes it.

    Raises:
        TypeError: `layer` is none.

    Source: X. Glorot, Y. Bengio, Understanding the difficulty of training deep feedforward neural
    networks, AISTATS 2010.
    """
    hidden_size = cast("int", getattr(layer, "hidden_size", 0))
    for weight in _parameters(layer, "weight_ih"):
        bound = gain * math.sqrt(6 / (weight.shape[1] + hidden_size))
        weight.uniform_(-bound, bound, generator=generator)
    return layer


@torch.no_grad()
def forget_bias_(lstm: Layer, value: float = 1.0) -> Layer:
    """Set the bias of an LSTM's forget gates, so that it begins by remembering.

    b_ih holds `value` for the f block and b_hh zero, since the gate sees their sum. The biases of
    the other gates stay.

    Args:
        lstm: an LSTM or LSTMCell with biases.
        value: of the sum of both.

    Raises:
        ValueError: there are no biases.
        TypeError: `lstm` is no LSTM.

    Source: R. Jozefowicz, W. Zaremba, I. Sutskever, An empirical exploration of recurrent network
    architectures, ICML 2015.
    """
    for bias_i, bias_h in _biases(lstm):
        bias_i.chunk(4)[1].fill_(value)
        bias_h.chunk(4)[1].zero_()
    return lstm


@torch.no_grad()
def chrono_(lstm: Layer, max_steps: float, generator: torch.Generator | None = None) -> Layer:
    """Draw the biases of an LSTM's forget and input gates for dependencies over many steps.

    b_f = log(u) with u from U(1, max_steps - 1), and b_i = -b_f: a unit then keeps what it holds
    for about u steps. b_ih holds them, and b_hh zero. The biases of g and o stay.

    Args:
        lstm: an LSTM or LSTMCell with biases.
        max_steps: the longest dependency expected, in steps; at least 2.
        generator: as torch.nn.init takes it.

    Raises:
        ValueError: `max_steps` is below 2, or there are no biases.
        TypeError: `lstm` is no LSTM.

    Source: C. Tallec, Y. Ollivier, Can recurrent neural networks warp time?, ICLR 2018.
    """
    if not 2 <= max_steps < math.inf:
        raise ValueError(f"max_steps should be a number of at least 2, got: {max_steps}")
    for bias_i, bias_h in _biases(lstm):
        i, f, _, _ = bias_i.chunk(4)
        u = torch.empty(f.shape, device=f.device, dtype=_exact(f))
        u.uniform_(1, max_steps - 1, generator=generator)
        f.copy_(u.log())
        i.copy_(-f)
        bias_h[: len(i) + len(f)] = 0
    return lstm


def _exact(weight: Tensor) -> torch.dtype:
    """The dtype in which values are drawn before they are rounded to the weight's."""
    return torch.promote_types(weight.dtype, torch.float32)


@torch.no_grad()
def _fill_recurrent(target: Target, make: Callable[[Tensor], Tensor], *, square: bool) -> Target:
    """Put make(block) into every gate's block of weight_hh."""
    if isinstance(target, nn.Module):
        weights = list(_parameters(target, "weight_hh"))
        hidden_size = cast("int", getattr(target, "hidden_size", 0))
    else:
        if not isinstance(target, Tensor):
            raise TypeError(
                f"target should be a layer or a Tensor, weight_hh, got: {type(target).__name__}"
            )
        if target.dim() != 2 or len(target) == 0 or len(target) % target.shape[1]:
            raise ValueError(
                "target should be weight_hh (K * H, H), of square blocks, got a tensor of shape "
                f"{tuple(target.shape)}"
            )
        weights, hidden_size = [target], target.shape[1]
    for weight in weights:
        if square and weight.shape[1] != hidden_size:
            raise ValueError(
                "target should have square blocks of weight_hh, got those of a projected LSTM, "
                f"{(hidden_size, weight.shape[1])}"
            )
        for block in torch.split(weight, hidden_size):
            block.copy_(make(block))
    return target


def _parameters(layer: nn.Module, kind: str) -> Iterator[nn.Parameter]:
    """The parameters of every layer and direction whose names begin with `kind`."""
    found = []
    if isinstance(layer, nn.Module) and isinstance(getattr(layer, "hidden_size", None), int):
        own = layer.named_parameters(recurse=False, remove_duplicate=False)
        found = [weight for name, weight in own if name.startswith(kind)]
        found += _dropped(layer, kind)
    if not found:
        raise TypeError(
            f"expected a recurrent layer with parameters {kind}..., got: {type(layer).__name__}"
        )
    yield from found


def _dropped(layer: nn.Module, kind: str) -> Iterator[nn.Parameter]:
    """Those that weight drop computes its own of; of no other parametrization are there such."""
    if not parametrize.is_parametrized(layer):
        return
    for name, steps in cast("nn.ModuleDict", layer.parametrizations).items():
        if not name.startswith(kind):
            continue
        if not all(isinstance(step, WeightDrop) for step in cast("nn.ModuleList", steps)):
            raise ValueError(
                f"expected a layer whose {kind}... are parameters, got a parametrized {name}; "
                "initialize it before it is parametrized"
            )
        yield cast("nn.Parameter", steps.original)


def _biases(lstm: nn.Module) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
    """b_ih and b_hh of every layer and direction."""
    if not isinstance(lstm, LSTM | LSTMCell | nn.LSTM | nn.LSTMCell):
        raise TypeError(f"lstm should be an LSTM or LSTMCell, got: {type(lstm).__name__}")
    if not lstm.bias:
        raise ValueError("lstm should have biases, got one with bias=False")
    yield from zip(_parameters(lstm, "bias_ih"), _parameters(lstm, "bias_hh"), strict=True)
