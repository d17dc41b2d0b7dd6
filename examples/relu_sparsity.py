"""How many units of a ReLU network are zero while it learns, and whether that can save work.

    python examples/relu_sparsity.py    # 16 seconds on one CPU thread; draws relu_sparsity.png

ReLU networks learn the adding problem (of a sequence of numbers two are marked; their sum is
asked for at the end), one for each way to begin: W_hh the identity and no biases
(`fastrnn.init.identity_`), orthogonal, or as torch.nn draws it. Measured while they train, over
all steps of a batch that was not trained on:

- the share of zeros in h. A product W_hh h needs the columns of W_hh of the other units only;
- the share of units that are zero in all rows of a tile of 16 rows at the same step. A kernel
  multiplies tiles: a unit that is zero in some rows saves it nothing.

Then the product h W_hh^T is timed as it is, and with the zero units left out (finding and gathering
the others included), for one row and for 16,
and for ten copies of the units. The question, whether training can use the zeros, is
open; what is printed is what this machine measured, of these networks, on a CPU.
Source of the identity: Q. V. Le, N. Jaitly, G. E. Hinton, A simple way to initialize recurrent
networks of rectified linear units, 2015.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.benchmark import Timer

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TILE = 16
"""Rows that a kernel multiplies at once."""
BEGINNINGS = ("identity", "orthogonal", "as torch.nn")


def problems(steps: int, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Numbers and marks, one in each half (T, B, 2), and the sums of what is marked (B, 1)."""
    numbers, marks = torch.rand(steps, batch, generator=generator), torch.zeros(steps, batch)
    for least, most in ((0, steps // 2), (steps // 2, steps)):
        marked = torch.randint(least, most, (batch,), generator=generator)
        marks[marked, torch.arange(batch)] = 1
    return torch.stack([numbers, marks], 2), (numbers * marks).sum(0).unsqueeze(1)


class Adder(nn.Module):
    """A ReLU network, and a linear layer that answers at the end."""

    def __init__(self, hidden_size: int, beginning: str) -> None:
        super().__init__()
        self.rnn = fastrnn.RNN(2, hidden_size, nonlinearity="relu")
        self.head = nn.Linear(hidden_size, 1)
        if beginning == "identity":
            fastrnn.init.identity_(self.rnn)
            nn.init.zeros_(self.rnn.get_parameter("bias_ih_l0"))
            nn.init.zeros_(self.rnn.get_parameter("bias_hh_l0"))
        elif beginning == "orthogonal":
            fastrnn.init.orthogonal_(self.rnn)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Answers (B, 1), and h of every step (T, B, H)."""
        h, _ = self.rnn(x)
        return self.head(h[-1]), h


def shares(h: Tensor) -> tuple[float, float]:
    """Of h (T, B, H): the share of zeros, and that of units that are zero in a whole tile."""
    zero = h == 0
    tiles = torch.stack([tile.all(1) for tile in torch.split(zero, TILE, 1)])
    return zero.float().mean().item(), tiles.float().mean().item()


class History(NamedTuple):
    """Of every measurement: the step, the loss, and both shares."""

    steps: list[int]
    losses: list[float]
    zeros: list[float]
    tiles: list[float]


def train(model: Adder, args: Any) -> tuple[History, Tensor]:
    """Train; what was measured, and h (T, B, H) after it."""
    generator = torch.Generator().manual_seed(args.seed)
    x, sums = (each.to(args.device) for each in problems(args.length, 4 * TILE, generator))
    optimizer = torch.optim.Adam(model.parameters(), args.lr)
    history = History([], [], [], [])
    for step in range(args.steps + 1):
        if step % max(args.steps // 40, 1) == 0 or step == args.steps:
            with torch.no_grad():
                answers, h = model(x)
            zeros, tiles = shares(h)
            history.steps.append(step)
            history.losses.append(mse_loss(answers, sums).item())
            history.zeros.append(zeros)
            history.tiles.append(tiles)
        batch, wanted = (each.to(args.device) for each in problems(args.length, 32, generator))
        optimizer.zero_grad()
        mse_loss(model(batch)[0], wanted).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return history, h


def skipping(h: Tensor, transposed: Tensor) -> Tensor:
    """The product h W^T (B, H), by the units alone that are not zero in all rows of h."""
    used = h.any(0).nonzero().squeeze(1)
    return h.index_select(1, used) @ transposed.index_select(0, used)


def times(h: Tensor, weight: Tensor, copies: int) -> tuple[float, float]:
    """Microseconds of the product of h (B, H), its units repeated, as it is and skipping.

    Raises:
        AssertionError: the two products differ by more than rounding.
    """
    h = h.repeat(1, copies)
    transposed = weight.t().repeat(copies, copies).contiguous() / copies
    torch.testing.assert_close(skipping(h, transposed), h @ transposed, rtol=1e-3, atol=1e-3)
    measured = [
        Timer(how, globals={"h": h, "w": transposed, "skipping": skipping})
        .blocked_autorange(min_run_time=0.1)
        .median
        for how in ("h @ w", "skipping(h, w)")
    ]
    return measured[0] * 1e6, measured[1] * 1e6


def draw(histories: dict[str, History], path: Path) -> None:
    """Losses and both shares over training."""
    figure, (left, middle, right) = gallery.picture(3.6, 1, 3)
    for name, history in histories.items():
        left.plot(history.steps, history.losses, label=name)
        middle.plot(history.steps, history.zeros, label=name)
        right.plot(history.steps, history.tiles, label=name)
    left.set(yscale="log", ylabel="mean squared error", title="adding problem")
    middle.set(ylabel="share of h", ylim=(0, 1), title="zeros")
    right.set(ylabel="share of units", ylim=(0, 1), title=f"zero in all of {TILE} rows")
    for ax in (left, middle, right):
        ax.set_xlabel("step of training")
    left.legend()
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=800)
    made.add_argument("--hidden", type=gallery.integer(1), default=100, help="units")
    made.add_argument("--length", type=gallery.integer(2), default=40, help="of the sequences")
    made.add_argument("--lr", type=gallery.above_zero, default=1e-3, help="learning rate of Adam")
    args = gallery.parse(made, argv)
    histories = {}
    for name in BEGINNINGS:
        torch.manual_seed(args.seed)
        model = Adder(args.hidden, name).to(args.device)
        history, h = train(model, args)
        histories[name] = history
        print(
            f"{name}: loss {history.losses[-1]:.4f}; zeros {history.zeros[0]:.0%} before, "
            f"{history.zeros[-1]:.0%} after training; units zero in all of {TILE} rows "
            f"{history.tiles[0]:.0%} before, {history.tiles[-1]:.0%} after"
        )
        weight = model.rnn.get_parameter("weight_hh_l0").detach()
        for copies in (1, 10):
            for rows in (1, TILE):
                dense, sparse = times(h[-1, :rows], weight, copies)
                print(
                    f"  {rows} rows, {copies * args.hidden} units: {dense:.1f} us as it is, "
                    f"{sparse:.1f} us skipping"
                )
    draw(histories, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
