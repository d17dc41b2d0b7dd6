"""Which cases `benchmarks/regimes.py` measures, in which order, and how they are summed up."""

from __future__ import annotations

import functools
import itertools
import math
import statistics
from typing import TYPE_CHECKING, Any

from benchmarks.peer import PEER
from fastrnn.bench_cases import BASELINE
from fastrnn.benchmark import Case
from fastrnn.tables import table

if TYPE_CHECKING:
    from collections.abc import Sequence

BEST = "best case of cuDNN"


def issue_cases(mode: str) -> list[Case]:
    """Every case, in order of importance: a run that is cut short has seen every kind of case.

    Args:
        mode: `forward` or `train`.
    """

    def of(cells: str, dtypes: str, H: Sequence[int], B: Sequence[int], T: Sequence[int],
           layers: int = 1, both: bool = False) -> list[Case]:  # fmt: skip
        return [
            Case(cell, mode, t, b, h, h, layers, both, dtype, "cuda")
            for t, h, b, dtype, cell in itertools.product(T, H, B, dtypes.split(), cells.split())
        ]

    every = functools.partial(of, "lstm rnn_tanh", "bfloat16 float32")
    large, small = [256, 512, 768, 1024, 1536], [32, 64, 96, 128, 152, 192]
    forward = mode == "forward"
    return [
        *of("lstm", "float16", [768], [16], [1024]),
        *every(large, [16, 64], [128]),
        *every(small, [16] if forward else [], [128]),
        *every([256, 512], [16], [128], both=True),
        *every([256, 512], [16], [128], layers=2),
        *of("lstm rnn_tanh", "bfloat16", [768], [16], [128], layers=2),
        *of("lstm", "bfloat16", [256], [16], [128], layers=4),
        *of("lstm rnn_tanh", "bfloat16", [512], [16], [1024], layers=2),
        *every(large, [16, 64], [1024]),
        *every(large, [8, 32, 128], [128]),
        *every(small, [64] if forward else [], [128]),
        *every([256, 512], [64], [128], both=True),
        *every([256, 512], [64], [128], layers=2),
        *every(large, [8, 32, 128], [1024]),
    ]


def kind_of(case: Case) -> str:
    """Which of the targets' groups a case belongs to."""
    name = f"{case.cell} {case.dtype}"
    if case.dtype == "float16":
        return BEST
    if case.bidirectional or case.layers > 1:
        return f"{name} {'bidirectional' if case.bidirectional else f'{case.layers} layers'}"
    return f"{name} {'grid' if case.H >= 256 else 'small or odd H'}"


def summary(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Geometric means of `auto`'s speed-up over torch.nn by kind of case, and what falls behind."""
    kinds: dict[str, list[float]] = {"all": []}
    over_peer, behind, far, larger = [], [], [], []
    for found in cases:
        rows = {row["implementation"]: row for row in found["rows"]}
        # the row of what `auto` takes
        row = next((row for row in found["rows"] if row["auto"]), None)
        if row is None or row["speedup"] is None:
            continue
        for kind in ("all", kind_of(Case(**found["case"]))):
            kinds.setdefault(kind, []).append(row["speedup"])
        if row["speedup"] < 1:
            behind.append(found["name"])
        if row["median_s"] > 2 * row["floor_s"]:
            far.append(found["name"])
        if (row["peak_bytes"] or 0) > (rows[BASELINE]["peak_bytes"] or math.inf):
            larger.append(found["name"])
        if PEER in rows and rows[PEER]["median_s"] is not None:
            over_peer.append(rows[PEER]["median_s"] / row["median_s"])
    return {
        "speedup": {kind: statistics.geometric_mean(all_) for kind, all_ in kinds.items() if all_},
        "over_flashrnn": statistics.geometric_mean(over_peer) if over_peer else None,
        "behind_torch": behind,
        "beyond_twice_the_floor": far,
        "more_memory_than_torch": larger,
    }


def faults(cases: Sequence[dict[str, Any]]) -> list[str]:
    """What was wrong or failed, but for FlashRNN, whose faults are only on record."""
    broken = [f"{found['name']}: {found['broke_off']}" for found in cases if "broke_off" in found]
    return broken + [
        f"{found['name']}: {row['implementation']} {row['status']}: {row['reason']}"
        for found in cases
        for row in found["rows"]
        if row["status"] in ("wrong", "failed") and row["implementation"] != PEER
    ]


def line(found: dict[str, Any]) -> str:
    """A case in one line: time and memory of each, with speed-up and prediction of ours."""
    texts = []
    for row in found["rows"]:
        if row["median_s"] is None:
            continue
        text = f"{row['implementation']}{'*' if row['auto'] else ''} {1e3 * row['median_s']:.3f} ms"
        if row["peak_bytes"] is not None:
            text += f" {row['peak_bytes'] / 2**20:.0f} MiB"
        if "predicted_s" in row:
            text += f" ({row['speedup'] or math.nan:.2f}x, model {1e3 * row['predicted_s']:.3f}"
            text += f", floor {1e3 * row['floor_s']:.3f})"
        texts.append(text)
    return f"{found['name']}: " + ", ".join(texts)


def report(cases: Sequence[dict[str, Any]]) -> str:
    """Geometric means, and how many cases fall short."""
    found = summary(cases)
    rows = [[kind, f"{mean:.2f}x"] for kind, mean in found["speedup"].items()]
    if found["over_flashrnn"] is not None:
        rows.append(["over FlashRNN", f"{found['over_flashrnn']:.2f}x"])
    return "\n".join(
        [
            table(["cases", "auto over torch.nn"], rows, "lr"),
            f"{len(cases)} cases; slower than torch.nn: {len(found['behind_torch'])}; "
            f"beyond twice the floor: {len(found['beyond_twice_the_floor'])}; "
            f"more memory than torch.nn: {len(found['more_memory_than_torch'])}",
        ]
    )
