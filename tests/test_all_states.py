"""`return_all_states`: h and c of every step, layer and direction, and gradients through them."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.utils.rnn import pack_sequence

import fastrnn
import written_out
from derivatives import assert_first, assert_second
from fastrnn import functional
from fastrnn.options import Options
from fastrnn.request import GATES, Spec
from written_out import (
    assert_equal_written_out,
    assert_same,
    gradients,
    leaves_of,
    random_resets,
    run,
)

CELLS = [("lstm", 0), ("lstm", 2), ("rnn_tanh", 0), ("rnn_relu", 0), ("rnn_sigmoid", 0)]
ALL = Options(all_states=True)
MODULES = [(fastrnn.LSTM, {}), (fastrnn.LSTM, {"proj_size": 2}), (fastrnn.RNN, {})]
T, B, I, H, L = 5, 3, 2, 4, 2
pytestmark = pytest.mark.backends("reference")
fast = partial(written_out.fast, backend="auto")


def module_of(kind: type, **how: Any) -> Any:
    torch.manual_seed(0)
    return kind(I, H, L, bidirectional=True, dtype=torch.float64, **how)


def x_of(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pair(states: Any) -> list[torch.Tensor]:
    return list(states) if isinstance(states, tuple) else [states]


def widths(module: Any) -> list[int]:
    return [module.proj_size or H, H][: 1 + isinstance(module, fastrnn.LSTM)]


# Values


def by_steps(
    spec: Spec, x: torch.Tensor, hx: list[torch.Tensor], weights: list[torch.Tensor],
    lengths: list[int], resets: torch.Tensor,
) -> tuple[torch.Tensor, list[torch.Tensor]]:  # fmt: skip
    """Output and every state, by calls of one step of one row, layer and direction each."""
    one = spec._replace(num_layers=1, bidirectional=False)
    size = len(weights) // (spec.num_layers * spec.directions)
    every = [x.new_zeros(len(hx[0]), *x.shape[:2], state.shape[2]) for state in hx]
    for layer in range(spec.num_layers):
        for slot in range(layer * spec.directions, (layer + 1) * spec.directions):
            own = weights[slot * size : (slot + 1) * size]
            cell = one._replace(input_size=x.shape[2])
            for row, length in enumerate(lengths):
                first = [each[slot : slot + 1, row : row + 1] for each in hx]
                state = first
                for t in range(length)[:: -1 if slot % spec.directions else 1]:
                    entering = first if resets[t, row] else state
                    state = fast(cell, x[t : t + 1, row : row + 1], entering, own)[1]
                    for whole, each in zip(every, state, strict=True):
                        whole[slot, t, row] = each[0, 0]
        x = torch.cat(list(every[0][slot + 1 - spec.directions : slot + 1]), 2)
    return x, every


@pytest.mark.parametrize("lengths", [[T] * B, [5, 0, 3]], ids=["equal", "lengths"])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize(("cell", "proj"), CELLS)
@torch.no_grad()
def test_equal_calls_of_one_step(
    poisoned: None, cell: str, proj: int, bidirectional: bool, lengths: list[int]
) -> None:
    spec, resets = Spec(cell, I, H, proj, L, True, bidirectional), random_resets(T, B)
    x, hx, weights = leaves_of(spec, T, B)
    how = {"lengths": lengths, "resets": resets}
    output, final, every = fast(spec, x, hx, weights, options=ALL, **how)
    want_output, want = by_steps(spec, x, hx, weights, **how)
    assert_same([output, *every], [want_output, *want])
    nobody_reads = ALL._replace(final_only=True)
    none, *others = fast(spec, x, hx, weights, options=nobody_reads, **how)
    assert none is None
    assert_same([*others[0], *others[1]], [*final, *every])
    plain_output, plain_final, nothing = fast(spec, x, hx, weights, **how)
    assert nothing == []
    assert all(
        torch.equal(a, b)
        for a, b in zip([output, *final], [plain_output, *plain_final], strict=True)
    )
    for slot in range(len(hx[0])):
        for row, length in enumerate(lengths):
            last = 0 if slot % spec.directions else length - 1
            for states, of_last, h0 in zip(every, final, hx, strict=True):
                assert (states[slot, length:, row] == 0).all()
                left = states[slot, last, row] if length else h0[slot, row]
                assert torch.equal(of_last[slot, row], left)


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(CELLS),
    bidirectional=st.booleans(),
    layers=st.integers(1, 3),
    lengths=st.none() | st.lists(st.integers(0, 6), min_size=2, max_size=2).filter(any),
    resets=st.booleans(),
    recompute=st.sampled_from([0, 1, 2, 9]),
    final_only=st.booleans(),
    dropout=st.sampled_from([0.0, 0.5]),
)
def test_values_and_gradients_equal_a_loop(
    kind: tuple[str, int], bidirectional: bool, layers: int, lengths: list[int] | None,
    resets: bool, recompute: int, final_only: bool, dropout: float,
) -> None:  # fmt: skip
    cell, proj = kind
    options = Options(final_only, 0 if resets else recompute, all_states=True)
    assert_equal_written_out(
        Spec(cell, 2, 3, proj, layers, True, bidirectional), 6, 2, lengths=lengths,
        resets=random_resets(6, 2) if resets else None, options=options, dropout=dropout,
    )  # fmt: skip


def test_states_are_those_before_dropout() -> None:
    module = fastrnn.LSTM(I, H, L, dropout=0.9)
    _, _, (h, _) = module(torch.randn(T, B, I), return_all_states=True)
    assert (h[0] != 0).all()


# Forms of input


@pytest.mark.parametrize("final_only", [False, True])
@pytest.mark.parametrize(("kind", "how"), MODULES)
def test_batch_first_and_unbatched(kind: type, how: dict[str, Any], final_only: bool) -> None:
    module, x = module_of(kind, **how), x_of(T, B, I)
    output, final, every = module(x, return_all_states=True)
    assert [s.shape for s in pair(every)] == [(2 * L, T, B, width) for width in widths(module)]
    assert torch.equal(output, torch.cat(list(pair(every)[0][-2:]), 2))
    module.final_only = final_only

    def output_is(made: torch.Tensor | None, want: torch.Tensor) -> bool:
        return made is None if final_only else torch.equal(made, want)

    made, final_0, every_0 = module(x, return_all_states=True)
    assert output_is(made, output)
    assert_same(pair(final_0) + pair(every_0), pair(final) + pair(every))
    made, final_0, every_0 = module(x[:, 1], return_all_states=True)
    assert [s.shape for s in pair(every_0)] == [(2 * L, T, width) for width in widths(module)]
    assert_same(pair(final_0), [s[:, 1] for s in pair(final)])
    assert_same(pair(every_0), [s[:, :, 1] for s in pair(every)])
    module.batch_first = True
    made, final_1, every_1 = module(x.transpose(0, 1), return_all_states=True)
    assert output_is(made, output.transpose(0, 1))
    assert_same(pair(final_1), pair(final))
    assert_same(pair(every_1), [s.transpose(1, 2) for s in pair(every)])
    _, _, every_1 = module(x[:, 1], return_all_states=True)
    assert_same(pair(every_1), pair(every_0))


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("final_only", [False, True])
@pytest.mark.parametrize(("kind", "how"), MODULES)
def test_packed_sequences_give_padded_states_in_the_callers_order(
    kind: type, how: dict[str, Any], final_only: bool, batch_first: bool
) -> None:
    module, lengths = module_of(kind, final_only=final_only, **how), [2, 5, 3]
    x = x_of(T, B, I)
    hx = tuple(x_of(2 * L, B, width) for width in widths(module))
    states = hx if len(hx) == 2 else hx[0]
    want_output, want_final, want = module(x, states, lengths=lengths, return_all_states=True)
    packed = pack_sequence([x[:n, b] for b, n in enumerate(lengths)], enforce_sorted=False)
    module.batch_first = batch_first
    output, final, every = module(packed, states, return_all_states=True)
    if final_only:
        assert output is None
    else:
        assert_same([torch.nn.utils.rnn.pad_packed_sequence(output)[0]], [want_output])
    assert_same(pair(final), pair(want_final))
    want = [s.transpose(1, 2) if batch_first else s for s in pair(want)]
    assert_same(pair(every), want)


@pytest.mark.parametrize(("kind", "how"), MODULES)
def test_by_function(kind: type, how: dict[str, Any]) -> None:
    module, x = module_of(kind, **how), x_of(T, B, I)
    function = functional.lstm if kind is fastrnn.LSTM else functional.rnn
    stack = {"num_layers": L, "bidirectional": True}
    got = function(x, None, list(module.parameters()), return_all_states=True, **stack)
    want = module(x, return_all_states=True)
    for g, w in zip(got, want, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(pair(g), pair(w), strict=True))


def test_autocast_and_bfloat16() -> None:
    module, x = fastrnn.LSTM(I, H, L), torch.randn(T, B, I)
    with torch.autocast("cpu", torch.bfloat16):
        _, _, every = module(x, return_all_states=True)
    low = module.bfloat16()(x.bfloat16(), return_all_states=True)[2]
    for a, b in zip(every, low, strict=True):
        assert a.dtype == b.dtype == torch.bfloat16
        torch.testing.assert_close(a, b)


# Derivatives


def single(cell: str, proj: int, layers: int, recompute: int = 0) -> tuple[Any, list[torch.Tensor]]:
    """A function to every state of a small stack, and its inputs."""
    spec = Spec(cell, 1, 2, min(proj, 1), layers, True, False)
    x, hx, weights = leaves_of(spec, 3, 2)

    def call(x: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, ...]:
        states, own = list(rest[: len(hx)]), list(rest[len(hx) :])
        options = ALL._replace(recompute=recompute)
        return tuple(fast(spec, x, states, own, lengths=[3, 2], options=options)[2])

    return call, [x, *hx, *weights]


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_gradcheck(cell: str, proj: int, recompute: int) -> None:
    call, leaves = single(cell, proj, 2, recompute)
    assert_first(call, leaves)


@pytest.mark.parametrize(("cell", "proj"), [("lstm", 0), ("lstm", 1), ("rnn_tanh", 0)])
def test_gradgradcheck(cell: str, proj: int) -> None:
    call, leaves = single(cell, proj, 1)
    assert_second(call, leaves)


@pytest.mark.parametrize("proj", [0, 2])
def test_gradients_through_c_alone(proj: int) -> None:
    spec = Spec("lstm", I, H, proj, L, True, True)
    x, hx, weights = leaves_of(spec, T, B)
    leaves = [x, *hx, *weights]
    how = {"lengths": [5, 0, 3], "options": ALL}
    got = fast(spec, x, hx, weights, **how)[2][1]
    want = run(spec, x, hx, weights, **how).every[1]
    assert_same(
        *(gradients([c], leaves, allow_unused=True, materialize_grads=True) for c in (got, want))
    )
    # of one layer, direction and step, in the middle
    assert_same(
        *(
            torch.autograd.grad(c[1, 2].sum(), leaves, allow_unused=True, materialize_grads=True)
            for c in (
                fast(spec, x, hx, weights, **how)[2][1], run(spec, x, hx, weights, **how).every[1],
            )
        )
    )  # fmt: skip


@pytest.mark.parametrize(("cell", "proj"), CELLS)
def test_gradients_of_gradients_equal_those_of_the_loop(cell: str, proj: int) -> None:
    spec = Spec(cell, I, 3, proj, 2, True, True)
    x, hx, weights = leaves_of(spec, 4, 2)
    leaves, found = [x, *hx, *weights], []
    for every in (
        fast(spec, x, hx, weights, lengths=[4, 2], options=ALL)[2],
        run(spec, x, hx, weights, lengths=[4, 2], options=ALL).every,
    ):
        first = gradients([e.square() for e in every], leaves, create_graph=True)
        found.append([*first, *gradients(first, leaves, allow_unused=True, materialize_grads=True)])
    assert_same(*found)


# Compilers and operators


def arguments_of(cell: str, proj: int, *, grad: bool, recompute: int) -> tuple[Any, ...]:
    K, P, G = GATES[cell], proj or H, 2

    def leaf(*shape: int) -> torch.Tensor:
        return torch.randn(shape, dtype=torch.float64, requires_grad=grad)

    return (
        leaf(T, B, I), leaf(G, K * H, I), leaf(G, K * H, P), leaf(G, K * H), leaf(G, B, P),
        leaf(G, B, H) if cell == "lstm" else None, leaf(G, P, H) if proj else None, None, None,
        torch.tensor([5, 0, 3]), None,
        torch.rand(G, B, P).double(), torch.rand(T, B, G, P).double(),
        torch.rand(T, B, G, H).double() if cell == "lstm" else None,
        cell, [False, True], "ieee", recompute, False, True, 0.1, True, "reference",
    )  # fmt: skip


@pytest.mark.parametrize("recompute", [0, 2])
@pytest.mark.parametrize(("cell", "proj"), [("lstm", 0), ("lstm", 2), ("rnn_tanh", 0)])
def test_opcheck(cell: str, proj: int, recompute: int) -> None:
    """With masks, zoneout and a bound, too."""
    forward = torch.ops.fastrnn.layer_forward.default
    torch.library.opcheck(forward, arguments_of(cell, proj, grad=True, recompute=recompute))
    arguments = arguments_of(cell, proj, grad=False, recompute=recompute)
    output, h_n, c_n, cells, *saved = forward(*arguments)
    d_c_n, d_cells = (c_n, cells) if cell == "lstm" else (None, None)
    wanted = [tensor is not None for tensor in arguments[:9]]
    torch.library.opcheck(
        torch.ops.fastrnn.layer_backward.default,
        (output, h_n, d_c_n, d_cells, output, cells, *saved, wanted, *arguments),
        test_utils=("test_schema", "test_faketensor"),  # it has no autograd rule of its own
    )


@pytest.mark.parametrize(("kind", "how"), MODULES[1:])
def test_compile_forward_and_backward(kind: type, how: dict[str, Any]) -> None:
    torch.compiler.reset()
    module, x = module_of(kind, **how), x_of(T, B, I)
    compiled = torch.compile(
        lambda x, lengths: module(x, lengths=lengths, return_all_states=True),
        fullgraph=True, backend="aot_eager",
    )  # fmt: skip
    lengths = torch.tensor([5, 0, 3])
    want = module(x, lengths=lengths, return_all_states=True)
    got = compiled(x, lengths)
    made = [[made[0], *pair(made[1]), *pair(made[2])] for made in (got, want)]
    assert_same(*made)
    assert_same(*(gradients(each, list(module.parameters())) for each in made))
    assert_same(
        *(gradients(pair(m(x, lengths)[2])[-1:], list(module.parameters()), allow_unused=True,
                    materialize_grads=True)
          for m in (compiled, lambda x, n: module(x, lengths=n, return_all_states=True)))
    )  # fmt: skip


# What is said of it


@pytest.mark.backends("auto")
@pytest.mark.parametrize("kind", [fastrnn.LSTM, fastrnn.RNN])
def test_explain_names_who_cannot(kind: type) -> None:
    module, x = kind(I, H), torch.randn(T, B, I)
    decision = fastrnn.explain(module, x, return_all_states=True)
    assert decision.backend == "reference"
    assert "all states" in decision.request.describe()
    reason = "states of every step were asked for; torch returns the last ones"
    reasons = {candidate.name: candidate.reasons for candidate in decision.candidates}
    assert reason in reasons["aten"]
    assert reasons["reference"] == ()
    assert not any("states" in why for why in reasons["triton"])
    assert not fastrnn.explain(module, x).request.all_states
    module.backend = "aten"
    with pytest.raises(fastrnn.BackendError, match=reason):
        module(x, return_all_states=True)
    assert len(module(x)) == 2
