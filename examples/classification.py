"""Code, comment or docstring? Texts of 5 to 500 characters, one LSTM, no packing.

    python examples/classification.py    # a minute on one CPU thread; draws classification.png

The texts are real: what the modules of the running Python's standard library say in statements,
in comments and in docstrings, without the marks that would give them away (`#`, quotes, line ends).
Every fifth module is held out as a whole. An LSTM reads a text character by character, and a linear
layer judges the state after its last one: many to one, over rows of different lengths.

`lengths=` takes the rows of a batch as they come, and with `final_only=True` there is no output to
be made at steps that nobody asks about. The trained weights are then put into torch.nn.LSTM with a
PackedSequence: the same answers are expected, and the time of both on one batch is printed, as it
was on this machine.
"""

from __future__ import annotations

import ast
import re
import statistics
import sys
import sysconfig
import time
import tokenize
from itertools import groupby, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pack_padded_sequence, pad_sequence

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

CLASSES = ("code", "comment", "docstring")
SHORTEST, LONGEST = 5, 500
"""Characters of a text; longer ones are cut."""
CHARACTERS = 128
"""Codes of ASCII; 0 stands for all other characters."""


class Texts(NamedTuple):
    """Rows of different lengths."""

    codes: list[Tensor]
    """A tensor (length,) for each."""
    classes: Tensor
    """(N,), indices into `CLASSES`."""

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Padded codes (T, B), lengths (B,) and classes (B,) of some rows."""
        chosen = [self.codes[row] for row in rows.tolist()]
        return pad_sequence(chosen), torch.tensor(list(map(len, chosen))), self.classes[rows]


def fragments(path: Path) -> Iterator[tuple[int, str]]:
    """The class and text of every statement, block of comments and docstring of a module."""
    source = path.read_text("utf-8", errors="replace")
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, owners):
            yield 2, ast.get_docstring(node) or ""
        elif isinstance(node, ast.stmt) and not isinstance(node, ast.Expr):  # of which some are
            yield 0, ast.unparse(node)  # docstrings; and unparsing leaves the comments out
    with path.open("rb") as file:
        marks = [t for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    numbered = enumerate(marks)  # neighbours have line numbers that grow as fast as their indices
    for _, block in groupby(numbered, lambda pair: pair[1].start[0] - pair[0]):
        yield 1, " ".join(token.string.lstrip("#!: ") for _, token in block)


def read_texts(modules: int) -> tuple[Texts, Texts]:
    """Texts to train on and texts held out, as many of each class as there are of the rarest."""
    folder = Path(sysconfig.get_path("stdlib"))
    found: dict[tuple[bool, int], dict[str, None]] = {}  # dicts as sets that keep the order
    paths = [path for path in sorted(folder.glob("*.py")) if not path.name.startswith("_")]
    for index, path in enumerate(paths[:modules]):
        for kind, text in fragments(path):
            plain = re.sub(r"\s+", " ", text).strip()[:LONGEST]
            if len(plain) >= SHORTEST:
                found.setdefault((index % 5 == 4, kind), {})[plain] = None
    sets = []
    for held_out in (False, True):
        rows = [list(found.get((held_out, kind), {})) for kind in range(3)]
        least = min(map(len, rows))
        if least == 0:
            raise FileNotFoundError(f"too little source text of Python's library in {folder}")
        rng = torch.Generator().manual_seed(0)
        kept = [[row[i] for i in torch.randperm(len(row), generator=rng)[:least]] for row in rows]
        coded = [[ord(c) % CHARACTERS * c.isascii() for c in text] for row in kept for text in row]
        sets.append(Texts(list(map(torch.tensor, coded)), torch.arange(3).repeat_interleave(least)))
    return sets[0], sets[1]


class Reader(nn.Module):
    """Reads texts, and scores the classes."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, 32)
        self.lstm = fastrnn.LSTM(32, hidden_size, final_only=True)
        self.head = nn.Linear(hidden_size, len(CLASSES))

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, 3) of padded codes (T, B)."""
        _, (h_n, _) = self.lstm(self.embedding(codes), lengths=lengths)
        scores: Tensor = self.head(h_n[-1])
        return scores


class PackedReader(Reader):
    """The same with torch.nn.LSTM, which is told the lengths by packing."""

    def __init__(self, reader: Reader) -> None:
        super().__init__(reader.lstm.hidden_size)
        self.packed = nn.LSTM(32, reader.lstm.hidden_size)
        self.packed.load_state_dict(reader.lstm.state_dict())
        self.load_state_dict(reader.state_dict(), strict=False)

    def forward(self, codes: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, 3) of padded codes (T, B)."""
        embedded = pack_padded_sequence(self.embedding(codes), lengths, enforce_sorted=False)
        _, (h_n, _) = self.packed(embedded)
        scores: Tensor = self.head(h_n[-1])
        return scores


def batches(texts: Texts, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless random batches; sixteen are drawn at once, so that each has texts of like lengths."""
    while True:
        drawn = torch.randint(len(texts.codes), (16 * size,))
        order = sorted(drawn.tolist(), key=lambda row: len(texts.codes[row]))
        parts = torch.split(torch.tensor(order), size)
        for part in torch.randperm(16).tolist():
            yield texts.batch(parts[part])


def train(reader: Reader, texts: Texts, steps: int, device: str) -> list[float]:
    """Adam with a falling rate; returns the losses."""
    optimizer = torch.optim.Adam(reader.parameters(), 5e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, steps)
    losses = []
    for _, (codes, lengths, classes) in zip(range(steps), batches(texts, 32), strict=False):
        scores = reader(codes.to(device), lengths.to(device))
        loss = cross_entropy(scores, classes.to(device))
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.no_grad()
def answers(reader: Reader, texts: Texts, device: str) -> Tensor:
    """Scores (N, 3) of all texts."""
    parts = []
    for rows in torch.split(torch.arange(len(texts.codes)), 256):
        codes, lengths, _ = texts.batch(rows)
        parts.append(reader(codes.to(device), lengths.to(device)).cpu())
    return torch.cat(parts)


def milliseconds(reader: Reader, texts: Texts, device: str) -> float:
    """Of a pass forward and back over the batch of the first texts; the median of five."""
    codes, lengths, classes = texts.batch(torch.arange(0, len(texts.codes), len(texts.codes) // 64))
    codes, classes, seconds = codes.to(device), classes.to(device), []
    if not isinstance(reader, PackedReader):
        lengths = lengths.to(device)  # packing wants them on the CPU
    for _ in range(6):
        began = time.perf_counter()
        cross_entropy(reader(codes, lengths), classes).backward()  # type: ignore[no-untyped-call]
        reader.head.bias.detach().sum().item()
        seconds.append(time.perf_counter() - began)
    return 1e3 * statistics.median(seconds[1:])


def draw(losses: list[float], texts: Texts, right: Tensor, path: Path) -> None:
    """The loss in training, and the share of right answers for texts of each length."""
    figure, (left, bars) = gallery.picture(3.6, 1, 2)
    smooth = torch.tensor(losses).unfold(0, min(16, len(losses)), 1).mean(1)
    left.plot(range(1, len(losses) + 1), losses, alpha=0.25, lw=0.8)
    left.plot(
        range(len(losses) - len(smooth) + 1, len(losses) + 1), smooth, color=gallery.COLOURS[0]
    )
    left.set(xlabel="step of training", ylabel="loss, nats per text", ylim=(0, None))
    left.set_title("training; the dark line is the mean of 16")
    lengths = torch.tensor(list(map(len, texts.codes)))
    edges = [SHORTEST, 20, 40, 80, 160, LONGEST + 1]
    for place, (least, more) in enumerate(pairwise(edges)):
        within = (lengths >= least) & (lengths < more)
        for kind, name in enumerate(CLASSES):
            those = within & (texts.classes == kind)
            # of no texts a NaN, which draws no bar
            share = 100 * right[those].double().mean().item()
            bars.bar(place + 0.27 * (kind - 1), share, 0.25, color=gallery.COLOURS[kind],
                     label="" if place else name)  # fmt: skip
    bars.set_xticks(
        range(len(edges) - 1),
        [f"{least}-{more - 1}" for least, more in pairwise(edges)],
    )
    bars.axhline(100 / 3, color="black", lw=1, ls=":")
    bars.set(xlabel="characters of the text", ylabel="right, % of texts held out", ylim=(0, 119))
    bars.set_title("answers; chance is dotted")
    bars.legend(loc="upper center", ncols=3, frameon=False, columnspacing=1, handlelength=1.2)
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Train, judge texts of modules never seen, compare with packing; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=600)
    made.add_argument("--hidden", type=gallery.integer(1), default=64, help="units of the LSTM")
    made.add_argument(
        "--modules", type=gallery.integer(5), default=200, help="of the library to read, at most"
    )
    args = gallery.parse(made, argv)
    try:
        texts, held_out = read_texts(args.modules)
    except FileNotFoundError as error:
        made.error(f"argument --modules: {error}")
    reader = Reader(args.hidden).to(args.device)
    print(f"{len(texts.codes):,} texts to train on, {len(held_out.codes):,} held out")
    losses = train(reader, texts, args.steps, args.device)

    packed = PackedReader(reader).to(args.device)
    scores = answers(reader, held_out, args.device)
    other = answers(packed, held_out, args.device)
    right, same = scores.argmax(1) == held_out.classes, (scores.argmax(1) == other.argmax(1)).all()
    print(
        f"loss {losses[0]:.3f} at first, {losses[-1]:.3f} at last; right of those held out: "
        + ", ".join(
            f"{name} {right[held_out.classes == kind].double().mean():.0%}"
            for kind, name in enumerate(CLASSES)
        )
        + f", all {right.double().mean():.1%}"
    )
    print(
        f"torch.nn.LSTM, packed, gives {'the same' if same else 'OTHER'} answers; scores differ "
        f"by {(scores - other).abs().max():.0e} at most"
    )
    ours, theirs = (milliseconds(module, texts, args.device) for module in (reader, packed))
    print(
        f"forward and back over one batch of 64, here: lengths= {ours:.0f} ms, packed torch.nn "
        f"{theirs:.0f} ms"
    )
    draw(losses, held_out, right, args.out)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
