"""A stream of 20,000 steps: truncated backpropagation in windows, then one step at a time.

    python examples/streaming.py    # a quarter of a minute on one CPU thread; draws streaming.png

An LSTM reads one long text, source of Python's standard library, and predicts each next character.
`fastrnn.windows` runs it window by window: outputs are those of one call over the whole text, and
what is cut off is the gradient's way back beyond its own window. Three things are shown:

- training, one step of Adam per window of `--window` characters, the state carried on;
- of the trained weights, for windows of many sizes: the memory that is kept for the way back, and
  how far the sum of the windows' gradients is from the gradient of the whole text. With a window as
  long as the text there is no difference;
- `fastrnn.Stepper` runs the same weights step by step, as a program does that waits for its next
  input: the same outputs, here with the time of a step.

Exit status: 0, or 1 if outputs or gradients differ that should be the same.
"""

from __future__ import annotations

import math
import statistics
import sys
import sysconfig
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import fastrnn
from fastrnn.testing import tolerance

if TYPE_CHECKING:
    from collections.abc import Sequence

LN2 = math.log(2)
V = 97
"""Characters: line end, printable ASCII, and one for all others."""


def read_text(steps: int) -> tuple[Tensor, Tensor]:
    """Input (T, 1, V), one character each, and the next ones (T, 1)."""
    path = Path(sysconfig.get_path("stdlib")) / "argparse.py"
    text = path.read_text("utf-8", errors="replace").expandtabs(4)
    places = {c: i for i, c in enumerate("\n" + "".join(map(chr, range(32, 127))))}
    codes = torch.tensor([places.get(c, V - 1) for c in text[: steps + 1]])
    return one_hot(codes[:-1], V).float().unsqueeze(1), codes[1:].unsqueeze(1)


class Model(nn.Module):
    """An LSTM, and the scores of the next character."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(V, hidden_size)
        self.head = nn.Linear(hidden_size, V)

    def loss(self, output: Tensor | None, y: Tensor | None) -> Tensor:
        """Nats of every character, of outputs (T, 1, H) of the LSTM and next characters (T, 1)."""
        assert output is not None  # as it is with final_only
        assert y is not None
        return cross_entropy(self.head(output[:, 0]), y[:, 0], reduction="none")


def train(model: Model, x: Tensor, y: Tensor, args: Any) -> list[float]:
    """Pass after pass over the text, a step of Adam for each window; returns nats per character."""
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses: list[float] = []
    while True:
        for window in fastrnn.windows(model.lstm, x, window=args.window, targets=y):
            loss = model.loss(window.output, window.targets).mean()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
            if len(losses) == args.steps:
                return losses


class Truncated(NamedTuple):
    """What a window size costs and gives."""

    size: int
    megabytes: float
    """The most that is kept for the way back at any time."""
    gradient: Tensor
    """Of the whole text's mean loss, by all weights of the LSTM; cut off at windows."""


def truncated(model: Model, x: Tensor, y: Tensor, size: int) -> Truncated:
    """Add up the gradients of all windows, the weights as they are."""
    model.zero_grad()
    kept: dict[int, int] = {}
    most = 0

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        for window in fastrnn.windows(model.lstm, x, window=size, targets=y):
            loss = model.loss(window.output, window.targets).sum() / len(x)
            loss.backward()  # type: ignore[no-untyped-call]
            most = max(most, sum(kept.values()))
            kept.clear()
    gradients = [p.grad.flatten() for p in model.lstm.parameters() if p.grad is not None]
    return Truncated(size, most / 1e6, torch.cat(gradients))


def gradient_of_one_call(model: Model, x: Tensor, y: Tensor) -> Tensor:
    """The same gradient without windows."""
    loss = model.loss(model.lstm(x)[0], y).mean()
    gradients = torch.autograd.grad(loss, list(model.lstm.parameters()))
    return torch.cat([gradient.flatten() for gradient in gradients])


def stepped(model: Model, x: Tensor) -> tuple[Tensor, float]:
    """Outputs (T, 1, H) of a stepper, and seconds per step."""
    stepper = fastrnn.Stepper(model.lstm)
    output = x.new_empty(len(x), 1, model.lstm.hidden_size)
    began = time.perf_counter()
    for t, now in enumerate(x):
        output[t] = stepper(now)
    return output, (time.perf_counter() - began) / len(x)


def draw(losses: list[float], found: list[Truncated], errors: list[float], args: Any) -> None:
    """Training; memory and error of the gradient over the size of windows."""
    figure, (left, right) = gallery.picture(3.8, 1, 2)
    steps = torch.arange(1, len(losses) + 1)
    bits = torch.tensor(losses) / LN2
    left.plot(steps, bits, alpha=0.3, lw=0.8)
    once = min(-(-args.length // args.window), len(bits))
    smooth = bits.unfold(0, once, 1).mean(1)
    left.plot(steps[-len(smooth) :], smooth, color=gallery.COLOURS[0])
    left.set(xlabel=f"windows of {args.window} characters", ylabel="bits per character")
    left.set_title("training; the dark line is the mean of a pass")
    sizes = [one.size for one in found]
    lines = right.plot(sizes, [one.megabytes for one in found], "o-", label="memory kept")
    right.set(xscale="log", yscale="log", xlabel="steps in a window", ylabel="memory, MB")
    other = right.twinx()
    other.spines["right"].set_visible(True)
    # the last is the whole text, of which the error is none
    lines += other.plot(
        sizes[:-1], errors[:-1], "s-", color=gallery.COLOURS[1], label="error of the gradient"
    )
    other.set(yscale="log", ylabel="error of the gradient, relative")
    right.legend(handles=lines, loc="upper center", frameon=False)
    right.set_title("what a window costs, and what it cuts off")
    gallery.save(figure, args.out)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, measure, step, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=1000)
    made.add_argument("--length", type=gallery.integer(100), default=20_000, help="of the text")
    made.add_argument("--window", type=gallery.integer(1), default=100, help="of training, steps")
    made.add_argument("--hidden", type=gallery.integer(1), default=64, help="units of the LSTM")
    args = gallery.parse(made, argv)
    x, y = (part.to(args.device) for part in read_text(args.length))
    if len(x) < args.length:
        made.error(f"argument --length: expected at most the text's {len(x)}, got {args.length}")
    model = Model(args.hidden).to(args.device)
    losses = train(model, x, y, args)
    once = min(-(-args.length // args.window), len(losses))
    first, last = (statistics.fmean(part) / LN2 for part in (losses[:once], losses[-once:]))
    print(
        f"{args.steps} windows of {args.window} steps of a text of {args.length:,}: {first:.2f} "
        f"bits per character in the first pass, {last:.2f} in the last"
    )

    whole = gradient_of_one_call(model, x, y)
    sizes = [size for size in (20, 60, 200, 600, 2000, 6000) if size < args.length]
    found = [truncated(model, x, y, size) for size in [*sizes, args.length]]
    errors = [((one.gradient - whole).norm() / whole.norm()).item() for one in found]
    for one, error in zip(found, errors, strict=True):
        print(f"window {one.size:>6,}: keeps {one.megabytes:7.2f} MB, gradient {error:.1e} off")

    with torch.no_grad():
        output, _ = model.lstm(x)
    steps, seconds = stepped(model, x)
    apart = (steps - output).abs().max().item()
    print(
        f"Stepper: outputs {apart:.0e} off those of one call at most, over {args.length:,} steps; "
        f"{1e6 * seconds:.0f} us a step, here"
    )
    draw(losses, found, errors, args)
    allowed = tolerance(torch.float32, args.length)
    return int(errors[-1] > allowed.gradient or apart > allowed.output)


if __name__ == "__main__":
    sys.exit(main())
