"""Backends that do nothing, a registry of them, and which one is chosen."""

from __future__ import annotations

from types import SimpleNamespace

import torch

from fastrnn.backend import Backend
from fastrnn.discovery import PluginRecord
from fastrnn.dispatch import decide
from fastrnn.request import Cost, Request

REQUEST = Request(
    cell="lstm", seq_len=7, batch=2, input_size=3, hidden_size=4, proj_size=0, num_layers=1,
    bidirectional=False, bias=True, dropout=0.0, dtype=torch.float32, device="cpu", arch="",
    precision="ieee", needs_grad=False, training=False, varlen=False, compiling=False, threads=1,
)  # fmt: skip


class Fake(Backend):
    """Answers what it was made with and counts how often it is asked."""

    def __init__(self, name, seconds=1.0, reasons=(), here=(), error=None):
        self.name, self.summary = name, f"the fake called {name}"
        self.seconds, self.reasons, self.here, self.error = seconds, reasons, here, error
        self.asked = 0

    def unavailable(self):
        return list(self.here)

    def can_run(self, request):
        self.asked += 1
        return list(self.reasons)

    def cost(self, request):
        if self.error is not None:
            raise self.error
        return Cost(self.seconds, f"{self.seconds:g} by decree")


class FakeRegistry(SimpleNamespace):
    """What dispatch uses of `fastrnn.plugins.Registry`."""

    def __init__(self, *backends, policy=None):
        super().__init__(
            backends={backend.name: backend for backend in backends},
            generation=0,
            plugins=(
                PluginRecord("fakes", "fakes", "1", backends=tuple(b.name for b in backends)),
            ),
            policy=lambda request, able: policy and (policy, "politician"),
        )


def chosen(backend="auto", request=REQUEST):
    decision = decide(request, backend)
    return decision.backend, decision.rule
