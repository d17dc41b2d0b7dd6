"""torch's own path with one fault each that only a whole stack has, for the conformance suite."""

from __future__ import annotations

import torch

from fastrnn_aten.backend import AtenBackend


class SoundStack(AtenBackend):
    """torch's own path, for faults that only a whole stack can have."""

    name = "sound-stack"


class BatchFirstIgnored(SoundStack):
    def run(self, call):
        return super().run(call._replace(batch_first=False))


class GraphUnderNoGrad(SoundStack):
    def run(self, call):
        with torch.enable_grad():
            return super().run(call)


class Detached(SoundStack):
    def run(self, call):
        output, *states = super().run(call)
        return (output, *(state.detach() for state in states))


class DropsNothing(SoundStack):
    def run(self, call):
        return super().run(call._replace(request=call.request._replace(dropout=0.0)))


class ReadsAValue(SoundStack):
    """Which no graph can."""

    def run(self, call):
        if call.input.sum().item() > 1e9:
            raise ValueError("the input is too large")
        return super().run(call)


class FloatOnly(SoundStack):
    def run(self, call):
        return tuple(tensor.float() for tensor in super().run(call))
