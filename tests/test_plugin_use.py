"""Plugins in use: healthy ones, policies, disabled ones, and the one registry of them."""

from __future__ import annotations

import sys
import threading
import warnings

import pytest
import torch

import fastrnn
from fastrnn import plugins
from fastrnn.dispatch import decide
from fastrnn.plugins import registry
from plugin_cases import BUILTINS, REQUEST, installing, load, record_of, run

install = pytest.fixture(installing)


def test_a_healthy_plugin_is_used(install):
    install("numpy_lstm")
    assert load() == []
    record = record_of("numpy-lstm")
    assert (record.state, record.hooks, record.backends, record.reason) == (
        "loaded", ("fastrnn_backends",), ("numpy",), "",
    )  # fmt: skip
    for how in ({}, {"bidirectional": True, "num_layers": 2}):
        got, want = (run(backend, **how) for backend in ("numpy", "reference"))
        torch.testing.assert_close(got, want)
        for output in (got[0], want[0]):
            output.square().sum().backward()
    assert decide(REQUEST, "numpy").backend == "numpy"
    with pytest.raises(fastrnn.BackendError, match="numpy: cannot run: cell is rnn_tanh"):
        decide(REQUEST._replace(cell="rnn_tanh"), "numpy")


def test_a_healthy_plugin_has_the_right_gradients(install):
    install("numpy_lstm")
    assert load() == []
    from fastrnn import testing
    from fastrnn.request import Spec

    problem = testing.random_problem(Spec("lstm", 3, 4, 0, 2, True, True), 5, 2)
    testing.assert_close(
        testing.run(problem, backend="numpy"),
        testing.truth(problem),
        testing.tolerance(torch.float64, 5),
    )


def test_a_policy_is_asked(install):
    install("policy_reference")
    assert load() == []
    decision = decide(REQUEST._replace(seq_len=4))
    assert (decision.backend, decision.rule) == ("reference", "policy of plugin policy-reference")
    assert decide(REQUEST).rule == "lowest estimated cost"


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("policy_raises", "fastrnn_choose_backend raised ZeroDivisionError: division by zero"),
        ("policy_unknown", "fastrnn_choose_backend returned 'cuda', expected None or one of"),
    ],
)
def test_a_bad_policy_is_reported_once_and_passed_over(install, module, text):
    install(module)
    install("policy_reference", "aaa", distribution="aaa")  # asked after it
    assert load() == []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        decisions = [decide(REQUEST._replace(seq_len=t)) for t in (1, 2, 3, 50)]
    (warning,) = (str(w.message) for w in caught)
    name = module.replace("_", "-")
    assert warning.startswith(f"plugin {name!r} of {name} 1.0: its choice is ignored, because ")
    assert text in warning
    assert [d.backend for d in decisions[:3]] == ["reference"] * 3
    assert decisions[3].rule == "lowest estimated cost"


def test_disabled_plugins_are_not_imported(install, monkeypatch):
    install("exits_on_import", "broken", distribution="one")
    install("raises_on_import", "broken", distribution="two")  # one name disables both
    install("numpy_lstm")
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", " broken ,, aten, unheard-of")
    assert load() == []
    assert [(r.name, r.state) for r in registry().plugins] == [
        ("reference", "loaded"),
        ("aten", "disabled"),
        ("rows", "loaded"),
        ("numba", "loaded"),
        ("triton", "loaded"),
        ("cells", "loaded"),
        ("numpy-lstm", "loaded"),
        ("broken", "disabled"),
        ("broken", "disabled"),
    ]
    assert list(registry().backends) == ["reference", "rows", "numba", "triton", "numpy"]
    assert not {"exits_on_import", "raises_on_import"} & set(sys.modules)
    assert record_of("aten").reason == "disabled by FASTRNN_DISABLE_PLUGINS"


def test_all_disables_every_third_party_and_no_builtin(install, monkeypatch):
    install("exits_on_import")
    install("numpy_lstm")
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "all")
    assert load() == []
    assert list(registry().backends) == BUILTINS
    assert not {"exits_on_import", "numpy_lstm"} & set(sys.modules)


def test_the_reference_cannot_be_disabled(install, monkeypatch):
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "reference,aten")
    (warning,) = load()
    assert "names 'reference', which cannot be disabled" in warning
    assert list(registry().backends) == ["reference", "rows", "numba", "triton"]


def test_threads_get_one_registry(install, monkeypatch):
    install("numpy_lstm")
    built = []
    original = plugins._build
    monkeypatch.setattr(plugins, "_build", lambda: built.append(0) or original())
    start, seen = threading.Barrier(8), []

    def ask():
        start.wait()
        seen.append(registry())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert len(seen) == 8
    assert len(set(map(id, seen))) == 1


def test_backends_cannot_be_changed_by_hand(install):
    with pytest.raises(TypeError, match="does not support item assignment"):
        registry().backends["triton"] = registry().backends["reference"]
