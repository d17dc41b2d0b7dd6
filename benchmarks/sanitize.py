"""compute-sanitizer over a small forward and backward pass of every regime.

    python -m benchmarks.sanitize [--out FILE]
    compute-sanitizer --tool memcheck python -m benchmarks.sanitize --passes

memcheck finds accesses out of bounds, which masks are to prevent, and racecheck hazards in shared
memory. Neither sees races between programs in global memory: the repeats of
`tests/kernels/test_gpu_exchange.py` are for those. Exits with 1 if a tool reported an error or did
not end. Where compute-sanitizer is neither on the PATH nor in CUDA_HOME/bin, or refuses the device
(as it does in containers without the driver's debugger interface), nothing is checked, which FILE
then says, and the exit code is 0. ``--passes`` does the passes, without the tool.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_check import start, wait

TOOL = "compute-sanitizer"
CHECKS = ("memcheck", "racecheck")
FOUND = 9
"""The exit code that the tool is told to give if it found something."""
REFUSED = "Device not supported"
"""What the tool says where it cannot look; its exit code is one of an error, too."""
SECONDS = 90
"""For one check; kernels take a hundred times as long."""
T, B, H = 4, 17, 40
"""Two batch tiles, and neither rows nor units fill their tiles."""


def main(arguments: list[str] | None = None) -> int:
    """Run every check in a process of its own; returns the exit code."""
    parser = argparse.ArgumentParser(prog="sanitize", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, help="JSON")
    parser.add_argument("--passes", action="store_true", help="what the tool is to look at")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("sanitize: torch sees no CUDA GPU here", file=sys.stderr)
        return 1
    if options.passes:
        passes("cuda")
        return 0
    tool = find()
    result: dict[str, Any] = {"tool": tool, "checks": {}}
    if tool is None:
        print(f"sanitize: {TOOL} is not installed: nothing was checked", flush=True)
    else:
        # the first run, without the tool, compiles: Triton keeps the kernels
        for name in (None, *CHECKS):
            result["checks"][name or "plain"] = check(tool, name)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    checked = (found for found in result["checks"].values() if "not_checked" not in found)
    return int(any(found["exit_code"] for found in checked))


def find() -> str | None:
    """Where the tool is."""
    folders = [os.environ.get("PATH", os.defpath)]
    folders += [str(Path(home) / "bin") for home in [os.environ.get("CUDA_HOME")] if home]
    return shutil.which(TOOL, path=os.pathsep.join(folders))


def check(tool: str, name: str | None) -> dict[str, Any]:
    """Run the passes under one of the tool's checks, or None; returns exit code and last words.

    Also why nothing was checked, if the tool refused the device.
    """
    command = [sys.executable, "-m", "benchmarks.sanitize", "--passes"]
    if name is not None:
        command = [tool, "--tool", name, "--error-exitcode", str(FOUND), *command]
    # torch's cache of memory would hide an access beyond the end of a tensor
    settings = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    begin = time.monotonic()
    with tempfile.TemporaryFile() as file:
        process = start(command, settings, stdout=file, stderr=subprocess.STDOUT)
        code = wait(process, begin + SECONDS)
        file.seek(0)
        said = file.read().decode(errors="replace")
    print(f"sanitize: {name or 'without the tool'}: exit code {code}", flush=True)
    print(said[-2000:], flush=True)
    found = {"exit_code": code, "said": said[-4000:], "seconds": time.monotonic() - begin}
    refusal = next((line for line in said.splitlines() if REFUSED in line), None)
    if name is not None and refusal is not None:
        print(f"sanitize: not checked with {name}: {refusal}", flush=True)
        found["not_checked"] = refusal
    return found


def passes(device: str) -> None:
    """Forward and back in every regime, in both directions of time; and with shared contractions.

    Then in every regime with rows that end early and start over: next to such a step there may be
    no place in memory, from which only masks keep a kernel away.

    Raises:
        ArithmeticError: a result is not finite.
    """
    from fastrnn_kernels import GridConfig, backward, forward
    from fastrnn_kernels.configs import LaunchConfig
    from fastrnn_kernels.plan import REGIMES

    def grid(block_h: int, lanes: int, splits: int) -> GridConfig:
        return GridConfig(16, block_h, 16, lanes, 1, splits, num_warps=4)

    ways: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"regime": regime}, {"regime": regime}) for regime in REGIMES
    ]
    shared: list[tuple[LaunchConfig, LaunchConfig]] = [
        (grid(4, 1, 1), grid(8, 2, 2)), (grid(8, 2, 1), grid(4, 1, 4)),
    ]  # fmt: skip
    ways += [({"config": there}, {"config": back}) for there, back in shared]
    torch.manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.bfloat16, device=device)

    ends: dict[str, Any] = {
        "lengths": torch.arange(B, device=device) % (T + 1),
        "resets": torch.rand(T, B, device=device) < 1 / 3,
    }
    cases: list[tuple[dict[str, Any], ...]] = [(there, back, {}) for there, back in ways]
    cases += [({"regime": regime}, {"regime": regime}, ends) for regime in REGIMES]
    reverse = (False, True)
    for there, back, rows in cases:
        weight, h0, c0 = normal(2, 4 * H, H) / H, normal(2, B, H), normal(2, B, H)
        made = forward(
            "lstm", normal(T, B, 2, 4 * H), weight, h0, c0, reverse=reverse, save=True,
            **rows, **there,
        )  # fmt: skip
        found = backward(
            "lstm", weight, made.output, made.gates, made.cells, c0, d_output=normal(T, B, 2, H),
            d_h_n=normal(2, B, H), d_c_n=normal(2, B, H), reverse=reverse, **rows, **back,
        )  # fmt: skip
        if not all(bool(each.isfinite().all()) for each in (made.output, found.d_gates)):
            raise ArithmeticError(f"not finite: {there} {back} {' '.join(rows)}")


if __name__ == "__main__":
    raise SystemExit(main())
