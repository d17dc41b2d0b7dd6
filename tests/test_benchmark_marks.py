"""benchmarks.marks_cost: what it compares, and that wrong results have no figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import marks_cost
from fastrnn import benchmark, packing


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(marks_cost, "SHAPES", ((5, 2, 4),))
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)  # for the tests after it


def test_a_table_and_a_file(
    small: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "marks.json"
    how = ["--cell", "gru", "--mode", "train", "--backend", "rows", "--seconds", "0"]
    assert marks_cost.main([*how, "--out", str(path)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "cell", "mode", "T", "B", "H", *" ".join(marks_cost.MARKS).split()
    ]  # fmt: skip
    assert row.split()[:5] == ["gru", "train", "5", "2", "4"]
    (found,) = json.loads(path.read_text())["rows"]
    for mark in marks_cost.MARKS:
        assert found[mark]["backend"] == "rows"
        assert found[mark]["ratio"] > 0


def test_marks_are_what_their_names_say() -> None:
    case = benchmark.Case("lstm", "forward", 1000, 10, 4, 4, 1, False, "float32", "cpu")
    torch.manual_seed(0)
    made = {mark: marks_cost.marks_of(case, mark) for mark in marks_cost.MARKS}
    assert made["lengths of T"]["lengths"].tolist() == [1000] * 10
    assert made["lengths to T"]["lengths"].tolist() == list(range(1000, 0, -111))
    assert not made["no resets"]["resets"].any()
    for density in (100, 10):
        share = made[f"resets / {density}"]["resets"].float().mean().item()
        assert share == pytest.approx(1 / density, rel=0.15)


def test_a_wrong_result_has_no_figure(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real = packing.cut

    def wrong(*how: object) -> packing.Parts:
        parts = real(*how)
        return parts._replace(last=parts.last.flip(0))

    monkeypatch.setattr(packing, "cut", wrong)
    how = ["--cell", "lstm", "--mode", "forward", "--backend", "rows", "--seconds", "0"]
    assert marks_cost.main([*how, "--mark", "no resets"]) == 0
    with pytest.raises(AssertionError, match=r"state\[0\] is off by"):
        marks_cost.main([*how, "--mark", "lengths to T"])
