"""Did a commit make fastrnn slower? Both commits run the same cases in turn; a gate for CI.

    python -m benchmarks.compare_commits BASE [HEAD] [--device cuda]

Both are checked out into temporary worktrees, and two processes of each run one sample at a time,
in random order. They stay alive and are asked line by line (`commit_worker`): a process a sample
would spend seconds on importing torch for milliseconds of samples, and would throw away the warm
caches that a user has. But where a process happens to lay its memory counts, and would stay the
same for a whole run: so there are two processes of each commit, and `--fresh` times as many in all,
one set after the other.

`ratio` is HEAD's time over BASE's in the same round, the median over rounds, then over sets.
`noise` is how far BASE's second process is from its first, less 1, the median over sets. A case is
slower if its ratio is above 1 by more than the threshold and twice the noise together. No time is
ever printed: only ratios of one machine's minutes mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.pairs import evaluate
from fastrnn.machine import CACHE_VARIABLE
from fastrnn.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

WORKER = Path(__file__).with_name("commit_worker.py")
FOLDERS = ("", "kernels", "plugins")
"""Of a checkout, where its packages are."""
SAMPLE_SECONDS = 1e-2
"""Least length of a sample."""


class Case(NamedTuple):
    """One comparison; T steps, B rows of the batch, H inputs and hidden units."""

    cell: str
    mode: str
    """`forward` (no gradients), `train`, or `packed` (the latter of a PackedSequence)."""
    T: int
    B: int
    H: int
    backend: str = "auto"
    dtype: str = "float32"

    def __str__(self) -> str:
        return ":".join(map(str, self))


MODES = ("forward", "train", "packed")
CPU = [
    Case("lstm", "forward", 1, 1, 64),
    Case("lstm", "forward", 100, 8, 128),
    Case("lstm", "train", 20, 8, 64),
    Case("lstm", "packed", 50, 8, 64),
    Case("gru", "train", 20, 8, 64),
    Case("rnn_tanh", "forward", 1, 1, 32),
    Case("rnn_tanh", "train", 100, 8, 64),
    Case("rnn_relu", "packed", 50, 8, 32),
    Case("lstm", "train", 20, 8, 64, "reference"),
    Case("lstm", "train", 20, 8, 64, "aten"),
]
CUDA = [
    Case(cell, mode, 128, 16, H, backend, "bfloat16")
    for cell, H in (("lstm", 256), ("lstm", 1024), ("gru", 512), ("rnn_tanh", 512))
    for mode in ("forward", "train")
    for backend in ("triton", "auto")
]


class Outcome(NamedTuple):
    """What was found of a case."""

    case: Case
    backends: tuple[str, str] = ("", "")
    """Of BASE and of HEAD."""
    ratio: float = math.nan
    noise: float = math.nan
    verdict: str = "ok"
    """`ok`, `SLOWER`, `FAILED` (HEAD cannot run it any more), or `left out` (BASE cannot)."""
    reason: str = ""


class GateError(Exception):
    """The commits cannot be compared."""


def main(arguments: list[str] | None = None) -> int:
    """Compare and print; exits with 1 if a case is slower or fails, with 2 if that is not known."""
    options = parse(arguments)
    try:
        with contextlib.ExitStack() as stack:
            names = (options.base, options.head)
            trees = [stack.enter_context(worktree(name)) for name in names]
            found = compare(trees, options)
    except GateError as error:
        print(f"compare_commits: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    print(report(found, options))
    if all(outcome.verdict == "left out" for outcome in found):
        print("compare_commits: error: no case could be measured", file=sys.stderr)
        return 2
    return int(any(outcome.verdict in ("SLOWER", "FAILED") for outcome in found))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="compare_commits", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("base", help="a commit, branch or tag")
    parser.add_argument("head", nargs="?", default="HEAD", help="another; what is checked out")
    parser.add_argument("--cases", type=case, nargs="+", help="cell:mode:T:B:H[:backend[:dtype]]")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=positive, help="of each process; torch's own number")
    parser.add_argument("--threshold", type=float, default=0.1, help="0.1 is 10 %% slower")
    parser.add_argument("--rounds", type=positive, default=25, help="of each set of processes")
    parser.add_argument("--fresh", type=positive, default=3, help="sets of processes")
    options = parser.parse_args(arguments)
    options.cases = options.cases or (CPU if options.device == "cpu" else CUDA)
    return options


def case(text: str) -> Case:
    """A case in text, ``cell:mode:T:B:H[:backend[:dtype]]``."""
    fields = text.split(":")
    if not 5 <= len(fields) <= len(Case._fields) or fields[1] not in MODES:
        raise argparse.ArgumentTypeError(
            f"expected cell:mode:T:B:H[:backend[:dtype]], mode one of {', '.join(MODES)}, "
            f"got {text!r}"
        )
    T, B, H = map(positive, fields[2:5])
    return Case(fields[0], fields[1], T, B, H, *fields[5:])


def positive(text: str) -> int:
    """A number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected an int of 1 or more, got {text!r}")
    return int(text)


@contextlib.contextmanager
def worktree(name: str) -> Iterator[Path]:
    """A commit, checked out into a temporary folder.

    Raises:
        GateError: there is no such commit, or no repository.
    """
    commit = git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    with tempfile.TemporaryDirectory(prefix="fastrnn-") as folder:
        path = Path(folder).resolve() / "checkout"
        git("worktree", "add", "--quiet", "--detach", str(path), commit)
        try:
            yield path
        finally:
            git("worktree", "remove", "--force", str(path))


def git(*arguments: str) -> str:
    """What git prints, in the repository of the folder that this is run in.

    Raises:
        GateError: git fails or is missing.
    """
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=True)
    except subprocess.CalledProcessError as error:
        told = error.stderr.strip().splitlines()
        why = told[-1] if told else "no such commit"
        raise GateError(f"git {arguments[0]} {arguments[-1]}: {why}") from None
    except OSError as error:
        raise GateError(f"git: {error}") from None
    return done.stdout.strip()


class Worker:
    """A process that runs the fastrnn of a checkout."""

    def __init__(self, tree: Path, options: argparse.Namespace, scratch: Path) -> None:
        reading, writing = os.pipe()
        command = [sys.executable, "-P", str(WORKER), "--device", options.device]
        command += ["--answers", str(writing)]
        command += ["--threads", str(options.threads)] if options.threads else []
        self.log = scratch / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                command, cwd=tree, env=surroundings(tree, scratch), text=True, pass_fds=[writing],
                stdin=subprocess.PIPE, stdout=log, stderr=log,
            )  # fmt: skip
        os.close(writing)  # the answers end when the process does
        self.answers = open(reading, encoding="utf-8")  # noqa: SIM115 (until it is closed)
        self.tree = tree

    def check(self) -> None:
        """Wait until it has imported fastrnn, and see that it is the right one.

        Raises:
            GateError: it is another, or could not be imported.
        """
        file = Path(self.receive()["file"]).resolve()
        if not file.is_relative_to(self.tree):
            raise GateError(f"a process that should import fastrnn from {self.tree} took {file}")

    def ask(self, **request: object) -> dict[str, Any]:
        """The answer to a request.

        Raises:
            GateError: the process has ended.
        """
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then there is no answer, either
            print(json.dumps(request), file=self.process.stdin, flush=True)
        return self.receive()

    def receive(self) -> dict[str, Any]:
        """The next line."""
        line = self.answers.readline()
        if not line:
            told = self.log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise GateError(f"a process ended with {self.process.wait()}: {told[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End it."""
        self.process.kill()
        self.process.communicate()
        self.answers.close()


def surroundings(tree: Path, scratch: Path) -> dict[str, str]:
    """The environment of a worker: this one's, but for fastrnn's own settings and packages."""
    here = Path(__file__).resolve().parent.parent
    others = [
        path
        for path in os.environ.get("PYTHONPATH", "").split(os.pathsep)
        # a package that the commit has not must not come from this checkout
        if path and not Path(path).resolve().is_relative_to(here)
    ]
    found = {key: value for key, value in os.environ.items() if not key.startswith("FASTRNN_")}
    found["PYTHONPATH"] = os.pathsep.join([*(str(tree / name) for name in FOLDERS), *others])
    found[CACHE_VARIABLE] = str(scratch)  # what `fastrnn tune` has stored does not count
    return found


def compare(trees: Sequence[Path], options: argparse.Namespace) -> list[Outcome]:
    """Every case, over all sets of processes."""
    found: dict[Case, list[Outcome]] = {case: [] for case in options.cases}
    order = random.Random(0)
    for number in range(options.fresh):
        if sys.stderr.isatty():
            print(f"set {number + 1} of {options.fresh}", file=sys.stderr)
        base, head = trees
        with workers([base, head, head, base], options) as own:
            for case, outcomes in found.items():
                if not any(outcome.reason for outcome in outcomes):
                    outcomes.append(measure(case, own, order, options.rounds))
    return [combine(outcomes, options.threshold) for outcomes in found.values()]


@contextlib.contextmanager
def workers(trees: Sequence[Path], options: argparse.Namespace) -> Iterator[list[Worker]]:
    """A process for each checkout named."""
    with contextlib.ExitStack() as stack:
        own = []
        for tree in trees:
            scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrnn-")))
            own.append(Worker(tree, options, scratch))
            stack.callback(own[-1].close)
        for worker in own:
            worker.check()
        yield own


def measure(case: Case, own: Sequence[Worker], order: random.Random, rounds: int) -> Outcome:
    """One case, in processes of base, head, head and base."""
    answers = [worker.ask(make=case._asdict()) for worker in own]
    first, second, *_ = answers
    if "error" in first:
        return Outcome(case, verdict="left out", reason=f"BASE: {first['error']}")
    if "error" in second:
        return Outcome(case, verdict="FAILED", reason=f"HEAD: {second['error']}")

    def seconds(worker: Worker, count: int) -> float:
        answer = worker.ask(time=count)
        if "error" in answer:
            raise GateError(f"{case}: {answer['error']}")
        return float(answer["seconds"])

    once = min(seconds(worker, 1) for worker in own)
    count = max(1, math.ceil(SAMPLE_SECONDS / max(once, 1e-7)))
    times = [in_turn(own, order, lambda worker: seconds(worker, count)) for _ in range(rounds)]
    result = evaluate(times)
    return Outcome(case, (first["backend"], second["backend"]), result.ratio, result.noise)


def in_turn(
    own: Sequence[Worker], order: random.Random, time: Callable[[Worker], float]
) -> list[float]:
    """A sample of each, in random order."""
    times = [0.0] * len(own)
    for which in order.sample(range(len(own)), len(own)):
        times[which] = time(own[which])
    return times


def combine(outcomes: Sequence[Outcome], threshold: float) -> Outcome:
    """The medians over sets of processes, and whether that is slower."""
    if outcomes[-1].reason:
        return outcomes[-1]
    ratio = statistics.median(outcome.ratio for outcome in outcomes)
    noise = statistics.median(outcome.noise for outcome in outcomes)
    slower = ratio - 1 > threshold + 2 * noise
    verdict = "SLOWER" if slower else "ok"
    return outcomes[0]._replace(ratio=ratio, noise=noise, verdict=verdict)


def report(found: Sequence[Outcome], options: argparse.Namespace) -> str:
    """The table, and below it what has no ratio, and why."""
    lines = [
        [str(o.case), " -> ".join(dict.fromkeys(o.backends)), f"{o.ratio:.3f}", f"{o.noise:.3f}",
         o.verdict]
        for o in found
        if not o.reason
    ]  # fmt: skip
    header = ["case", "backend", "HEAD/BASE", "noise", "verdict"]
    slower = sum(outcome.verdict == "SLOWER" for outcome in found)
    return "\n".join(
        [
            f"{options.base} (BASE) against {options.head} (HEAD) on {options.device}",
            *([table(header, lines, "llrrl")] if lines else []),
            *(f"{o.verdict}: {o.case}: {o.reason}" for o in found if o.reason),
            f"{slower} of {len(lines)} cases are slower by more than {options.threshold:.0%} "
            "beyond twice the noise",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
