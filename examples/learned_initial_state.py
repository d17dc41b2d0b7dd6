"""Where a network begins: its initial state as parameters, against zeros.

    python examples/learned_initial_state.py    # 9 seconds on one CPU thread; draws a picture

What is to be predicted are six pendulums of different speeds that fade, pushed by random inputs,
which the network sees. They always begin at the same point, which the network is not told. The
memory of it fades over some tens of steps, and the first outputs are mostly that.

Two LSTMs with the same weights are trained on the same batches. One begins at zeros, the other's h0
and c0 are parameters of a `fastrnn.InitialState`, found by backpropagation like all others. While
there is one start the two learn much alike: biases can bring about the first outputs, too.

Then the pendulums begin elsewhere, and both fail. With all weights frozen the second one's h0 and
c0 are searched for again: nothing but a state has changed, and the network predicts as before.
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING, Any

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

PENDULUMS, FADE = 6, 0.95
"""How many, and what is left of a swing after a step."""
HERE, THERE = 1.0, 2.0
"""Where they begin, and where they begin later."""


def pushed(
    begin: float, steps: int, batch: int, seed: int, device: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: pushes (T, B, 1), and where the pendulums are after each, (T, B, 6).

    `begin` says where they begin, by an arbitrary formula.
    """
    turn = FADE * torch.exp(1j * torch.linspace(0.2, 1.2, PENDULUMS))
    start = torch.exp(1j * begin * torch.arange(PENDULUMS) ** 2)
    generator = torch.Generator().manual_seed(seed)
    while True:
        u = 0.2 * torch.randn(steps, batch, 1, generator=generator)
        swing, path = start.expand(batch, PENDULUMS), []
        for push in u:
            swing = swing * turn + push
            path.append(swing.real)
        yield u.to(device), torch.stack(path).to(device)


class Predictor(nn.Module):
    """An LSTM with an initial state, and a linear layer that reads it."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(1, hidden_size)
        self.initial = fastrnn.InitialState(self.lstm)
        self.head = nn.Linear(hidden_size, PENDULUMS)

    def forward(self, u: Tensor) -> Tensor:
        """Predictions (T, B, 6) from pushes (T, B, 1)."""
        output, _ = self.lstm(u, self.initial(u.shape[1]))
        predicted: Tensor = self.head(output)
        return predicted


def train(model: Predictor, begin: float, steps: int, args: Any) -> list[float]:
    """The loss of every step of Adam, of what is not frozen."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(wanted, lr=1e-2)
    losses = []
    batches = pushed(begin, args.length, 32, args.seed, args.device)
    for _, (u, path) in zip(range(steps), batches, strict=False):
        loss = mse_loss(model(u), path)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def error_by_step(model: Predictor, begin: float, args: Any) -> Tensor:
    """Root mean squared error at every step (T,), on sequences that were not trained on."""
    u, path = next(pushed(begin, args.length, 512, args.seed + 1, args.device))
    error: Tensor = (model(u) - path).square().mean((1, 2)).sqrt()
    return error.cpu()


def draw(losses: dict[str, list[float]], errors: dict[str, Tensor], path: Path) -> None:
    """Loss curves, and the errors along the sequence once the pendulums begin elsewhere."""
    figure, (left, right) = gallery.picture(3.8, 1, 2)
    for name, curve in losses.items():
        left.plot(curve, lw=1, label=name)
    left.set(yscale="log", xlabel="step of training", ylabel="mean squared error")
    left.set_title("training from scratch")
    left.legend()
    for name, line in errors.items():
        right.plot(range(1, len(line) + 1), line, ".-", ms=4, label=name)
    right.set(yscale="log", xlabel="step t of the sequence", ylabel="root mean squared error")
    right.set_title("pendulums begin elsewhere")
    right.set_ylim(top=4)
    right.legend()
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train both, move the pendulums, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=700)
    made.add_argument("--hidden", type=gallery.integer(1), default=32, help="units of the LSTM")
    made.add_argument("--length", type=gallery.integer(5), default=40, help="of the sequences")
    args = gallery.parse(made, argv)
    learned = Predictor(args.hidden).to(args.device)
    zeros = copy.deepcopy(learned)
    zeros.initial.requires_grad_(False)
    losses, errors = {}, {}
    for name, model in (("zeros", zeros), ("learned h0, c0", learned)):
        losses[name] = train(model, HERE, args.steps, args)
        errors[name] = error_by_step(model, THERE, args)
        last = losses[name][-max(args.steps // 10, 1) :]
        print(f"{name}: mean squared error {sum(last) / len(last):.2e} at the end of training")
    learned.requires_grad_(False).initial.requires_grad_(True)
    train(learned, THERE, args.steps // 2, args)
    errors["h0, c0 found anew,\nweights frozen"] = error_by_step(learned, THERE, args)
    for name, line in errors.items():
        print(
            f"pendulums begin elsewhere, {' '.join(name.split())}: root mean squared error at "
            f"steps 1 to 5 {line[:5].mean():.3f}"
        )
    draw(losses, errors, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
