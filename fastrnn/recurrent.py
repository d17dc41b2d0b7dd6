"""What `RNN`, `LSTM` and `GRU` share: parameters, their names and memory, and the call itself."""

# mypy: allow-untyped-calls
# (nn.Module's own protocol and torch's cuDNN helpers are not annotated)

from __future__ import annotations

import math
import numbers
import warnings
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn
from torch.fx import Proxy
from torch.nn.utils.rnn import PackedSequence

from fastrnn import parameters, traced
from fastrnn.calls import Plans, run
from fastrnn.cell import cell_of
from fastrnn.checks import check_type
from fastrnn.dispatch import AUTO, parse_names
from fastrnn.options import Options, options
from fastrnn.request import Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from fastrnn.masks import Lengths

_IN_SPEC = frozenset(
    ["mode", "input_size", "hidden_size", "proj_size", "num_layers", "bias", "bidirectional"]
)
OPTIONS = {
    "final_only": False,
    "recompute": False,
    "recurrent_dropout": 0.0,
    "zoneout": 0.0,
    "error_clip": None,
}
"""What torch's layers do not have, and the values that leave it off."""
_CUDNN_MODES = ("LSTM", "GRU", "RNN_TANH", "RNN_RELU")
DERIVED = ("_spec", "_weight_names", "_options", "_plans")
"""Attributes that follow from the others, and so are neither pickled nor handed on."""


class Recurrent(nn.Module):
    """Base of `RNN`, `LSTM`, `GRU` and `CellRNN`, which add signatures and documentation."""

    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int
    backend: str
    # with values, for what torch.nn or an earlier version made
    final_only: bool = False
    recompute: bool | int = False
    recurrent_dropout: float = 0.0
    zoneout: float | tuple[float, float] = 0.0
    error_clip: float | None = None

    # Derived from the attributes above by `_refresh`, so that a call computes none of it.
    _spec: Spec
    _weight_names: tuple[str, ...]
    _options: Options
    _plans: Plans
    """Good as long as no attribute is set."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int,
        bias: bool,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        proj_size: int,
        device: torch.device | str | int | None,
        dtype: torch.dtype | None,
        backend: str,
        **asked: object,
    ) -> None:
        """`asked`: values of `OPTIONS`, which are as documented of `RNN` and `LSTM`."""
        super().__init__()
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        self.backend = backend
        for name, value in asked.items():
            setattr(self, name, value)
        self._check_arguments(dropout)
        self._refresh()
        for name in self._weight_names:
            shape = parameters.shape(self._spec, name)
            weight = torch.empty(shape, device=device, dtype=dtype)
            self.register_parameter(name, nn.Parameter(weight))
        self.flatten_parameters()
        self.reset_parameters()

    def _check_arguments(self, dropout: object) -> None:
        """Refuse what torch refuses, in its order and words."""
        if (
            not isinstance(dropout, numbers.Number)
            or isinstance(dropout, bool)
            or not 0 <= self.dropout <= 1
        ):
            raise ValueError(
                "dropout should be a number in range [0, 1] representing the probability of an "
                "element being zeroed"
            )
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={self.num_layers}",
                stacklevel=4,  # the line that constructs the RNN or LSTM
            )
        for name, kind in (("bias", bool), ("batch_first", bool)):
            check_type(name, getattr(self, name), kind)
        for name in ("input_size", "hidden_size"):
            check_type(name, getattr(self, name), int)
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be greater than zero")
        if self.num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if self.proj_size < 0:
            raise ValueError(
                "proj_size should be a positive integer or zero to disable projections"
            )
        if self.proj_size >= self.hidden_size:
            raise ValueError("proj_size has to be smaller than hidden_size")

    def _refresh(self) -> None:
        """Derive what a call needs from the attributes that fix it."""
        spec = Spec(
            self.mode.lower(),
            self.input_size,
            self.hidden_size,
            self.proj_size,
            self.num_layers,
            self.bias,
            bool(self.bidirectional),
        )
        self._spec = spec
        self._weight_names = parameters.names(spec)
        self._options = self._checked_options()
        self._plans = {}

    def _checked_options(self, **changed: object) -> Options:
        """The options as they are, or would be with those that are given."""
        values = {name: getattr(self, name) for name in OPTIONS} | changed
        return options(**values, has_cell_state=cell_of(self.mode.lower()).has_pair)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "backend":
            parse_names(value)
        elif name in OPTIONS:
            self.__dict__["_options"] = self._checked_options(**{name: value})
        before = self.__dict__.get("_parameters", {}).get(name)
        super().__setattr__(name, value)
        self.__dict__["_plans"] = {}
        if "_weight_names" in self.__dict__:  # else still under construction
            if name in _IN_SPEC:
                self._refresh()
            elif name in self._weight_names and not _is_sharded(before):
                self.flatten_parameters()

    def __getstate__(self) -> dict[str, Any]:
        state = cast("dict[str, Any]", super().__getstate__())
        return {name: value for name, value in state.items() if name not in DERIVED}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._refresh()

    def __prepare_scriptable__(self) -> nn.Module:
        """Called by torch.jit.script before it compiles a module.

        Raises:
            RuntimeError: always: TorchScript cannot compile a choice of backends.
        """
        raise RuntimeError(
            f"fastrnn.{self._get_name()} cannot be compiled by torch.jit.script; script "
            f"{traced.INSTEAD}"
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self.flatten_parameters()
        return self

    def flatten_parameters(self) -> None:
        """Lay the parameters out in one block of memory, as cuDNN wants them.

        Done when the module is made, moved or given another parameter; call it again only after
        the parameters' memory was replaced otherwise, as `copy.deepcopy` does. Without it, cuDNN
        copies the weights in every call, and torch warns. Does nothing where cuDNN cannot run
        the layer: off CUDA, for other dtypes than half, float and double, for cells that torch has
        not, and for parameters that share memory or are sharded (FSDP2), also while gathered.
        """
        weights = [self._parameters.get(name) for name in self._weight_names]
        if self.mode in _CUDNN_MODES and all(_is_for_cudnn(weight) for weight in weights):
            _flatten(self.mode, self._spec, self.batch_first, cast("list[Tensor]", weights))

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-k, k) with k = 1 / sqrt(hidden_size)."""
        bound = 1.0 / math.sqrt(self.hidden_size)
        for weight in self.parameters():
            nn.init.uniform_(weight, -bound, bound)

    @property
    def _flat_weights(self) -> list[Tensor]:
        """The weights, flat, under the name by which code written for torch.nn reads them."""
        return self._weights()

    @property
    def all_weights(self) -> list[list[nn.Parameter]]:
        """The parameters of each layer and direction."""
        return [[getattr(self, name) for name in group] for group in self.grouped_names()]

    def grouped_names(self) -> list[list[str]]:
        """The names of the parameters of each layer and direction."""
        names, slots = list(self._weight_names), self._spec.num_layers * self._spec.directions
        size = len(names) // slots
        return [names[slot * size : (slot + 1) * size] for slot in range(slots)]

    def extra_repr(self) -> str:
        """Torch's text, which hides tanh and relu; then what torch does not have."""
        defaults = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        values = {name: getattr(self, name) for name in defaults}
        shown = [f"{name}={value}" for name, value in values.items() if value != defaults[name]]
        if self.mode == "RNN_SIGMOID":
            shown.append("nonlinearity=sigmoid")
        if self.backend != AUTO:
            shown.append(f"backend={self.backend}")
        for name, value in OPTIONS.items():
            if getattr(self, name) != value:
                shown.append(f"{name}={getattr(self, name)}")
        return ", ".join([str(self.input_size), str(self.hidden_size), *shown])

    def _weights(self) -> list[Tensor]:
        """The weights of this call, flat, in torch's order."""
        parameters = self._parameters
        try:
            return cast("list[Tensor]", [parameters[name] for name in self._weight_names])
        except KeyError:  # some are computed: parametrizations, weight drop, pruning, replicas
            return [getattr(self, name) for name in self._weight_names]

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Any,
        lengths: Lengths | None,
        resets: Tensor | None,
        reset_state: Any,
        return_all_states: bool,
    ) -> tuple[Any, ...]:
        if isinstance(input, Proxy):
            return traced.as_leaf(
                self, input, hx=hx, lengths=lengths, resets=resets, reset_state=reset_state,
                return_all_states=return_all_states,
            )  # fmt: skip
        asked = self._options
        return run(
            self._spec,
            input,
            hx,
            self._weights(),
            batch_first=self.batch_first,
            dropout=self.dropout,
            training=self.training,
            backend=self.backend,
            lengths=lengths,
            resets=resets,
            reset_state=reset_state,
            options=asked._replace(all_states=True) if return_all_states else asked,
            plans=None if return_all_states else self._plans,
        )


def _is_sharded(weight: object) -> bool:
    """Whether it is a DTensor or the like, whose memory is somebody else's to lay out.

    FSDP2 sets gathered weights in place of sharded ones, and gathers into their memory again in the
    next step: to lay those out anew would leave the layer with weights that are never updated.
    """
    return isinstance(weight, Tensor) and type(weight) not in (Tensor, nn.Parameter)


def _is_for_cudnn(weight: object) -> bool:
    return (
        isinstance(weight, Tensor)
        and not _is_sharded(weight)
        and weight.is_cuda
        and torch.backends.cudnn.is_acceptable(weight)
    )


def _flatten(mode: str, spec: Spec, batch_first: bool, weights: list[Tensor]) -> None:
    """Make every weight a view of one new block of memory, in the order cuDNN expects."""
    same_dtype = len({weight.dtype for weight in weights}) == 1
    # weights that alias must not be given memory of their own: they would stop being tied
    distinct = len({weight.data_ptr() for weight in weights}) == len(weights)
    if not (same_dtype and distinct and torch._use_cudnn_rnn_flatten_weight()):
        return
    with torch.cuda.device_of(weights[0]), torch.no_grad():
        torch._cudnn_rnn_flatten_weight(
            weights,
            len(weights) // (spec.num_layers * spec.directions),
            spec.input_size,
            torch.backends.cudnn.rnn.get_cudnn_mode(mode),
            spec.hidden_size,
            spec.proj_size,
            spec.num_layers,
            batch_first,
            spec.bidirectional,
        )
