"""A timer: a spike starts it, a number sets how long its output stays on.

    python examples/timer.py                 # half a minute on one CPU thread; draws timer.png
    python examples/timer.py --scale 1000    # the task at its published length: five minutes

Of two inputs u1 spikes now and then, and u2, in [0.1, 1.0], says for how many steps from the spike
on the output should be 0.5: `--scale` times u2; otherwise it should be 0. The published scale is
1000. Here it is 100, intervals of 10 to 100 steps, which is learned while one waits.

An LSTM is trained on endless streams, window by window (`fastrnn.windows`): the state goes on from
one window to the next, the gradient does not, and every window is a step of training. The gates
begin with biases that keep a cell for up to two scales (`fastrnn.init.chrono_`).

Source: H. Jaeger, A tutorial on training recurrent neural networks, GMD Report 159, 2002.
"""

from __future__ import annotations

import sys
import time
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING, Any

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ON = 0.5
"""The output while the timer runs."""


def streams(steps: int, batch: int, scale: int, rng: Random) -> tuple[Tensor, Tensor]:
    """Inputs u (T, B, 2) and targets (T, B, 1); an interval is over before the next one starts."""
    u, target = torch.zeros(steps, batch, 2), torch.zeros(steps, batch, 1)
    for row in range(batch):
        t = rng.randrange(scale)
        while t < steps:
            asked = rng.uniform(0.1, 1)
            duration = round(scale * asked)
            u[t, row, 0], u[t:, row, 1] = 1, asked  # u2 stays until the next spike
            target[t : t + duration, row] = ON
            t += duration + rng.randrange(scale // 10, scale)
    return u, target


def durations(u: Tensor, output: Tensor, scale: int) -> Tensor:
    """(N, 2): steps asked for and steps on, of all intervals but the last of each row."""
    on, pairs = output > ON / 2, []
    for row in range(u.shape[1]):
        spikes = u[:, row, 0].nonzero().flatten().tolist()
        for start, stop in pairwise(spikes):
            asked = round(scale * u[start, row, 1].item())
            pairs.append((asked, int(on[start:stop, row].sum())))
    return torch.tensor(pairs)


def train(lstm: fastrnn.LSTM, head: nn.Linear, args: Any) -> list[float]:
    """Adam with a falling rate, a step for every window; returns the losses."""
    parameters = [*lstm.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, args.lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, args.steps)
    rng = Random(args.seed)
    losses: list[float] = []
    while True:
        u, target = (part.to(args.device) for part in streams(16 * args.scale, 32, args.scale, rng))
        for window in fastrnn.windows(lstm, u, window=2 * args.scale, targets=target):
            assert window.targets is not None
            loss = mse_loss(head(window.output), window.targets)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) == args.steps:
                return losses


def draw(u: Tensor, target: Tensor, output: Tensor, pairs: Tensor, path: Path) -> None:
    """One stream's inputs, target and output, and of all streams the durations."""
    figure, axes = gallery.picture(4.4, 2, 2, width_ratios=[2.2, 1], height_ratios=[1, 2])
    inputs, outputs, right = axes[0, 0], axes[1, 0], axes[1, 1]
    axes[0, 1].set_visible(False)
    inputs.sharex(outputs)
    inputs.plot(u[:, 1], color=gallery.COLOURS[2], label="u2, the duration")
    inputs.vlines(u[:, 0].nonzero(), 0, 1, color="black", lw=1, label="u1, the start")
    above: Any = {"loc": "lower left", "bbox_to_anchor": (0, 0.98), "ncols": 2, "frameon": False}
    inputs.legend(**above)
    inputs.set(ylabel="input", ylim=(0, 1.05))
    inputs.tick_params(labelbottom=False)
    outputs.plot(target, color="black", lw=3, alpha=0.25, label="target")
    outputs.plot(output, label="output")
    outputs.legend(**above)
    outputs.set(xlabel="step", ylabel="output", ylim=(-0.1, 0.6))
    longest = pairs.max().item()
    right.plot([0, longest], [0, longest], color="black", lw=3, alpha=0.25)
    right.plot(*pairs.T, ".", ms=3)
    right.set(xlabel="steps asked for", ylabel="steps on", aspect="equal")
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, test on streams never seen, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=1600)
    made.add_argument("--scale", type=gallery.integer(10), default=100, help="steps for u2 = 1")
    made.add_argument("--hidden", type=gallery.integer(1), default=32, help="units of the LSTM")
    made.add_argument("--lr", type=gallery.above_zero, default=1e-2, help="of Adam, at first")
    args = gallery.parse(made, argv)
    lstm = fastrnn.init.chrono_(fastrnn.LSTM(2, args.hidden), 2 * args.scale).to(args.device)
    head = nn.Linear(args.hidden, 1).to(args.device)

    began = time.perf_counter()
    losses = train(lstm, head, args)
    print(
        f"{args.steps} windows of {2 * args.scale} steps, 32 streams: mean squared error "
        f"{losses[0]:.4f} at first, {losses[-1]:.5f} at last; {time.perf_counter() - began:.0f} s"
    )
    u, target = streams(20 * args.scale, 16, args.scale, Random(f"{args.seed}, for the test"))
    with torch.no_grad():
        output = head(lstm(u.to(args.device))[0]).cpu()
    pairs = durations(u, output, args.scale)
    off = (pairs[:, 0] - pairs[:, 1]).abs().double()
    print(
        f"{len(pairs)} intervals of {pairs[:, 0].min()} to {pairs[:, 0].max()} steps in new "
        f"streams: error {mse_loss(output, target):.5f}; they end {off.mean():.2f} steps off in "
        f"the mean, {off.max():.0f} at most"
    )
    shown = slice(0, 8 * args.scale)
    draw(u[shown, 0], target[shown, 0], output[shown, 0], pairs, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
