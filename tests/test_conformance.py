"""The conformance suite: sound backends pass, and every seeded fault is found by its own check."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastrnn
import fastrnn_pytest
import faulty_backends as faulty
import faulty_claims
import faulty_stacks
from fastrnn import cli
from fastrnn.plugins import registry
from fastrnn.testing import (
    checks_isolation,
    checks_parity,
    conformance,
    pytest_plugin,
    test_backend,
)

ROOT = Path(__file__).resolve().parents[1]
FOUND: Mapping[type, tuple[str, str]] = {
    faulty.WrongGateOrder: ("parity/lstm", "parity/rnn_tanh"),
    faulty.DroppedBias: ("parity/lstm-bias", "parity/lstm-hx"),
    faulty.LengthsIgnored: (
        "parity/lstm-lengths parity/lstm-packed isolation/nan-in-padding-lstm",
        "parity/lstm-reverse"),
    faulty.ResetsIgnored: ("parity/lstm-resets", "parity/lstm-hx"),
    faulty.ZoneoutIgnored: ("parity/layer-lstm-zoneout", "parity/layer-lstm-recurrent_dropout"),
    faulty.MaskIgnored: ("parity/layer-lstm-recurrent_dropout", "parity/layer-lstm-zoneout"),
    faulty.ClipIgnored: ("parity/layer-rnn_tanh-error_clip", "parity/layer-rnn_tanh-zoneout"),
    faulty.ReverseFromTheEndOfThePadding: ("parity/lstm-reverse-lengths", "parity/lstm-lengths"),
    faulty.ReusedResultBuffer: ("repeated/results-stay-lstm", "parity/lstm"),
    faulty.ReusedSavedBuffer: ("repeated/graphs-stay-lstm", "parity/lstm"),
    faulty.ZeroedOnlyAtCreation: ("repeated/same-bits-lstm", "repeated/same-bits-lstm-forward"),
    faulty.LeftOverPadding: (
        "repeated/nothing-left-over-lstm-lengths", "repeated/nothing-left-over-lstm-forward"),
    faulty.UnwrittenPadding: (
        "isolation/unwritten-memory-lstm-lengths", "isolation/unwritten-memory-lstm-resets"),
    faulty.MutatedInput: (
        "isolation/inputs-stay-rnn_tanh isolation/layer-stays-rnn_tanh",
        "isolation/nan-in-x-rnn_tanh"),
    faulty.MutatedGradient: ("isolation/layer-stays-lstm", "isolation/nan-in-x-lstm"),
    faulty.WritesToSaved: (
        "gradients/lstm-retained-graph isolation/layer-stays-lstm", "gradients/lstm-to-x"),
    faulty.SumInAnyOrder: ("repeated/same-bits-lstm", "repeated/same-bits-lstm-forward"),
    faulty.SharedScratch: ("repeated/threads-lstm", "repeated/same-bits-lstm"),
    faulty.FinalStateIsAView: (
        "autograd/results-share-no-memory-lstm-forward", "autograd/graph-where-due-lstm"),
    faulty.WrongGradientOfH0: (
        "gradients/lstm-to-h0 gradients/lstm-create_graph", "gradients/lstm-to-c0"),
    faulty.NeedsTheGradientOfTheOutput: ("gradients/lstm-of-h_n", "gradients/lstm-of-sum"),
    faulty.IgnoresTheGradientOfHn: ("gradients/lstm-of-h_n", "gradients/lstm-of-output"),
    faulty.NoWeightGradientWithoutThatOfX: (
        "gradients/lstm-to-all-but-x", "gradients/lstm-to-x"),
    faulty.NeedsContiguousInputs: ("gradients/lstm-strided", "gradients/lstm-of-sum"),
    faulty.NeedsContiguousGradients: ("gradients/lstm-of-transposed", "gradients/lstm-of-one-step"),
    faulty.NanLeaksBetweenRows: (
        "isolation/nan-in-x-lstm isolation/nan-in-h0-lstm isolation/nan-in-a-gradient-lstm",
        "isolation/unwritten-memory-lstm"),
    faulty.NanLeaksThroughTime: (
        "isolation/nan-in-x-lstm isolation/nan-before-a-reset-lstm", "isolation/nan-in-h0-lstm"),
    faulty.CountsGradientsOfPadding: (
        "gradients/lstm-of-output-lengths", "gradients/lstm-of-h_n-lengths"),
    faulty.SavedLikeInAnotherOrder: (
        "autograd/saved_like-lstm autograd/opcheck-lstm", "autograd/saved_like-rnn_tanh"),
    faulty.SavesFour: ("autograd/saved_like-lstm", "autograd/saved_like-lstm-not-saving"),
    faulty_claims.ClaimsTooMuch: ("claims/runs-what-it-claims", "claims/cost-has-a-why"),
    faulty_claims.RefusesWithoutAReason: (
        "claims/reasons-are-strings-in-a-list", "claims/claims-something"),
    faulty_claims.RaisesWhenAsked: (
        "claims/reasons-are-strings-in-a-list", "claims/runs-what-it-claims"),
    faulty_claims.AnswersOtherwiseEveryTime: (
        "claims/reasons-are-strings-in-a-list claims/refuses-when-named",
        "claims/claims-something"),
    faulty_claims.CostIsNoNumber: ("claims/cost-has-a-why", "claims/unavailable-is-a-list"),
    faulty_claims.RunsNoLayerAtOnce: ("claims/layers_at_once", "claims/unavailable-is-a-list"),
    faulty_claims.UnavailableIsAString: ("claims/unavailable-is-a-list", "claims/cost-has-a-why"),
    faulty_claims.HeedsWhatIsNotThere: ("claims/options-exist", "claims/cost-has-a-why"),
    faulty_claims.ClaimsNothing: ("claims/claims-something", "claims/unavailable-is-a-list"),
    faulty.WrongInFloat32OfOneLayer: ("parity/lstm-float32", "claims/cost-has-a-why"),
    faulty.RowsOfOneTile: ("parity/lstm-T65-B33-H130", "parity/rnn_sigmoid-T17-B17-H33"),
    faulty.UnitsOfOneTile: ("parity/lstm-T65-B33-H130", "parity/rnn_sigmoid-T17-B17-H33"),
    faulty_stacks.BatchFirstIgnored: ("parity/lstm-batch_first", "parity/lstm-packed"),
    faulty_stacks.GraphUnderNoGrad: (
        "autograd/graph-where-due-lstm", "autograd/results-share-no-memory-lstm-train"),
    faulty_stacks.ReadsAValue: ("autograd/compile-rnn_tanh", "autograd/graph-where-due-rnn_tanh"),
    faulty_stacks.FloatOnly: ("parity/autocast parity/lstm-bfloat16", "parity/lstm-float32"),
    faulty_stacks.DropsNothing: (
        "parity/lstm-dropout", "parity/lstm-dropout-eval-mode"),
    faulty_stacks.Detached: ("gradients/lstm-of-h_n", "gradients/lstm-of-output"),
}  # fmt: skip
"""Of each fault, checks that find it, and one that looks at the same and has nothing to say."""


@contextmanager
def registered(kind: type) -> Iterator[str]:
    plugin = faulty.Plugin(kind)
    fastrnn.register(plugin, plugin.name)
    try:
        yield plugin.name
    finally:
        fastrnn.unregister(plugin.name)


def outcome(name: str, check: str) -> conformance.Outcome:
    (found,) = (c for c in conformance.checks(check) if c.name == check)
    return conformance.perform(found, conformance.subject(name, "cpu"))


@pytest.mark.parametrize("kind", FOUND, ids=lambda kind: kind.__name__)
def test_fault_is_found_by_the_check_that_is_about_it(kind: type) -> None:
    finds, has_nothing_to_say = FOUND[kind]
    with registered(kind) as name:
        found = [outcome(name, check) for check in finds.split()]
        other = outcome(name, has_nothing_to_say)
    assert all(each.status == "failed" and each.text for each in found), found
    assert other.status == "passed", other


@pytest.mark.parametrize("only", ["gradients/lstm", "isolation/layer-stays", "opcheck", "graphs"])
def test_what_may_be_written_over_is(only: str) -> None:
    with registered(faulty.OverwritesWhatItMay) as name:
        assert conformance.run(name, only=only).failures == []


def test_a_stack_without_a_fault_passes_what_finds_those_of_stacks() -> None:
    of_stacks = [each for each in FOUND if issubclass(each, faulty_stacks.SoundStack)]
    with registered(faulty_stacks.SoundStack) as name:
        outcomes = [outcome(name, check) for each in of_stacks for check in FOUND[each][0].split()]
    assert {o.check: o.text for o in outcomes if o.status != "passed"} == {}


def test_reference_passes_everything() -> None:
    report = conformance.run("reference")
    assert (report.backend, report.device) == ("reference", "cpu")
    assert [each.check for each in report.outcomes] == [c.name for c in conformance.checks()]
    assert {o.check: o.text or o.reasons for o in report.outcomes if o.status != "passed"} == {}


def test_pytest_runs_every_backend_that_is_here_from_any_directory(tmp_path: Path) -> None:
    """Also where fastrnn is not installed, so that pytest does not load `fastrnn_pytest`."""
    path = os.pathsep.join(str(ROOT / part) for part in (".", "kernels", "plugins"))
    command = [
        sys.executable, "-W", "error", "-m", "pytest", "-rs", "-p", "no:cacheprovider",
        "-p", "fastrnn.testing.pytest_plugin", "--pyargs", "fastrnn.testing",
        "-k", "rnn_sigmoid-bias or claims-something", "--conformance-json", "found.json",
    ]  # fmt: skip
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": path}, capture_output=True,
        text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    reports = json.loads((tmp_path / "found.json").read_text())
    here = [name for name, backend in registry().backends.items() if not backend.unavailable()]
    assert [report["backend"] for report in reports] == here
    aten = reports[here.index("aten")]
    (refused,) = (each for each in aten["outcomes"] if each["status"] == "not claimed")
    assert refused["check"] == "parity/rnn_sigmoid-bias"
    assert "torch has no rnn_sigmoid" in refused["reasons"][0]
    assert refused["reasons"][0] in done.stdout
    assert "conformance of reference" in done.stdout


def test_pytest_refuses_a_name_that_is_not_there() -> None:
    config = SimpleNamespace(getoption=lambda option, default: {"--backend": "nobody"}.get(option))
    with pytest.raises(pytest.UsageError, match="--backend: unknown backend 'nobody'"):
        pytest_plugin.pytest_configure(config)


def test_a_failed_check_is_a_failed_test() -> None:
    config = SimpleNamespace(stash=pytest.Stash())
    (check,) = (c for c in conformance.checks() if c.name == "parity/lstm-bias")
    with registered(faulty.DroppedBias) as name:
        with pytest.raises(pytest.fail.Exception, match="output: off by"):
            test_backend.test_backend(conformance.subject(name), check, config)
        ((key, outcomes),) = config.stash[pytest_plugin.OUTCOMES].items()
    assert key == (name, "cpu")
    assert [(each.check, each.status) for each in outcomes] == [("parity/lstm-bias", "failed")]


@pytest.mark.parametrize(
    ("arguments", "loads"),
    [
        ("--pyargs fastrnn.testing --backend mine", True),
        ("-q --pyargs fastrnn.testing.test_backend::test_backend -x", True),
        ("--pyargs fastrnn", False),
        ("fastrnn.testing", False),
        ("--pyargs fastrnn.testings", False),
    ],
)
def test_options_are_there_only_where_they_are_asked_for(arguments: str, loads: bool) -> None:
    loaded: list[str] = []
    config = SimpleNamespace(pluginmanager=SimpleNamespace(import_plugin=loaded.append))
    fastrnn_pytest.pytest_load_initial_conftests(config, arguments.split())
    assert loaded == ["fastrnn.testing.pytest_plugin"] * loads


def test_what_every_pytest_loads_imports_nothing() -> None:
    code = "import sys; sys.modules.update(torch=None, fastrnn=None, pytest=None); "
    path = str(ROOT / "plugins")
    command = [sys.executable, "-c", code + "import fastrnn_pytest"]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": path})


def test_only_what_pytest_loads_imports_it() -> None:
    files = (ROOT / "fastrnn").rglob("*.py")
    importing = {path.name for path in files if "import pytest" in path.read_text("utf-8")}
    assert importing == {"pytest_plugin.py", "test_backend.py"}


@pytest.mark.parametrize("topic", ["parity/", "gradients/", "isolation/"])
def test_aten_has_no_fault_and_says_what_it_cannot(topic: str) -> None:
    report = conformance.run("aten", only=topic)
    assert report.failures == []
    refused = [each for each in report.outcomes if each.status == "not claimed"]
    assert refused
    assert all(each.reasons for each in refused)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["conformance", "reference", "-k", "parity/lstm-bias"]) == 0
    out, err = capsys.readouterr()
    assert "backend reference on cpu" in out
    assert "1 passed" in out
    assert err == "[1/1] parity/lstm-bias\n"
    with registered(faulty.DroppedBias) as name:
        assert cli.main(["conformance", name, "-k", "parity/lstm-b", "--json"]) == 1
        found = json.loads(capsys.readouterr().out)
        assert cli.main(["conformance", name, "-k", "parity/lstm-b"]) == 1
        assert "FAILED parity/lstm-bias\n    out of tolerance" in capsys.readouterr().out
    assert found["passed"] is False
    statuses = {each["check"]: each["status"] for each in found["outcomes"]}
    assert statuses["parity/lstm-bias"] == "failed"
    assert statuses["parity/lstm-batch_first"] == "passed"
    for arguments in (["nobody"], ["aten", "-k", "no such check"], ["aten", "--device", "tpu"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(["conformance", *arguments])
        assert ended.value.code == 2


def test_wrong_arguments() -> None:
    with pytest.raises(fastrnn.BackendError, match="unknown backend 'nobody'"):
        conformance.run("nobody")
    with pytest.raises(ValueError, match="name: got 'auto', expected one of reference"):
        conformance.run("auto")
    with pytest.raises(ValueError, match="only: got 'zzz', expected a part of a check's name"):
        conformance.run("aten", only="zzz")


def test_settings_of_the_process_are_as_they_were() -> None:
    before = sys.getswitchinterval(), torch.random.get_rng_state()
    for check in ("isolation/unwritten-memory-lstm", "repeated/threads-lstm"):
        assert outcome("reference", check).status == "passed"
    assert sys.getswitchinterval() == before[0]
    assert torch.equal(torch.random.get_rng_state(), before[1])
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    with checks_isolation.poisoned():
        assert torch.empty(3).isnan().all()


def test_every_pair_of_values_is_met() -> None:
    axes = {"a": (1, 2, 3), "b": "xy", "c": (True, False), "d": range(5)}
    rows = checks_parity.pairwise(axes)
    assert len(rows) < 25
    for one, other in itertools.combinations(axes, 2):
        met = {(row[one], row[other]) for row in rows}
        assert met == set(itertools.product(axes[one], axes[other]))
