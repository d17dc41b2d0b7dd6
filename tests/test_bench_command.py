"""`fastrnn bench`: what is compared, what the table and the files say, and what is refused."""

from __future__ import annotations

import csv
import importlib.util
import json

import pytest
import torch

from fastrnn import bench, bench_cases, bench_compiled, bench_hooks, cli, plugins
from fastrnn.bench import Row
from fastrnn.bench_report import report
from fastrnn.benchmark import Axes, Case, Preset
from fastrnn.floor import Attained, Floor
from fastrnn.hookspecs import hookimpl

CASE = Case("lstm", "train", 5, 3, 4, 6, 1, False, "float32", "cpu")
SIZES = ["--T", "3", "--B", "1,2", "--H", "4", "--repeats", "1"]
QUICK = Attained(1e9, ((1, 1e9),), 1e-6, 0.0, None, "measured")


@pytest.fixture
def run(capsys):
    """Run the command in this process."""

    def run(*arguments):
        try:
            code = cli.main(["bench", *arguments])
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def asked(monkeypatch):
    """What is to be measured, of which nothing is."""
    seen = []

    def measure(cases, **options):
        seen.append((cases, [peer.name for peer in options["peers"]]))
        return [Row(case, "torch.nn", samples=[1.0]) for case in cases]

    monkeypatch.setattr(bench, "measure", measure)
    monkeypatch.setattr("fastrnn.floor.attained_for", lambda case: QUICK)
    return seen


@pytest.fixture
def extra():
    """Register presets and peers for a test."""
    plugins.reset()

    def register(*presets):
        class Plugin:
            @hookimpl
            def fastrnn_benchmark_cases(self):
                return presets

        plugins.register(Plugin())

    yield register
    plugins.reset()


def test_the_compiled_loop_is_compared_when_somebody_asks(run, asked, extra):
    axes = Axes(["lstm"], [1], [1], [1])
    extra(Preset("patient", "", axes, peers=["compiled loop", "not installed"]))
    left_out = "left out, since it takes long to get ready: compiled loop (--peers all has it)\n"
    everything = [*bench_hooks.peers()]
    for arguments, names in (
        ((), ["torch.nn", "cell loop"]),
        (("--peers", "all"), everything),
        (("--peers", "compiled loop"), ["torch.nn", "compiled loop"]),
        (("--peers", "cell loop"), ["torch.nn", "cell loop"]),
        (("--preset", "patient"), everything),
    ):
        code, out, _ = run(*arguments)
        assert code == 0
        assert asked.pop()[1] == names
        assert (left_out in out) == (arguments == ())


def test_dtype_and_device_are_the_presets_unless_they_are_given(run, asked, extra, monkeypatch):
    extra(Preset("both", "", Axes(["lstm"], [1], [1], [1]), dtypes=["bfloat16", "float32"]))

    def dtypes():
        return [case.dtype for case in asked.pop()[0]]

    assert run("--preset", "both", "--mode", "train")[0] == 0
    assert dtypes() == ["bfloat16", "float32"]
    run("--preset", "both", "--mode", "train", "--dtype", "float64")
    assert dtypes() == ["float64"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    code, out, err = run("--preset", "h200")
    assert (code, out, asked) == (2, "", [])
    assert "argument --preset: got 'h200', which is for cuda, and torch sees no GPU here" in err
    assert run("--preset", "h200", "--device", "cpu")[0] == 0
    cases = asked.pop()[0]
    assert {case.device for case in cases} == {"cpu"}
    assert {case.dtype for case in cases} == {"bfloat16", "float32"}


def test_presets_are_all_sound():
    for preset in bench_cases.PRESETS:
        bench_hooks._checked(preset, Preset, "")
        assert set(preset.peers) <= {bench_compiled.COMPILED}
        assert (preset.device == "cuda") == (preset.name in ("gpu", "h200"))


def test_modes(run, asked):
    for name, modes in (("inference", ["inference"]), ("both", ["forward", "train"])):
        run("--mode", name)
        assert list(dict.fromkeys(case.mode for case in asked.pop()[0])) == modes


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--peers", "apex"), "argument --peers: got 'apex', expected a peer: torch.nn, cell loop"),
        (("--plot", "no/such/x.png"), "argument --plot: got 'no/such/x.png', expected a file in a"),
        (("--plot", "x.doc"), "argument --plot: got 'x.doc', expected a name that ends in .png"),
        (("--plot", "x.png", "--B", "1"), "argument --plot: got one value of each of H, B and T"),
        (("--dtype", "float32,int8"), "argument --dtype: got 'int8', expected one of float32"),
        (("--mode", "backward"), "argument --mode: invalid choice: 'backward'"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_measured(run, asked, arguments, text):
    code, out, err = run(*arguments)
    assert (code, out, asked) == (2, "", [])
    assert text in err
    assert err.count("\n") == 1


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(run, asked, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "matplotlib" else real(name)
    )
    code, _, err = run("--plot", "x.png")
    assert (code, asked) == (2, [])
    assert "argument --plot: drawing needs matplotlib: pip install 'fastrnn[bench]'" in err


def test_the_files_have_all_that_the_table_has(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setattr("fastrnn.floor.attained_for", lambda case: QUICK)
    paths = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "png")}
    code, out, _ = run(
        "--cell", "rnn_tanh", *SIZES, "--mode", "train", "--backends", "reference",
        "--json", str(paths["json"]), "--csv", str(paths["csv"]), "--plot", str(paths["png"]),
    )  # fmt: skip
    assert code == 0
    content = json.loads(paths["json"].read_text())
    assert content["attained"] == {"float32": json.loads(json.dumps(QUICK._asdict()))}
    assert content["settings"]["dtype"] == ["float32"]
    assert "plot" not in content["settings"]
    with paths["csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content["results"]) == 2 * 3
    for row, found in zip(rows, content["results"], strict=True):
        assert row.keys() == found.keys() - {"samples_s"}
        assert found["floor_s"] == max(found[f"floor_{n}_s"] for n in Floor._fields)
        assert found["floor_share"] == pytest.approx(found["floor_s"] / found["median_s"])
        assert found["peak_bytes"] > 0
        assert found["gflops"] == pytest.approx(1e-9 * 6 * 3 * found["B"] * 32 / found["median_s"])
    assert paths["png"].stat().st_size > 1000
    assert "cell loop" in out


def test_the_table_says_a_case_once_and_fits_a_terminal():
    long = CASE._replace(T=1024, B=128, I=1536, H=1536, layers=4)
    floor = Floor(1e-3, 2e-3, 40e-3)
    rows = [
        Row(case, name, samples=[0.08 * k, 1.0, 2.0], error=0.123, speedup=12.3, auto=k == 2,
            floor=floor, peak_bytes=12_345 << 20)
        for case in (long, long._replace(mode="forward"))
        for k, name in ((1, "torch.nn"), (2, "compiled loop"))
    ]  # fmt: skip
    text = report(rows)
    assert max(map(len, text.splitlines())) <= 120
    assert text.count(str(long)) == 1
    assert f"{long}: floor 40.000 ms (arithmetic 1.000, memory 2.000, steps 40.000)" in text
    (line, _) = (line for line in text.splitlines() if line.startswith("  compiled loop"))
    assert line.split() == [
        "compiled", "loop", "*", "1000.000", "496.000..1600.000", "12.30x", "976.56",
        *f"{bench.operations(long) * 1e-9:.1f}".split(), "4.0", "%", "12345.00", "0.123",
    ]  # fmt: skip
    assert "note" not in text
    assert "steps (measured)" in text
    other = [Row(CASE._replace(device="cuda"), "x", samples=[1.0], floor=floor)]
    assert "steps (assumed: the kernels' cost model)" in report(other)
    wrong = Row(long, "x", "wrong", "output off by 1", error=3.0, floor=floor)
    text = report([*rows, wrong])
    assert "WRONG: output off by 1" in text
    assert " note" in text
    wrong = Row(long, "x", "failed", "raised CompileError: " + 9000 * "x", floor=floor)
    assert max(map(len, report([*rows, wrong]).splitlines())) < 270


def test_a_floor_above_a_time_is_owned_up_to():
    for seconds, said in ((2.0, False), (0.5, True)):
        row = Row(CASE, "x", samples=[seconds], floor=Floor(0.1, 1.0, 0.1))
        assert ("the machine was busy when its\nrates were measured" in report([row])) == said


def test_without_figures_there_are_no_columns_for_them():
    text = report([Row(CASE, "torch.nn", samples=[1.0])])
    for word in ("floor", "MiB", "GFLOP/s"):
        assert word not in text


def test_several_dtypes_are_told_apart():
    rows = [Row(CASE._replace(dtype=d), "x", samples=[1.0]) for d in ("float32", "bfloat16")]
    text = report(rows)
    assert "float32, bfloat16 on cpu" in text
    assert f"\n{CASE} bfloat16\n" in text
