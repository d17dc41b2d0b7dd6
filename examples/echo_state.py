"""An echo-state network: a fixed random reservoir, of which only the read-out is trained.

    python examples/echo_state.py       # 6 seconds on one CPU thread; draws echo_state.png

The Mackey-Glass equation, x' = 0.2 x(t - 17) / (1 + x(t - 17)^10) - 0.1 x(t), is chaotic. An RNN
with random weights of a chosen spectral radius (`fastrnn.init.spectral_radius_`) listens to the
series, and a linear read-out of its states is fitted to say the next value: one ridge regression,
no descent. Then the network is fed what it said itself, step by step (`fastrnn.Stepper`), and runs
on alone. Drawn are the true and the predicted series, and the error over spectral radii.

Nothing of it has gradients: with frozen weights a layer keeps nothing for a backward pass, which
is printed as the bytes kept by autograd, beside those of the same layer with trainable weights.
Source: H. Jaeger, H. Haas, Harnessing nonlinearity, Science 304, 2004.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import gallery
import torch
from torch import Tensor, nn

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

DELAY, FINE = 17, 10
"""The delay, in units of time; steps of the solver in one."""
WASH_OUT, ALONE, AHEAD = 200, 500, 84
"""Steps before which states still tell of h(0); steps without input; those of the error."""
RIDGE = 1e-8


def mackey_glass(steps: int) -> Tensor:
    """The series at unit steps (T,), float64, by Runge-Kutta of fourth order.

    Between two fine steps the delayed value is the mean of its neighbours.
    """

    def slope(x: float, delayed: float) -> float:
        return 0.2 * delayed / (1 + delayed**10) - 0.1 * x

    settle, lag, dt = 1000, DELAY * FINE, 1 / FINE
    series = [1.2] * (lag + 1)
    for _ in range((settle + steps) * FINE):
        x, old, new = series[-1], series[-1 - lag], series[-lag]
        middle = (old + new) / 2
        k1 = slope(x, old)
        k2 = slope(x + dt / 2 * k1, middle)
        k3 = slope(x + dt / 2 * k2, middle)
        k4 = slope(x + dt * k3, new)
        series.append(x + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4))
    return torch.tensor(series[-steps * FINE :: FINE], dtype=torch.float64)


def make_reservoir(radius: float, args: Any) -> fastrnn.RNN:
    """Frozen random weights, 10 in a row of W_hh on average; the same draw for every radius."""
    torch.manual_seed(args.seed)
    rnn = fastrnn.RNN(1, args.hidden, dtype=torch.float64, device=args.device)
    fastrnn.init.spectral_radius_(rnn, radius, density=min(10 / args.hidden, 1.0))
    w_ih, _, b_ih, b_hh = rnn.parameters()
    nn.init.uniform_(w_ih, -1, 1)
    nn.init.uniform_(b_ih, -0.2, 0.2)
    nn.init.zeros_(b_hh)
    return rnn.requires_grad_(False)


def with_one(h: Tensor) -> Tensor:
    """States with a 1 beside them, for the read-out's bias."""
    return torch.cat([h, h.new_ones(*h.shape[:-1], 1)], -1)


def fit(rnn: fastrnn.RNN, series: Tensor) -> tuple[Tensor, Tensor]:
    """The read-out (H + 1, 1), by ridge regression on the next value, and the last state."""
    states, h_n = rnn(series[:-1].view(-1, 1, 1))
    x, y = with_one(states[WASH_OUT:, 0]), series[WASH_OUT + 1 :, None]
    penalty = RIDGE * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    readout: Tensor = torch.linalg.solve(x.T @ x + penalty, x.T @ y)
    return readout, h_n


def run_alone(rnn: fastrnn.RNN, readout: Tensor, h_n: Tensor, last: Tensor) -> Tensor:
    """What the network says if fed its own values, `ALONE` of them, from the last true one on."""
    stepper = fastrnn.Stepper(rnn, batch=1)
    stepper.load_state(h_n)
    value, said = last.view(1, 1), []
    for _ in range(ALONE):
        value = with_one(stepper(value)) @ readout
        said.append(value)
    return torch.cat(said).flatten()


def kept_bytes(rnn: fastrnn.RNN, series: Tensor) -> int:
    """How much autograd keeps of a call for a backward pass."""
    sizes = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rnn(series.view(-1, 1, 1))
    return sum(sizes.values())


def draw(true: Tensor, said: Tensor, errors: dict[float, float], args: Any, path: Path) -> None:
    """Both series, and the error of every radius."""
    figure, (upper, lower) = gallery.picture(5.2, 2, 1)
    upper.plot(true.cpu(), color="lightgrey", lw=4, label="Mackey-Glass equation")
    upper.plot(said.cpu(), lw=1, label=f"{args.hidden} units, radius {args.radius:g}, alone")
    upper.set(xlabel="steps after the last input", ylabel="x")
    upper.set_ylim(top=1.65)
    upper.legend(loc="upper right", ncols=2)
    lower.plot(*zip(*sorted(errors.items()), strict=True), "o-", ms=4)
    lower.set(yscale="log", xlabel="spectral radius of W_hh")
    lower.set_ylabel(f"normalised error\nover {AHEAD} steps alone")
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Fit reservoirs, let them run alone; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=3000)
    made.add_argument("--hidden", type=gallery.integer(1), default=400, help="reservoir's units")
    made.add_argument("--radius", type=gallery.above_zero, default=0.9, help="of the series drawn")
    made.add_argument(
        "--radii",
        type=gallery.numbers,
        default=[0.1, 0.4, 0.7, 0.8, 1.0, 1.1, 1.2, 1.5],
        help="compared",
    )
    args = gallery.parse(made, argv)
    if args.steps <= WASH_OUT:
        made.error(f"argument --steps: expected more than {WASH_OUT}, got {args.steps}")
    series = mackey_glass(args.steps + 1 + ALONE).to(args.device) - 0.9  # about zero
    given, true = series[: args.steps + 1], series[args.steps + 1 :]
    errors = {}
    for radius in sorted({*args.radii, args.radius}):
        rnn = make_reservoir(radius, args)
        made_alone = run_alone(rnn, *fit(rnn, given), given[-1])
        window = (made_alone - true)[:AHEAD].square().mean().sqrt()
        errors[radius] = (window / true.std()).item()
        if radius == args.radius:
            said = made_alone
        print(f"radius {radius:g}: normalised error over {AHEAD} steps alone {errors[radius]:.1e}")
    rnn = make_reservoir(args.radius, args)
    frozen = kept_bytes(rnn, given)
    trainable = kept_bytes(rnn.requires_grad_(True), given)
    print(f"kept for a backward pass: frozen {frozen:,} bytes, trainable {trainable:,}")
    draw(true + 0.9, said + 0.9, errors, args, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
