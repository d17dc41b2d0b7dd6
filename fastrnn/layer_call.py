"""What the operators of `fastrnn.ops` do: one layer, or its gradients, by a backend.

With arguments as they come there, and results as they leave; and whether a call needs the operators
at all.
"""

# mypy: allow-untyped-calls
# (torch.autograd.profiler is not annotated)

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch

from fastrnn import chunked
from fastrnn.backend import LayerBackend, LayerOutput, OutputGradients, Wanted
from fastrnn.flat import SAVED, layer_of
from fastrnn.plugins import registry
from fastrnn.precision import uncast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import Tensor

    from fastrnn.backend import Layer

_PLAIN = (torch.Tensor, torch.nn.Parameter)


def is_eager(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nobody traces, transforms, intercepts or records operators, so that none is needed.

    Two operators a call and one in the backward pass, of so many arguments and in Python, take tens
    of microseconds: more than a short sequence.

    Args:
        tensors: those of the call.
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch.autograd.profiler._is_profiler_enabled
    ):
        return False
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    for tensor in tensors:
        if tensor is not None and (
            type(tensor) not in _PLAIN or tensor.is_meta or is_wrapped(tensor)
        ):
            return False
    return True


def layer_and_backend(
    arguments: Sequence[Any], *, overwrite_saved: bool = False
) -> tuple[Layer, LayerBackend]:
    """The `Layer` and the backend behind the operators' shared arguments: `FIELDS` and a name.

    Raises:
        RuntimeError: there is no backend of that name, since the operator's call was made.
    """
    layer = layer_of(arguments[:-1], overwrite_saved=overwrite_saved)
    name, backends = arguments[-1], registry().backends
    if name not in backends:
        raise RuntimeError(
            f"backend {name!r} is not registered here; a graph, an exported program or a backward "
            f"pass was made for it (registered: {', '.join(backends)})"
        )
    return layer, cast("LayerBackend", backends[name])


def padded(layer: Layer, made: LayerOutput) -> tuple[Tensor, ...]:
    """What the operator returns: empty tensors where there is none."""
    if len(made.saved) > SAVED:
        raise ValueError(f"saved: a backend may save {SAVED} tensors, got {len(made.saved)}")
    empty = partial(layer.x.new_empty, 0)
    c_n = empty() if made.c_n is None else made.c_n
    cells = empty() if made.cells is None else made.cells
    padding = (empty() for _ in range(SAVED - len(made.saved)))
    returned = map(_no_view, (made.output, made.h_n, c_n, cells))
    return (*returned, *made.saved, *padding)


def _no_view(tensor: Tensor) -> Tensor:
    """The same memory as a tensor of its own: autograd lets nobody write to a function's views.

    Of what they are views is nobody's business, as the contract has it that results share none.
    """
    return tensor.data if tensor._is_view() else tensor


def forward(*arguments: Any) -> tuple[Tensor, ...]:
    """The outputs and what is saved, as `layer_forward` returns them."""
    layer, backend = layer_and_backend(arguments)
    try:
        with uncast(layer.x.device.type):
            if layer.save and layer.recompute:
                made = chunked.forward(backend, layer)
            else:
                made = LayerOutput(*backend.layer_forward(layer))  # or a plain tuple of what it has
        if layer.final_only and not layer.save:
            made = made._replace(output=made.output.new_empty((0, *made.output.shape[1:])))
        return padded(layer, made)
    except Exception as error:
        error.add_note(f"in the backend {backend.name!r}")
        raise


def forward_below_autograd(*arguments: Any) -> tuple[Tensor, ...]:
    """`forward`, nothing of which is recorded."""
    with torch._C._AutoDispatchBelowAutograd():
        return forward(*arguments)


def backward(
    d_output: Tensor | None, d_h_n: Tensor | None, d_c_n: Tensor | None, d_cells: Tensor | None,
    output: Tensor, cells: Tensor, *arguments: Any, overwrite: bool = False,
) -> list[Tensor]:  # fmt: skip
    """The wanted gradients, in the order of `Wanted`, the others left out."""
    saved, wanted = arguments[:SAVED], Wanted(*arguments[SAVED])
    layer, backend = layer_and_backend(arguments[SAVED + 1 :], overwrite_saved=overwrite)
    grad = OutputGradients(d_output, d_h_n, d_c_n, d_cells)
    if layer.all_states and layer.c0 is not None:
        saved = (cells, *saved)
    try:
        with uncast(layer.x.device.type):
            if layer.recompute:
                got = chunked.backward(backend, grad, layer, output, saved, wanted)
            else:
                got = backend.layer_backward(grad, layer, output, saved, wanted)
        return [cast("Tensor", g) for g, is_wanted in zip(got, wanted, strict=True) if is_wanted]
    except Exception as error:
        error.add_note(f"in the backend {backend.name!r}")
        raise
