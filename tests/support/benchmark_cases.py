"""The cases of the benchmarks' grids, and made-up measurements of them."""

from __future__ import annotations

from benchmarks import grids, regimes

CASES = grids.issue_cases("forward")
TRAIN = grids.issue_cases("train")
ENVIRONMENT = dict.fromkeys(regimes.SAME, "x")


def row(name, median=None, *, auto=False, status="ok", speedup=None, floor=None, peak=None):
    found = {"implementation": name, "status": status, "reason": "", "auto": auto,
             "median_s": median, "speedup": speedup, "peak_bytes": peak}  # fmt: skip
    if floor is not None:
        found |= {"predicted_s": 2 * floor, "floor_s": floor}
    return found


def found(case, speedup, *, floor=1e-3, status="ok", peak=3 << 20):
    rows = [
        row("torch.nn", 2e-3, speedup=1.0, peak=3 << 20),
        row("resident", status="cannot run"),
        row("grid", speedup and 2e-3 / speedup, auto=True, status=status, speedup=speedup,
            floor=floor, peak=peak),
        row("step", 3e-3, speedup=2 / 3, floor=2e-3),
        row("products", 1e-4),
    ]  # fmt: skip
    return {"name": f"{case} {case.dtype}", "case": case._asdict(), "rows": rows}
