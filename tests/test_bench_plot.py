"""The figure: which panels there are, what is drawn in them, and what is refused beforehand."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from fastrnn import bench_plot
from fastrnn.bench import Row
from fastrnn.benchmark import Case
from fastrnn.floor import Floor

CASE = Case("lstm", "forward", 100, 8, 64, 64, 1, False, "float32", "cpu")
PNG = b"\x89PNG"


def grid(*, H=(64,), B=(8,), T=(100,), modes=("forward",), dtypes=("float32",)):
    return [
        CASE._replace(H=h, I=h, B=b, T=t, mode=mode, dtype=dtype)
        for h in H for b in B for t in T for mode in modes for dtype in dtypes
    ]  # fmt: skip


def rows_of(cases, **seconds):
    """Five samples from half to one and a half of the seconds, times H over 64."""
    spread = (0.5, 1, 1, 1, 1.5)
    return [
        Row(
            case, name.replace("_", "."), samples=[base * case.H / 64 * each for each in spread],
            auto=name == "fast", floor=Floor(1e-5, 2e-5, 3e-5),
        )
        for case in cases
        for name, base in seconds.items()
    ]  # fmt: skip


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draw, and return the matplotlib figure."""
    figure_module = pytest.importorskip("matplotlib.figure")
    figures = []
    original = figure_module.Figure.savefig

    def savefig(self, *arguments):
        figures.append(self)
        original(self, *arguments)

    monkeypatch.setattr(figure_module.Figure, "savefig", savefig)

    def draw(rows):
        path = tmp_path / "out.png"
        bench_plot.plot(path, rows)
        assert path.read_bytes()[:4] == PNG
        return figures[-1]

    return draw


@pytest.mark.parametrize(
    ("sizes", "axis", "rows", "held"),
    [
        ({"H": (1, 2)}, "H", [("float32", 8)], {}),
        ({"B": (1, 2)}, "B", [("float32", 64)], {}),
        ({"T": (1, 2, 3), "H": (1, 2)}, "T", [("float32", 1), ("float32", 2)], {}),
        ({"H": (1, 2, 3), "B": (4, 5), "T": (6, 7)}, "H", [("float32", 4), ("float32", 5)],
         {"T": (7, [6, 7])}),
        ({"H": tuple(range(1, 7)), "B": tuple(range(1, 6))}, "H", [("float32", 3)],
         {"B": (3, [1, 2, 3, 4, 5])}),
        ({"H": (1, 2), "dtypes": ("float32", "bfloat16")}, "H",
         [("float32", 8), ("bfloat16", 8)], {}),
    ],
)  # fmt: skip
def test_the_size_with_most_values_is_the_axis(sizes, axis, rows, held):
    found = bench_plot.layout(grid(**sizes, modes=("forward", "train")))
    assert found.axis == axis
    assert found.columns == [("lstm", "forward"), ("lstm", "train")]
    assert found.rows == rows
    assert found.held == held


def test_lines_bands_baseline_and_floor(drawn):
    rows = rows_of(grid(H=(64, 128)), torch_nn=2e-3, fast=1e-3, slow=8e-3)
    (axes,) = (axes for axes in drawn(rows).axes if axes.lines)
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines) == ["floor", "torch.nn (baseline)", "fast", "slow", "what auto chooses"]
    for name, first in (("torch.nn (baseline)", 2), ("fast", 1), ("slow", 8)):
        assert list(lines[name].get_xdata()) == [64, 128]
        assert lines[name].get_ydata() == pytest.approx([first, 2 * first])
    assert lines["floor"].get_ydata() == pytest.approx([3e-2, 3e-2])
    assert lines["what auto chooses"].get_ydata() == pytest.approx([1, 2])
    assert lines["torch.nn (baseline)"].get_color() == "black"
    assert len({lines[name].get_color() for name in ("fast", "slow")} - {"black"}) == 2
    bands = [band.get_paths()[0].vertices[:, 1] for band in axes.collections]
    assert [(band.min(), band.max()) for band in bands[1:]] == [
        pytest.approx(((low := row.quantiles())[0] * 1e3, low[2] * 2e3)) for row in rows[:3]
    ]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["64", "128"]


def test_panels_titles_and_what_is_not_drawn(drawn):
    cases = grid(H=(64, 128, 256), B=(8, 16), T=(10, 100), modes=("forward", "train"))
    rows = rows_of(cases, torch_nn=2e-3, fast=1e-3)
    rows += [Row(cases[0], "bad", "wrong", "output off")]
    figure = drawn(rows)
    panels = [axes for axes in figure.axes if axes.lines]
    assert [axes.get_title() for axes in panels] == [
        f"lstm, {mode}, B = {B}" for B in (8, 16) for mode in ("forward", "train")
    ]
    assert [axes.get_xlabel() for axes in panels] == ["", "", *["hidden units H"] * 2]
    assert [axes.get_ylabel() for axes in panels] == ["ms per call", ""] * 2
    assert "float32 on " in figure.get_suptitle()
    (caption,) = (text.get_text() for text in figure.texts if "medians" in text.get_text())
    assert "T = 100 (of 10, 100)" in caption
    assert "wrong or failed, and without a time: bad" in caption
    (legend,) = figure.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["floor", "torch.nn (baseline)", "fast", "what auto chooses"]


def test_nothing_is_cut_off(drawn):
    """What is written lies within the figure."""
    rows = rows_of(grid(H=(64, 128), modes=("forward", "train")), torch_nn=2e-3,
                   **{f"an_implementation_{i}": 1e-3 * (1 + i) for i in range(8)})  # fmt: skip
    figure = drawn(rows)
    (legend,) = figure.legends
    box, whole = legend.get_window_extent(), figure.bbox
    assert whole.x0 <= box.x0 < box.x1 <= whole.x1
    assert whole.y0 <= box.y0 < box.y1 <= whole.y1


def test_a_case_without_any_time_is_drawn_empty(drawn):
    rows = rows_of(grid(H=(64,)), torch_nn=1e-3)
    rows += [Row(each, "torch.nn", "wrong", "off") for each in grid(H=(128,))]
    drawn(rows)
    drawn([Row(each, "torch.nn", "wrong", "off") for each in grid(H=(64, 128))])


@pytest.mark.parametrize(
    ("name", "cases", "text"),
    [
        ("x.png", grid(B=(1, 2)), ""),
        ("x.PDF", grid(B=(1, 2)), ""),
        ("x.doc", grid(B=(1, 2)), "got 'x.doc', expected a name that ends in .png, .svg"),
        ("x", grid(B=(1, 2)), "got 'x', expected a name"),
        ("x.png", grid(), "got one value of each of H, B and T, expected several"),
    ],
)
def test_what_is_refused(name, cases, text):
    pytest.importorskip("matplotlib")
    found = bench_plot.complaint(Path(name), cases)
    assert found.startswith(text)
    assert bool(found) == bool(text)


def test_without_matplotlib_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = bench_plot.complaint(Path("x.png"), grid(B=(1, 2)))
    assert found == "drawing needs matplotlib: pip install 'fastrnn[bench]'"
