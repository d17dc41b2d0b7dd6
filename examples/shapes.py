"""One or many steps in, one or many out: the four shapes, each trained on Roman numerals.

    python examples/shapes.py    # half a minute on one CPU thread; draws shapes.png

All four are about the numbers 1 to 3999, a fifth of which is held out:

- one to one: from the decimal digits to how many letters the numeral has, in a single step;
- many to one: from the letters to the digits. The answer is read off the final state, so that with
  `final_only=True` no output is made; `lengths=` says where each numeral ends;
- one to many: from the digits to the letters. The digits make the first state, and every letter is
  the next step's input: the right one in training, the written one when `fastrnn.Stepper` writes;
- many to many: of each letter whether it is added or subtracted, as the I of XIV is. What follows
  decides that, so the layer is bidirectional.

A numeral counts as right if all of its letters or digits are.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

VALUES = {"M": 1000, "D": 500, "C": 100, "L": 50, "X": 10, "V": 5, "I": 1}
PAIRS = {"CM": 900, "CD": 400, "XC": 90, "XL": 40, "IX": 9, "IV": 4}
STEPS = 16
"""T: the 15 letters of the longest numeral, that of 3888, and one for the end."""


def numeral(n: int) -> str:
    """The Roman numeral of 1 to 3999; of 0 nothing."""
    text = ""
    for letters, value in sorted((VALUES | PAIRS).items(), key=lambda item: -item[1]):
        text += letters * (n // value)
        n %= value
    return text


NUMERALS = [numeral(n) for n in range(4000)]
LENGTHS = torch.tensor([len(text) for text in NUMERALS])
DIGITS = torch.tensor([[int(digit) for digit in f"{n:04}"] for n in range(4000)])
LETTERS = torch.tensor(
    [["MDCLXVI".index(c) + 1 for c in text] + [0] * (STEPS - len(text)) for text in NUMERALS]
)
"""(4000, T): 1 to 7, and 0 after the last."""


def of(table: Tensor, n: Tensor) -> Tensor:
    """The rows of a table for some numbers, on their device."""
    return table.to(n.device)[n]


def vectors(classes: Tensor, size: int) -> Tensor:
    """Each class as one of `size`."""
    return one_hot(classes, size).float()


class Shape(nn.Module, ABC):
    """A network: LSTM and linear layer. Below, n are the numbers asked about, (B,) int64."""

    def __init__(self, layer: fastrnn.LSTM, classes: int) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (2 if layer.bidirectional else 1), classes)

    @abstractmethod
    def scores(self, n: Tensor) -> Tensor:
        """(B, N, classes): of N answers about each number."""

    @abstractmethod
    def wanted(self, n: Tensor) -> Tensor:
        """(B, N): the right classes."""

    def answers(self, n: Tensor) -> Tensor:
        """(B, N): the network's classes."""
        return self.scores(n).argmax(-1)


class OneToOne(Shape):
    """From the digits to the number of letters."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(fastrnn.LSTM(40, hidden_size), STEPS)

    def scores(self, n: Tensor) -> Tensor:
        """A sequence of one step."""
        output, _ = self.layer(vectors(of(DIGITS, n), 10).flatten(1).unsqueeze(0))
        scores: Tensor = self.head(output[0])
        return scores.unsqueeze(1)

    def wanted(self, n: Tensor) -> Tensor:
        """The length."""
        return of(LENGTHS, n).unsqueeze(1)


class ManyToOne(Shape):
    """From the letters to the digits."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(fastrnn.LSTM(8, hidden_size, final_only=True), 40)

    def scores(self, n: Tensor) -> Tensor:
        """Of the state after the last letter."""
        _, (h_n, _) = self.layer(vectors(of(LETTERS, n).t(), 8), lengths=of(LENGTHS, n))
        scores: Tensor = self.head(h_n[-1])
        return scores.view(-1, 4, 10)

    def wanted(self, n: Tensor) -> Tensor:
        """The four digits."""
        return of(DIGITS, n)


class OneToMany(Shape):
    """From the digits to the letters, and the 0 after them."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(fastrnn.LSTM(8, hidden_size), 8)
        self.start = nn.Linear(40, 2 * hidden_size)

    def state(self, n: Tensor) -> tuple[Tensor, Tensor]:
        """h(0) and c(0), (1, B, H)."""
        h, c = self.start(vectors(of(DIGITS, n), 10).flatten(1)).unsqueeze(0).chunk(2, -1)
        return h.tanh().contiguous(), c.contiguous()

    def scores(self, n: Tensor) -> Tensor:
        """In training: each letter from the right ones before it."""
        right = vectors(of(LETTERS, n).t(), 8)
        before = torch.cat([torch.zeros_like(right[:1]), right[:-1]])
        output, _ = self.layer(before, self.state(n))
        scores: Tensor = self.head(output)
        return scores.transpose(0, 1)

    def wanted(self, n: Tensor) -> Tensor:
        """The letters."""
        return of(LETTERS, n)

    def answers(self, n: Tensor) -> Tensor:
        """Each letter from those that the network wrote before it."""
        stepper = fastrnn.Stepper(self.layer, batch=len(n))
        stepper.load_state(self.state(n))
        written, before = [], torch.zeros(len(n), 8, device=n.device)
        for _ in range(STEPS):
            written.append(self.head(stepper(before)).argmax(1))
            before = vectors(written[-1], 8)
        return torch.stack(written, 1)


class ManyToMany(Shape):
    """From each letter to 1 if it is added, 2 if it is subtracted, 0 if there is none."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(fastrnn.LSTM(8, hidden_size, bidirectional=True), 3)

    def scores(self, n: Tensor) -> Tensor:
        """Of each step, past the end too."""
        output, _ = self.layer(vectors(of(LETTERS, n).t(), 8), lengths=of(LENGTHS, n))
        scores: Tensor = self.head(output)
        return scores.transpose(0, 1)

    def wanted(self, n: Tensor) -> Tensor:
        """Subtracted is what stands before a letter of more value, which has a lower code."""
        letter = of(LETTERS, n)
        after = torch.cat([letter[:, 1:], torch.zeros_like(letter[:, :1])], 1)
        return torch.where(letter == 0, 0, torch.where((after > 0) & (after < letter), 2, 1))


SHAPES: dict[str, Callable[[int], Shape]] = {
    "one to one": OneToOne,
    "many to one": ManyToOne,
    "one to many": OneToMany,
    "many to many": ManyToMany,
}


def train(shape: Shape, known: Tensor, held_out: Tensor, steps: int) -> list[tuple[int, float]]:
    """Adam, batches of 128 numbers; returns steps and the share of right answers after them."""
    optimizer = torch.optim.Adam(shape.parameters(), 1e-2)
    curve = []
    for step in range(steps + 1):
        if step % max(steps // 20, 1) == 0 or step == steps:
            with torch.no_grad():
                right = (shape.answers(held_out) == shape.wanted(held_out)).all(1)
            curve.append((step, right.double().mean().item()))
        n = known[torch.randint(len(known), (128,), device=known.device)]
        loss = cross_entropy(shape.scores(n).flatten(0, 1), shape.wanted(n).flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(shape.parameters(), 1.0)
        optimizer.step()
    return curve


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """Right answers over steps of training."""
    figure, axes = gallery.picture(3.8)
    for (name, curve), style in zip(curves.items(), ("o-", "s-", "^-", "v-"), strict=True):
        axes.plot(*zip(*[(step, 100 * right) for step, right in curve], strict=True), style,
                  ms=4, label=name)  # fmt: skip
    axes.set(xlabel="steps of training", ylabel="right, % of numbers held out", ylim=(-2, 103))
    axes.set_title("The four shapes of sequence problems, trained on Roman numerals")
    axes.legend(frameon=False)
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train all four, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=300)
    made.add_argument("--hidden", type=gallery.integer(1), default=64, help="units of each LSTM")
    args = gallery.parse(made, argv)
    held_out, known = (1 + torch.randperm(3999)).to(args.device).tensor_split([800])

    curves, trained = {}, {}
    for name, kind in SHAPES.items():
        trained[name] = kind(args.hidden).to(args.device)
        curves[name] = train(trained[name], known, held_out, args.steps)
        print(f"{name:12}: {curves[name][-1][1]:6.1%} of {len(held_out)} numbers held out")
    n = held_out[:4]
    with torch.no_grad():
        written = trained["one to many"].answers(n).tolist()
    for number, codes in zip(n.tolist(), written, strict=True):
        print(f"{number} is written {''.join(' MDCLXVI'[code] for code in codes).strip()}")
    draw(curves, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
