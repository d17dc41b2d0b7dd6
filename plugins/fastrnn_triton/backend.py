"""A thin layer over `fastrnn_kernels`: what it cannot run, and how its tensors are laid out."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.backend import LayerOutput, OutputGradients, Recurrence, RecurrenceBackend
from fastrnn.precision import arch_of
from fastrnn.products import of_first_steps
from fastrnn.request import OPTIONS
from fastrnn_triton import cost, products, search, tuned
from fastrnn_triton.cells import kernel_cell, reasons_against, weight_gradient

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import Tensor

    from fastrnn.backend import Cell, Layer, Wanted
    from fastrnn.request import Cost, Request
    from fastrnn_kernels import LaunchConfig
    from fastrnn_kernels.configs import Direction

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# float64 runs in the interpreter, where gradcheck needs it; on a GPU it would lose to cuBLAS
INTERPRETER_DTYPES = (*DTYPES, torch.float64)


@lru_cache(maxsize=1)
def interpreted() -> bool:
    """Whether Triton runs kernels on the CPU, in its interpreter (TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in {"1", "true", "on", "yes", "y"}


class TritonBackend(RecurrenceBackend):
    """Fused time steps, forward and backward; both directions of a layer in one launch."""

    name = "triton"
    contract = 1
    options = frozenset(OPTIONS)
    summary = "fused Triton kernels for the time steps and for BPTT; NVIDIA and AMD GPUs"

    def runs_cell(self, cell: Cell) -> bool:
        """Those that name Triton functions; `can_run` says which do not."""
        return True

    def unavailable(self) -> list[str]:
        """No Triton, or no GPU for it."""
        return _unavailable()

    def can_run(self, request: Request) -> list[str]:
        """What the kernels do not cover."""
        reasons = []
        device = "cpu" if interpreted() else "cuda"
        if request.device != device:
            reasons.append(
                f"device is {request.device}; "
                + ("the interpreter runs on the cpu" if interpreted() else "needs a GPU (cuda)")
            )
        dtypes = INTERPRETER_DTYPES if interpreted() else DTYPES
        if request.dtype not in dtypes:
            names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            reasons.append(f"dtype is {request.dtype}; needs one of {names}")
        if request.proj_size:
            reasons.append(f"proj_size is {request.proj_size}; projections are not fused")
        return reasons + reasons_against(request)

    def cost(self, request: Request) -> Cost:
        """See `fastrnn_triton.cost`."""
        return cost.estimate(request)

    def layers_at_once(self, request: Request) -> int:
        """As many as are estimated, or were measured, to take the least time."""
        return cost.layers_at_once(request)

    def tune(self, request: Request, progress: Callable[[str], None]) -> None:
        """Time the launch configurations of both passes, and use the fastest from now on."""
        for key, found in search.search(request, progress):
            tuned.remember(key, found)

    def forget(self) -> list[Path]:
        """Delete the launch configurations that were found on this machine."""
        return tuned.forget()

    def matmul(self, a: Tensor, b: Tensor, add: Tensor | None = None, *, precision: str) -> Tensor:
        """By torch's BLAS where that does what `precision` asks, else by Triton."""
        if products.torch_will_do(a, precision):
            return super().matmul(a, b, add, precision=precision)
        return products.multiply(a, b, add, precision)

    def saved_like(self, layer: Layer) -> tuple[Tensor, ...]:
        """As the base class without zoneout; with it also what it kept back of h or c."""
        plain = super().saved_like(replace(layer, zoneout_h=None, zoneout_c=None))
        if not layer.save or not _keeps_back(layer):
            return plain
        shape = (*layer.x.shape[:2], layer.groups, layer.hidden_size)
        return (*plain, layer.x.new_empty(shape))

    def recurrence_forward(self, gates_x: Tensor, weight_hh: Tensor, layer: Layer) -> LayerOutput:
        """In the regime that the planner, or `fastrnn tune` before it, found to be the fastest."""
        chained = layer.weight_chain is not None
        every_c = layer.all_states and layer.c0 is not None  # which the kernels write if they save
        save = layer.save or every_c
        output, h_n, c_n, gates, cells, made = _kernels().forward(
            kernel_cell(layer.cell), gates_x, weight_hh.contiguous(), layer.h0, layer.c0,
            cell_weight=_contiguous(layer.cell_weight),
            weight_chain=_contiguous(layer.weight_chain),
            bias_chain=layer.bias[1:] if chained and layer.bias is not None else None,
            lengths=layer.lengths, resets=layer.resets, noise=_noise(layer),
            reverse=layer.reverse, save=save,
            keep_output=save or chained or not layer.final_only, overwrite=True,
            precision=layer.precision, config=_found("forward", layer),
        )  # fmt: skip
        if every_c:
            saved = tuple(each for each in (gates, made) if each is not None and layer.save)
            return LayerOutput(output, h_n, c_n, saved, cells)
        saved = tuple(each for each in (cells, gates, made) if each is not None)
        if chained:
            saved = (output, *saved) if layer.save else ()
            output = output[:0] if layer.final_only and not layer.save else output
            output = output[:, :, -1:].contiguous()
        return LayerOutput(output, h_n, c_n, saved)

    def recurrence_backward(
        self,
        grad: OutputGradients,
        weight_hh: Tensor,
        layer: Layer,
        output: Tensor,
        saved: Sequence[Tensor],
        wanted: Wanted,
    ) -> Recurrence:
        """As forward, in the regime that was planned or found; they need not be the same."""
        if layer.weight_chain is not None:
            output, *saved = saved
        cells, gates = (None, None) if layer.c0 is None else saved[:2]
        kept_back = saved[0 if layer.c0 is None else 2] if _keeps_back(layer) else None
        keeps_gates = wanted.cell_weight  # which its gradient is made of
        made = _kernels().backward(
            kernel_cell(layer.cell), weight_hh.contiguous(), output, gates, cells, layer.c0,
            cell_weight=_contiguous(layer.cell_weight),
            weight_chain=_contiguous(layer.weight_chain),
            lengths=layer.lengths, resets=layer.resets, noise=_noise(layer), made=kept_back,
            d_output=grad.output, d_h_n=grad.h_n, d_c_n=grad.c_n,
            d_cells=grad.cells, error_clip=layer.error_clip, reverse=layer.reverse,
            overwrite=layer.overwrite_saved and not keeps_gates, precision=layer.precision,
            config=_found("backward", layer),
        )  # fmt: skip
        d_h0 = None
        if wanted.h0:  # dL/dh0 = W_hh^T dgates of the steps that it enters
            firsts = [
                of_first_steps(made.d_gates[:, :, g], layer.lengths, layer.resets, reverse)
                for g, reverse in enumerate(layer.reverse)
            ]
            d_h0 = self.matmul(torch.stack(firsts), weight_hh, precision=layer.precision)
            if layer.recurrent_mask is not None:
                d_h0 *= layer.recurrent_mask
            if made.d_h0_kept is not None:
                d_h0 += made.d_h0_kept
            elif layer.lengths is not None and grad.h_n is not None:  # rows of no steps hand it on
                d_h0 += grad.h_n * (layer.lengths == 0).unsqueeze(1)
        d_cell_weight = None
        if wanted.cell_weight and gates is not None and cells is not None:
            d_cell_weight = weight_gradient(layer, made.d_gates, gates, cells, kept_back)
        return Recurrence(made.d_gates, d_h0, made.d_c0, d_cell_weight=d_cell_weight)


def _found(direction: Direction, layer: Layer) -> LaunchConfig | None:
    """What `fastrnn tune` has found for such a layer."""
    x = layer.x
    arch = arch_of(x.device) if x.device.type == "cuda" else ""
    return tuned.lookup(
        tuned.Key.of(
            direction, arch, layer.cell, x.dtype, layer.precision, layer.hidden_size,
            x.shape[1], layer.groups, x.shape[0], chained=layer.weight_chain is not None,
        )
    )  # fmt: skip


def _keeps_back(layer: Layer) -> bool:
    """Whether gradients need what the cell made before zoneout: c, or h of a cell without c."""
    return (layer.zoneout_h if layer.c0 is None else layer.zoneout_c) is not None


def _noise(layer: Layer) -> Any:
    return _kernels().Noise(layer.recurrent_mask, layer.zoneout_h, layer.zoneout_c)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def _kernels() -> Any:
    """The kernel package, imported only when a kernel runs: importing Triton takes a second."""
    import fastrnn_kernels

    return fastrnn_kernels


@lru_cache(maxsize=1)
def _unavailable() -> list[str]:
    reasons = []
    if find_spec("triton") is None:
        reasons.append("the package triton is not installed; torch's GPU builds bring it")
    if not interpreted() and not torch.cuda.is_available():
        reasons.append("torch sees no CUDA or ROCm GPU here")
    return reasons
