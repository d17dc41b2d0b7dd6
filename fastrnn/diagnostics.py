"""How gradients flow back through time, and the eigenvalues of W_hh that decide it.

The derivative of the loss with respect to h(t) passes through all later steps, each of which
multiplies it by W_hh and the slope of the nonlinearity: what is steadily scaled by less than 1
vanishes, by more than 1 explodes. `gradient_flow` measures it, `spectral_radius` is the largest
factor that W_hh alone can have in the long run.

Source: Y. Bengio, P. Simard, P. Frasconi, Learning long-term dependencies with gradient descent is
difficult, IEEE Transactions on Neural Networks 5(2), 1994.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.nn.utils import parametrize

from fastrnn import checks
from fastrnn.cells import GRUCell, LSTMCell, RNNCell
from fastrnn.modules import LSTM, RNN
from fastrnn.recurrent import Recurrent
from fastrnn.request import Spec
from fastrnn.weight_drop import undropped

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterator, Sequence

    from matplotlib.axes import Axes

_GATES = {1: ("",), 3: (".r", ".z", ".n"), 4: (".i", ".f", ".g", ".o")}
_LAYERS = (Recurrent, RNNCell, LSTMCell, GRUCell, nn.RNNBase, nn.RNNCellBase)
_ACTIVATIONS = {"rnn_tanh": torch.tanh, "rnn_relu": torch.relu, "rnn_sigmoid": torch.sigmoid}


@dataclass(frozen=True, eq=False)
class GradientFlow:
    """What `gradient_flow` measured.

    L, D, T stand for layers, directions and steps. A norm is that of all rows of the batch and all
    units together. In the direction backwards in time, too, index t belongs to input step t.
    """

    loss: float
    h: Tensor
    """(L, D, T): norms of dL/dh(t)."""
    c: Tensor | None
    """(L, D, T): norms of dL/dc(t), of an LSTM; else None."""
    spectral_radius: dict[str, float]
    """Of every W_hh, as the function of this name returns it."""

    def plot(self, target: str | os.PathLike[str] | Axes) -> Axes:
        """Draw the norms over time, on a logarithmic scale; zeros are left out.

        Args:
            target: a path to write an image to, of a format that its suffix says, or the
                matplotlib axes to draw into.

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not installed.
        """
        try:
            from matplotlib.axes import Axes
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError(
                "GradientFlow.plot needs matplotlib: pip install 'fastrnn[bench]'"
            ) from error
        figure = None
        if isinstance(target, Axes):
            axes = target
        else:
            figure = Figure(figsize=(8, 5), layout="constrained")
            axes = figure.subplots()
        for name, norms, style in (("h", self.h, "-"), ("c", self.c, "--")):
            for label, line in _lines(name, norms):
                axes.plot(range(1, len(line) + 1), line, style, label=label)
        if any(norms is not None and bool(norms.any()) for norms in (self.h, self.c)):
            axes.set_yscale("log", nonpositive="mask")
        axes.set_xlabel("step t")
        axes.set_ylabel("norm of the gradient of the loss")
        axes.legend()
        if figure is not None:
            figure.savefig(cast("str | os.PathLike[str]", target))
        return axes


def gradient_flow(
    layer: nn.Module,
    input: Tensor,
    loss_fn: Callable[[Tensor, Any], Tensor],
    hx: Tensor | tuple[Tensor, Tensor] | None = None,
) -> GradientFlow:
    """Measure the gradient of a loss with respect to the states of every step.

    dL/dh(t) is the total derivative, through all steps and layers that h(t) has an influence on,
    itself included in the output; dL/dc(t) goes through h(t), too. The layer is run step by step
    from its equations, for which no backend is asked, so this is slow. As in eval mode nothing is
    dropped, and `zoneout` mixes states; `error_clip` is left out. The layer stays as it is, and so
    does the `.grad` of its parameters.

    Args:
        layer: a `fastrnn.RNN` or `LSTM`, or torch.nn's.
        input: (T, B, I), (B, T, I) if the layer is `batch_first`, or (T, I) unbatched.
        loss_fn: called with what the layer would return, output and final states, returns the
            loss, of one element: `lambda output, state: criterion(output, target)`. It gets the
            output of a `final_only` layer, too.
        hx: the layer's initial states; zeros if None.

    Returns:
        The norms per layer, direction and step, and the spectral radii.

    Raises:
        TypeError: `layer` is none of the above, `input` or what `loss_fn` returns no tensor.
        ValueError: wrong dims or dtype of `input`; the loss has not one element, or does not
            depend on the layer's output or states.
        RuntimeError: wrong sizes of `input` or `hx`.
    """
    if not isinstance(layer, RNN | LSTM | nn.RNN | nn.LSTM):
        raise TypeError(
            "layer should be a fastrnn.RNN or LSTM, or a torch.nn.RNN or LSTM, "
            f"got: {type(layer).__name__}"
        )
    if not isinstance(input, Tensor):
        raise TypeError(f"input should be a Tensor, got: {type(input).__name__}")
    spec = _spec(layer)
    with undropped(layer):
        slots = cast("list[list[Tensor]]", layer.all_weights)
    weights = [[w.detach() for w in slot] for slot in slots]
    x, states, unbatched = _prepare(spec, input, hx, weights[0][0], layer.batch_first)
    with torch.enable_grad():
        output, visited = _run(spec, x, states, weights, getattr(layer, "zoneout", 0.0))
        # a slot's last step is the one it made last, at time 0 where time runs backwards
        final = [torch.stack([slot[-1][index] for slot in visited]) for index in range(len(states))]
        if unbatched:
            output, final = output.squeeze(1), [state.squeeze(1) for state in final]
        elif layer.batch_first:
            output = output.transpose(0, 1)
        loss = loss_fn(output, (final[0], final[1]) if spec.has_cell_state else final[0])
    _check_loss(loss)
    every = [state for slot in visited for step in slot for state in step]
    wide = torch.promote_types(x.dtype, torch.float32)
    gradients = torch.autograd.grad(loss, every, materialize_grads=True)
    norms = torch.stack([torch.linalg.vector_norm(each, dtype=wide) for each in gradients])
    norms = norms.view(spec.num_layers, spec.directions, len(x), len(states))
    if spec.bidirectional:  # steps in the order in which they were made
        norms = torch.stack((norms[:, 0], norms[:, 1].flip(1)), 1)
    c = norms[..., 1] if spec.has_cell_state else None
    return GradientFlow(loss.item(), norms[..., 0], c, spectral_radius(layer))


def spectral_radius(module: nn.Module) -> dict[str, float]:
    """The largest magnitude of an eigenvalue of every W_hh in a module.

    Of an LSTM each gate's block has one, under the parameter's name and the gate's:
    `weight_hh_l0.f`. With a projection it is that of W_hr W_h., which takes h(t-1) to h(t).

    Args:
        module: a layer, a cell, or a model that contains some, fastrnn's or torch.nn's.

    Returns:
        The radii, by the parameter's name.

    Raises:
        ValueError: there is no W_hh in `module`.
    """
    radii = {}
    for prefix, part in module.named_modules():
        if not isinstance(part, _LAYERS):
            continue
        names = [*part._parameters]
        if parametrize.is_parametrized(part):
            names += [*cast("nn.ModuleDict", part.parametrizations)]
        for name in names:
            if not name.startswith("weight_hh"):
                continue
            with undropped(part):
                blocks = torch.split(_exact(getattr(part, name)), part.hidden_size)
            gates = _GATES.get(len(blocks)) or [f".{k}" for k in range(len(blocks))]
            for gate, block in zip(gates, blocks, strict=True):
                if getattr(part, "proj_size", 0):
                    block = _exact(getattr(part, name.replace("weight_hh", "weight_hr"))) @ block
                key = f"{prefix}.{name}{gate}" if prefix else f"{name}{gate}"
                radii[key] = float(torch.linalg.eigvals(block).abs().max())
    if not radii:
        raise ValueError(
            f"module should be or contain a recurrent layer, got: {type(module).__name__}"
        )
    return radii


def _spec(layer: RNN | LSTM | nn.RNN | nn.LSTM) -> Spec:
    return Spec(
        layer.mode.lower(), layer.input_size, layer.hidden_size, layer.proj_size,
        layer.num_layers, layer.bias, bool(layer.bidirectional),
    )  # fmt: skip


def _prepare(
    spec: Spec,
    input: Tensor,
    hx: Tensor | tuple[Tensor, Tensor] | None,
    weight: Tensor,
    batch_first: bool,
) -> tuple[Tensor, tuple[Tensor, ...], bool]:
    """The input (T, B, I), the states of all slots, and whether there was no batch."""
    if input.dim() not in (2, 3):
        raise checks.wrong_input_dims(spec, input.dim())
    unbatched = input.dim() == 2
    x = input.detach()
    if unbatched:
        x = x.unsqueeze(1)
    elif batch_first:
        x = x.transpose(0, 1)
    checks.check_input(spec, x, weight, 3)
    if hx is None:
        rows, batch = spec.num_layers * spec.directions, x.shape[1]
        sizes = [spec.state_size, spec.hidden_size][: 2 if spec.has_cell_state else 1]
        states = tuple(x.new_zeros(rows, batch, size) for size in sizes)
    else:
        states = checks.as_states(spec, hx, unbatched)
        checks.check_states(spec, states, x.shape[1])
    checks.check_tensors(x, states, [weight], len(x))
    # what follows depends on them, so that there are gradients though the weights are detached
    return x, tuple(state.detach().requires_grad_() for state in states), unbatched


def _run(
    spec: Spec,
    x: Tensor,
    states: Sequence[Tensor],
    weights: Sequence[Sequence[Tensor]],
    zoneout: float | tuple[float, float],
) -> tuple[Tensor, list[list[tuple[Tensor, ...]]]]:
    """The last layer's output (T, B, D * P), and the states of every step as each slot made it."""
    kept = zoneout if isinstance(zoneout, tuple | list) else (zoneout, zoneout)
    visited = []
    for layer in range(spec.num_layers):
        outputs = []
        for direction in range(spec.directions):
            slot = layer * spec.directions + direction
            state = tuple(each[slot] for each in states)
            own = x.flip(0) if direction else x
            steps = list(_steps(spec, own, state, weights[slot], kept))
            visited.append(steps)
            hidden = [step[0] for step in steps]
            outputs.append(torch.stack(hidden[::-1] if direction else hidden))
        x = torch.cat(outputs, 2)
    return x, visited


def _steps(
    spec: Spec, x: Tensor, state: tuple[Tensor, ...], weights: Sequence[Tensor],
    kept: Sequence[float],
) -> Iterator[tuple[Tensor, ...]]:  # fmt: skip
    """(h(t),) or (h(t), c(t)) of one layer in one direction, from the equations of the modules."""
    w_ih, w_hh, *others = weights
    b_ih, b_hh = others[:2] if spec.bias else (None, None)
    for a in linear(x, w_ih, b_ih).unbind(0):
        a = a + linear(state[0], w_hh, b_hh)
        made: tuple[Tensor, ...]
        if spec.has_cell_state:
            i, f, g, o = a.chunk(4, 1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            made = (linear(h, others[-1]) if spec.proj_size else h, c)
        else:
            made = (_ACTIVATIONS[spec.cell](a),)
        mixed = zip(kept, state, made, strict=False)
        state = tuple(z * old + (1 - z) * new if z else new for z, old, new in mixed)
        yield state


def _exact(weight: Tensor) -> Tensor:
    return weight.detach().to("cpu", torch.float64)


def _check_loss(loss: object) -> None:
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss_fn should return a Tensor, got: {type(loss).__name__}")
    if loss.numel() != 1:
        raise ValueError(
            f"loss_fn should return a tensor of one element, got one of shape {tuple(loss.shape)}"
        )
    if not loss.requires_grad:
        raise ValueError(
            "loss_fn should return what depends on the layer's output or states, got a constant"
        )


def _lines(name: str, norms: Tensor | None) -> Iterator[tuple[str, list[float]]]:
    """The label and the values of each layer and direction."""
    if norms is None:
        return
    for layer, directions in enumerate(norms.tolist()):
        for direction, line in enumerate(directions):
            yield f"{name}, layer {layer}{', reverse' if direction else ''}", line
