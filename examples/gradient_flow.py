"""How the gradient of a loss at the end shrinks or grows on its way back through time.

    python examples/gradient_flow.py      # 3 seconds on one CPU thread; draws gradient_flow.png

Three pictures of the norm of dL/dh(t) against t, where L looks at the last step only:

- one ReLU unit that stays above zero, and so is linear: every step back multiplies by its weight,
  and 65 of them by 1.1^65 = 490 or 0.9^65 = 0.001, exactly;
- tanh networks of 100 units whose W_hh has a spectral radius below, at and above 1
  (`fastrnn.init.spectral_radius_`). The slope of tanh takes its part at every step, so that even a
  radius above 1 may vanish, and how much depends on the input's size;
- an LSTM, whose cells pass the gradient on times the forget gate: with a bias that opens it
  (`fastrnn.init.forget_bias_`) what arrives at the first step is many orders larger.

`fastrnn.diagnostics.gradient_flow` measures all of them.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gallery
import torch
from torch import Tensor

import fastrnn
from fastrnn.diagnostics import GradientFlow, gradient_flow

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Flows = dict[str, GradientFlow]


def at_the_end(output: Tensor, state: Any) -> Tensor:
    """A loss that reads the last step alone."""
    return output[-1].sum()


def linear_units(weights: Sequence[float], args: Any) -> Flows:
    """A ReLU unit of each weight, from h(0) = 1: it never comes near zero."""
    flows = {}
    for w in weights:
        unit = fastrnn.RNN(1, 1, nonlinearity="relu", dtype=torch.float64, device=args.device)
        with torch.no_grad():
            for parameter in unit.parameters():
                parameter.fill_(w if parameter is unit.weight_hh_l0 else 0.0)
        x = torch.zeros(args.steps + 1, 1, 1, dtype=torch.float64, device=args.device)
        flows[f"w = {w:g}"] = gradient_flow(unit, x, at_the_end, torch.ones_like(x[:1]))
    return flows


def tanh_networks(radii: Sequence[float], x: Tensor, args: Any) -> Flows:
    """A network of each spectral radius, all made from the same random matrix."""
    flows = {}
    for radius in radii:
        torch.manual_seed(args.seed)
        rnn = fastrnn.RNN(x.shape[2], args.hidden, device=args.device)
        fastrnn.init.spectral_radius_(rnn, radius)
        flows[f"radius {radius:g}"] = gradient_flow(rnn, x, at_the_end)
    return flows


def lstms(biases: Sequence[float], x: Tensor, args: Any) -> Flows:
    """An LSTM with each forget bias."""
    flows = {}
    for bias in biases:
        torch.manual_seed(args.seed)
        lstm = fastrnn.LSTM(x.shape[2], args.hidden, device=args.device)
        flows[f"b_f = {bias:g}"] = gradient_flow(
            fastrnn.init.forget_bias_(lstm, bias), x, at_the_end
        )
    return flows


def draw(panels: dict[str, Flows], path: Path) -> None:
    """A panel for each kind of network; dashed are gradients of an LSTM's cells."""
    figure, axes = gallery.picture(3.8, 1, len(panels))
    for ax, (title, flows) in zip(axes, panels.items(), strict=True):
        for name, flow in flows.items():
            steps = range(1, flow.h.shape[-1] + 1)
            (line,) = ax.plot(steps, flow.h[0, 0].cpu(), label=name)
            if flow.c is not None:
                ax.plot(steps, flow.c[0, 0].cpu(), "--", color=line.get_color())
        ax.set(yscale="log", xlabel="step t", title=title)
        ax.legend()
    axes[0].set_ylabel("norm of the gradient of L by h(t)")
    axes[-1].plot([], [], "--", color="grey", label="by c(t)")
    axes[-1].legend()
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=65)
    made.add_argument("--hidden", type=gallery.integer(1), default=100, help="units")
    made.add_argument(
        "--radii", type=gallery.numbers, default=[0.9, 1.0, 1.1, 1.5], help="spectral, of W_hh"
    )
    args = gallery.parse(made, argv)
    x = 0.3 * torch.randn(args.steps + 1, 8, 10, device=args.device)
    panels = {
        "one linear unit": linear_units([0.9, 1.0, 1.1], args),
        f"tanh, {args.hidden} units": tanh_networks(args.radii, x, args),
        f"LSTM, {args.hidden} units": lstms([0.0, 1.0, 3.0], x, args),
    }
    for title, flows in panels.items():
        for name, flow in flows.items():
            h = flow.h[0, 0]
            through_c = "" if flow.c is None else f", by c {flow.c[0, 0, 0] / flow.c[0, 0, -1]:.2g}"
            print(f"{title}, {name}: over {args.steps} steps times {h[0] / h[-1]:.3g}{through_c}")
    print(f"1.1^{args.steps} = {1.1**args.steps:.3g}, 0.9^{args.steps} = {0.9**args.steps:.3g}")
    draw(panels, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
