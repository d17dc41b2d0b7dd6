"""One unit, fifty steps: an error surface with a cliff, and what clipping does about it.

    python examples/cliff.py            # 7 seconds on one CPU thread; draws cliff.png

A single sigmoid unit runs for 50 steps without input, h(t) = sigmoid(w h(t-1) + b), and should end
at 0.7. Over (w, b) its squared error is two plains with a wall between: where the unit has two
stable states, a small change decides which of them it ends in. At the wall the gradient is huge:
plain gradient descent that meets it is thrown out of the picture, onto a plain where hardly any
gradient is left. With gradients scaled down to a norm of `--clip`, by
torch.nn.utils.clip_grad_norm_, it comes down along the wall to where the target is reached.

The surface is thousands of networks: `torch.func.vmap` makes them the groups of one call.

Source: R. Pascanu, T. Mikolov, Y. Bengio, On the difficulty of training recurrent neural networks,
ICML 2013.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

T, TARGET, H0 = 50, 0.7, 0.62
START = (6.0, -2.5)
W, B = (2.0, 8.0), (-4.0, 0.0)
"""The part of the plane that is drawn."""


def error(unit: fastrnn.RNN, w: Tensor, b: Tensor) -> Tensor:
    """Squared error at the end, of the unit with these two weights."""
    weights = {"weight_hh_l0": w.view(1, 1), "bias_ih_l0": b.view(1)}
    h0 = w.new_full((1, 1, 1), H0)
    _, h_n = functional_call(unit, weights, (w.new_zeros(T, 1, 1), h0))
    squared: Tensor = (h_n - TARGET).square().sum()
    return squared


class Surface(NamedTuple):
    """Of n values of w and n of b, float64; matrices have a row for every b."""

    w: Tensor
    b: Tensor
    error: Tensor


def surface(unit: fastrnn.RNN, n: int) -> Surface:
    """The errors of n * n networks, all at once."""
    like: Any = {"dtype": torch.float64, "device": unit.weight_hh_l0.device}
    w, b = torch.linspace(*W, n, **like), torch.linspace(*B, n, **like)
    many_b, many_w = torch.meshgrid(b, w, indexing="ij")
    errors = vmap(lambda w, b: error(unit, w, b))(many_w.flatten(), many_b.flatten())
    return Surface(w, b, errors.view(n, n))


class Descent(NamedTuple):
    """Of every step: (w, b), the error there, and the norm of the gradient."""

    weights: Tensor
    errors: Tensor
    norms: Tensor


def descend(unit: fastrnn.RNN, args: Any, clip: float) -> Descent:
    """Gradient descent from the starting point, with gradients of a norm of at most `clip`."""
    like: Any = {"dtype": torch.float64, "device": args.device}
    w, b = (nn.Parameter(torch.tensor(value, **like)) for value in START)
    optimizer = torch.optim.SGD([w, b], lr=args.lr)
    weights, errors, norms = [], [], []
    for _ in range(args.steps):
        optimizer.zero_grad()
        loss = error(unit, w, b)
        loss.backward()  # type: ignore[no-untyped-call]
        weights.append([w.item(), b.item()])
        errors.append(loss.item())
        norms.append(nn.utils.clip_grad_norm_([w, b], clip).item())
        optimizer.step()
    return Descent(*map(torch.tensor, (weights, errors, norms)))


def draw(found: Surface, runs: dict[str, Descent], path: Path) -> None:
    """The surface with both ways down it, and the errors along them."""
    from matplotlib.colors import LogNorm

    figure, (left, right) = gallery.picture(4.2, 1, 2, width_ratios=[1.45, 1])
    w, b, errors = (each.cpu().numpy() for each in found)
    shades = left.pcolormesh(
        w, b, errors.clip(1e-4), norm=LogNorm(), cmap="Blues_r",
        shading="nearest", rasterized=True,
    )  # fmt: skip
    figure.colorbar(shades, ax=left, pad=0.02)
    styles: list[dict[str, Any]] = [{"color": "#d62728", "lw": 2.5}, {"color": "#ff9f1c", "lw": 1}]
    for (name, run), style in zip(runs.items(), styles, strict=True):
        left.plot(*run.weights.T, ".-", ms=4, label=name, **style)
        right.plot(run.errors, label=name, **style)
    left.plot(*run.weights[0], "o", color="white", mec="black", ms=7, label="start")
    left.set(xlim=W, ylim=B, xlabel="recurrent weight w", ylabel="bias b")
    left.set_title(f"error after {T} steps: {found.error.numel():,} networks, one call")
    left.legend(loc="upper right", frameon=True)
    right.set(
        yscale="log", ylim=(1e-4, 2), xlabel="step of gradient descent", ylabel="squared error"
    )
    right.set_title("error along the way")
    right.legend()
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Compute, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=100)
    made.add_argument("--grid", type=gallery.integer(2), default=100, help="networks on each axis")
    made.add_argument("--clip", type=gallery.above_zero, default=0.1, help="largest norm")
    made.add_argument("--lr", type=gallery.above_zero, default=3.0, help="learning rate")
    args = gallery.parse(made, argv)
    unit = fastrnn.RNN(
        1, 1, nonlinearity="sigmoid", dtype=torch.float64, device=args.device
    ).requires_grad_(False)
    nn.init.zeros_(
        unit.get_parameter("bias_hh_l0")
    )  # the input is zero, so that b_ih is all that is left of it

    found = surface(unit, args.grid)
    print(
        f"{found.error.numel():,} networks in one call: error {found.error.min():.1e} to "
        f"{found.error.max():.2f}"
    )
    runs = {"no clipping": descend(unit, args, torch.inf)}
    runs[f"norm clipped at {args.clip:g}"] = descend(unit, args, args.clip)
    for name, run in runs.items():
        w, b = run.weights[-1].tolist()
        print(
            f"{name}: largest norm met {run.norms.max():.2g}; ends at w = {w:.2f}, b = {b:.2f} "
            f"with error {run.errors[-1]:.1e}"
        )
    draw(found, runs, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
