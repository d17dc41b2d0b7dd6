"""The reference with one fault each, as authors of backends make them, for the conformance suite.

Each is right but for what its name says, and none raises unless it says so.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import torch

import fastrnn
from fastrnn.backend import StackBackend
from fastrnn_reference.backend import ReferenceBackend


class Sound(ReferenceBackend):
    """No fault: what the others are but for theirs."""

    name = "sound"

    def altered(self, layer):
        """The layer that is run in place of what was asked for."""
        return layer

    def layer_forward(self, layer):
        return super().layer_forward(self.altered(layer))

    def layer_backward(self, grad, layer, output, saved, wanted):
        return super().layer_backward(grad, self.altered(layer), output, saved, wanted)


class OverwritesWhatItMay(Sound):
    """No fault either: what was saved dies with the backward pass, and may be written over."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        kept_cells = layer.all_states and layer.c0 is not None
        for tensor in saved[kept_cells:] if layer.overwrite_saved else ():
            tensor.fill_(float("nan"))
        return found


class WrongGateOrder(Sound):
    """i, g, f, o in place of i, f, g, o; the gradients come back in the wrong places, too."""

    def altered(self, layer):
        if layer.c0 is None:
            return layer

        def swapped(rows):
            if rows is None:
                return None
            i, f, g, o = rows.chunk(4, 1)
            return torch.cat((i, g, f, o), 1)

        weights = swapped(layer.weight_ih), swapped(layer.weight_hh), swapped(layer.bias)
        return replace(layer, weight_ih=weights[0], weight_hh=weights[1], bias=weights[2])


class DroppedBias(Sound):
    def altered(self, layer):
        return replace(layer, bias=None)


class LengthsIgnored(Sound):
    def altered(self, layer):
        return replace(layer, lengths=None)


class ResetsIgnored(Sound):
    def altered(self, layer):
        return replace(layer, resets=None)


class ZoneoutIgnored(Sound):
    def altered(self, layer):
        return replace(layer, zoneout_h=None, zoneout_c=None)

    def saved_like(self, layer):
        return super().saved_like(self.altered(layer))


class MaskIgnored(Sound):
    def altered(self, layer):
        return replace(layer, recurrent_mask=None)


class ClipIgnored(Sound):
    def altered(self, layer):
        return replace(layer, error_clip=0.0)


class ReverseFromTheEndOfThePadding(Sound):
    """Backwards in time a row is entered at T - 1, and not at its own last step."""

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        if layer.lengths is None or not any(layer.reverse):
            return made
        full = super().layer_forward(replace(layer, lengths=None))
        time = torch.arange(layer.x.shape[0]).unsqueeze(1)
        alive = (time < layer.lengths).unsqueeze(2)
        for g, reverse in enumerate(layer.reverse):
            if reverse:
                made.output[:, :, g] = full.output[:, :, g] * alive
        return made


class ReusedResultBuffer(Sound):
    """One output per shape, which the next call writes to."""

    def __init__(self):
        self.buffers = {}

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        kept = self.buffers.setdefault((made.output.shape, made.output.dtype), made.output)
        kept.data.copy_(made.output)  # as a kernel writes: torch does not see it
        return made._replace(output=kept)


class ReusedSavedBuffer(Sound):
    """One buffer per shape for what is saved."""

    def __init__(self):
        self.buffers = {}

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        kept = [self.buffers.setdefault((i, t.shape, t.dtype), t) for i, t in enumerate(made.saved)]
        for buffer, tensor in zip(kept, made.saved, strict=True):
            buffer.data.copy_(tensor)
        return made._replace(saved=tuple(kept))


class ZeroedOnlyAtCreation(Sound):
    """A sum goes into a workspace that was zero when it was made."""

    def __init__(self):
        self.sums = {}

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        if found.weight_hh is None:
            return found
        key = (found.weight_hh.shape, found.weight_hh.dtype)
        workspace = self.sums.setdefault(key, torch.zeros_like(found.weight_hh))
        workspace += found.weight_hh
        return found._replace(weight_hh=workspace.clone())


class LeftOverPadding(Sound):
    """A workspace for the longest sequence so far, whose end is never cleared."""

    def __init__(self):
        self.workspace = {}

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        steps = made.output.shape[0]
        key = (made.output.shape[1:], made.output.dtype)
        kept = self.workspace.get(key)
        if kept is None or len(kept) < steps:
            kept = self.workspace[key] = torch.zeros_like(made.output)
        if layer.lengths is None:
            kept[:steps] = made.output
            return made
        for row, length in enumerate(layer.lengths.tolist()):
            kept[:length, row] = made.output[:length, row]
        return made._replace(output=kept[:steps].clone())


class UnwrittenPadding(Sound):
    """Steps past a row's length are whatever was in memory."""

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        if layer.lengths is None:
            return made
        output = torch.empty_like(made.output)
        for row, length in enumerate(layer.lengths.tolist()):
            output[:length, row] = made.output[:length, row]
        return made._replace(output=output)


class MutatedInput(Sound):
    """Scales x in place, through memory that torch does not watch."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        layer.x.detach().numpy()[...] *= 0.5
        return found


class MutatedGradient(Sound):
    """Adds up in the gradient that came in."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        if grad.h_n is not None:
            grad.h_n.mul_(2)
        return found


class WritesToSaved(Sound):
    """Whether it may or not."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        for tensor in saved:
            tensor.mul_(2)
        return found


class SumInAnyOrder(Sound):
    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        if found.weight_ih is None:
            return found
        terms = (found.weight_ih * torch.rand(64, 1, 1, 1, dtype=found.weight_ih.dtype)).unbind()
        noise = sum(terms) - sum(reversed(terms))  # zero, but for rounding
        return found._replace(weight_ih=found.weight_ih + noise)


class SharedScratch(Sound):
    """One place for what a call is working on."""

    def layer_forward(self, layer):
        self.layer = layer
        time.sleep(1e-4)  # as while a kernel is launched
        return super().layer_forward(replace(layer, x=self.layer.x))


class FinalStateIsAView(Sound):
    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        if layer.lengths is not None or any(layer.reverse) or not len(made.output):
            return made
        return made._replace(h_n=made.output[-1].transpose(0, 1))


class WrongGradientOfH0(Sound):
    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        return found if found.h0 is None else found._replace(h0=1.01 * found.h0)


class NeedsTheGradientOfTheOutput(Sound):
    """d_output is None where nobody used the output, and then it raises."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        grad = grad._replace(output=grad.output.contiguous())
        return super().layer_backward(grad, layer, output, saved, wanted)


class IgnoresTheGradientOfHn(Sound):
    def layer_backward(self, grad, layer, output, saved, wanted):
        grad = grad._replace(h_n=None)
        return super().layer_backward(grad, layer, output, saved, wanted)


class NoWeightGradientWithoutThatOfX(Sound):
    """Takes no notice of `wanted`, and returns None where a gradient is due."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        return found if wanted.x else found._replace(weight_hh=None)


class NeedsContiguousInputs(Sound):
    """Reads x as if it lay in order."""

    def altered(self, layer):
        in_order = torch.empty(layer.x.shape).stride()
        return replace(layer, x=layer.x.as_strided(layer.x.shape, in_order))


class NeedsContiguousGradients(Sound):
    """Reads the gradient that came in as if it lay in order."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        if grad.output is not None and not grad.output.is_contiguous():
            shape = grad.output.shape
            grad = grad._replace(output=grad.output.mT.contiguous().view(shape))
        return super().layer_backward(grad, layer, output, saved, wanted)


class NanLeaksBetweenRows(Sound):
    """A sum over the batch is multiplied by zero."""

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        return made._replace(output=made.output + 0 * (layer.x.sum() + layer.h0.sum()))

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        if grad.output is None or found.x is None:
            return found
        return found._replace(x=found.x + 0 * grad.output.sum())


class NanLeaksThroughTime(Sound):
    """A sum over the steps is multiplied by zero."""

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        return made._replace(output=made.output + 0 * layer.x.sum((0, 2)).view(1, -1, 1, 1))


class CountsGradientsOfPadding(Sound):
    """Of the gradient that came in, what is past a row's length has a part in the bias's."""

    def layer_backward(self, grad, layer, output, saved, wanted):
        found = super().layer_backward(grad, layer, output, saved, wanted)
        if layer.lengths is None or grad.output is None or found.bias is None:
            return found
        over = torch.arange(len(layer.x)).unsqueeze(1) >= layer.lengths
        return found._replace(bias=found.bias + grad.output[over].sum())


class SavedLikeInAnotherOrder(Sound):
    def saved_like(self, layer):
        return super().saved_like(layer)[::-1]


class SavesFour(Sound):
    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        more = [layer.x.clone() for _ in range(4 - len(made.saved))] if layer.save else []
        return made._replace(saved=(*made.saved, *more))


class WrongInFloat32OfOneLayer(Sound):
    """What runs one layer in one direction, and nothing that most cases are about."""

    def can_run(self, request):
        if request.bidirectional or request.num_layers > 1:
            return ["more than one layer in one direction"]
        return super().can_run(request)

    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        return made._replace(output=1.5 * made.output) if made.output.element_size() == 4 else made


class RowsOfOneTile(Sound):
    def layer_forward(self, layer):
        made = super().layer_forward(layer)
        made.output[:, 32:] = 0
        return made


class UnitsOfOneTile(Sound):
    """W_hh h without the units beyond the first 128."""

    def altered(self, layer):
        weight_hh = layer.weight_hh.clone()
        weight_hh[..., 128:] = 0
        return replace(layer, weight_hh=weight_hh)


class Plugin:
    """What registers one backend, under the name of its class."""

    def __init__(self, kind: type[ReferenceBackend] | type[StackBackend]) -> None:
        self.name = "".join(f"-{c.lower()}" if c.isupper() else c for c in kind.__name__)[1:]
        self.backend: Any = kind()
        self.backend.name = self.name

    @fastrnn.hookimpl
    def fastrnn_backends(self):
        return [self.backend]
