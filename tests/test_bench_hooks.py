"""Plugins that add cases and peers to `fastrnn bench`; what is wrong with one harms no other."""

from __future__ import annotations

import json
import sys
import types
import warnings

import pytest

from fastrnn import bench, bench_hooks, cli, plugins
from fastrnn.bench_cases import PEERS, PRESETS
from fastrnn.benchmark import Axes, Case, Peer, Preset
from fastrnn.hookspecs import hookimpl
from fastrnn.plugins import PluginWarning
from plugin_cases import installing, load, record_of

install = pytest.fixture(installing)
CASE = Case("rnn_tanh", "train", 3, 2, 4, 4, 1, False, "float32", "cpu")
AXES = Axes(["lstm"], [1], [1], [1])
TORCH = PEERS[0]
OWN = ["torch.nn", "cell loop", "compiled loop"]


@pytest.fixture
def installed(install):
    """The distribution that adds benchmarks."""
    install("adds_benchmarks")
    assert load() == []


def plugin_with(peers=(), presets=()):
    module = types.ModuleType("benches")
    module.fastrnn_benchmark_peers = hookimpl(lambda: peers)
    module.fastrnn_benchmark_cases = hookimpl(lambda: presets)
    return module


def asked(function):
    """What a function returns, and the texts of the plugin warnings it causes."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = function()
    assert all(w.category is PluginWarning for w in caught)
    return found, [str(w.message) for w in caught]


def test_a_peer_is_checked_and_timed_like_a_backend(installed):
    rows = list(bench.measure(
        [CASE, CASE._replace(mode="forward"), CASE._replace(cell="lstm")],
        backends=["reference"], repeats=2,
        peers=[each for each in bench_hooks.peers().values() if not each.on_demand],
    ))  # fmt: skip
    names = ["torch.nn", "cell loop", "own loop", "raises", "wrong", "reference"]
    assert [row.implementation for row in rows] == 3 * names
    by_case = [{row.implementation: row for row in rows[i : i + 6]} for i in (0, 6, 12)]
    for found in by_case[:2]:
        own, raised, wrong = found["own loop"], found["raises"], found["wrong"]
        assert (own.status, len(own.samples), own.is_backend) == ("ok", 2, False)
        assert 0 < own.error <= 1
        assert own.speedup > 0
        assert (raised.status, raised.reason) == ("failed", "raised OSError: no device")
        assert wrong.status == "wrong"
        assert wrong.reason.startswith("output off by ")
        assert raised.samples == wrong.samples == []
    lstm = by_case[2]
    assert lstm["own loop"].status == "cannot run"
    assert lstm["own loop"].reason == "cell is lstm; needs rnn_tanh"
    assert lstm["reference"].samples
    assert bench.failures(rows, None) == []  # a peer's fault is no backend's
    report = bench.report(rows)
    assert "FAILED: raised OSError: no device" in report
    assert "own loop cannot run 1 of the cases: cell is lstm; needs rnn_tanh" in report


@pytest.mark.parametrize(
    ("peer", "reason"),
    [
        (Peer("p", "", TORCH.build, lambda case: 1 / 0), "raised ZeroDivisionError"),
        (
            Peer("p", "", TORCH.build, lambda case: "no GPU"),
            "raised TypeError: its reasons are 'no GPU'",
        ),
        (Peer("p", "", lambda case: sys.exit(3)), "raised SystemExit: 3"),
        (Peer("p", "", lambda case: None), "raised AttributeError"),
    ],
)
def test_a_peer_that_raises_is_a_line(peer, reason):
    rows = list(bench.measure([CASE], backends=["reference"], peers=[TORCH, peer], repeats=1))
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert rows[1].reason.startswith(reason)


def test_a_plugins_preset_says_layers_and_inputs_unless_arguments_do(installed, capsys, tmp_path):
    path = tmp_path / "out.json"
    command = ["bench", "--preset", "speech", "--mode", "forward", "--backends", "reference"]
    command += ["--repeats", "1", "--json", str(path)]

    def case():
        return json.loads(path.read_text())["results"][0]

    assert cli.main(command) == 0
    assert [case()[name] for name in ("cell", "T", "B", "I", "H", "layers")] == [
        "lstm", 4, 2, 80, 6, 2,
    ]  # fmt: skip
    assert json.loads(path.read_text())["settings"]["preset"] == "speech"
    assert cli.main([*command, "--I", "3", "--layers", "1", "--H", "5", "--bidirectional"]) == 0
    assert [case()[name] for name in ("I", "H", "layers", "bidirectional")] == [3, 5, 1, True]
    capsys.readouterr()


def test_peers_are_chosen_by_name_and_torch_is_always_there(installed, capsys):
    command = ["bench", "--preset", "tiny", "--cell", "rnn_tanh", "--mode", "forward"]
    command += ["--backends", "reference", "--repeats", "1"]
    assert cli.main([*command, "--peers", "own loop"]) == 0
    out = capsys.readouterr().out
    assert out.count("own loop") == out.count("torch.nn  ") == 1
    assert "cell loop" not in out
    with pytest.raises(SystemExit):
        cli.main([*command, "--peers", "apex"])
    assert (
        "argument --peers: got 'apex', expected a peer: torch.nn, cell loop, compiled loop, own"
        in (capsys.readouterr().err)
    )


def test_the_list_says_what_there_is(installed, capsys):
    assert cli.main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    for each in (*PRESETS, *PEERS):
        assert each.name in out
        assert each.summary in out
    lines = [line.split() for line in out.splitlines()]
    assert ["speech", "two", "layers", "over", "80", "features"] in lines
    assert ["own", "loop", "always", "a", "loop", "over", "time"] in lines
    assert ["compiled", "loop", "named", "or", "all"] in [line[:5] for line in lines]


def test_hooks_are_asked_by_the_command_only(install):
    install("adds_benchmarks")
    assert load() == []
    assert record_of("adds-benchmarks").hooks == (
        "fastrnn_benchmark_cases", "fastrnn_benchmark_peers",
    )  # fmt: skip
    calls = []
    module = plugin_with()
    module.fastrnn_benchmark_peers = hookimpl(lambda: calls.append(0) or [])
    plugins.register(module)
    assert calls == []
    bench_hooks.peers()
    assert calls == [0]


@pytest.mark.parametrize(
    ("peers", "text"),
    [
        (None, "fastrnn_benchmark_peers returned None, expected a list"),
        ([7], "fastrnn_benchmark_peers returned 7, expected instances of Peer"),
        ([Peer("aten", "", TORCH.build)], "the name 'aten' is that of a backend"),
        ([Peer("torch.nn", "", TORCH.build)], "the name 'torch.nn' is that of another peer"),
        ([Peer("all", "", TORCH.build)], "the name 'all' is that of all of them"),
        ([Peer("a,b", "", TORCH.build)], "the name 'a,b' is not allowed"),
        ([Peer("", "", TORCH.build)], "the name '' is not allowed"),
    ],
)
def test_what_is_wrong_with_a_peer_is_reported_once(install, peers, text):
    good = Peer("good", "", TORCH.build)
    plugins.register(plugin_with(peers if peers is None else [*peers, good]), name="benches")
    found, (warning,) = asked(bench_hooks.peers)
    assert warning.startswith(
        "plugin 'benches' (from Python): not all of its benchmarks are used: "
    )
    assert text in warning
    assert list(found) == [*OWN, *["good"] * (peers is not None)]
    assert found["torch.nn"] is TORCH
    assert asked(bench_hooks.peers) == (found, [])


@pytest.mark.parametrize(
    ("preset", "text"),
    [
        (Axes(["lstm"], [1], [1], [1]), "expected instances of Preset"),
        (Preset("quick", "", AXES), "the name 'quick' is that of another preset"),
        (Preset("x", "", AXES._replace(cell=["ltsm"])), "no cell 'ltsm'; expected one of lstm"),
        (Preset("x", "", AXES._replace(T=[])), "an axis is empty"),
        (Preset("x", "", AXES._replace(B=[0])), "a size is not an integer of at least 1"),
        (Preset("x", "", AXES, dtypes=["int8"]), "no dtype 'int8'; expected one of float32"),
        (Preset("x", "", AXES, device="tpu"), "the device is 'tpu'; expected cpu or cuda"),
        (Preset("x", "", AXES, layers=0), "a size is not an integer of at least 1"),
    ],
)
def test_what_is_wrong_with_a_preset_is_reported_once(install, preset, text):
    plugins.register(plugin_with(presets=[preset]), name="benches")
    found, (warning,) = asked(bench_hooks.presets)
    assert text in warning
    assert list(found) == [each.name for each in PRESETS]
    assert asked(bench_hooks.presets)[1] == []


def test_a_hook_that_raises_loses_nothing_of_what_came_before(install):
    def peers():
        yield Peer("first", "", TORCH.build)
        raise RuntimeError("and no more")

    module = plugin_with()
    module.fastrnn_benchmark_peers = hookimpl(peers)
    plugins.register(module)
    found, (warning,) = asked(bench_hooks.peers)
    assert list(found) == [*OWN, "first"]
    assert "fastrnn_benchmark_peers raised RuntimeError: and no more" in warning


def test_tune_takes_a_plugins_preset_and_no_plugins_peers(installed, capsys):
    command = ["tune", "--preset", "tiny", "--dry-run", "--repeats", "1", "--json"]
    assert cli.main([*command, "--cell", "rnn_tanh", "--mode", "forward"]) == 0
    results = json.loads(capsys.readouterr().out)["results"]
    names = {row["implementation"] for row in results}
    assert {"torch.nn", "reference"} <= names
    assert "own loop" not in names
