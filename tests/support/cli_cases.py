"""The command line in this process, and a plugin whose backend is wrong."""

from __future__ import annotations

from fastrnn import cli, plugins
from fastrnn.hookspecs import hookimpl
from fastrnn_reference.backend import ReferenceBackend

SIZES = ["--T", "3", "--B", "2", "--H", "4", "--repeats", "2"]
BENCH = ["bench", "--cell", "lstm", *SIZES]


class Broken(ReferenceBackend):
    name = "broken"
    summary = "for tests"
    here: tuple[str, ...] = ()

    def unavailable(self):
        return list(self.here)

    def recurrence_forward(self, gates_x, weight_hh, layer):
        output, *rest = super().recurrence_forward(gates_x, weight_hh, layer)
        return (output + 1e-3, *rest)


def a_broken_plugin(monkeypatch):
    """A plugin whose backend is wrong, registered for one test."""
    monkeypatch.delenv("FASTRNN_DISABLE_PLUGINS", raising=False)
    plugins.reset()

    class Plugin:
        @hookimpl
        def fastrnn_backends(self):
            return [Broken()]

    plugins.register(Plugin(), name="breaker")
    yield
    plugins.reset()


def running(capsys):
    """Run the command in this process."""

    def run(*arguments):
        try:
            code = cli.main(arguments)
        except SystemExit as end:
            code = end.code
        return (code, *capsys.readouterr())

    return run
