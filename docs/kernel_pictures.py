"""What lies where on a GPU in each regime, drawn with the sizes that the plan chooses."""

from __future__ import annotations

from collections.abc import Callable

from drawing import GREY, MEMORY, PLAIN, STATE, WEIGHTS, arrow, box, picture, text
from fastrnn_kernels import DeviceLimits, GridConfig, Problem, plan
from fastrnn_kernels.configs import Direction

RESIDENT_H, GRID_H = 64, 512
"""Hidden units that are drawn: one that fits into one program, and one that does not."""
WIDTH = 720
Problems = Callable[[Direction, int], Problem]


def pictures(problem: Problems, gpu: DeviceLimits) -> dict[str, str]:
    """Every picture by its file's name.

    Args:
        problem: makes one of a direction and a number of hidden units.
        gpu: what the plan is made for.
    """
    return {
        "step.svg": step(problem("forward", GRID_H)),
        "resident.svg": resident(problem("forward", RESIDENT_H)),
        "grid.svg": grid(problem("forward", GRID_H), gpu),
        "layers.svg": layers(),
    }


def kib(count: int) -> str:
    """Bytes in KiB."""
    return f"{count / 1024:g} KiB"


def step(p: Problem) -> str:
    """Weights in L2, a launch a step."""
    weights = p.K * p.H * p.H * p.itemsize
    shapes = [
        text(20, 26, f"step: a launch is one time step (H = {p.H}, bf16)", "start", size=15),
        box(20, 60, 680, 64),
        text(34, 74, "L2 and device memory", "start", GREY, 12),
        box(40, 84, 270, 32, [f"W_hh, all {kib(weights)}"], WEIGHTS),
        box(330, 84, 150, 32, ["h(t-1), c(t-1)"], STATE),
        box(500, 84, 180, 32, ["gates_x(t)"], MEMORY),
    ]
    for n, label in enumerate(("program 1", "program 2", "...", "program n")):
        x = 20 + 174 * n
        shapes += [arrow(x + 60, 124, x + 60, 166), arrow(x + 100, 166, x + 100, 124)]
        shapes += [box(x, 168, 158, 52, [label, "its units' h(t), c(t)"])]
    shapes.append(text(20, 244, "Every step reads all of W_hh again; the end of the launch is the "
                       "barrier, and the next launch waits for it.", "start", GREY))  # fmt: skip
    return picture(WIDTH, 264, "The step regime", shapes)


def resident(p: Problem) -> str:
    """All of it in one program."""
    weights = p.K * p.H * p.H * p.itemsize
    shapes = [
        text(20, 26, f"resident: a launch is a sequence (H = {p.H}, bf16)", "start", size=15),
        box(20, 60, 150, 150, ["device memory", "", "gates_x(t)"], MEMORY),
        box(230, 60, 260, 150),
        text(244, 74, "one program, 16 batch rows", "start", GREY, 12),
        box(246, 88, 228, 50, ["shared memory:", f"W_hh, all {kib(weights)}"], WEIGHTS),
        box(246, 148, 228, 50, ["registers:", "h and c of its rows"], STATE),
        box(550, 60, 150, 150, ["device memory", "", "output(t)", "gates, c if training"], MEMORY),
        arrow(170, 135, 228, 135),
        arrow(490, 135, 548, 135),
        text(20, 234, "Nobody waits for another program: a step is a product out of shared memory, "
             "and the cell.", "start", GREY),
    ]  # fmt: skip
    return picture(WIDTH, 254, "The resident regime", shapes)


def grid(p: Problem, gpu: DeviceLimits) -> str:
    """A slice of the weights in each program."""
    config = plan(p, gpu, "grid").config
    assert isinstance(config, GridConfig)
    count, units = config.programs(p), config.block_h
    shapes = [
        text(20, 26, f"grid: a launch is a sequence, W_hh in {count} slices (H = {p.H}, bf16)",
             "start", size=15),
    ]  # fmt: skip
    for n, label in enumerate(("program 1", "program 2", "...", f"program {count}")):
        x = 20 + 174 * n
        shapes += [box(x, 48, 158, 126), text(x + 79, 62, label, colour=GREY, size=12)]
        shapes += [box(x + 10, 76, 138, 44, ["shared memory:", f"{kib(config.weights(p))} of W_hh"],
                       WEIGHTS)]  # fmt: skip
        shapes += [box(x + 10, 126, 138, 40, ["registers:", f"c of {units} units"], STATE)]
        shapes += [arrow(x + 60, 174, x + 60, 214), arrow(x + 100, 214, x + 100, 174)]
    h = p.B * p.H * p.itemsize
    shapes += [
        box(20, 216, 680, 40),
        text(34, 236, "L2", "start", GREY, 12),
        box(70, 222, 330, 28, [f"h(t) of all units, {kib(h)}"], STATE),
        box(420, 222, 260, 28, [f"a counter: {count} have arrived"], PLAIN),
        text(20, 280, f"A step stores {units} units of h, arrives, waits for the others, and reads "
             "all of h: W_hh never moves.", "start", GREY),
    ]  # fmt: skip
    return picture(WIDTH, 300, "The grid regime", shapes)


def layers() -> str:
    """Layers of a stack, each a step behind the one below."""
    left, column, steps = 110, 66, 6
    shapes = [text(20, 26, "Layers at once: each a step behind the one below", "start", size=15)]
    for layer in range(3):
        y = 136 - 42 * layer
        shapes.append(text(left - 14, y + 16, f"layer {layer + 1}", "end"))
        for t in range(steps):
            x = left + column * (t + layer)
            shapes.append(box(x, y, column - 8, 32, [f"t = {t + 1}"], MEMORY))
            if layer < 2:
                shapes.append(arrow(x + column - 14, y, x + column + 4, y - 9))
    end = left + column * (steps + 2)
    shapes += [arrow(left, 188, end, 188), text(end + 8, 188, "time", "start", GREY)]
    shapes.append(text(20, 214, f"{steps} steps of 3 layers take {steps + 2} turns instead of "
                       f"{3 * steps}, if a turn is no longer than one layer's step.",
                       "start", GREY))  # fmt: skip
    return picture(WIDTH, 234, "Layers overlapped in time", shapes)
