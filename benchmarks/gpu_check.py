"""The project on this machine's GPU: parity first, then a short benchmark, into one JSON file.

    python -m benchmarks.gpu_check --out FILE

Needs no network, and of Python packages only torch, Triton, pluggy, NumPy, pytest and hypothesis.
The file is written anew after every part, so that a run that is cut short leaves what it had.
Exits with 1 if a test failed, a result was out of tolerance, or there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import torch

from fastrnn import bench, bench_cases
from fastrnn.doctor import environment

ROOT = Path(__file__).resolve().parent.parent
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
"""What is timed, forward and training; `both` asks for two directions."""


def main(arguments: list[str] | None = None) -> int:
    """Run both parts and write the file; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gpu_check", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<gpu>/<time>.json")
    parser.add_argument("--repeats", type=int, default=bench.REPEATS)
    parser.add_argument("--no-tests", action="store_true", help="only the benchmark")
    parser.add_argument("--no-bench", action="store_true", help="only the tests")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("gpu_check: torch sees no CUDA or ROCm GPU here", file=sys.stderr)
        return 1
    out = options.out or default_path()
    out.parent.mkdir(parents=True, exist_ok=True)
    result: dict[str, Any] = {"environment": environment(), "started": time.time()}
    failed = False
    if not options.no_tests:
        result["parity"] = run_tests()
        failed |= bool(result["parity"]["failed"]) or result["parity"]["exit_code"] != 0
        save(out, result)
    if not options.no_bench:
        result["benchmark"] = []
        for problem in PROBLEMS:
            rows = measure(problem, options.repeats)
            print(bench.report(rows), flush=True)
            failed |= bool(bench.failures(rows, None))
            result["benchmark"] += [{**row.record(), "samples_s": row.samples} for row in rows]
            save(out, result)
    print(f"gpu_check: {'FAILED' if failed else 'passed'}; written to {out}")
    return int(failed)


def default_path() -> Path:
    """`benchmarks/results/<gpu>/<UTC time>.json`."""
    name = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
    stamp = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime())
    return ROOT / "benchmarks" / "results" / name / f"gpu-check-{stamp}.json"


def run_tests() -> dict[str, Any]:
    """The tests marked `gpu`, in a process of their own, which a crash of the driver would end."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [
            sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/test_gpu.py",
            "-p", "no:cacheprovider", f"--junitxml={report}",
        ]  # fmt: skip
        paths = [str(ROOT / part) for part in ("", "kernels", "plugins")]
        paths += [path for path in [os.environ.get("PYTHONPATH")] if path]
        finished = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, check=False
        )
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    failed = {}
    for case in cases:
        for problem in [*case.findall("failure"), *case.findall("error")]:
            failed[case.get("name", "")] = problem.get("message", "")[:2000]
    skipped = sum(1 for case in cases if case.find("skipped") is not None)
    return {
        "exit_code": finished.returncode,
        "passed": len(cases) - len(failed) - skipped,
        "skipped": skipped,
        "failed": failed,
        "seconds": time.perf_counter() - begin,
    }


def measure(problem: dict[str, Any], repeats: int) -> list[bench.Row]:
    """Every implementation of one entry of `PROBLEMS`, checked against float64 and timed."""
    axes = bench_cases.Axes(*(problem[name] for name in ("cell", "T", "B", "H")))
    found = bench_cases.cases(
        axes, mode="both", input_size=None, layers=1, bidirectional=bool(problem.get("both")),
        dtype=problem["dtype"], device="cuda",
    )  # fmt: skip
    return bench.measure(
        found,
        backends=("aten", "triton"),
        repeats=repeats,
        progress=lambda text: print(f"  {text}", file=sys.stderr, flush=True),
    )


def save(path: Path, result: dict[str, Any]) -> None:
    """Write through a second file, so that an interrupted write leaves the last whole one."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


if __name__ == "__main__":
    raise SystemExit(main())
