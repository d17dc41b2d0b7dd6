"""Swap torch.nn's recurrent layers in a model for fastrnn's, and back.

A swapped layer takes over the very state of the old one: the same Parameter and buffer objects,
so that optimizers, DistributedDataParallel and tied weights notice nothing, the same hooks, so
that their handles still remove them, and whatever else was set on it.
"""

# mypy: allow-untyped-calls
# (nn.Module's __setstate__ is not annotated)

from __future__ import annotations

import operator
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from fastrnn import cell_modules, cells, modules
from fastrnn.dispatch import AUTO, parse_names
from fastrnn.recurrent import DERIVED, OPTIONS, Recurrent
from fastrnn.weight_drop import has_weight_drop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    Filter = Callable[[nn.Module, str], bool]

Model = TypeVar("Model", bound=nn.Module)
Status = Literal["fastrnn", "convertible", "left"]

_TO_FASTRNN: dict[type, type[Recurrent]] = {
    nn.LSTM: modules.LSTM,
    nn.GRU: cell_modules.GRU,
    nn.RNN: modules.RNN,
}
_TO_TORCH: dict[type, type[nn.Module]] = {
    modules.LSTM: nn.LSTM,
    cell_modules.GRU: nn.GRU,
    modules.RNN: nn.RNN,
    cells.LSTMCell: nn.LSTMCell,
    cells.GRUCell: nn.GRUCell,
    cells.RNNCell: nn.RNNCell,
}
_FASTRNN = (*_TO_TORCH, cell_modules.CellRNN)
_TORCH = (nn.RNNBase, nn.RNNCellBase)
_NAMES = ("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell")
_OF_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module, which hold its parts."""
# What torch.nn's layers derive from their parameters.
_TORCH_DERIVED = ("_flat_weights", "_flat_weights_names", "_flat_weight_refs", "_all_weights")


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What `convert` does, or did, about one recurrent layer of a model."""

    names: tuple[str, ...]
    """Every name under which the model holds it; "" is the model itself."""
    kind: str
    """Its class."""
    status: Status
    """`fastrnn` if it is fastrnn's, `convertible` if `convert` would swap it, else `left`."""
    reason: str
    """Why it is left; else empty."""

    def __str__(self) -> str:
        names = ", ".join(name or "(the model itself)" for name in self.names)
        return f"{names}: {self.kind}, {self.status}" + (f": {self.reason}" if self.reason else "")


@dataclass(frozen=True, slots=True)
class ConversionReport:
    """Every recurrent layer of a model, in the model's order."""

    layers: tuple[LayerReport, ...]

    def with_status(self, status: Status) -> tuple[LayerReport, ...]:
        """The layers that have `status`."""
        return tuple(layer for layer in self.layers if layer.status == status)

    def __str__(self) -> str:
        return "\n".join(str(layer) for layer in self.layers) or "no recurrent layers"


def convert(model: Model, *, filter_fn: Filter | None = None, backend: str = AUTO) -> Model:
    """Swap every torch.nn.LSTM, GRU and RNN in `model` for fastrnn's, in place.

    Swapped are layers of exactly these classes, parametrized or not. What is left and why, before
    or after, says `conversion_report`. A layer that the model holds under several names is
    swapped once and stays shared, also with what else its modules keep: attributes, lists, tuples
    and dicts of layers, and bound methods. Only submodules are found: a layer that a model keeps in
    a plain list alone stays what it is. Converting twice changes nothing more.

    Args:
        model: any module.
        filter_fn: called with each candidate and its first fully qualified name ("" for the
            model itself); leaves those for which it returns False.
        backend: of the swapped layers, see `LSTM`.

    Returns:
        `model`; or the new layer, if `model` itself is one that was swapped.

    Raises:
        BackendError: `backend` names an unknown one.

    Example:
        >>> model = fastrnn.convert(model)
        >>> print(fastrnn.conversion_report(model))
        encoder: LSTM, fastrnn
        decoder: GRUCell, left: a single time step gains nothing from a backend
    """
    parse_names(backend)

    def swap(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
        if _class_of(layer) not in _TO_FASTRNN or _why_left(layer, names):
            return None
        if filter_fn is not None and not filter_fn(layer, names[0]):
            return None
        return _to_fastrnn(layer, backend)

    return _swap_all(model, swap)


def revert(model: Model) -> Model:
    """Swap every fastrnn layer and cell in `model` for torch.nn's, in place; undoes `convert`.

    The backends chosen for layers are forgotten, and so are `final_only` and `recompute`. Left are
    layers that torch.nn's would not equal: sigmoid layers, and those with `recurrent_dropout`,
    `zoneout`, `error_clip` or `weight_drop`, until that is off. Left too are `CellRNN`, subclasses,
    and layers that something refers to as `convert` would refuse.

    Args:
        model: any module.

    Returns:
        `model`; or the new layer, if `model` itself is one that was swapped.
    """

    def swap(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
        known = _class_of(layer) in _TO_TORCH
        if not known or _is_ours_alone(layer) or _why_bound(layer, names):
            return None
        return _to_torch(layer)

    return _swap_all(model, swap)


def conversion_report(model: nn.Module, *, filter_fn: Filter | None = None) -> ConversionReport:
    """What `convert(model, filter_fn=filter_fn)` would do, or what it has left; changes nothing.

    Computed from the model as it is, not remembered, so that it is also right for a model that
    was loaded, copied or edited since.

    Args:
        model: any module.
        filter_fn: as for `convert`.

    Returns:
        A report of every recurrent layer; printing it gives a line for each.
    """
    reports = []
    for layer, names in _attachments(model):
        if not _is_recurrent(layer):
            continue
        reason = _why_left(layer, names)
        status: Status = "left"
        if isinstance(layer, _FASTRNN):
            status, reason = "fastrnn", ""
        elif not reason and filter_fn is not None and not filter_fn(layer, names[0]):
            reason = "filter_fn returned False"
        elif not reason:
            status = "convertible"
        reports.append(LayerReport(names, _kind(layer), status, reason))
    return ConversionReport(tuple(reports))


def _swap_all(
    model: Model, swap: Callable[[nn.Module, tuple[str, ...]], nn.Module | None]
) -> Model:
    """Replace every module for which `swap` gives another, wherever the model holds it."""
    new: dict[nn.Module, nn.Module] = {}
    seen: set[int] = set()
    for layer, names in _attachments(model):
        swapped = swap(layer, names)
        if swapped is not None:
            new[layer] = swapped
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if child in new:
                parent.register_module(name, new[child])
        kept = vars(parent)
        for name in kept.keys() - _OF_TORCH if new else ():
            kept[name] = _swapped_within(kept[name], new, seen)
    return cast("Model", new.get(model, model))


def _swapped_within(kept: Any, new: Mapping[nn.Module, nn.Module], seen: set[int]) -> Any:
    """What a module keeps, with swapped layers in place of those that they stand for.

    Such an attribute would else be the old layer, which shares the parameters but is told nothing
    of `train`, `eval` and other changes.
    """
    if isinstance(kept, nn.Module):
        return new.get(kept, kept)
    if isinstance(kept, MethodType) and isinstance(kept.__self__, nn.Module):
        return getattr(new.get(kept.__self__), kept.__name__, kept)
    if type(kept) is tuple:
        within = tuple(_swapped_within(each, new, seen) for each in kept)
        return kept if all(map(operator.is_, within, kept)) else within
    if isinstance(kept, list | dict) and id(kept) not in seen:
        seen.add(id(kept))  # it may hold itself
        for key, each in [*(enumerate(kept) if isinstance(kept, list) else kept.items())]:
            swapped = _swapped_within(each, new, seen)
            if swapped is not each:
                kept[key] = swapped
    return kept


def _attachments(model: nn.Module) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Every module once, in the model's order, with every name under which parents hold it."""
    names: dict[nn.Module, list[str]] = {model: [""]}
    for prefix, parent in model.named_modules():
        for name, child in parent._modules.items():
            if child is not None:
                names.setdefault(child, []).append(f"{prefix}.{name}" if prefix else name)
    for module in model.modules():
        yield module, tuple(names[module])


def _is_recurrent(module: nn.Module) -> bool:
    if isinstance(module, torch.jit.ScriptModule):
        return module.original_name in _NAMES
    return isinstance(module, _TORCH + _FASTRNN) or _is_quantized(module)


def _is_quantized(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__name__ in _NAMES and ".quantiz" in kind.__module__


def _is_ours_alone(layer: nn.Module) -> bool:
    """Whether torch's layer would compute, or learn, something else."""
    if getattr(layer, "nonlinearity", None) == "sigmoid":
        return True
    if not isinstance(layer, Recurrent):
        return False
    asked = layer._options
    regularised = asked.recurrent_dropout or asked.error_clip or asked.zoneout != (0.0, 0.0)
    return bool(regularised) or has_weight_drop(layer)


def _class_of(layer: nn.Module) -> type:
    """The class, or for a parametrized layer, whose class is made up, the one it had before."""
    return parametrize.type_before_parametrizations(layer)


def _kind(layer: nn.Module) -> str:
    if isinstance(layer, torch.jit.ScriptModule):
        return str(layer.original_name)
    return _class_of(layer).__name__


def _why_left(layer: nn.Module, names: tuple[str, ...]) -> str:
    """Why `convert` leaves a recurrent layer of torch's; empty if it does not."""
    if isinstance(layer, torch.jit.ScriptModule):
        return "compiled by TorchScript; convert the model before it is scripted"
    if _class_of(layer) in _TO_FASTRNN:
        return _why_bound(layer, names)
    if isinstance(layer, nn.LSTMCell | nn.GRUCell | nn.RNNCell):
        return "a single time step gains nothing from a backend"
    if _is_quantized(layer):
        return "quantized"
    return "a subclass, whose own code a swap would lose"


def _why_bound(layer: nn.Module, names: tuple[str, ...]) -> str:
    """Why something that refers to this very object forbids a swap; empty if nothing does."""
    if any(name.rpartition(".")[2] == "_orig_mod" for name in names):
        return "compiled by torch.compile; convert the model before"
    if any(weight.is_complex() for weight in layer.parameters()):
        return "complex weights, which no backend takes"
    if "forward" in vars(layer):
        return "its forward was replaced on the instance"
    if layer._compiled_call_impl is not None:
        return "compiled by its own compile(); convert the model before"
    if any(getattr(hook, "module", None) for hook in layer._load_state_dict_pre_hooks.values()):
        return "a load_state_dict pre-hook is bound to it"
    return ""


def _to_fastrnn(layer: nn.Module, backend: str) -> nn.Module:
    new = _new_like(layer, _TO_FASTRNN[_class_of(layer)])
    state = {name: value for name, value in vars(layer).items() if name not in _TORCH_DERIVED}
    new.__setstate__({**state, "backend": backend})
    return new


def _to_torch(layer: nn.Module) -> nn.Module:
    new = _new_like(layer, _TO_TORCH[_class_of(layer)])
    state = {name: value for name, value in vars(layer).items() if name not in DERIVED}
    if isinstance(layer, Recurrent):
        for name in ("backend", *OPTIONS):
            state.pop(name, None)
        groups = layer.grouped_names()
        names = [name for group in groups for name in group]
        state["_all_weights"] = groups
        state["_flat_weights_names"] = names
        state["_flat_weights"] = [getattr(layer, name, None) for name in names]
    new.__setstate__(state)
    return new


def _new_like(layer: nn.Module, cls: type[nn.Module]) -> nn.Module:
    """An empty instance of `cls`, parametrized if `layer` is.

    `torch.nn.utils.parametrize` gives each module a class of its own, derived from the module's,
    that holds a property for each parametrized tensor; such a class is derived from `cls` here.
    """
    if parametrize.is_parametrized(layer):
        own = type(layer)
        kept = {n: v for n, v in vars(own).items() if n not in ("__dict__", "__weakref__")}
        cls = type(own.__name__, (cls,), kept)
    return cls.__new__(cls)
