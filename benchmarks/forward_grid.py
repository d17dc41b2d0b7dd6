"""The forward pass of whole layers in every regime, against torch.nn, over the issue's grid.

    python -m benchmarks.forward_grid --out FILE --rates EXCHANGE_JSON --seconds 500
    python -m benchmarks.forward_grid --dry-run

LSTM and RNN (tanh), bfloat16 and float32 (TF32 on both sides), H 256 to 1536, B 8 to 128, T 128 and
1024; cuDNN's best case; small and odd H; two directions; two layers. Beside torch.nn stand the
`triton` backend in each regime that can run the case, the one that `auto` takes marked *, and the
input projection alone, which all of them include. How a case is measured: `forward_case.py`.

281 cases take about four minutes, by the model and what is published of torch.nn (7 to 15 us a
step), and their 200 kernels half a minute on 16 cores; ``--dry-run`` says it anew. The first 81
cases, a minute, see every kind at T = 128: all H, cells and dtypes, two directions, two layers.

``predicted`` is the model's time plus the measured projection, ``floor`` the same of those parts
that no kernel of that regime can do without; by the rates of ``--rates``, which
`benchmarks.exchange` wrote, else by published ones.

The file is written after every case. A case that it already holds is not measured again, so that a
run that was cut short goes on where it stopped, unless the file is from another machine, commit or
set of rates. Kernels are compiled before anything is measured, in parallel processes, into Triton's
cache; ``--warm`` does only that. What `fastrnn tune` stored on the machine does not count.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import forward_case
from benchmarks.exchange import positive
from benchmarks.forward_case import outlook
from fastrnn import bench
from fastrnn.bench_cases import Case, layer
from fastrnn.discovery import describe
from fastrnn.doctor import environment
from fastrnn.tables import table
from fastrnn_kernels.model import Rates
from fastrnn_kernels.plan import REGIMES

if TYPE_CHECKING:
    from collections.abc import Sequence

REPEATS = 9
SAME = ("fastrnn", "commit", "torch", "triton", "gpus")
"""What of the environment must be the same for a file to go on."""


def issue_cases() -> list[Case]:
    """Every case, in order of importance: a run that is cut short has seen every kind of case."""

    def of(cells: str, dtypes: str, H: Sequence[int], B: Sequence[int], T: Sequence[int],
           layers: int = 1, both: bool = False) -> list[Case]:  # fmt: skip
        return [
            Case(cell, "forward", t, b, h, h, layers, both, dtype, "cuda")
            for t, h, b, dtype, cell in itertools.product(T, H, B, dtypes.split(), cells.split())
        ]

    every = functools.partial(of, "lstm rnn_tanh", "bfloat16 float32")
    large, small = [256, 512, 768, 1024, 1536], [32, 64, 96, 128, 152, 192]
    return [
        *of("lstm", "float16", [768], [16], [1024]),
        *every(large, [16, 64], [128]),
        *every(small, [16], [128]),
        *every([256, 512], [16], [128], both=True),
        *every([256, 512], [16], [128], layers=2),
        *every(large, [16, 64], [1024]),
        *every(large, [8, 32, 128], [128]),
        *every(small, [64], [128]),
        *every([256, 512], [64], [128], both=True),
        *every([256, 512], [64], [128], layers=2),
        *every(large, [8, 32, 128], [1024]),
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the exit code: 1 if a result was wrong, or without a GPU."""
    options = parse(arguments)
    index, parts = options.part
    cases = issue_cases()[index - 1 :: parts]
    if options.dry_run:
        print("\n".join(f"{case} {case.dtype}" for case in cases))
        print(expectation(cases, options.repeats))
        return 0
    if not torch.cuda.is_available() or torch.version.hip is not None:
        print("forward_grid: torch sees no CUDA GPU here", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        rates = Rates() if options.rates is None else read_rates(options.rates)
        result = resume(options.out, new_result(rates, measured=options.rates is not None))
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"forward_grid: error: {describe(error)}", file=sys.stderr)
        return 2
    done = {tuple(found["case"].values()) for found in result["cases"]}
    left = [case for case in cases if tuple(case) not in done]
    with bench.as_installed():
        if left:
            warm(left, os.cpu_count() or 1)
            print(f"forward_grid: compiled in {time.monotonic() - began:.0f} s", flush=True)
        if options.warm:
            return 0
        print(f"forward_grid: {expectation(left, options.repeats)}", flush=True)
        for number, case in enumerate(left):
            end = time.monotonic() + forward_case.expected_seconds(case, options.repeats)
            if end > began + options.seconds:
                print(f"forward_grid: out of time, {len(left) - number} cases left: run it again")
                break
            run_case(case, options, rates, result)
    print(report(result["cases"]))
    wrong = faults(result["cases"])
    for fault in wrong:
        print(f"forward_grid: {fault}", file=sys.stderr)
    return int(bool(wrong))


def run_case(case: Case, options: argparse.Namespace, rates: Rates, result: dict[str, Any]) -> None:
    """Measure a case and add it to the file, also if it cannot be measured at all.

    Raises:
        Exception: what broke the measurement off; the GPU may be of no more use to this process.
    """
    found: dict[str, Any] = {
        "name": f"{case} {case.dtype}", "case": case._asdict(), "rows": [],
    }  # fmt: skip
    try:
        found["rows"] = forward_case.measure(case, options.repeats, rates)
    except Exception as error:
        found["broke_off"] = describe(error)
        raise
    finally:
        result["cases"].append(found)
        result["summary"] = summary(result["cases"])
        save(options.out, result)
    print(line(found), flush=True)


def expectation(cases: Sequence[Case], repeats: int) -> str:
    """How many cases there are, and how long they may take."""
    seconds = sum(forward_case.expected_seconds(case, repeats) for case in cases)
    return f"{len(cases)} cases, about {seconds / 60:.1f} minutes beside compiling"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="forward_grid", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="JSON; goes on with what is there")
    parser.add_argument("--rates", type=Path, help="what benchmarks.exchange wrote: calibrates")
    parser.add_argument("--part", type=part, default=(1, 1), metavar="I/N", help="every N-th case")
    parser.add_argument("--seconds", type=float, default=math.inf,
                        help="start no case that would end later")  # fmt: skip
    parser.add_argument("--repeats", type=positive, default=REPEATS)
    parser.add_argument("--warm", action="store_true", help="only compile, into Triton's cache")
    parser.add_argument("--dry-run", action="store_true", help="show the cases; needs no GPU")
    options = parser.parse_args(arguments)
    if options.out is None and not options.dry_run:
        parser.error("argument --out: expected a file, got none")
    return options


def part(text: str) -> tuple[int, int]:
    """``I/N``: part I of N, from 1 on."""
    index, _, parts = text.partition("/")
    if not (index.isdecimal() and parts.isdecimal() and 1 <= int(index) <= int(parts)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 <= I <= N, got {text!r}")
    return int(index), int(parts)


def read_rates(path: Path) -> Rates:
    """The rates that `benchmarks.exchange` wrote."""
    found = json.loads(path.read_text(encoding="utf-8"))["rates"]
    products = tuple((int(size), float(rate)) for size, rate in found.pop("products"))
    return Rates(products=products, **found)


def new_result(rates: Rates, measured: bool) -> dict[str, Any]:
    """A file's content before any case."""
    settings = {
        "cold_bytes": forward_case.COLD_BYTES,
        "checked_rows": forward_case.CHECKED,
        "rates_measured": measured,
        "rates": vars(rates),
    }
    return {"environment": environment(), "settings": settings, "cases": []}


def resume(path: Path, new: dict[str, Any]) -> dict[str, Any]:
    """What a former run left in the file, or a new result.

    Raises:
        ValueError: the file is of another machine, version, commit or setting.
    """
    if not path.exists():
        return new
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    now = json.loads(json.dumps(new))  # tuples are lists there
    for part, names in (("environment", SAME), ("settings", now["settings"])):
        for name in names:
            before, after = found[part][name], now[part][name]
            if before != after:
                raise ValueError(
                    f"--out: {path} was measured with {name} {before!r}, now it is {after!r}: "
                    "name another file"
                )
    return found


def save(path: Path, result: dict[str, Any]) -> None:
    """Write through a second file, so that an interrupted write leaves the last whole one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    second = path.with_suffix(".part")
    second.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    second.replace(path)


def warm(cases: Sequence[Case], processes: int) -> None:
    """Compile what the cases need, in parallel processes that each run a call."""
    wanted: dict[object, tuple[Case, str]] = {}
    for case, regime in itertools.product(cases, REGIMES):
        config = outlook(case, regime).config
        if config is not None:
            # what a kernel is compiled for: neither T nor B nor how many layers there are
            sizes = case.cell, case.dtype, case.H, case.bidirectional
            key = regime, sizes, tuple(config.blocks("forward").items()), config.num_warps
            wanted.setdefault(key, (case, regime))
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(max(1, min(processes, len(wanted), 16)), context) as pool:
        try:
            for told in pool.map(compile_one, *zip(*wanted.values(), strict=True)):
                if told:
                    print(f"forward_grid: {told}", file=sys.stderr, flush=True)
        except BrokenProcessPool as error:  # the case says so again, and which one it is
            print(f"forward_grid: compiling ahead broke off: {error}", file=sys.stderr)


def compile_one(case: Case, regime: str) -> str:
    """One call of a case; what went wrong, if anything."""
    case = case._replace(T=min(case.T, 128), layers=1)
    x = torch.zeros(case.T, case.B, case.I, dtype=case.torch_dtype, device=case.device)
    try:
        with forward_case.tf32():
            forward_case.caller(layer(case, "triton"), regime)(x)
            if case.device == "cuda":
                torch.cuda.synchronize()
    except Exception as error:
        return f"{case} {case.dtype} {regime}: raised {describe(error)}"
    return ""


def faults(cases: Sequence[dict[str, Any]]) -> list[str]:
    """What was wrong or failed."""
    broken = [f"{found['name']}: {found['broke_off']}" for found in cases if "broke_off" in found]
    return broken + [
        f"{found['name']}: {row['implementation']} {row['status']}: {row['reason']}"
        for found in cases
        for row in found["rows"]
        if row["status"] in ("wrong", "failed")
    ]


def kind_of(case: Case) -> str:
    """Which of the issue's groups a case belongs to."""
    name = f"{case.cell} {case.dtype}"
    if case.dtype == "float16":
        return "best case of cuDNN"
    if case.bidirectional or case.layers > 1:
        return f"{name} {'bidirectional' if case.bidirectional else f'{case.layers} layers'}"
    return f"{name} {'grid' if case.H >= 256 else 'small or odd H'}"


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of `auto`'s speed-up over torch.nn by kind of case, and what falls behind."""
    kinds: dict[str, list[float]] = {"all": []}
    behind, far = [], []
    for found in cases:
        # the row of the regime that `auto` takes
        row = next((row for row in found["rows"] if row["auto"]), None)
        if row is None or row["speedup"] is None:
            continue
        for kind in ("all", kind_of(Case(**found["case"]))):
            kinds.setdefault(kind, []).append(row["speedup"])
        if row["speedup"] < 1:
            behind.append(found["name"])
        if row["median_s"] > 2 * row["floor_s"]:
            far.append(found["name"])
    means = {kind: statistics.geometric_mean(found) for kind, found in kinds.items() if found}
    return {"speedup": means, "behind_torch": behind, "beyond_twice_the_floor": far}


def line(found: dict[str, Any]) -> str:
    """A case in one line: torch.nn's time, and each regime's with its speed-up and prediction."""
    texts = []
    for row in found["rows"]:
        if row["median_s"] is None:
            continue
        text = f"{row['implementation']}{'*' if row['auto'] else ''} {1e3 * row['median_s']:.3f} ms"
        if "predicted_s" in row:
            text += f" ({row['speedup'] or math.nan:.2f}x, model {1e3 * row['predicted_s']:.3f}"
            text += f", floor {1e3 * row['floor_s']:.3f})"
        texts.append(text)
    return f"{found['name']}: " + ", ".join(texts)


def report(cases: Sequence[dict[str, Any]]) -> str:
    """Geometric means, and how many cases fall short."""
    found = summary(cases)
    rows = [[kind, f"{mean:.2f}x"] for kind, mean in found["speedup"].items()]
    return "\n".join(
        [
            table(["cases", "auto over torch.nn"], rows, "lr"),
            f"{len(cases)} cases; slower than torch.nn: {len(found['behind_torch'])}; "
            f"beyond twice the floor: {len(found['beyond_twice_the_floor'])}",
        ]
    )


if __name__ == "__main__":
    raise SystemExit(main())
