"""Whole layers in every way we have against torch.nn, over the grids of the project's targets.

    python -m benchmarks.regimes --mode train --out FILE --rates EXCHANGE_JSON --seconds 500
    python -m benchmarks.regimes --mode forward --dry-run

``forward`` is a pass without gradients, ``train`` a forward and a backward pass with the gradients
of the input and of all weights. LSTM and RNN (tanh), bfloat16 and float32 (TF32 on both sides), H
256 to 1536, B 8 to 128, T 128 and 1024; cuDNN's best case; two directions; two layers and four;
forward also small and odd H. Beside torch.nn stand the `triton` backend in each regime that can run
the case, layer by layer (and `auto` as the kernels have it, where a layer's two passes run in
different ones), and with all layers of a stack at once; what it takes by itself is marked *. Then
the products around the steps alone, which all of them include, those of layers at once being fewer;
FlashRNN where `peer.py` says so, if it is installed. Which cases in which order: `grids.py`; how
one is measured: `one_case.py`.

By the model and by what is published of torch.nn (7 to 15 us a step), the 286 forward cases take
about four minutes and their 250 kernels half a minute on 16 cores, the 238 of training not quite
seven, and theirs one and a half; ``--dry-run`` says it anew. The first 84 forward cases, a minute,
and the first 60 of training, as long, see every kind at T = 128.

``predicted`` is the model's time plus that of the products, measured; ``floor`` the same of those
parts that no kernel of that kind can do without; by the rates of ``--rates``, which
`benchmarks.exchange` wrote, else by published ones. ``peak`` is the memory of a call.

The file is written after every case. A case that it already holds is not measured again, so that a
run that was cut short goes on where it stopped, unless the file is from another machine, commit,
mode or set of rates. Kernels are compiled before anything is measured, in parallel processes, into
Triton's cache; ``--warm`` does only that. What `fastrnn tune` stored on the machine does not count.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from benchmarks import one_case, outlook, peer
from benchmarks.exchange import positive
from benchmarks.grids import faults, issue_cases, line, report, summary
from fastrnn import bench
from fastrnn.bench_cases import layer
from fastrnn.discovery import describe
from fastrnn.doctor import environment
from fastrnn.storage import write_json
from fastrnn_kernels.model import Rates

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastrnn.benchmark import Case

REPEATS = 9
SAME = ("fastrnn", "commit", "torch", "triton", "gpus")
"""What of the environment must be the same for a file to go on."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and write; returns the exit code: 1 if a result was wrong, or without a GPU."""
    options = parse(arguments)
    index, parts = options.part
    cases = issue_cases(options.mode)[index - 1 :: parts]
    if options.dry_run:
        print("\n".join(f"{case} {case.dtype}" for case in cases))
        print(expectation(cases, options.repeats))
        return 0
    if not torch.cuda.is_available() or torch.version.hip is not None:
        print("regimes: torch sees no CUDA GPU here", file=sys.stderr)
        return 1
    began = time.monotonic()
    try:
        rates = Rates() if options.rates is None else read_rates(options.rates)
        new = new_result(options.mode, rates, measured=options.rates is not None)
        result = resume(options.out, new)
    except (OSError, KeyError, TypeError, ValueError) as error:
        print(f"regimes: error: {describe(error)}", file=sys.stderr)
        return 2
    done = {tuple(found["case"].values()) for found in result["cases"]}
    left = [case for case in cases if tuple(case) not in done]
    with bench.as_installed():
        if left:
            warm(left, os.cpu_count() or 1)
            print(f"regimes: compiled in {time.monotonic() - began:.0f} s", flush=True)
        if options.warm:
            return 0
        print(f"regimes: {expectation(left, options.repeats)}", flush=True)
        for number, case in enumerate(left):
            end = time.monotonic() + outlook.expected_seconds(case, options.repeats)
            if end > began + options.seconds:
                print(f"regimes: out of time, {len(left) - number} cases left: run it again")
                break
            run_case(case, options, rates, result)
    print(report(result["cases"]))
    wrong = faults(result["cases"])
    for fault in wrong:
        print(f"regimes: {fault}", file=sys.stderr)
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
        found["rows"] = one_case.measure(case, options.repeats, rates)
    except Exception as error:
        found["broke_off"] = describe(error)
        raise
    finally:
        result["cases"].append(found)
        result["summary"] = summary(result["cases"])
        write_json(options.out, result)
    print(line(found), flush=True)


def expectation(cases: Sequence[Case], repeats: int) -> str:
    """How many cases there are, and how long they may take."""
    seconds = sum(outlook.expected_seconds(case, repeats) for case in cases)
    return f"{len(cases)} cases, about {seconds / 60:.1f} minutes beside compiling"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="regimes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--mode", choices=list(outlook.DIRECTIONS), required=True)
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


def new_result(mode: str, rates: Rates, measured: bool) -> dict[str, Any]:
    """A file's content before any case."""
    settings = {
        "mode": mode,
        "cold_bytes": one_case.COLD_BYTES,
        "checked_rows": one_case.CHECKED,
        "rates_measured": measured,
        "rates": vars(rates),
    }
    return {
        "environment": environment(),
        "settings": settings,
        "flashrnn": peer.absent() or "imported",
        "cases": [],
    }


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


def warm(cases: Sequence[Case], processes: int) -> None:
    """Compile what the cases need, in parallel processes that each run a call."""
    wanted: dict[object, tuple[Case, str]] = {}
    for case in cases:
        for name in outlook.candidates(case):
            passes = outlook.outlook(case, name).passes
            # what kernels are compiled for: neither T nor B nor how many layers there are, but
            # whether they run at once
            sizes = case.cell, case.dtype, case.H, case.bidirectional, name == outlook.LAYERS
            kinds = zip(outlook.DIRECTIONS[case.mode], passes, strict=False)
            blocks = [
                (direction, config.regime, config.num_warps, *config.blocks(direction).items())
                for direction, (config, _) in kinds
            ]
            if blocks:
                wanted.setdefault((sizes, *blocks), (case, name))
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    with ProcessPoolExecutor(max(1, min(processes, len(wanted), 16)), context) as pool:
        try:
            for told in pool.map(compile_one, *zip(*wanted.values(), strict=True)):
                if told:
                    print(f"regimes: {told}", file=sys.stderr, flush=True)
        except BrokenProcessPool as error:  # the case says so again, and which one it is
            print(f"regimes: compiling ahead broke off: {error}", file=sys.stderr)


def compile_one(case: Case, name: str) -> str:
    """One call of a case; what went wrong, if anything."""
    # layers at once are planned for as many; of others one is like the next
    layers = case.layers if name == outlook.LAYERS else 1
    case = case._replace(T=min(case.T, 128), layers=layers)
    upstream = one_case.upstream_of(case)
    x = torch.zeros(case.T, case.B, case.I, dtype=case.torch_dtype, device=case.device)
    x.requires_grad_(upstream is not None)
    try:
        with one_case.tf32():
            one_case.caller(layer(case, "triton"), name)(x, upstream)
            if case.device == "cuda":
                torch.cuda.synchronize()
    except Exception as error:
        return f"{case} {case.dtype} {name}: raised {describe(error)}"
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
