"""The parameters of a stack: their names and sizes, in torch's order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn.cell import cell_of

if TYPE_CHECKING:
    from fastrnn.request import Spec


def names(spec: Spec) -> tuple[str, ...]:
    """Torch's names of the parameters, flat, in torch's order."""
    kinds = ["weight_ih", "weight_hh"]
    kinds += ["bias_ih", "bias_hh"] if spec.bias else []
    kinds += ["weight_hr"] if spec.proj_size else []
    kinds += ["weight_cell"] if cell_of(spec.cell).weights else []
    return tuple(
        f"{kind}_l{layer}{suffix}"
        for layer in range(spec.num_layers)
        for suffix in ("", "_reverse")[: spec.directions]
        for kind in kinds
    )


def shape(spec: Spec, name: str) -> tuple[int, ...]:
    """The size of one of `names`, as torch's."""
    kind, slot = name.rsplit("_l", maxsplit=1)
    rows = spec.gates * spec.hidden_size
    if kind == "weight_ih":
        first = slot in ("0", "0_reverse")
        return (rows, spec.input_size if first else spec.state_size * spec.directions)
    if kind == "weight_hh":
        return (rows, spec.state_size)
    if kind == "weight_hr":
        return (spec.proj_size, spec.hidden_size)
    if kind == "weight_cell":
        return (cell_of(spec.cell).weights, spec.hidden_size)
    return (rows,)
