"""The loader, with real distributions: no third party can stop, replace or silence anything."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import fastrnn
from fastrnn import plugins
from fastrnn.plugins import PluginWarning, registry
from plugin_cases import (
    BUILTINS,
    PLUGINS,
    REQUEST,
    installing,
    load,
    record_of,
    run,
    write_distribution,
)

HERE = Path(__file__).parent

install = pytest.fixture(installing)


def assert_builtins_work():
    assert list(registry().backends)[: len(BUILTINS)] == BUILTINS
    assert [record.state for record in registry().plugins[:4]] == ["loaded"] * 4
    assert type(registry().backends["aten"]).__module__ == "fastrnn_aten.backend"
    for backend in ("reference", "aten"):
        run(backend)


FAULTS = {
    "raises_on_import": "its import raised OSError: libaccelerator.so: cannot open",
    "exits_on_import": "its import raised SystemExit: no driver",
    "asks_on_import": "its import raised RuntimeError: fastrnn is loading its plugins",
    "raises_in_hook": "fastrnn_backends raised RuntimeError: no device was found",
    "exits_in_hook": "fastrnn_backends raised SystemExit: 3",
    "wrong_signature": "Argument(s) {'reqest'} are declared in the hookimpl but can not be found",
    "misspelt_hook": "unknown hook 'fastrnn_backend'",
    "no_hook": "it implements no hook; decorate its functions with @fastrnn.hookimpl",
    "wraps_hook": "fastrnn_choose_backend is a hook wrapper",
    "returns_garbage": "fastrnn_backends returned 'numpy', expected instances of StackBackend",
    "returns_none": "fastrnn_backends returned None, expected a list",
    "returns_class": "fastrnn_backends returned the class ReferenceBackend, expected instances",
    "bad_name": "the backend name 'My Backend' is not allowed; expected lower-case letters",
    "named_auto": "the backend name 'auto' is not allowed",
    "other_contract": "backend 'old' was built for contract 0, and this fastrnn",
    "no_contract": "backend 'silent' does not say its contract, and this fastrnn",
    "takes_aten": "the backend name 'aten' is taken",
}


@pytest.mark.parametrize("module", FAULTS)
def test_a_fault_is_reported_once_and_nothing_else_suffers(install, module):
    install(module)
    install("numpy_lstm", "zzz")  # loaded after it
    (warning,) = load()
    name = module.replace("_", "-")
    assert warning.startswith(f"plugin {name!r} of {name} 1.0 was not loaded: ")
    assert FAULTS[module] in warning
    assert warning.endswith(f"Update or remove {name}, or set FASTRNN_DISABLE_PLUGINS={name}.")
    assert "\n" not in warning
    record = record_of(name)
    assert (record.state, record.backends) == ("failed", ())
    assert record.reason in warning
    assert record_of("zzz").state == "loaded"
    assert list(registry().backends) == [*BUILTINS, "numpy"]
    assert registry().policy(REQUEST, ()) is None  # a refused plugin's other hooks are not asked
    assert_builtins_work()


def test_a_contract_from_the_future_says_which_is_which(install):
    install("other_contract")
    (warning,) = load()
    assert "contract 0" in warning
    assert f"fastrnn ({fastrnn.__version__}) has contract 1" in warning


@pytest.mark.parametrize("name", PLUGINS)
def test_a_third_party_cannot_take_a_reserved_name(install, name):
    install("raises_on_import", name, distribution="aaa")  # which also must not be imported
    (warning,) = load()
    taken = f"the name is taken by plugin {name!r} of fastrnn {fastrnn.__version__}"
    # disabling by this name would disable the built-in
    assert warning == f"plugin {name!r} of aaa 1.0 was not loaded: {taken}. Update or remove aaa."
    assert_builtins_work()


def test_a_reserved_name_stays_reserved_while_its_owner_is_disabled(install, monkeypatch):
    monkeypatch.setenv("FASTRNN_DISABLE_PLUGINS", "triton")
    install("raises_on_import", "triton", distribution="aaa")
    (warning,) = load()
    assert "the name is taken by plugin 'triton' of fastrnn" in warning


def test_of_two_third_parties_the_first_by_distribution_name_has_the_name(install):
    install("policy_reference", "shared", distribution="Beta")
    install("numpy_lstm", "shared", distribution="alpha")  # `Beta` < `alpha` only unnormalised
    (warning,) = load()
    assert warning == (
        "plugin 'shared' of Beta 1.0 was not loaded: the name is taken by plugin 'shared' of "
        "alpha 1.0. Update or remove Beta."
    )
    assert [r.distribution for r in registry().plugins if r.name == "shared"] == ["alpha", "Beta"]
    assert "numpy" in registry().backends


def test_one_module_is_one_plugin(install):
    install("numpy_lstm", "first", "second")
    (warning,) = load()
    assert "plugin 'second' of numpy-lstm 1.0 was not loaded: it is registered already" in warning
    assert record_of("first").backends == ("numpy",)


def test_good_backends_of_a_plugin_stay_when_others_are_bad(install):
    install("half_good")
    raised, bad = load()
    prefix = "plugin 'half-good' of half-good 1.0 was loaded in part: "
    assert raised.startswith(prefix + "fastrnn_backends raised RuntimeError: and no more")
    assert bad.startswith(prefix + "the backend name 'BAD' is not allowed")
    record = record_of("half-good")
    assert (record.state, record.backends) == ("loaded", ("good",))
    assert "BAD" in record.reason
    run("good")


def test_our_own_entry_points_are_not_loaded_twice(install):
    entries = "[fastrnn]\nreference = fastrnn_reference\nmine = fastrnn_aten\n"
    install("numpy_lstm", distribution="fastrnn", entries=entries)
    assert load() == []
    assert [record.name for record in registry().plugins] == PLUGINS


@pytest.mark.parametrize("text", ["[fastrnn]\nno value\n", "fastrnn \udcff"])
def test_malformed_metadata_of_one_distribution_stops_nobody(install, tmp_path, text):
    install("returns_none", distribution="malformed")
    path = tmp_path / "malformed-1.0.dist-info" / "entry_points.txt"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    install("numpy_lstm")
    (warning,) = load()
    assert "malformed-1.0.dist-info cannot be read" in warning
    assert "numpy" in registry().backends
    assert_builtins_work()


def test_a_broken_builtin_is_reported_like_any_other(install, monkeypatch):
    monkeypatch.setitem(plugins.BUILTINS, "triton", "fastrnn_no_such_module")
    (warning,) = load()
    assert warning.startswith(f"plugin 'triton' of fastrnn {fastrnn.__version__} was not loaded:")
    assert "ModuleNotFoundError" in warning
    assert warning.endswith("Reinstall fastrnn.")
    assert list(registry().backends) == ["reference", "aten", "onednn", "rows", "numba"]


def test_warnings_as_errors_do_not_stop_the_host_twice(install):
    install("raises_on_import")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(PluginWarning, match="of raises-on-import 1"):
            registry()
        assert list(registry().backends) == BUILTINS


def test_an_interrupt_is_not_swallowed(install, monkeypatch):
    def interrupted(name):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", interrupted)
        with pytest.raises(KeyboardInterrupt):
            registry()
    assert load() == []  # and the next call starts over
    assert list(registry().backends) == BUILTINS


# In a process of its own, as users meet it


def test_every_fault_at_once_in_a_fresh_process(tmp_path):
    for module in [*FAULTS, "numpy_lstm", "half_good"]:
        write_distribution(tmp_path, module)
    script = (
        "import torch, fastrnn\n"
        "for name in ('reference', 'aten', 'numpy', 'good', 'auto'):\n"
        "    out, _ = fastrnn.LSTM(3, 4, backend=name)(torch.randn(5, 2, 3))\n"
        "    out.sum().backward()\n"
        "print('done')\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "always::UserWarning"}
    environment.pop("FASTRNN_DISABLE_PLUGINS", None)
    root = HERE.parent
    environment["PYTHONPATH"] = os.pathsep.join(
        map(str, (tmp_path, root, root / "kernels", root / "plugins"))
    )
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True,
        timeout=120, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr
    for module in FAULTS:
        name = module.replace("_", "-")
        assert done.stderr.count(f"PluginWarning: plugin {name!r} of {name} 1.0 was not") == 1
    assert done.stderr.count("PluginWarning") == len(FAULTS) + 2
