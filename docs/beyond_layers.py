"""Rows on layers that torch.nn does not have: regularisers, functions, starts, diagnostics."""

# mypy: allow-untyped-calls
# (some methods of torch's tensors are not annotated)

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parametrize

import fastrnn
from beyond_rows import (
    B,
    H,
    I,
    T,
    Wrong,
    cell,
    close,
    derivatives,
    make,
    normal,
    row,
    slow,
    tensors,
)
from fastrnn.weight_drop import weight_drop

BOTH = ("LSTM", "RNN")
LOOP = "a Python loop of one-step calls"


@row(
    "Recurrent dropout (Gal and Ghahramani)",
    "64 rows, 3 units: every row is the equations' under one of all masks for its whole sequence",
    9572, 37731,
    quick=True,
)  # fmt: skip
def recurrent_dropout(library: Any) -> str | None:
    rows, units = 64, 3
    for kind in BOTH:
        how = {} if library is torch.nn else {"recurrent_dropout": 0.5}
        layer, x = make(library, kind, I, units, **how), normal(T, rows, I)
        if library is torch.nn:
            mask = torch.nn.functional.dropout(torch.ones(1, rows, units).double(), 0.5)
            state: Any = None
            outputs = []
            for t in range(T):
                output, state = layer(x[t : t + 1], state)
                outputs.append(output)
                state = (state[0] * mask, state[1]) if kind == "LSTM" else state * mask
            got = torch.cat(outputs)
        else:
            got = layer(x)[0]
        masks = torch.cartesian_prod(*[torch.tensor([0.0, 2.0]).double()] * units)
        wanted = torch.stack([slow(layer, x, recur=mask.mul)[0] for mask in masks])
        fits = (wanted - got).abs().amax((1, 3)) < 1e-9  # (masks, rows)
        if not bool((fits.sum(0) == 1).all()):
            raise Wrong("no mask explains the output of some rows")
        if int(fits.any(1).sum()) < len(masks) - 1:
            raise Wrong("some masks are never drawn")
        explained = wanted[fits.int().argmax(0), :, range(rows)]
        close(derivatives(got, [x]), derivatives(explained, [x]))
    return LOOP if library is torch.nn else None


@row(
    "Zoneout (Krueger et al.)",
    "p = 0.3: what was kept, unit by unit of h and c, read off the states; with these masks states "
    "and gradients are the equations', and so with p in eval mode",
    9572,
    quick=True,
)
def zoneout(library: Any) -> str | None:
    steps, rows, p = 30, 20, 0.3
    for kind in BOTH:
        how = {} if library is torch.nn else {"zoneout": p}
        layer, x = make(library, kind, **how), normal(steps, rows, I)
        inputs = [x, *layer.parameters()]
        for training in (True, False):
            layer.train(training)
            if library is torch.nn:
                got = zoned_by_hand(layer, x, p)
            else:
                got = tensors(layer(x, return_all_states=True)[2])
            before = [torch.cat((torch.zeros_like(s[:, :1]), s[:, :-1]), 1) for s in got]
            kept = [(a == b).double() for a, b in zip(before, got, strict=True)]
            share = torch.stack(kept).mean().item()
            if training and abs(share - p) > 0.03:
                raise Wrong(f"a share of {share:.2f} is kept")
            masks = kept if training else [torch.full_like(each, p) for each in kept]
            want = zoned(layer, x, masks)
            close(got, want)
            close(derivatives(got, inputs), derivatives(want, inputs))
    return LOOP if library is torch.nn else None


def zoned(layer: Any, x: Tensor, masks: list[Tensor]) -> list[Tensor]:
    """States (1, T, B, H) by the equations, of which `masks` keep what was before."""
    w = dict(layer.named_parameters())
    old, visited = [torch.zeros_like(mask[0, 0]) for mask in masks], []
    for t in range(len(x)):
        a = x[t] @ w["weight_ih_l0"].T + w["bias_ih_l0"] + w["bias_hh_l0"]
        new = cell(layer.mode, a + old[0] @ w["weight_hh_l0"].T, old)
        old = mixed([mask[0, t] for mask in masks], old, new)
        visited.append(old)
    return [torch.stack(each).unsqueeze(0) for each in zip(*visited, strict=True)]


def zoned_by_hand(layer: Any, x: Tensor, p: float) -> list[Tensor]:
    """States (1, T, B, H) of torch's layer, mixed between its steps."""
    old = [x.new_zeros(1, x.shape[1], H) for _ in range(2 if layer.mode == "LSTM" else 1)]
    visited = []
    for part in x.split(1):
        new = tensors(layer(part, tuple(old) if len(old) == 2 else old[0])[1])
        share = [torch.full_like(state, p) for state in new]
        old = mixed([torch.bernoulli(s) for s in share] if layer.training else share, old, new)
        visited.append(old)
    return [torch.stack(each, 1) for each in zip(*visited, strict=True)]


def mixed(masks: Sequence[Tensor], old: Sequence[Tensor], new: Sequence[Tensor]) -> list[Tensor]:
    """What is kept of the old and taken of the new."""
    return [z * a + (1 - z) * b for z, a, b in zip(masks, old, new, strict=True)]


@row(
    "Dropout of the recurrent weights (weight drop, AWD-LSTM)",
    "W_hh is read in the call in which it was drawn; output and gradients against the equations "
    "with this weight; another draw in the next call, none in eval mode",
    65688, 24155,
    quick=True,
)  # fmt: skip
def dropped(library: Any) -> str | None:
    for kind in BOTH:
        layer, x = make(library, kind), normal(T, B, I)
        weights = dict(layer.named_parameters())
        if library is torch.nn:
            parametrize.register_parametrization(layer, "weight_hh_l0", torch.nn.Dropout())
        else:
            weight_drop(layer)
        with parametrize.cached():
            made = layer.weight_hh_l0
            got = layer(x)[0]
        if not 0.2 < made.count_nonzero() / made.numel() < 0.8:
            raise Wrong(f"{made.count_nonzero()} of {made.numel()} weights are left")
        want = slow(layer, x, weights={**weights, "weight_hh_l0": made})[0]
        close(got, want)
        inputs = [x, *weights.values()]
        first = derivatives(got, inputs, retain_graph=True)  # both go through `made`
        close(first, derivatives(want, inputs))
        if torch.equal(layer(x)[0], got):
            raise Wrong("the next call drew the same")
        close(layer.eval()(x)[0], slow(layer, x, weights=weights)[0])
    return "`parametrize` with `nn.Dropout`" if library is torch.nn else None


@row(
    "An Elman RNN with the logistic sigmoid",
    "`nonlinearity=\"sigmoid\"`, output and gradients; against the equations",
    1173, 1932,
    quick=True,
)  # fmt: skip
def sigmoid(library: Any) -> None:
    layer, x = make(library, "RNN", I, H, 2, nonlinearity="sigmoid"), normal(T, B, I)
    inputs = [x, *layer.parameters()]
    got, want = layer(x)[0], slow(layer, x)[0]
    close(got, want)
    close(derivatives(got, inputs), derivatives(want, inputs))


@row(
    "A Jordan network, whose output is fed back",
    "output and gradients against the equations; fastrnn's own is a Python loop, too",
    quick=True,
)
def jordan(library: Any) -> str | None:
    outputs = 2
    torch.manual_seed(1)
    net = fastrnn.JordanRNN(I, H, outputs, dtype=torch.float64)
    x = normal(T, B, I)
    own = dict(net.named_parameters())
    y, wanted = x.new_zeros(B, outputs), []
    for t in range(T):
        a = x[t] @ own["weight_ih"].T + own["bias_h"] + y @ own["weight_oh"].T
        y = a.tanh() @ own["weight_ho"].T + own["bias_o"]
        wanted.append(y)
    want = torch.stack(wanted)
    means = None
    if library is not torch.nn:
        got, inputs = net(x)[0], [x, *net.parameters()]
    else:
        means = f"{LOOP} on [x, y] from h = 0, and a Linear"
        layer, head = make(library, "RNN", I + outputs, H), make(library, "Linear", H, outputs)
        with torch.no_grad():
            layer.weight_ih_l0.copy_(torch.cat((net.weight_ih, net.weight_oh), 1))
            layer.bias_ih_l0.copy_(own["bias_h"])
            layer.bias_hh_l0.zero_()
            head.weight.copy_(net.weight_ho)
            head.bias.copy_(own["bias_o"])
        y, made = x.new_zeros(B, outputs), []
        for t in range(T):
            y = head(layer(torch.cat((x[t], y), 1).unsqueeze(0))[0][0])
            made.append(y)
        got, inputs = torch.stack(made), [x, head.weight, head.bias]
    close(got, want)
    own_inputs = [x, *net.parameters()] if means is None else [x, net.weight_ho, own["bias_o"]]
    close(derivatives(got, inputs), derivatives(want, own_inputs))
    return means


@row(
    "A learned initial state",
    "two layers: its gradient, summed over rows, against finite differences",
    9572,
    quick=True,
)
def initial_state(library: Any) -> str | None:
    for kind in BOTH:
        layer, x = make(library, kind, I, H, 2), normal(T, B, I).detach()
        if library is torch.nn:
            single = [normal(2, 1, H) for _ in range(2 if kind == "LSTM" else 1)]
        else:
            initial = fastrnn.InitialState(layer, init="normal")
            single = list(initial.parameters())

        def loss(layer: Any = layer, x: Tensor = x, kind: str = kind, *, by: Any = None) -> Tensor:
            hx = [s.expand(2, B, H).contiguous() for s in by]
            output: Tensor = layer(x, tuple(hx) if kind == "LSTM" else hx[0])[0]
            return output.sin().sum()

        made = loss(by=single) if library is torch.nn else layer(x, initial(B))[0].sin().sum()
        got = torch.autograd.grad(made, single)
        for state, gradient in zip(single, got, strict=True):
            values, step = state.detach().view(-1), 1e-6
            for index in range(values.numel()):
                pair = []
                for sign in (1, -1):
                    values[index] += sign * step
                    pair.append(slow_loss(layer, x, single).item())
                    values[index] -= sign * step
                close(gradient.view(-1)[index], torch.tensor((pair[0] - pair[1]) / step / 2), 1e-6)
    return "parameters that are expanded for the batch" if library is torch.nn else None


@torch.no_grad()
def slow_loss(layer: Any, x: Tensor, single: list[Tensor]) -> Tensor:
    return slow(layer, x, tuple(s.expand(-1, B, -1) for s in single))[0].sin().sum()


@row(
    "An initialiser: every gate's block of W_hh orthogonal",
    "`init.orthogonal_` on an LSTM; each block times its transpose is the identity",
    quick=True,
)
def orthogonal(library: Any) -> str | None:
    layer = make(library, "LSTM")
    if library is torch.nn:
        for block in layer.weight_hh_l0.detach().chunk(4):
            torch.nn.init.orthogonal_(block)
    else:
        fastrnn.init.orthogonal_(layer)
    for block in layer.weight_hh_l0.detach().chunk(4):
        close(block @ block.T, torch.eye(H).double())
    return "a loop over the blocks" if library is torch.nn else None


@row(
    "An initialiser: a reservoir of a given spectral radius",
    "`init.spectral_radius_` on an RNN, with a tenth of the weights: the largest eigenvalue's "
    "magnitude is 0.9",
    quick=True,
)
def reservoir(library: Any) -> str | None:
    layer = make(library, "RNN", 1, 60)
    weight = layer.weight_hh_l0.detach()
    if library is torch.nn:
        torch.nn.init.sparse_(weight, 0.9, std=1.0)
        weight *= 0.9 / torch.linalg.eigvals(weight).abs().max()
    else:
        fastrnn.init.spectral_radius_(layer, 0.9, density=0.1)
    close(torch.linalg.eigvals(weight).abs().max(), torch.tensor(0.9).double(), 1e-6)
    share = weight.count_nonzero().item() / weight.numel()
    if not 0.05 < share < 0.15:
        raise Wrong(f"a share of {share:.2f} of the weights")
    means = "`init.sparse_`, `torch.linalg.eigvals` and a scaling"
    return means if library is torch.nn else None


@row(
    "How the gradient flows back: its norm at every step",
    "norms of dL/dh(t), two layers; against autograd through the equations",
    quick=True,
)
def gradient_flow(library: Any) -> str | None:
    for kind in BOTH:
        layer, x = make(library, kind, I, H, 2), normal(T, B, I).detach()

        def total(output: Tensor, state: Any) -> Tensor:
            return output[-1].sin().sum()

        if library is torch.nn:
            got = flow_by_hand(layer, x, total)
        else:
            got = fastrnn.diagnostics.gradient_flow(layer, x, total).h[:, 0]
        visited: list[Tensor] = []

        def remember(h: Tensor, visited: list[Tensor] = visited) -> Tensor:
            visited.append(h)
            return h

        # h(t - 1) of layer 0 for all t, then of layer 1; h(T) is not among them
        start = normal(2, B, H)
        hx = (start, start.detach()) if kind == "LSTM" else start
        with torch.no_grad():
            start.zero_()
        output = slow(layer, x, hx, recur=remember)[0]
        wanted = torch.autograd.grad(total(output, None), visited)
        norms = torch.stack([each.norm() for each in wanted]).view(2, T)[:, 1:]
        close(got[:, :-1], norms)
    means = "a Python loop of one-step calls of single layers, weights copied"
    return means if library is torch.nn else None


def flow_by_hand(layer: Any, x: Tensor, total: Any) -> Tensor:
    """Norms (L, T) of dL/dh(t), from torch's layers, one of each level."""
    weights = layer.all_weights
    singles = [make(torch.nn, layer.mode[:4].strip("_"), w[0].shape[1], H) for w in weights]
    for single, copied in zip(singles, weights, strict=True):
        for own, weight in zip(single.parameters(), copied, strict=True):
            own.data.copy_(weight.detach())
    state: list[Any] = [None] * len(singles)
    visited: list[list[Tensor]] = [[] for _ in singles]
    for h in x.split(1):
        for k, single in enumerate(singles):
            h, after = single(h, state[k])
            # the output is h(t), and must be the same tensor as the state for one gradient
            state[k] = (h, after[1]) if isinstance(after, tuple) else h
            visited[k].append(h)
    flat = [h for each in visited for h in each]
    gradients = torch.autograd.grad(total(torch.cat(visited[-1]), None), flat)
    return torch.stack([each.norm() for each in gradients]).view(len(singles), -1)
