"""Plugins registered from Python."""

from __future__ import annotations

import types

import pytest
import torch

import fastrnn
from fastrnn.dispatch import decide
from fastrnn.hookspecs import hookimpl
from fastrnn.plugins import register, registry, unregister
from fastrnn_reference.backend import ReferenceBackend
from plugin_cases import BUILTINS, REQUEST, installing, record_of, run

install = pytest.fixture(installing)


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


def test_a_backend_that_is_gone_before_the_backward_pass_is_named(install):
    register(plugin_with(), name="here")
    output, _ = fastrnn.GRU(2, 3, backend="mine")(torch.randn(4, 1, 2))
    unregister("here")
    with pytest.raises(RuntimeError, match=r"backend 'mine' is not registered here; .*reference"):
        output.sum().backward()


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


class Mute(ReferenceBackend):
    name, summary = "mute", None


@pytest.mark.parametrize(
    ("plugin", "name", "error", "text"),
    [
        (plugin_with(), "triton", ValueError, "name: the plugin name 'triton' is taken"),
        (plugin_with(), 3, TypeError, "name should be of type str, got: int"),
        (plugin_with(name="aten"), None, ValueError, "'my_plugin'.* name 'aten' is taken"),
        (plugin_with(7), "x", TypeError, "plugin 'x' .from Python.: fastrnn_backends returned 7"),
        (plugin_with(ReferenceBackend), None, TypeError, "returned the class"),
        (plugin_with(Mute()), None, TypeError, "backend 'mute': summary should be a string, got N"),
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
