"""What torch relies on: graphs where they are due, what is saved, operators, and compilers."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrnn.backend import LayerBackend, Wanted
from fastrnn.flat import SAVED, fields_of
from fastrnn.options import Options
from fastrnn.testing.cases import (
    CELLS,
    Case,
    everything,
    forward,
    gradients,
    leaves_of,
    spec,
    upstream,
)
from fastrnn.testing.layer_cases import (
    LayerCase,
    differentiable,
    layer_for,
    tensors_of,
)
from fastrnn.testing.subjects import NotClaimed, Subject

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from fastrnn.testing.problems import Problem


def _case(cell: str, **how: Any) -> Case:
    return Case(spec(cell, num_layers=2, bidirectional=True), **how)


def _require(made: dict[str, Tensor], want: bool, when: str) -> None:
    wrong = [name for name, t in made.items() if t.requires_grad != want]
    what = "have no gradient" if want else "have one"
    assert not wrong, f"{', '.join(wrong)} {what} {when}"


def _graph_where_due(subject: Subject, cell: str) -> None:
    """Outputs have gradients if, and only if, something that they are made of has."""
    case = _case(cell)
    subject.must_claim(case)
    problem = subject.problem(case)
    for part in ("x", "h0", "weight_hh[0]", "bias_ih[3]"):
        own, _ = leaves_of(problem, lambda name, part=part: name == part)  # type: ignore[misc] # a default
        # the first layer's state has no part in another's gradient
        _require(forward(case, own, subject.name).tensors, True, f"where only {part} has")
    silent = replace(case, needs_grad=False)
    subject.must_claim(silent)
    own, _ = leaves_of(problem, lambda name: False)
    _require(forward(silent, own, subject.name).tensors, False, "where nothing has")
    own, _ = leaves_of(problem, everything)
    with torch.no_grad():
        made = forward(silent, own, subject.name).tensors
    _require(made, False, "under no_grad")
    with torch.inference_mode():
        again = forward(silent, own, subject.name).tensors
    for name, tensor in again.items():
        assert torch.equal(tensor, made[name]), f"{name} is another one in inference mode"


def _apart(subject: Subject, cell: str, needs_grad: bool) -> None:
    """What is returned shares no memory: one may be written to without changing another."""
    shapes = [(steps, layers) for steps in (1, 3) for layers in (1, 2)]
    for steps, layers in shapes:
        shape = spec(cell, num_layers=layers)
        case = Case(shape, steps, needs_grad=needs_grad, training=needs_grad)
        subject.must_claim(case)
        own, _ = leaves_of(subject.problem(case), lambda name: needs_grad)
        made = forward(case, own, subject.name).tensors
        others = {**made, "x": own.x, "h0": (own.hx or ())[0]}
        for name, tensor in made.items():
            before = {n: t.detach().clone() for n, t in others.items() if n != name}
            kept = tensor.detach().clone()
            tensor.detach().fill_(7)
            wrong = [n for n, t in before.items() if not torch.equal(others[n].detach(), t)]
            assert not wrong, f"{name} is a view of {', '.join(wrong)}: T={steps}, layers={layers}"
            tensor.detach().copy_(kept)


def _saved(subject: Subject, case: LayerCase) -> None:
    """What is saved, and what is returned, is shaped as `saved_like` and the contract say."""
    backend, layer = subject.layers(), layer_for(subject, case)
    output, h_n, c_n, saved, *rest = backend.layer_forward(layer)
    assert len(saved) <= SAVED, f"saved: {len(saved)} tensors, expected at most {SAVED}"
    assert case.save or len(saved) == 0, f"saved: {len(saved)} tensors without `Layer.save`"
    T, B, G, P, H = case.T, case.B, layer.groups, layer.h0.shape[2], layer.hidden_size
    expected: dict[str, tuple[Any, tuple[int, ...]]] = {
        "output": (output, (T, B, G, P)),
        "h_n": (h_n, (G, B, P)),
    }
    if layer.c0 is not None:
        expected["c_n"] = (c_n, (G, B, H))
        if layer.all_states:
            expected["cells"] = (rest[0], (T, B, G, H))
    for name, (tensor, shape) in expected.items():
        got = tuple(tensor.shape)
        assert got == shape, f"{name}: shape {got}, expected {shape}"
        assert tensor.dtype == layer.x.dtype, f"{name}: {tensor.dtype}, expected {layer.x.dtype}"
    with FakeTensorMode() as mode:
        fake: dict[str, Any] = {n: mode.from_tensor(t) for n, t in tensors_of(layer).items()}
        promised = backend.saved_like(replace(layer, **fake)) if case.save else ()
    assert len(promised) == len(saved), (
        f"saved_like gives {len(promised)} tensors, and {len(saved)} are saved"
    )
    for i, (like, tensor) in enumerate(zip(promised, saved, strict=True)):
        for what in ("shape", "dtype", "device"):
            want, got = getattr(like, what), getattr(tensor, what)
            assert want == got, f"saved[{i}]: {what} {got}, and saved_like says {want}"
        want, got = like.stride(), tensor.stride()
        assert want == got, f"saved[{i}]: stride {got}, and saved_like says {want}"


def _opcheck(subject: Subject, case: LayerCase) -> None:
    """The operators as torch tests them: schema, autograd, fake tensors, symbolic sizes."""
    own, _ = differentiable(layer_for(subject, case))
    arguments = (*fields_of(own), subject.name)
    plain = tuple(a.detach() if isinstance(a, torch.Tensor) else a for a in arguments)
    operators = torch.ops.fastrnn
    registered = ("test_schema", "test_autograd_registration", "test_faketensor")
    try:
        torch.library.opcheck(operators.layer_forward.default, arguments, test_utils=registered)
    except ImportError as error:
        raise NotClaimed([f"torch.library.opcheck needs the package {error.name}"]) from error
    # It compares all outputs, after a backward pass if there is one: which may have written over
    # what was saved. Graphs with one are the business of `_compile`.
    torch.library.opcheck(
        operators.layer_forward.default, plain, test_utils="test_aot_dispatch_dynamic"
    )
    output, h_n, c_n, cells, *saved = operators.layer_forward(*plain)
    every_c = own.c0 is not None and own.all_states
    named = tensors_of(own)
    wanted = [name in named for name in Wanted._fields]
    grads = (output, h_n, None if own.c0 is None else c_n, cells if every_c else None)
    torch.library.opcheck(
        operators.layer_backward.default,
        (*(None if g is None else torch.ones_like(g) for g in grads), output, cells, *saved,
         wanted, *plain),
        test_utils=("test_schema", "test_faketensor"),  # it has no autograd rule of its own
    )  # fmt: skip


def _compile(subject: Subject, cell: str) -> None:
    """One graph, and in it the numbers of a call without."""
    case = Case(spec(cell), T=3)
    subject.must_claim(case)
    request = subject.request(case)
    subject.must_claim(request._replace(compiling=True, seq_len=None, batch=None, threads=0))
    problem = subject.problem(case)

    def call(own: Problem) -> dict[str, Tensor]:
        return forward(case, own, subject.name).tensors

    torch.compiler.reset()
    # torch unrolls what it knows, step by step: a layer is one operator whatever its sizes
    dynamic = isinstance(subject.backend, LayerBackend)
    compiled: Any = torch.compile(call, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    try:
        found = []
        for function in (call, compiled):
            own, leaves = leaves_of(problem, everything)
            made = function(own)
            found.append(made | gradients(made, leaves, upstream(made, subject.dtype)))
    finally:
        torch.compiler.reset()
    allowed = subject.allowed(case).gradient
    for name, want in found[0].items():
        apart = float((found[1][name] - want).detach().abs().max())
        limit = allowed * max(1.0, float(want.detach().abs().max()))
        assert apart <= limit, f"{name}: off by {apart:.3e} in a graph, allowed {limit:.3e}"


def _checks() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {}
    for cell in CELLS:
        found[f"graph-where-due-{cell}"] = partial(_graph_where_due, cell=cell)
        for needs_grad, mode in ((False, "forward"), (True, "train")):
            function = partial(_apart, cell=cell, needs_grad=needs_grad)
            found[f"results-share-no-memory-{cell}-{mode}"] = function
        plain = LayerCase(cell)
        layers = {
            "": plain,
            "-no-bias": replace(plain, bias=False),
            "-one-step": replace(plain, T=1, B=1, H=1),
            "-not-saving": replace(plain, save=False),
            "-lengths-resets": replace(plain, lengths=True, resets=True),
            "-all_states": replace(plain, options=Options(all_states=True)),
            "-zoneout": replace(plain, options=Options(zoneout=(0.3, 0.3))),
        }
        if spec(cell).has_cell_state:
            layers["-projection"] = replace(plain, proj=2)
        for name, case in layers.items():
            found[f"saved_like-{cell}{name}"] = partial(_saved, case=case)
        found[f"opcheck-{cell}"] = partial(_opcheck, case=plain)
        found[f"compile-{cell}"] = partial(_compile, cell=cell)
    found[f"opcheck-{CELLS[0]}-lengths-resets-all_states"] = partial(
        _opcheck,
        case=LayerCase(CELLS[0], lengths=True, resets=True, options=Options(all_states=True)),
    )
    return found


CHECKS = _checks()
