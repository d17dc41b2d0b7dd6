"""benchmarks.grids: which cases, in which order, how long they take, and the summary of a run."""

from __future__ import annotations

import pytest
import torch

from benchmark_cases import CASES, TRAIN, found, row
from benchmarks import grids, outlook, regimes
from benchmarks.outlook import LAYERS
from fastrnn.benchmark import Case
from fastrnn_kernels.plan import REGIMES

FOUR = Case("lstm", "forward", 128, 16, 256, 256, 4, False, "bfloat16", "cuda")


@pytest.mark.parametrize(("mode", "count"), [("forward", 286), ("train", 238)])
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
    stacks = {(c.cell, c.H, c.B, c.T, c.layers) for c in cases if c.dtype == "bfloat16"}
    for cell in ("lstm", "rnn_tanh"):
        assert {(cell, H, 16, 128, 2) for H in (256, 512, 768)} <= stacks
        assert (cell, 512, 16, 1024, 2) in stacks
    assert ("lstm", 256, 16, 128, 4) in stacks
    assert {c.H for c in cases} >= ({32, 64, 128, 152, 192} if mode == "forward" else set())
    assert {(c.layers, c.bidirectional) for c in cases} == {
        (1, False), (1, True), (2, False), (4, False),
    }  # fmt: skip
    assert all(c.I == c.H and c.mode == mode and c.device == "cuda" for c in cases)


@pytest.mark.parametrize(("cases", "early"), [(CASES, 84), (TRAIN, 60)])
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
    ("cases", "all_of_it", "early"), [(CASES, 400, (84, 90)), (TRAIN, 480, (60, 90))]
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
        for name in (*REGIMES, *[LAYERS] * (LAYERS in outlook.candidates(case))):
            found = outlook.outlook(case, name)
            assert (found.passes == ()) == bool(found.against)
            if not found.passes:
                continue
            regime = "grid" if name == LAYERS else name
            assert [type(each.config).regime for each in found.passes] == [regime] * (
                1 + (case.mode == "train")
            )
            one = 0.0
            for _, estimate in found.passes:
                names |= estimate.parts.keys()
                one += sum(estimate.parts.get(name, 0) for name in outlook.FLOOR)
                assert (outlook.OTHER in estimate.parts) == (name == LAYERS)
            floor = outlook.floor(found, case)
            turns.add(floor > 1.001e-6 * found.launches * found.steps * one)
            assert 0 < floor <= found.seconds()
    assert names >= {*outlook.FLOOR, outlook.OTHER}
    assert turns == {False, True}, "where a program has several batch tiles, all of them count"


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_auto_stands_beside_the_regimes_where_it_is_none_of_them():
    kinds = {case: outlook.chosen(case) for case in TRAIN}
    assert set(kinds.values()) == {*REGIMES, outlook.AUTO, LAYERS}
    for case, name in kinds.items():
        taken = {each.config.regime for each in outlook.outlook(case, outlook.AUTO).passes}
        assert ("auto" in outlook.candidates(case)) == (len(taken) == 2)
        assert name == LAYERS or name in (taken if len(taken) == 1 else {"auto"})
    for case in CASES + TRAIN:
        names = outlook.candidates(case)
        assert names[:3] == REGIMES
        assert (names[-1] == LAYERS) == (case.layers > 1)
        assert "auto" not in names or case.mode == "train"
        assert outlook.chosen(case) in names


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize("mode", ["forward", "train"])
@pytest.mark.parametrize(
    ("cell", "B", "H", "layers", "dtype", "name"),
    [
        ("lstm", 16, 256, 2, "bfloat16", LAYERS),
        ("lstm", 16, 512, 2, "float32", LAYERS),  # as tf32: on ordinary cores none would fit
        ("lstm", 16, 256, 4, "bfloat16", LAYERS),
        ("rnn_tanh", 64, 512, 2, "float32", LAYERS),
        ("lstm", 64, 512, 2, "bfloat16", "grid"),  # they fit, but each step is so much longer
        ("lstm", 16, 768, 2, "float32", "grid"),  # they do not fit
        ("lstm", 16, 256, 1, "bfloat16", "grid"),
    ],
)
def test_layers_at_once_are_marked_where_the_plugin_takes_them(
    mode, cell, B, H, layers, dtype, name
):
    case = Case(cell, mode, 128, B, H, H, layers, False, dtype, "cuda")
    assert outlook.chosen(case) == name
    both = case._replace(bidirectional=True)
    assert LAYERS not in (outlook.chosen(both), *outlook.candidates(both))
    small = outlook.chosen(case._replace(device="cpu", H=8, I=8))
    assert small in (*REGIMES, "auto"), "auto: another regime in each direction"


@pytest.mark.parametrize(("count", "name"), [(4, LAYERS), (3, ""), (2, ""), (1, "grid")])
def test_some_layers_at_once_are_nobodys_row(monkeypatch, count, name):
    monkeypatch.setattr(outlook, "layers_at_once", lambda request: count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert outlook.chosen(FOUR) == name


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize("mode", ["forward", "train"])
def test_the_last_of_layers_at_once_ends_three_steps_after_the_first(mode):
    case = FOUR._replace(mode=mode)
    at_once, one_by_one = (outlook.outlook(case, name) for name in (LAYERS, "grid"))
    assert len(at_once.passes) == len(outlook.DIRECTIONS[mode])
    starts, steps = (
        [
            sum(getattr(each.estimate, what) for each in found.passes)
            for found in (at_once, one_by_one)
        ]
        for what in ("start", "step")
    )
    assert at_once.seconds() == pytest.approx(starts[0] + 131 * steps[0])
    assert one_by_one.seconds() == pytest.approx(4 * (starts[1] + 128 * steps[1]))
    longer = case._replace(T=1024)
    more = outlook.outlook(longer, LAYERS).seconds() - at_once.seconds()
    assert more == pytest.approx(896 * steps[0])


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
def test_layers_that_do_not_fit_say_why():
    wide = FOUR._replace(H=1536, I=1536)
    found = outlook.outlook(wide, LAYERS)
    assert "forward: regime: 'grid' cannot run: H100/H200 has" in found.against
    assert (found.passes, found.seconds(), outlook.floor(found, wide)) == ((), 0, 0)
    assert outlook.expected_seconds(wide, 1) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="another GPU, another plan")
@pytest.mark.parametrize(("B", "bound"), [(16, "hidden"), (32, "beyond"), (64, "turns")])
def test_a_floor_of_layers_at_once_has_both_products(B, bound):
    """By hand: within the wait as far as that is long enough, and again in every batch tile."""
    case = FOUR._replace(B=B, H=512, I=512, layers=2)
    found = outlook.outlook(case, LAYERS)
    ((config, estimate),) = found.passes
    parts = estimate.parts
    product, wait = parts["product"] + parts["operand from L2"], parts["exchange"]
    turns = -(-B // config.block_b) // config.lanes
    of = {"hidden": wait + parts["L2 latency"] + product}
    of["beyond"] = of["hidden"] + parts["L2 latency"] + product - wait
    of["turns"] = 2 * turns * product
    assert max(of, key=of.__getitem__) == bound
    assert outlook.floor(found, case) == pytest.approx(129e-6 * of[bound])


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
