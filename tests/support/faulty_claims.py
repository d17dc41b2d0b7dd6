"""The reference with one fault each in what it says of itself, for the conformance suite."""

from __future__ import annotations

import itertools

import torch

from fastrnn.request import Cost
from faulty_backends import Sound


class ClaimsTooMuch(Sound):
    """Its kernels end at 64 hidden units, which it does not say."""

    def layer_forward(self, layer):
        if layer.hidden_size > 64:
            raise NotImplementedError("no kernel for so many hidden units")
        return super().layer_forward(layer)


class RefusesWithoutAReason(Sound):
    def can_run(self, request):
        return [""] if request.dtype == torch.bfloat16 else super().can_run(request)


class RaisesWhenAsked(Sound):
    """Compares T, which is None while a graph is made."""

    def can_run(self, request):
        return ["too long"] if request.seq_len > 10**6 else super().can_run(request)


class AnswersOtherwiseEveryTime(Sound):
    def __init__(self):
        self.asked = itertools.count()

    def can_run(self, request):
        if request.num_layers == 50 and next(self.asked) % 2:
            return ["not today"]
        return super().can_run(request)


class CostIsNoNumber(Sound):
    def cost(self, request):
        return Cost(float("nan"), "unknown")


class RunsNoLayerAtOnce(Sound):
    def layers_at_once(self, request):
        return 0


class UnavailableIsAString(Sound):
    def unavailable(self):
        return "here it is"


class HeedsWhatIsNotThere(Sound):
    options = frozenset({"dropconnect"})


class ClaimsNothing(Sound):
    def can_run(self, request):
        return ["it is a holiday"]
