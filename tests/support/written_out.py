"""A stack written out step by step in torch's operations, with all that a call may ask for.

What layers with regularisers must equal, forwards and backwards. It draws at random in the order
that is fastrnn's: for each layer the mask of h, then what zoneout keeps of h and of c, for all its
directions at once, and after the layer the dropout of its output.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from fastrnn import calls, testing
from fastrnn.options import Options
from fastrnn.request import Spec

Tensors = list[torch.Tensor]
PLAIN = Options()
ACTIVATIONS = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu, "rnn_sigmoid": torch.sigmoid}


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is cut to +-bound."""

    @staticmethod
    def forward(ctx: Any, a: torch.Tensor, bound: float) -> torch.Tensor:
        ctx.bound = bound
        return a.clone()

    @staticmethod
    def backward(ctx: Any, d_a: torch.Tensor) -> tuple[torch.Tensor, None]:
        return d_a.clamp(-ctx.bound, ctx.bound), None


class Made(NamedTuple):
    """Output (T, B, D * P), final states and every state: (h,) or (h, c) of each."""

    output: torch.Tensor
    final: Tensors
    every: Tensors

    @property
    def tensors(self) -> Tensors:
        """All in a row."""
        return [self.output, *self.final, *self.every]


def draw(options: Options, spec: Spec, like: torch.Tensor, training: bool) -> tuple[Any, Any, Any]:
    """(D, B, P) by which h is multiplied before W_hh, and the kept shares (T, B, D, P or H)."""
    T, B, D = *like.shape[:2], spec.directions
    mask, kept = 1.0, []
    if training and options.recurrent_dropout:
        ones = like.new_ones(D, B, spec.state_size)
        mask = torch.nn.functional.dropout(ones, options.recurrent_dropout)
    widths = [spec.state_size, spec.hidden_size][: 1 + spec.has_cell_state]
    for probability, width in zip(options.zoneout, widths, strict=False):
        share = like.new_full((T, B, D, width), probability)
        kept.append(torch.bernoulli(share) if training and probability else share)
    return mask, kept[0], kept[-1]


def step(cell: str, a: torch.Tensor, c: Any, w_hr: Any) -> tuple[torch.Tensor, Any]:
    if cell != "lstm":
        return ACTIVATIONS[cell](a), None
    i, f, g, o = a.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    return (h if w_hr is None else h @ w_hr.T), c


def run(
    spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors, *,
    lengths: list[int] | None = None, resets: torch.Tensor | None = None,
    options: Options = PLAIN, training: bool = True, dropout: float = 0.0,
) -> Made:  # fmt: skip
    """The whole stack; arguments as for `fastrnn.calls.run`, time-major."""
    T, B = x.shape[:2]
    size = len(weights) // (spec.num_layers * spec.directions)
    ends = torch.tensor(lengths or [T] * B)
    final, every = [], []
    for layer in range(spec.num_layers):
        mask, kept_h, kept_c = draw(options, spec, x, training)
        outputs = []
        for d in range(spec.directions):
            slot = layer * spec.directions + d
            w_ih, w_hh, *rest = weights[slot * size : (slot + 1) * size]
            bias = rest[0] + rest[1] if spec.bias else 0
            first = [each[slot] for each in hx]
            state, made = first, [[torch.zeros_like(each)] * T for each in first]
            for t in range(T)[:: -1 if d else 1]:
                before = state
                if resets is not None:
                    starts = resets[t].unsqueeze(1)
                    before = [torch.where(starts, f, s) for f, s in zip(first, state, strict=True)]
                hidden = before[0] * (mask if isinstance(mask, float) else mask[d])
                a = x[t] @ w_ih.T + hidden @ w_hh.T + bias
                if options.error_clip:
                    a = Clipped.apply(a, options.error_clip)
                new = step(spec.cell, a, before[-1], rest[-1] if spec.proj_size else None)
                alive = (t < ends).unsqueeze(1)
                after = []
                for k, (old, candidate, share) in enumerate(
                    zip(before, new, (kept_h, kept_c), strict=False)
                ):
                    mixed = share[t, :, d] * old + (1 - share[t, :, d]) * candidate
                    made[k][t] = torch.where(alive, mixed, 0)
                    after.append(torch.where(alive, mixed, state[k]))
                state = after
            final.append(state)
            every.append([torch.stack(each) for each in made])
            outputs.append(every[-1][0])
        x = torch.cat(outputs, 2)
        if dropout and layer < spec.num_layers - 1:
            x = torch.nn.functional.dropout(x, dropout, training)
    return Made(x, *([torch.stack(k) for k in zip(*s, strict=True)] for s in (final, every)))


def fast(
    spec: Spec, x: torch.Tensor, hx: Tensors, weights: Tensors, *, backend: str = "reference",
    batch_first: bool = False, dropout: float = 0.0, training: bool = True, **how: Any,
) -> tuple[Any, Tensors, Tensors]:  # fmt: skip
    """The same of fastrnn: output, final states and, with `all_states`, every state."""
    states = None if not hx else tuple(hx) if spec.has_cell_state else hx[0]
    output, *rest = calls.run(
        spec, x, states, weights, batch_first=batch_first, dropout=dropout, training=training,
        backend=backend, **how,
    )  # fmt: skip
    final, every = (list(s) if isinstance(s, tuple) else [s] for s in (*rest, ())[:2])
    return output, final, every


def leaves_of(
    spec: Spec, T: int, B: int, dtype: torch.dtype = torch.float64
) -> tuple[torch.Tensor, Tensors, Tensors]:
    """Input, states and weights that want gradients."""
    problem = testing.random_problem(spec, T, B, dtype=dtype)
    x, *rest = (t.clone().requires_grad_() for t in (problem.x, *problem.hx, *problem.weights))
    return x, rest[: len(problem.hx)], rest[len(problem.hx) :]


def random_resets(T: int, B: int, density: float = 0.3) -> torch.Tensor:
    return torch.rand(T, B, generator=torch.Generator().manual_seed(0)) < density


def gradients(outputs: Tensors, leaves: Tensors, **how: Any) -> tuple[torch.Tensor, ...]:
    """Of random weighted sums of the outputs."""
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(o.shape, generator=generator).to(o) for o in outputs]
    return torch.autograd.grad(outputs, leaves, upstream, **how)


def assert_same(got: Any, want: Any) -> None:
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-10, atol=1e-12)


def assert_equal_written_out(
    spec: Spec, T: int, B: int, *, lengths: list[int] | None = None,
    resets: torch.Tensor | None = None, options: Options = PLAIN, training: bool = True,
    dropout: float = 0.0, seed: int = 0, backend: str = "reference",
) -> None:  # fmt: skip
    """All that is returned, and all gradients of it, in float64."""
    x, hx, weights = leaves_of(spec, T, B)
    how = {
        "lengths": lengths, "resets": resets, "options": options, "training": training,
        "dropout": dropout,
    }  # fmt: skip
    torch.manual_seed(seed)
    output, final, every = fast(spec, x, hx, weights, backend=backend, **how)
    torch.manual_seed(seed)
    want = run(spec, x, hx, weights, **how)
    assert (output is None) == options.final_only
    assert len(every) == (len(hx) if options.all_states else 0)
    got = [*([] if output is None else [output]), *final, *every]
    expected = want.tensors[options.final_only :][: len(got)]
    leaves = [x, *hx, *weights]
    assert_same(got, expected)
    # zoneout of probability 1 uses no weight
    d_got = gradients(got, leaves, allow_unused=True, materialize_grads=True)
    assert_same(d_got, gradients(expected, leaves, allow_unused=True, materialize_grads=True))
