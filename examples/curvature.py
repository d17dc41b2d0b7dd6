"""Curvature through an LSTM: Hessian-vector products, and training that uses them.

    python examples/curvature.py        # 40 seconds on one CPU thread; draws curvature.png

A Hessian-vector product is the gradient of a gradient; fastrnn's layers give it, whatever backend
ran. First it is checked: products against the whole Hessian, by torch.func.hessian, of a network
small enough to have one, and the largest eigenvalue by power iteration against the exact one.

Then it is used. An LSTM is to say at the end of a sequence of noise what its first number was, for
64 sequences, always the same. Hessian-free optimisation has conjugate gradients solve
(G + damping) step = -gradient, with products by the Gauss-Newton matrix G = 2/B J^T J alone: J v
and J^T u, again gradients of gradients. SGD with momentum and Adam take 25 steps for each of
its own, which is about as much time. It gets away from the start no sooner than Adam, how soon
depends on `--damping`, but near a solution it gains orders of magnitude every few steps, and they
do not. The seconds of the picture are this machine's.
Source: J. Martens, I. Sutskever, Learning recurrent neural networks with Hessian-free optimization,
ICML 2011.
"""

from __future__ import annotations

import copy
import sys
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import gallery
import torch
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.functional import mse_loss

import fastrnn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    Product = Callable[[Tensor], Tensor]


class Recaller(nn.Module):
    """An LSTM and a linear layer that answers at the end of the sequence; float64."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.lstm = fastrnn.LSTM(1, hidden_size, final_only=True, dtype=torch.float64)
        self.head = nn.Linear(hidden_size, 1, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        """Answers (B,) to x (T, B, 1)."""
        _, (h_n, _) = self.lstm(x)
        answers: Tensor = self.head(h_n[-1]).squeeze(1)
        return answers


def noise(steps: int, batch: int, args: Any) -> Tensor:
    """Sequences (T, B, 1), of which the first number is to be recalled."""
    generator = torch.Generator().manual_seed(args.seed)
    drawn = 2 * torch.rand(steps, batch, 1, generator=generator, dtype=torch.float64) - 1
    return drawn.to(args.device)


def flat(tensors: Iterable[Tensor]) -> Tensor:
    """All of them as one vector."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def hessian_product(model: Recaller, x: Tensor) -> Product:
    """The function v -> H v, for the Hessian of the loss at the weights as they are."""
    weights = list(model.parameters())
    gradient = flat(torch.autograd.grad(mse_loss(model(x), x[0, :, 0]), weights, create_graph=True))
    return lambda v: flat(torch.autograd.grad(gradient @ v, weights, retain_graph=True))


def exact_hessian(model: Recaller, x: Tensor) -> Tensor:
    """All of the Hessian (N, N), from torch.func, in the order of the parameters."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}
    blocks = hessian(lambda w: mse_loss(functional_call(model, w, (x,)), x[0, :, 0]))(weights)
    sizes = {name: weight.numel() for name, weight in weights.items()}
    rows = [
        torch.cat([blocks[a][b].reshape(sizes[a], sizes[b]) for b in weights], 1) for a in weights
    ]
    return torch.cat(rows)


def top_eigenvalue(product: Product, v: Tensor, turns: int = 200) -> float:
    """The eigenvalue of largest magnitude, by power iteration from v."""
    value = 0.0
    for _ in range(turns):
        v = v / v.norm()
        turned = product(v)
        value = (turned @ v).item()
        v = turned
    return value


def check(args: Any) -> tuple[float, float, float]:
    """The largest error of a product, as part of its norm; the top eigenvalue, found and exact."""
    model, x = Recaller(3).to(args.device), noise(8, 16, args)
    whole, product = exact_hessian(model, x), hessian_product(model, x)
    vectors = torch.randn(5, len(whole), dtype=torch.float64).to(args.device)
    error = max(((product(v) - whole @ v).norm() / (whole @ v).norm()).item() for v in vectors)
    exact = torch.linalg.eigvalsh(whole)
    return error, top_eigenvalue(product, vectors[0]), exact[exact.abs().argmax()].item()


def conjugate_gradients(product: Product, damping: float, b: Tensor, turns: int) -> Tensor:
    """An approximate solution of (A + damping) s = b, for A positive and product(v) = A v."""
    s, r = torch.zeros_like(b), b
    p, rr = r, r @ r
    for _ in range(turns):
        if rr <= 1e-20 * (b @ b):
            break
        Ap = product(p) + damping * p
        alpha = rr / (p @ Ap)
        s, r = s + alpha * p, r - alpha * Ap
        rr, before = r @ r, rr
        p = r + rr / before * p
    return s


@torch.no_grad()
def move(model: nn.Module, step: Tensor) -> None:
    """Add a step to all parameters."""
    weights = list(model.parameters())
    for weight, part in zip(weights, torch.split(step, [w.numel() for w in weights]), strict=True):
        weight.add_(part.view_as(weight))


class Curve(NamedTuple):
    """Of every step: seconds since the start, and the loss before it."""

    seconds: list[float]
    losses: list[float]


def gauss_newton(model: Recaller, x: Tensor) -> tuple[Tensor, Tensor, Product]:
    """The loss, its gradient (N,), and the function v -> G v."""
    weights = list(model.parameters())
    answers = model(x)
    wrong = (answers - x[0, :, 0]).detach()
    u = torch.zeros_like(wrong, requires_grad=True)
    # J^T u is linear in u: its derivative by u, along v, is J v
    transposed = flat(torch.autograd.grad(answers, weights, u, create_graph=True))

    def by_transposed(u: Tensor) -> Tensor:
        scaled = 2 / len(u) * u
        return flat(torch.autograd.grad(answers, weights, scaled, retain_graph=True))

    def product(v: Tensor) -> Tensor:
        (Jv,) = torch.autograd.grad(transposed @ v, u, retain_graph=True)
        return by_transposed(Jv)

    return wrong.square().mean(), by_transposed(wrong), product


def hessian_free(model: Recaller, x: Tensor, args: Any) -> Curve:
    """Steps by conjugate gradients; the damping goes by how right G was about the step."""
    curve, damping, began = Curve([], []), args.damping, time.perf_counter()
    for _ in range(args.steps):
        loss, gradient, product = gauss_newton(model, x)
        curve.seconds.append(time.perf_counter() - began)
        curve.losses.append(loss.item())
        step = conjugate_gradients(product, damping, -gradient, args.turns)
        foreseen = gradient @ step + step @ product(step) / 2
        move(model, step)
        with torch.no_grad():
            change = mse_loss(model(x), x[0, :, 0]) - loss
        if change / foreseen > 0.75:
            damping *= 2 / 3
        elif change / foreseen < 0.25:
            damping *= 3 / 2
        if change > 0:
            move(model, -step)
    return curve


def first_order(model: Recaller, x: Tensor, optimizer: Any, steps: int) -> Curve:
    """The same with one of torch's optimizers, which sees the gradient clipped to a norm of 1."""
    curve, began = Curve([], []), time.perf_counter()
    for _ in range(steps):
        loss = mse_loss(model(x), x[0, :, 0])
        curve.seconds.append(time.perf_counter() - began)
        curve.losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return curve


def draw(curves: dict[str, Curve], path: Path) -> None:
    """Losses over steps, and over seconds."""
    figure, (left, right) = gallery.picture(3.8, 1, 2, sharey=True)
    for name, curve in curves.items():
        left.plot(range(1, len(curve.losses) + 1), curve.losses, label=name)
        right.plot(curve.seconds, curve.losses, label=name)
    left.set(xscale="log", yscale="log", xlabel="step", ylabel="mean squared error")
    right.set(xlabel="seconds, one CPU thread")
    left.legend()
    gallery.save(figure, path)


def main(argv: Sequence[str] | None = None) -> int:
    """Check, train, print and draw; returns the exit status."""
    made = gallery.parser(__file__, __doc__, steps=60)
    made.add_argument("--length", type=gallery.integer(2), default=40, help="of the sequences")
    made.add_argument("--hidden", type=gallery.integer(1), default=8, help="units of the LSTM")
    made.add_argument("--turns", type=gallery.integer(1), default=20, help="products a step")
    made.add_argument("--damping", type=gallery.above_zero, default=1e-3, help="at first")
    args = gallery.parse(made, argv)
    error, found, exact = check(args)
    print(f"Hessian-vector products: {error:.1e} from those with the exact Hessian")
    print(f"largest eigenvalue: {found:.6f} by power iteration, {exact:.6f} exactly")

    model, x = Recaller(args.hidden).to(args.device), noise(args.length, 64, args)
    newton, sgd, adam = (copy.deepcopy(model) for _ in range(3))
    curves = {
        "Hessian-free": hessian_free(newton, x, args),
        "SGD, momentum 0.9": first_order(
            sgd, x, torch.optim.SGD(sgd.parameters(), 0.1, momentum=0.9), 25 * args.steps
        ),
        "Adam": first_order(adam, x, torch.optim.Adam(adam.parameters(), 1e-2), 25 * args.steps),
    }
    for name, curve in curves.items():
        print(
            f"{name}: {len(curve.losses)} steps in {curve.seconds[-1]:.1f} s, mean squared error "
            f"{curve.losses[0]:.3f} to {curve.losses[-1]:.1e}"
        )
    draw(curves, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
