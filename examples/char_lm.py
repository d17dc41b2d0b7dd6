"""Train a character-level language model with torch.nn.LSTM and with fastrnn.LSTM, and compare.

The text is what every machine has: the source of Python's standard library, whole modules of it
held out for validation. Two copies of one model, the same weights in both, see the same batches
in turn; in one, `fastrnn.convert` has replaced the LSTM. Shown are both loss curves, bits per
character, tokens per second, which backend ran and why, and text that the model writes.

Exit status: 0 if the two trainings agree, 1 if they do not, 2 for wrong arguments.

What agreeing means. One step of training in float32 differs by rounding, bounded by the table in
`fastrnn.testing`: the gradients of the first step and the losses of the first steps are held to it.
Later, training itself amplifies any rounding: torch.nn.LSTM against torch.nn.LSTM, the weights
moved by one rounding, agree to 2e-7 for some eighty steps and then drift apart to 1e-2 of a single
batch's loss, though neither is worse. From there on means are compared: of the last tenth of the
losses, and the validation loss.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import math
import statistics
import sys
import sysconfig
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import fastrnn
from fastrnn.testing import tolerance

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fastrnn.request import Decision

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The vocabulary: a line end and printable ASCII; other characters are written as `?`."""
CODE = {character: index for index, character in enumerate(CHARACTERS)}

WARM_UP = 100
"""Steps over which the learning rate rises."""
COMPARED = 50
"""Steps of which every loss is compared: those before rounding is amplified (see above)."""
DRIFT = 0.01
"""How far the means may be apart afterwards. Those of torch.nn.LSTM against itself, the weights
moved by one rounding, were 0.15 % apart at most over six runs."""


class Corpus(NamedTuple):
    """Encoded text, int64."""

    train: Tensor
    validation: Tensor
    modules: int


def read_corpus(limit: int, folder: Path | None = None) -> Corpus:
    """Read the standard library's modules in the order of their names, up to `limit` characters.

    Every tenth module goes to validation as a whole, so that nothing of it was seen in training.

    Args:
        limit: characters in all; the last module is cut there.
        folder: where the modules lie; by default the running Python's standard library.

    Raises:
        FileNotFoundError: there is too little source text (some installations carry none).
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    parts: dict[bool, list[str]] = {False: [], True: []}
    total = modules = 0
    for path in sorted(folder.glob("*.py")):
        if path.name.startswith("_") or total >= limit:  # _*: generated tables, among others
            continue
        text = path.read_text("utf-8", errors="replace").expandtabs(4)[: limit - total]
        parts[modules % 10 == 9].append(text)
        total += len(text)
        modules += 1
    if not parts[True]:
        raise FileNotFoundError(f"no source text of Python's standard library in {folder}")
    return Corpus(encode("".join(parts[False])), encode("".join(parts[True])), modules)


def encode(text: str) -> Tensor:
    """Characters to indices into `CHARACTERS`."""
    unknown = CODE["?"]
    return torch.tensor([CODE.get(character, unknown) for character in text])


def decode(codes: Sequence[int]) -> str:
    """The inverse of `encode`."""
    return "".join(CHARACTERS[code] for code in codes)


def random_windows(text: Tensor, args: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches (inputs, targets), each (T, B): targets are the inputs' next characters."""
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        starts = torch.randint(len(text) - args.length, (args.batch,), generator=generator)
        window = text[starts + torch.arange(args.length + 1).unsqueeze(1)].to(args.device)
        yield window[:-1], window[1:]


class CharModel(nn.Module):
    """Embedding, LSTM, linear: the usual character model, written with torch.nn alone."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(len(CHARACTERS), 64)
        self.lstm = nn.LSTM(64, hidden_size)
        self.head = nn.Linear(hidden_size, len(CHARACTERS))

    def forward(
        self, codes: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Scores of the next character (T, B, V), and the state, for codes (T, B)."""
        hidden, state = self.lstm(self.embedding(codes), state)
        return self.head(hidden), state


@dataclass
class Learner:
    """A model in training, with what is measured of it."""

    name: str
    model: CharModel
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    first_gradients: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, model: CharModel, args: argparse.Namespace) -> Learner:
        """Adam, with a learning rate that rises over `WARM_UP` steps and then falls to a tenth."""
        optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
        steps: int = args.steps

        def rate(step: int) -> float:
            return min((step + 1) / WARM_UP, 1.0) * (1.0 - 0.9 * step / steps)

        return cls(name, model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate))

    def step(self, inputs: Tensor, targets: Tensor) -> None:
        """Train on one batch."""
        began = time.perf_counter()
        self.optimizer.zero_grad()
        scores, _ = self.model(inputs)
        loss = cross_entropy(scores.flatten(0, 1), targets.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        if not self.losses:
            self.first_gradients = {
                name: p.grad.clone()
                for name, p in self.model.named_parameters()
                if p.grad is not None
            }
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())  # waits for a GPU, so that the time is the step's
        self.seconds.append(time.perf_counter() - began)

    def tokens_per_second(self, args: argparse.Namespace) -> float:
        """Of the median step: first steps, which load and tune, do not count."""
        characters: int = args.length * args.batch
        return characters / statistics.median(self.seconds)

    def last_tenth(self) -> float:
        """The mean of the last tenth of the losses, at least of one."""
        return statistics.fmean(self.losses[-max(len(self.losses) // 10, 1) :])


@torch.no_grad()
def validation_loss(model: CharModel, text: Tensor, args: argparse.Namespace) -> float:
    """Mean loss, in nats per character, over windows laid end to end."""
    rows = min((len(text) - 1) // args.length, 1024)
    used = rows * args.length
    inputs = text[:used].view(rows, args.length).t().to(args.device)
    targets = text[1 : used + 1].view(rows, args.length).t().to(args.device)
    scores, _ = model(inputs)
    return cross_entropy(scores.flatten(0, 1), targets.flatten()).item()


@torch.no_grad()
def write(model: CharModel, start: str, args: argparse.Namespace) -> str:
    """Let the model continue `start`, character by character."""
    generator = torch.Generator().manual_seed(args.seed)
    codes = encode(start).tolist()
    scores, state = model(torch.tensor(codes, device=args.device).unsqueeze(1))
    for _ in range(args.characters):
        chances = (scores[-1, 0].double().cpu() / args.temperature).softmax(0)
        codes.append(int(torch.multinomial(chances, 1, generator=generator)))
        scores, state = model(torch.tensor([[codes[-1]]], device=args.device), state)
    return decode(codes)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[Learner, Learner], None]]:
    """A function to call after each step: a bar on a terminal with rich, else ten lines; stderr."""
    if sys.stderr.isatty() and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task("training both", total=steps)

            def advance(ours: Learner, theirs: Learner) -> None:
                bar.update(
                    task,
                    advance=1,
                    description=f"loss {theirs.losses[-1]:.3f} | {ours.losses[-1]:.3f}",
                )

            yield advance
        return

    def line(ours: Learner, theirs: Learner) -> None:
        done = len(ours.losses)
        if done % max(steps // 10, 1) == 0:
            print(
                f"step {done}/{steps}: loss {theirs.losses[-1]:.3f} | {ours.losses[-1]:.3f}",
                file=sys.stderr,
            )

    yield line


def train_both(
    model: CharModel, corpus: Corpus, backend: str, steps: int, args: argparse.Namespace
) -> tuple[Learner, Learner]:
    """Train copies of `model` with torch.nn.LSTM and with fastrnn.LSTM, batch by batch."""
    theirs = Learner.of("torch.nn", copy.deepcopy(model), args)
    ours = Learner.of("fastrnn", fastrnn.convert(copy.deepcopy(model), backend=backend), args)
    batches = random_windows(corpus.train, args)
    with progress(steps) as advance:
        for step, (inputs, targets) in zip(range(steps), batches, strict=False):
            # In turn, and each first every other time: what slows the machine slows both.
            for learner in (theirs, ours) if step % 2 == 0 else (ours, theirs):
                learner.step(inputs, targets)
            advance(ours, theirs)
    return theirs, ours


def disagreements(theirs: Learner, ours: Learner, args: argparse.Namespace) -> list[str]:
    """Where two trainings differ by more than the tolerances at the top of this file."""
    allowed = tolerance(torch.float32, args.length)
    found = []
    for name, want in theirs.first_gradients.items():
        error = ((ours.first_gradients[name] - want).abs().max() / want.abs().max()).item()
        if not error <= allowed.gradient:  # a NaN is not close to anything
            found.append(
                f"gradient of {name} in the first step: differs by {error:.1e} of its largest "
                f"entry, allowed {allowed.gradient:.1e}"
            )
    for step, (a, b) in enumerate(zip(theirs.losses, ours.losses, strict=True)):
        bound = allowed.output * max(a, 1.0)
        if step < COMPARED and not abs(a - b) <= bound:
            found.append(
                f"loss in step {step + 1}: {a:.6f} and {b:.6f} differ by {abs(a - b):.1e}, "
                f"allowed {bound:.1e}"
            )
            break
    return found + drifted("mean of the last losses", theirs.last_tenth(), ours.last_tenth())


def drifted(what: str, a: float, b: float) -> list[str]:
    """A complaint if two means are further apart than `DRIFT`, else nothing."""
    if abs(a - b) <= DRIFT * a:  # False for a NaN
        return []
    return [f"{what}: {a:.4f} and {b:.4f}, more than {DRIFT:.0%} apart"]


def curves(theirs: Learner, ours: Learner, args: argparse.Namespace) -> str:
    """Both loss curves side by side, in nats per character, at a dozen steps."""
    allowed = tolerance(torch.float32, args.length).output
    steps = len(ours.losses)
    lines = [f"{'step':>6}  {'torch.nn':>10}  {'fastrnn':>10}  {'difference':>10}  {'allowed':>8}"]
    for step in sorted({1, *(max(round(steps * k / 12), 1) for k in range(1, 13))}):
        a, b = theirs.losses[step - 1], ours.losses[step - 1]
        bound = f"{allowed * max(a, 1.0):8.1e}" if step <= COMPARED else "  (mean)"
        lines.append(f"{step:>6}  {a:10.6f}  {b:10.6f}  {abs(a - b):10.1e}  {bound}")
    return "\n".join(lines)


def plot(theirs: Learner, ours: Learner, path: Path) -> None:
    """Draw both loss curves, and their difference, into a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout="constrained")
    FigureCanvasAgg(figure)  # draws without a display
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    steps = range(1, len(ours.losses) + 1)
    for learner, style in ((theirs, {"lw": 3.0, "alpha": 0.4}), (ours, {"lw": 1.0})):
        bits = [loss / math.log(2) for loss in learner.losses]
        upper.plot(steps, bits, label=f"{learner.name}.LSTM", **style)
    upper.set_ylabel("bits per character")
    upper.set_title("A character model of Python's standard library, trained twice")
    upper.legend()
    lower.plot(steps, [abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True)], lw=1)
    lower.set_yscale("symlog", linthresh=1e-7)  # shows a difference of 0, too
    lower.set_ylim(bottom=-3e-8)
    lower.set_ylabel("|difference|\nof the loss")
    lower.set_xlabel("step")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def own_backend(decision: Decision) -> str | None:
    """If torch's own code was chosen, the cheapest other backend: one that fastrnn implements."""
    own = [c for c in decision.candidates if c.cost is not None and c.name != "aten"]
    if decision.backend != "aten" or not own:
        return None
    return min(own, key=lambda candidate: candidate.cost or math.inf).name


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line; exits with status 2 and one line about what is wrong."""

    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
        return int(text)

    parser = argparse.ArgumentParser(
        prog="char_lm.py",
        description="Train a character model with torch.nn.LSTM and fastrnn.LSTM, and compare.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--steps", type=positive, default=1200, help="training steps")
    add("--hidden", type=positive, default=256, help="hidden size of the LSTM")
    add("--length", type=positive, default=64, help="characters per sequence")
    add("--batch", type=positive, default=16, help="sequences per step")
    add("--lr", type=gallery.above_zero, default=5e-3, help="largest learning rate of Adam")
    add("--text", type=positive, default=2_000_000, help="characters of text to read")
    add("--seed", type=int, default=0, help="of weights, batches and the text written")
    add("--device", default="auto", help="cpu, cuda, cuda:1, mps, ...; auto takes a GPU if any")
    # A model this small gains little from more, and on a busy machine threads that wait for one
    # another make it several times slower.
    add("--threads", type=positive, default=1, help="of torch on a CPU")
    add("--backend", default="auto", help="fastrnn's backend, as for fastrnn.LSTM")
    add("--own-steps", type=positive, default=30, help="with our own code, if auto took torch's")
    add("--characters", type=positive, default=500, help="characters to write at the end")
    add("--temperature", type=gallery.above_zero, default=0.7, help="of the text written")
    add("--out", type=Path, default=Path("char_lm.png"), help="where the curves are drawn")
    args = parser.parse_args(argv)

    if importlib.util.find_spec("matplotlib") is None:
        parser.error("argument --out: drawing needs matplotlib: pip install 'fastrnn[bench]'")
    if args.device == "auto":
        args.device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=args.device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().split("\n", maxsplit=1)[0]
        parser.error(f"argument --device: {args.device!r} cannot be used: {reason}")
    try:
        fastrnn.LSTM(1, 1, backend=args.backend)
    except ValueError as error:
        parser.error(f"argument --backend: {error}")
    try:
        args.corpus = read_corpus(args.text)
    except FileNotFoundError as error:
        parser.error(f"argument --text: {error}")
    longest = min(len(args.corpus.train), len(args.corpus.validation)) - 1
    if args.length > longest:
        parser.error(
            f"argument --length: {args.length} is longer than the text; expected at most {longest}"
        )
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison; returns the exit status."""
    args = parse(argv)
    torch.set_num_threads(args.threads)
    if torch.device(args.device).type == "cuda":
        # TF32 keeps ten bits of a product's factors: two correct programs would then agree to
        # 1e-3 only. The comparison is of float32.
        torch.backends.cudnn.rnn.fp32_precision = "ieee"  # type: ignore[attr-defined]

    corpus = args.corpus
    print(
        f"text: {corpus.modules} modules of Python {sys.version.split()[0]}'s standard library, "
        f"{len(corpus.train):,} characters to train on, {len(corpus.validation):,} held out"
    )
    torch.manual_seed(args.seed)
    model = CharModel(args.hidden).to(args.device)
    theirs, ours = train_both(model, corpus, args.backend, args.steps, args)

    print(f"\nloss, nats per character ({args.device}, float32)")
    print(curves(theirs, ours, args))
    wrong = disagreements(theirs, ours, args)

    validation = [validation_loss(x.model, corpus.validation, args) for x in (theirs, ours)]
    wrong += drifted("validation loss", *validation)
    print(f"\n{'':10}{'bits/char train':>17}{'validation':>12}{'tokens/s':>12}")
    for learner, loss in zip((theirs, ours), validation, strict=True):
        print(
            f"{learner.name:10}{learner.last_tenth() / math.log(2):17.4f}"
            f"{loss / math.log(2):12.4f}{learner.tokens_per_second(args):12,.0f}"
        )

    inputs, _ = next(random_windows(corpus.train, args))
    decision = fastrnn.explain(ours.model.lstm, ours.model.embedding(inputs))
    print(f"\nwhat ran fastrnn.LSTM, and why\n{decision}")
    own = own_backend(decision)
    if own is not None:
        print(f"\nthat is torch's own code, so again with {own!r}, {args.own_steps} steps")
        again = train_both(model, corpus, own, args.own_steps, args)
        print(curves(*again, args))
        wrong += [f"backend {own}: {line}" for line in disagreements(*again, args)]

    plot(theirs, ours, args.out)
    print(f"\ncurves: {args.out}")
    if wrong:
        print("\nthe two trainings DISAGREE:", *wrong, sep="\n  - ")
        return 1
    print(f"\nwritten by the model (temperature {args.temperature:g})")
    text = write(ours.model, "    def __init__(self", args)
    print("\n".join("  | " + line for line in text.split("\n")))
    print("\nthe two trainings agree")
    return 0


if __name__ == "__main__":
    sys.exit(main())
