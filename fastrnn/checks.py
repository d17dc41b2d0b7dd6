"""Wrong arguments of a call: torch's own texts where torch has one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import torch

from fastrnn import parameters
from fastrnn.cell import cell_of
from fastrnn.precision import autocasts
from fastrnn.request import Request, Spec

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from torch import Tensor


def check_type(name: str, value: object, kind: type) -> None:
    """Check the type of an argument that a module keeps."""
    if not isinstance(value, kind):
        raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")


def refuse_unsupported(layer: type, arguments: Collection[str]) -> None:
    """Refuse keyword arguments that a layer does not have, as torch.nn's RNN and GRU do."""
    if "proj_size" in arguments:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
    for name in arguments:
        raise TypeError(f"{layer.__name__}.__init__() got an unexpected keyword argument '{name}'")


def wrong_input_dims(spec: Spec, dims: int) -> ValueError:
    """The error for an input that is neither batched nor unbatched."""
    tensor = " tensor" if spec.cell.startswith("rnn_") else ""
    return ValueError(
        f"{_layer_name(spec)}: Expected input to be 2D or 3D, got {dims}D{tensor} instead"
    )


def _layer_name(spec: Spec) -> str:
    """As errors of torch.nn begin."""
    return "RNN" if spec.cell.startswith("rnn_") else spec.cell.upper()


def as_states(
    spec: Spec, hx: Tensor | tuple[Tensor, Tensor], unbatched: bool
) -> tuple[Tensor, ...]:
    """Check the dims of the initial states and give unbatched ones a batch of one."""
    want, kind = (2, "unbatched 2-D") if unbatched else (3, "batched 3-D")
    if spec.has_cell_state:
        if len(hx) != 2:  # one tensor (2, ...) that stacks both is fine, as it is for torch
            what = "a tensor of length" if isinstance(hx, torch.Tensor) else "length"
            raise ValueError(
                f"{_layer_name(spec)}: hx should be a pair (h_0, c_0), got {what} {len(hx)}"
            )
        dims = (hx[0].dim(), hx[1].dim())
        if dims != (want, want):
            raise RuntimeError(
                f"For {kind} input, hx and cx should also be {want}-D but got "
                f"({dims[0]}-D, {dims[1]}-D) tensors"
            )
        return (hx[0].unsqueeze(1), hx[1].unsqueeze(1)) if unbatched else (hx[0], hx[1])
    if not isinstance(hx, torch.Tensor):
        raise ValueError(
            f"{_layer_name(spec)}: hx should be one tensor h_0, got {type(hx).__name__}"
        )
    if hx.dim() != want:
        raise RuntimeError(
            f"For {kind} input, hx should also be {want}-D but got {hx.dim()}-D tensor"
        )
    return (hx.unsqueeze(1),) if unbatched else (hx,)


def check_input(spec: Spec, input: Tensor, weight: Tensor, dims: int) -> None:
    """Check dtype, dims and features of an input; `dims` is 3, or 2 for packed data."""
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.dim() != dims:
        raise RuntimeError(f"input must have {dims} dimensions, got {input.dim()}")
    if input.shape[-1] != spec.input_size:
        raise RuntimeError(
            "input.size(-1) must be equal to input_size. "
            f"Expected {spec.input_size}, got {input.shape[-1]}"
        )


def check_states(spec: Spec, states: Sequence[Tensor], batch: int) -> None:
    """Check the sizes of the initial states."""
    rows = spec.num_layers * spec.directions
    if not spec.has_cell_state:
        expected = (rows, batch, spec.hidden_size)
        if states[0].shape != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(states[0].shape)}")
        return
    for index, size in enumerate((spec.state_size, spec.hidden_size)):
        expected = (rows, batch, size)
        if states[index].shape != expected:
            raise RuntimeError(
                f"Expected hidden[{index}] size {expected}, got {list(states[index].shape)}"
            )


def check_tensors(
    input: Tensor, states: Sequence[Tensor], weights: Sequence[Tensor], seq_len: int
) -> None:
    """What ATen checks before its own loops, for backends that are not ATen's."""
    if torch.compiler.is_compiling():  # T may be the data's: then the graph looks when it runs
        torch._check(seq_len != 0)  # type: ignore[no-untyped-call] # torch's
    elif seq_len == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    device, dtype = input.device, input.dtype
    autocast = autocasts(device.type)
    for name, tensors in (("hidden", states), ("parameter", weights)):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, found input tensor at "
                    f"{device} and {name} tensor at {tensor.device}"
                )
            if tensor.dtype != dtype and not autocast:
                raise RuntimeError(
                    f"Input and {name} tensors are not the same dtype, found input tensor with "
                    f"{dtype} and {name} tensor with {tensor.dtype}"
                )


def spec_of_weights(
    cell: str, weights: Sequence[Tensor], num_layers: int, bias: bool, bidirectional: bool
) -> Spec:
    """The stack that flat weights describe; every one of them must fit it.

    Raises:
        ValueError: their number or shapes do not belong together; names the weight.
    """
    known, directions = cell_of(cell), (2 if bidirectional else 1)
    slots, gates = num_layers * directions, known.parameter_rows
    names = ["weight_ih", "weight_hh"] + (["bias_ih", "bias_hh"] if bias else [])
    if slots > 0 and cell == "lstm" and len(weights) == slots * (len(names) + 1):
        names.append("weight_hr")
    names += ["weight_cell"] if known.weights else []
    if slots <= 0 or len(weights) != slots * len(names):
        raise ValueError(
            f"weights: got {len(weights)} tensors, expected {slots * len(names)} "
            f"({', '.join(names)} for each of num_layers={num_layers} and "
            f"{directions} direction(s))"
        )
    for index in (0, 1):
        if weights[index].dim() != 2:
            raise ValueError(
                f"weights[{index}] ({names[index]}): expected 2-D, got {weights[index].dim()}-D"
            )
    rows, state_size = weights[1].shape
    hidden_size = rows // gates
    projected = names[-1] == "weight_hr"
    spec = Spec(
        cell,
        weights[0].shape[1],
        hidden_size,
        state_size if projected else 0,
        num_layers,
        bias,
        bidirectional,
    )
    shapes = {
        "weight_hh": (gates * hidden_size, spec.state_size),
        "bias_ih": (gates * hidden_size,),
        "bias_hh": (gates * hidden_size,),
        "weight_hr": (state_size, hidden_size),
        "weight_cell": (known.weights, hidden_size),
    }
    for index, weight in enumerate(weights):
        slot, kind = divmod(index, len(names))
        inputs = spec.input_size if slot < directions else directions * spec.state_size
        expected = shapes.get(names[kind], (gates * hidden_size, inputs))
        if tuple(weight.shape) != expected:
            raise ValueError(
                f"weights[{index}] ({names[kind]} of layer {slot // directions}): "
                f"expected shape {expected}, got {tuple(weight.shape)}"
            )
    return spec


def check_weights(request: Request, weights: Sequence[Tensor]) -> None:
    """Check the sizes of weights, for backends whose code trusts them."""
    spec = Spec(
        request.cell, request.input_size, request.hidden_size, request.proj_size,
        request.num_layers, request.bias, request.bidirectional,
    )  # fmt: skip
    for tensor, (name, size) in zip(weights, _sizes(spec), strict=True):
        if tensor.shape != size:
            raise RuntimeError(f"Expected {name} size {size}, got {list(tensor.shape)}")


@lru_cache(maxsize=256)
def _sizes(spec: Spec) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((name, parameters.shape(spec, name)) for name in parameters.names(spec))
