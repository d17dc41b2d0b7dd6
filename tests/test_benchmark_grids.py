"""benchmarks.grids: which cases, in which order, how long they take, and the summary of a run."""

from __future__ import annotations

import pytest
import torch

from benchmark_cases import CASES, TRAIN, found, row
from benchmarks import grids, outlook, regimes
from fastrnn_kernels.plan import REGIMES


@pytest.mark.parametrize(("mode", "count"), [("forward", 281), ("train", 233)])
def test_cases_are_what_the_issues_ask_for(mode, count):
    cases = grids.issue_cases(mode)
    assert len(cases) == len(set(cases)) == count
    asked = {
        (cell, dtype, H, B, T)
        for cell in ("lstm", "rnn_tanh")
        for dtype in ("bfloat16", "float32")
        for H in (256, 512, 768, 1024, 1536)
        for B in (8, 16, 32, 64, 128)
        for T in (128, 1024)
    }
    plain = {(c.cell, c.dtype, c.H, c.B, c.T) for c in cases if not c.bidirectional}
    assert asked <= plain
    assert {c.H for c in cases} >= ({32, 64, 128, 152, 192} if mode == "forward" else set())
    assert {(c.layers, c.bidirectional) for c in cases} == {(1, False), (1, True), (2, False)}
    assert all(c.I == c.H and c.mode == mode and c.device == "cuda" for c in cases)


@pytest.mark.parametrize(("cases", "early"), [(CASES, 81), (TRAIN, 57)])
def test_a_run_that_is_cut_short_has_seen_every_kind(cases, early):
    assert {grids.kind_of(c) for c in cases[:early]} == {grids.kind_of(c) for c in cases}
    assert {c.H for c in cases[:early]} == {c.H for c in cases}


def test_parts_are_every_case_once(capsys):
    for part in ("1/2", "2/2"):
        assert regimes.main(["--mode", "train", "--dry-run", "--part", part]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if " train " in line]
    assert len(lines) == len(set(lines)) == len(TRAIN)


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize(
    ("cases", "all_of_it", "early"), [(CASES, 400, (81, 90)), (TRAIN, 480, (57, 90))]
)
def test_the_grid_fits_a_call_of_ten_minutes(cases, all_of_it, early, capsys):
    seconds = [outlook.expected_seconds(case, regimes.REPEATS) for case in cases]
    assert sum(seconds) < all_of_it
    assert sum(seconds[: early[0]]) < early[1]
    assert max(seconds) < 6
    assert regimes.main(["--mode", cases[0].mode, "--dry-run"]) == 0
    end = capsys.readouterr().out.splitlines()[-1]
    assert end == f"{len(cases)} cases, about {sum(seconds) / 60:.1f} minutes beside compiling"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize("cases", [CASES, TRAIN[::3]], ids=["forward", "train"])
def test_a_floor_is_below_the_prediction_and_made_of_parts_that_there_are(cases):
    names, turns = set(), set()
    for case in cases:
        for regime in REGIMES:
            found = outlook.outlook(case, regime)
            assert (found.passes == ()) == bool(found.against)
            if not found.passes:
                continue
            assert [type(each.config).regime for each in found.passes] == [regime] * (
                1 + (case.mode == "train")
            )
            one = 0.0
            for _, estimate in found.passes:
                names |= estimate.parts.keys()
                one += sum(estimate.parts.get(name, 0) for name in outlook.FLOOR)
            floor = outlook.floor(found, case)
            turns.add(floor > 1.001e-6 * case.T * one)
            assert 0 < floor <= found.seconds(case.T)
    assert names >= set(outlook.FLOOR)
    assert turns == {False, True}, "where a program has several batch tiles, all of them count"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_auto_stands_beside_the_regimes_where_it_is_none_of_them():
    kinds = {case: outlook.chosen(case) for case in TRAIN}
    assert set(kinds.values()) == {*REGIMES, outlook.AUTO}
    for case, name in kinds.items():
        taken = [each.config.regime for each in outlook.outlook(case, outlook.AUTO).passes]
        assert outlook.candidates(case) == ((*REGIMES, "auto") if name == "auto" else REGIMES)
        assert (name == "auto") == (len(set(taken)) == 2)
    assert all(outlook.candidates(case) == REGIMES for case in CASES)


def test_a_summary_counts_what_auto_takes():
    lstm, best = CASES[1], CASES[0]
    summary = grids.summary([found(lstm, 2.0), found(lstm, 0.5), found(best, 8.0, floor=1)])
    assert summary["speedup"]["all"] == pytest.approx(2)
    assert summary["speedup"]["lstm bfloat16 grid"] == pytest.approx(1)
    assert summary["speedup"]["best case of cuDNN"] == pytest.approx(8)
    assert summary["behind_torch"] == [f"{lstm} bfloat16"]
    assert summary["beyond_twice_the_floor"] == [f"{lstm} bfloat16"]
    assert (summary["more_memory_than_torch"], summary["over_flashrnn"]) == ([], None)
    nothing = grids.summary([found(lstm, None, status="wrong"), {"rows": []}])
    assert not any(nothing.values())


def test_a_summary_counts_memory_and_flashrnn():
    more, without = found(CASES[1], 2.0, peak=(3 << 20) + 1), found(CASES[2], 2.0, peak=None)
    more["rows"].append(row("FlashRNN", 3e-3))
    summary = grids.summary([more, without, found(CASES[3], 2.0)])
    assert summary["more_memory_than_torch"] == [f"{CASES[1]} bfloat16"]
    assert summary["over_flashrnn"] == pytest.approx(3)
    assert "over FlashRNN" in grids.report([more])
    assert "more memory than torch.nn: 1" in grids.report([more])


def test_a_line_shows_losers_like_winners():
    line = grids.line(found(CASES[1], 0.5))
    assert line.startswith(
        f"{CASES[1]} bfloat16: torch.nn 2.000 ms 3 MiB, grid* 4.000 ms 3 MiB (0.50x,"
    )
    assert "step 3.000 ms (0.67x, model 4.000, floor 2.000)" in line
    assert "resident" not in line
