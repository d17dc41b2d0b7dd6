"""The project on this machine's GPU: exchange rates, parity, then times, as JSON files.

    python -m benchmarks.gpu_check [--only PART ...] [--out FILE]

Parts, in this order: `exchange` (`benchmarks.exchange`), `parity` (the tests marked `gpu`),
`sanitizer` (`benchmarks.sanitize`), `forward` and `train` (`benchmarks.regimes`), `benchmark` (a
short one of every backend, forward and training). Needs no network, and of Python packages only
torch, Triton, pluggy, NumPy, pytest and hypothesis. Files are written anew after every part, so
that a run that is cut short leaves what it had: FILE, and beside it FILE-exchange.json and so on.
Exits with 1 if a test failed, a result was out of tolerance, a part did not end, or there is no
GPU. All figures are those of a fresh install: what `fastrnn tune` has stored does not count.

With half an hour of a GPU and 16 cores, in calls of ten minutes that keep Triton's cache and the
files; each adds its parts to FILE:

1. ``--only exchange parity sanitizer --seconds 570 --out out/F.json``: half a minute, then an
   estimated five to six, most of it compiling, then two. A wrong barrier or a failing test ends the
   session here: a time of a wrong result says nothing. Read the rates: those far from the model's
   (`kernels/fastrnn_kernels/model.py`) come first.
2. ``--only train --seconds 570 --out out/F.json``: an estimated one and a half minutes of compiling
   and six and a half of measuring. Cases are in order of importance; the rates of call 1 are found
   beside F.json. The same command once more goes on where it was cut.
3. ``--only forward benchmark --seconds 570 --out out/F.json``: half a minute of compiling and an
   estimated four, then two or three.

Copy the files to `benchmarks/results/<gpu>/` if they were written elsewhere.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

from benchmarks.exchange import positive
from benchmarks.regimes import resume
from fastrnn import bench, bench_cases
from fastrnn.benchmark import Axes
from fastrnn.discovery import describe
from fastrnn.doctor import environment
from fastrnn.storage import write_json

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("exchange", "parity", "sanitizer", "forward", "train", "benchmark")
TESTS = (
    "tests/test_gpu.py",
    "tests/test_cudnn_layout.py",
    "tests/kernels/test_gpu_regimes.py",
    "tests/kernels/test_gpu_exchange.py",
    "tests/kernels/test_gpu_marks.py",
    "tests/kernels/test_gpu_options.py",
    "tests/kernels/test_gpu_regularisers.py",
    "tests/kernels/test_gpu_cells.py",
    "tests/kernels/test_gpu_launches.py",
    "tests/kernels/test_gpu_accuracy.py",
    "tests/test_gpu_conformance.py",
)
EXCHANGE_SECONDS = 180
"""A barrier that does not open would wait for ever."""
SANITIZER_SECONDS = 300
MARGIN = 30
"""Seconds that `forward` and `train` are given to write their reports before they are stopped."""
STOPPED = 124
"""The exit code of what did not end in time, as of timeout(1)."""
PROBLEMS: list[dict[str, Any]] = [
    # cuDNN's weak zone as torch drives it: bfloat16, and float32 above its small sizes
    {"cell": ["lstm"], "T": [128], "B": [16, 64], "H": [256, 512, 1024], "dtype": "bfloat16"},
    {"cell": ["lstm", "rnn_tanh"], "T": [128], "B": [16], "H": [512], "dtype": "float32"},
    # its best case, and the one that peers publish
    {"cell": ["lstm"], "T": [1024], "B": [16], "H": [768], "dtype": "float16"},
    # its small sizes
    {"cell": ["lstm", "rnn_tanh"], "T": [128], "B": [32], "H": [64], "dtype": "float32"},
    {"cell": ["lstm"], "T": [128], "B": [16], "H": [512], "dtype": "bfloat16", "both": True},
]
"""What `benchmark` times, forward and training; `both` asks for two directions."""


def main(arguments: list[str] | None = None) -> int:
    """Run the parts and write the files; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<gpu>/<time>.json")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART",
                        help=f"of {', '.join(PARTS)}; default: all")  # fmt: skip
    parser.add_argument("--seconds", type=float, default=math.inf, help="for all parts together")
    parser.add_argument("--repeats", type=positive, default=bench.REPEATS)
    parser.add_argument("--jobs", type=positive, default=min(12, os.cpu_count() or 1),
                        help="processes of the tests; most of their time is compiling")  # fmt: skip
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA or ROCm GPU here", file=sys.stderr)
        return 1
    out = (options.out or default_path()).resolve()
    new = {"environment": environment(), "settings": {}, "started": time.time()}
    try:
        result = resume(out, new)
    except (OSError, KeyError, ValueError) as error:
        print(f"gpu_check: error: {describe(error)}", file=sys.stderr)
        return 1
    with bench.as_installed():
        return run(options, out, result)


def run(options: argparse.Namespace, out: Path, result: dict[str, Any]) -> int:
    """Run the parts that were asked for, and add them to the result; returns the exit code."""
    end = time.monotonic() + options.seconds
    failed = False
    parts = [each for each in PARTS if each in options.only]
    if torch.version.hip is not None:  # where programs of a launch do not wait for each other
        parts = [each for each in parts if each in ("parity", "benchmark")]
    if "exchange" in parts:
        result["exchange"] = run_exchange(out)
        failed |= result["exchange"]["exit_code"] != 0
        write_json(out, result)
    if "parity" in parts:
        result["parity"] = run_tests(options.jobs, end - time.monotonic())
        failed |= bool(result["parity"]["failed"]) or any(result["parity"]["exit_codes"])
        write_json(out, result)
    if "sanitizer" in parts:
        result["sanitizer"] = run_sanitizer(out, end - time.monotonic())
        failed |= result["sanitizer"]["exit_code"] != 0
        write_json(out, result)
    for mode in ("forward", "train"):
        if mode in parts:
            result[mode] = run_regimes(mode, out, end - time.monotonic())
            failed |= result[mode]["exit_code"] != 0
            write_json(out, result)
    if "benchmark" in parts:
        result["benchmark"] = []
        for problem in PROBLEMS:
            if time.monotonic() > end:
                print("gpu_check: out of time", file=sys.stderr)
                break
            rows = measure(problem, options.repeats)
            print(bench.report(rows), flush=True)
            failed |= bool(bench.failures(rows, None))
            result["benchmark"] += [{**row.record(), "samples_s": row.samples} for row in rows]
            write_json(out, result)
    print(f"gpu_check: {'FAILED' if failed else 'passed'}; written to {out}")
    return int(failed)


def default_path() -> Path:
    """`benchmarks/results/<gpu>/<UTC time>.json`."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    return ROOT / "benchmarks" / "results" / name / f"gpu-check-{stamp}.json"


def beside(out: Path, part: str) -> Path:
    """The file of a part that has one of its own."""
    return out.with_name(f"{out.stem}-{part}.json")


def run_exchange(out: Path) -> dict[str, Any]:
    """`benchmarks.exchange`, in a process of its own, which a hanging barrier would take along."""
    path = beside(out, "exchange")
    return run_module(["benchmarks.exchange", "--out", str(path)], EXCHANGE_SECONDS, path)


def run_sanitizer(out: Path, seconds: float) -> dict[str, Any]:
    """`benchmarks.sanitize`; where the tool is not installed, its file says so."""
    path = beside(out, "sanitizer")
    command = ["benchmarks.sanitize", "--out", str(path)]
    return run_module(command, max(min(seconds, SANITIZER_SECONDS), MARGIN), path)


def run_regimes(mode: str, out: Path, seconds: float) -> dict[str, Any]:
    """`benchmarks.regimes`, with the rates that are beside `out` if there are any."""
    path, rates = beside(out, mode), beside(out, "exchange")
    command = ["benchmarks.regimes", "--mode", mode, "--out", str(path)]
    command += ["--rates", str(rates)] if rates.exists() else []
    if seconds < math.inf:
        command += ["--seconds", str(max(seconds - MARGIN, 0.0))]
    return run_module(command, max(seconds, MARGIN), path)


def run_module(command: list[str], seconds: float, path: Path) -> dict[str, Any]:
    """Run a module of the project, for at most so long; returns its exit code and file."""
    begin = time.monotonic()
    process = start([sys.executable, "-m", *command], {})
    code = wait(process, begin + seconds)
    if code == STOPPED:
        print(f"gpu_check: {command[0]} did not end within {seconds:.0f} s", file=sys.stderr)
    return {
        "exit_code": code,
        "file": path.name if path.exists() else None,
        "seconds": time.monotonic() - begin,
    }


def start(command: list[str], settings: dict[str, str], **files: Any) -> subprocess.Popen[bytes]:
    """Start a tool in a process group of its own, with the project importable."""
    paths = [str(ROOT / part) for part in ("", "kernels", "plugins")]
    paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **settings}
    return subprocess.Popen(command, cwd=ROOT, env=variables, process_group=0, **files)


def wait(process: subprocess.Popen[bytes], end: float) -> int:
    """The exit code of a process; STOPPED if it went on beyond ``end``, on the monotonic clock."""
    try:
        return process.wait(None if end == math.inf else max(end - time.monotonic(), 1.0))
    except subprocess.TimeoutExpired:
        return STOPPED
    finally:
        stop(process)  # also where this process is interrupted


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that still runs, and what it has started."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def run_tests(jobs: int, seconds: float) -> dict[str, Any]:
    """The tests marked `gpu`, in processes of their own, which a crash of the driver would end."""
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        reports = [Path(folder) / f"report-{index}.xml" for index in range(1, jobs + 1)]
        logs = [report.with_suffix(".log") for report in reports]
        running = []
        for index, (report, log) in enumerate(zip(reports, logs, strict=True), 1):
            command = [
                sys.executable, "-m", "pytest", "-v", "-m", "gpu", *TESTS, "-p", "benchmarks.shard",
                "-p", "no:cacheprovider", f"--junitxml={report}",
            ]  # fmt: skip
            settings = {
                "FASTRNN_SHARD": f"{index}/{jobs}",
                # what runs on the CPU is small, and there are many processes
                "OMP_NUM_THREADS": "1",
                # tests in torch's deterministic mode, in which cuBLAS is refused without it
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
            }
            with log.open("wb") as file:
                running.append(start(command, settings, stdout=file, stderr=subprocess.STDOUT))
        try:
            codes = [wait(process, begin + seconds) for process in running]
        finally:
            for process in running:
                stop(process)
        cases, ends = [], {}
        for index, (report, log) in enumerate(zip(reports, logs, strict=True)):
            text = log.read_text(encoding="utf-8", errors="replace")
            if codes[index] and not report.exists():
                # the last line names the test that took the process along
                ends[f"shard {index + 1}"] = text[-2000:]
            print(text[-4000:] if codes[index] else text.rstrip().rpartition("\n")[2], flush=True)
            cases += list(ET.parse(report).iter("testcase")) if report.exists() else []
    failed = {}
    for case in cases:
        for problem in [*case.findall("failure"), *case.findall("error")]:
            failed[case.get("name", "")] = problem.get("message", "")[:2000]
    skips = [case.find("skipped") for case in cases]
    reasons = sorted({skip.get("message", "") for skip in skips if skip is not None})
    skipped = sum(1 for skip in skips if skip is not None)
    return {
        "exit_codes": codes,
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "skipped_because": reasons,
        "failed": failed,
        "ended_early": ends,
        "seconds": time.monotonic() - begin,
    }


def measure(problem: dict[str, Any], repeats: int) -> list[bench.Row]:
    """Every implementation of one entry of `PROBLEMS`, checked against float64 and timed."""
    axes = Axes(*(problem[name] for name in ("cell", "T", "B", "H")))
    found = bench_cases.cases(
        axes, mode="both", input_size=None, layers=1, bidirectional=bool(problem.get("both")),
        dtype=problem["dtype"], device="cuda",
    )  # fmt: skip
    rows = bench.measure(
        found,
        backends=("aten", "triton"),
        repeats=repeats,
        progress=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )
    return list(rows)


if __name__ == "__main__":
    raise SystemExit(main())
