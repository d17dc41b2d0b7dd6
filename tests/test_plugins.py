"""The loader, with real distributions: no third party can stop, replace or silence anything."""

from __future__ import annotations

import importlib
import os
import shutil
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

import fastrnn
from fastrnn import plugins
from fastrnn.dispatch import decide
from fastrnn.hookspecs import hookimpl
from fastrnn.plugins import PluginWarning, register, registry, unregister
from fastrnn.request import Request
from fastrnn_reference.backend import ReferenceBackend

HERE = Path(__file__).parent
BUILTINS = ["reference", "aten", "triton"]
REQUEST = Request(
    cell="lstm", seq_len=7, batch=2, input_size=3, hidden_size=4, proj_size=0, num_layers=1,
    bidirectional=False, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="ieee", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip


def write_distribution(folder, module, *names, distribution=None, entries=None):
    """What an installer leaves of a distribution with one module: itself and its metadata."""
    distribution = distribution or module.replace("_", "-")
    shutil.copy(HERE / "distributions" / f"{module}.py", folder)
    info = folder / f"{distribution.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
    lines = [f"{name} = {module}" for name in names or (module.replace("_", "-"),)]
    (info / "entry_points.txt").write_text(entries or "\n".join(["[fastrnn]", *lines, ""]))


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install distributions for one test; nothing is loaded until `load()`."""
    monkeypatch.delenv("FASTRNN_DISABLE_PLUGINS", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    plugins.reset()

    def install(module, *names, **how):
        write_distribution(tmp_path, module, *names, **how)

    yield install
    plugins.reset()
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def load():
    """Make the registry and return the texts of its plugin warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry()
        registry()  # must not report again
    assert all(w.category is PluginWarning for w in caught)
    return [str(w.message) for w in caught]


def record_of(name):
    (record,) = (r for r in registry().plugins if r.name == name)
    return record


def run(backend, **how):
    x = torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    return fastrnn.LSTM(3, 4, backend=backend, **how)(x)


def assert_builtins_work():
    assert list(registry().backends)[:3] == BUILTINS
    assert [record.state for record in registry().plugins[:3]] == ["loaded"] * 3
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


@pytest.mark.parametrize("name", BUILTINS)
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
    assert [record.name for record in registry().plugins] == BUILTINS


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
        ("triton", "loaded"),
        ("numpy-lstm", "loaded"),
        ("broken", "disabled"),
        ("broken", "disabled"),
    ]
    assert list(registry().backends) == ["reference", "triton", "numpy"]
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
    assert list(registry().backends) == ["reference", "triton"]


def test_a_broken_builtin_is_reported_like_any_other(install, monkeypatch):
    monkeypatch.setitem(plugins.BUILTINS, "triton", "fastrnn_no_such_module")
    (warning,) = load()
    assert warning.startswith(f"plugin 'triton' of fastrnn {fastrnn.__version__} was not loaded:")
    assert "ModuleNotFoundError" in warning
    assert warning.endswith("Reinstall fastrnn.")
    assert list(registry().backends) == ["reference", "aten"]


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


# From Python


def plugin_with(*backends, name="mine"):
    """A module-like plugin."""

    class Mine(ReferenceBackend):
        pass

    Mine.name = name
    module = types.ModuleType("my_plugin")
    module.fastrnn_backends = hookimpl(lambda: backends or [Mine()])
    return module


def test_register_and_unregister(install):
    before = registry().generation
    register(plugin_with(), name="here")
    during = registry().generation
    assert list(registry().backends) == [*BUILTINS, "mine"]
    assert record_of("here").backends == ("mine",)
    run("mine")
    unregister("here")
    assert list(registry().backends) == BUILTINS
    assert len({before, during, registry().generation}) == 3
    with pytest.raises(fastrnn.BackendError, match="unknown backend 'mine'"):
        run("mine")


def test_decisions_follow_what_is_registered(install):
    class Policy:
        @hookimpl
        def fastrnn_choose_backend(self):
            return "reference"

    first = decide(REQUEST)
    register(Policy())
    assert decide(REQUEST).rule == "policy of plugin Policy"
    unregister("Policy")
    assert decide(REQUEST) == first


def test_the_last_policy_registered_is_asked_first(install):
    for name, backend in (("one", "reference"), ("two", "aten"), ("three", None)):
        module = types.ModuleType(name)
        module.fastrnn_choose_backend = hookimpl(lambda request, backend=backend: backend)
        register(module)
    assert decide(REQUEST).rule == "policy of plugin two"


@pytest.mark.parametrize(
    ("plugin", "name", "error", "text"),
    [
        (plugin_with(), "triton", ValueError, "name: the plugin name 'triton' is taken"),
        (plugin_with(), 3, TypeError, "name should be of type str, got: int"),
        (plugin_with(name="aten"), None, ValueError, "'my_plugin'.* name 'aten' is taken"),
        (plugin_with(7), "x", TypeError, "plugin 'x' .from Python.: fastrnn_backends returned 7"),
        (plugin_with(ReferenceBackend), None, TypeError, "returned the class"),
        (object(), None, TypeError, "plugin 'object' .from Python.: it implements no hook"),
        (ReferenceBackend(), None, TypeError, "got an instance of the backend ReferenceBackend"),
    ],
)
def test_register_refuses(install, plugin, name, error, text):
    before = registry().generation, registry().plugins
    with pytest.raises(error, match=text):
        register(plugin, name=name)
    assert (registry().generation, registry().plugins) == before
    register(plugin_with(), name="afterwards")  # nothing was left behind


def test_register_takes_all_or_nothing(install):
    class Good(ReferenceBackend):
        name = "good"

    half = plugin_with(Good(), 7)
    with pytest.raises(TypeError, match="returned 7"):
        register(half)
    assert list(registry().backends) == BUILTINS
    half.fastrnn_backends = hookimpl(lambda: [Good()])
    register(half)
    with pytest.raises(ValueError, match="it is registered already, as plugin 'my_plugin'"):
        register(half, name="again")
    with pytest.raises(ValueError, match="the plugin name 'my_plugin' is taken"):
        register(plugin_with())


@pytest.mark.parametrize(
    ("name", "text"),
    [("aten", "'aten' is built in; FASTRNN_DISABLE_PLUGINS can"), ("x", "no plugin 'x' is loaded")],
)
def test_unregister_refuses(install, name, text):
    with pytest.raises(ValueError, match=text):
        unregister(name)


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
