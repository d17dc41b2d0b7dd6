"""A Jordan network draws: its output is fed back, and can be known beforehand.

    python examples/jordan.py           # 20 seconds on one CPU thread; draws jordan.png

A constant input, the plan, says which of four closed curves to draw, point by point. Three networks
of the same number of hidden units learn it:

- a Jordan network, `fastrnn.JordanRNN`: nothing is carried on but its own last point. While it is
  taught it is fed the point that was wanted instead (`teacher=`, with a little noise, so that it
  learns to come back), so that all steps are computed at once; then it draws alone, point by
  point. Where the eight crosses itself, one point has two futures, and this network goes astray;
- the same with `hidden_feedback=True`, the output fed back beside the hidden state, which can
  tell the two apart;
- an Elman network, which is not taught and finds a state of its own.

Drawn is what each does alone after training, for two rounds.
Source: M. I. Jordan, Serial order: a parallel distributed processing approach, 1986.
"""

from __future__ import annotations

import math
import sys
import time
from typing import TYPE_CHECKING, Any

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CURVES = ("circle", "ellipse", "clover", "eight")
ROUND = 40
"""Steps for once around a curve."""
NOISE = 0.02
"""Standard deviation of what is added to a teacher's points."""


def curves(device: str) -> tuple[Tensor, Tensor]:
    """Plans (T, 4, 4), one-hot, and the curves' points (T, 4, 2) in two rounds."""
    t = torch.arange(1, 2 * ROUND + 1) * (2 * math.pi / ROUND)
    circle = torch.stack([t.cos(), t.sin()], 1)
    ellipse = torch.stack([0.9 * (t + 0.7).cos(), 0.4 * t.sin()], 1)
    clover = (0.7 + 0.3 * (3 * t).cos()).unsqueeze(1) * circle
    eight = torch.stack([t.sin(), 0.6 * (2 * t).sin()], 1)
    plans = torch.eye(4).expand(len(t), 4, 4)
    return plans.to(device), torch.stack([circle, ellipse, clover, eight], 1).to(device)


class Elman(nn.Module):
    """An Elman network with a linear output, called as a `JordanRNN` is."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(4, hidden_size)
        self.head = nn.Linear(hidden_size, 2)

    def forward(self, plans: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Points (T, B, 2), and the last state, for plans (T, B, 4)."""
        output, h_n = self.rnn(plans, state)
        return self.head(output), h_n


def begin(net: nn.Module, points: Tensor) -> Any:
    """The point before the first, which a Jordan network is told; else nothing."""
    if not isinstance(net, fastrnn.JordanRNN):
        return None
    y = points[-1]
    return (y, y.new_zeros(len(y), net.hidden_size)) if net.hidden_feedback else y


def train(net: nn.Module, plans: Tensor, points: Tensor, args: Any) -> list[float]:
    """The loss of every step of Adam; a Jordan network is taught."""
    optimizer = torch.optim.Adam(net.parameters(), lr=args.lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    generator = torch.Generator(args.device).manual_seed(args.seed)
    start, losses = begin(net, points), []
    for _ in range(args.steps):
        if isinstance(net, fastrnn.JordanRNN):
            noise = torch.empty_like(points).normal_(std=NOISE, generator=generator)
            output, _ = net(plans, start, teacher=points + noise)
        else:
            output, _ = net(plans, start)
        loss = mse_loss(output, points)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


def draw(points: Tensor, drawn: dict[str, Tensor], errors: dict[str, Tensor], path: Path) -> None:
    """A row for each network, a column for each curve."""
    figure, axes = gallery.picture(5.8, len(drawn), 4, sharex=True, sharey=True)
    for row, (name, made), colour in zip(axes, drawn.items(), gallery.COLOURS, strict=False):
        for k, ax in enumerate(row):
            ax.plot(*points[:ROUND, k].T.cpu(), color="lightgrey", lw=4)
            ax.plot(*made[:, k].T.cpu(), ".-", color=colour, ms=3, lw=0.8)
            ax.set(aspect="equal", xticks=[], yticks=[], xlim=(-1.4, 1.4), ylim=(-1.4, 1.4))
            ax.set_title(f"error {errors[name][k]:.2f}", fontsize=8, pad=2)
            ax.spines[:].set_visible(False)
        row[0].set_ylabel(name)
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train all three, let them draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=3000)
    made.add_argument("--hidden", type=gallery.integer(1), default=32, help="units of each")
    made.add_argument("--lr", type=gallery.above_zero, default=1e-2, help="learning rate of Adam")
    args = gallery.parse(made, argv)
    plans, points = curves(args.device)
    nets: dict[str, nn.Module] = {
        "Jordan": fastrnn.JordanRNN(4, args.hidden, 2),
        "Jordan and hidden": fastrnn.JordanRNN(4, args.hidden, 2, hidden_feedback=True),
        "Elman": Elman(args.hidden),
    }
    drawn, errors = {}, {}
    for name, net in nets.items():
        began = time.perf_counter()
        losses = train(net.to(args.device), plans, points, args)
        each = (time.perf_counter() - began) / args.steps
        with torch.no_grad():
            drawn[name], _ = net(plans, begin(net, points))
        errors[name] = (drawn[name] - points).square().mean((0, 2)).sqrt()
        print(
            f"{name}: {each * 1e3:.1f} ms a step of training, loss {losses[-1]:.1e}; root mean "
            "squared error alone: "
            + ", ".join(map("{} {:.2f}".format, CURVES, errors[name].tolist()))
        )
    draw(points, drawn, errors, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
