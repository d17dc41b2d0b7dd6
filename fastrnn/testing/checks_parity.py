"""The numbers of float64: outputs, states, gradients; one feature at a time, and mixtures."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from fastrnn.options import Options
from fastrnn.testing.cases import CELLS, DTYPES, FORMS, Case, forward, spec
from fastrnn.testing.layer_cases import LayerCase, assert_layer_true
from fastrnn.testing.subjects import Subject, assert_true

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SIZES = (1, 2, 3, 17)
HIDDEN = (1, 5, 33, 64)
BEYOND = (65, 33, 130)
"""T, B and H that are a little more than what loops and tiles are often cut into."""


def features(cells: Sequence[str] = CELLS) -> dict[str, Case]:
    """A plain layer of each cell, and the same with one thing added.

    Where rows end or start over, there are states and biases: without them a cell that goes on over
    zeros stays at zero, and an error would not show.
    """
    found: dict[str, Case] = {}
    options = {
        "all_states": Options(all_states=True),
        "final_only": Options(final_only=True),
        "recompute": Options(recompute=3),
    }
    for cell in cells:
        plain = Case(spec(cell, bias=False), T=7, hx=False)
        full = Case(spec(cell), T=7)
        both = replace(full, spec=spec(cell, bidirectional=True))
        own = {
            "": plain,
            "-bias": replace(plain, spec=spec(cell)),
            "-hx": replace(plain, hx=True),
            "-reverse": replace(plain, spec=spec(cell, bias=False, bidirectional=True)),
            "-lengths": replace(full, lengths=True),
            "-reverse-lengths": replace(both, lengths=True),
            "-packed": replace(full, form="packed", B=4),
            "-reverse-packed": replace(both, form="packed", B=4),
            "-resets": replace(full, resets=True),
            "-reverse-resets": replace(both, resets=True),
            "-batch_first": replace(plain, form="batch_first"),
            "-unbatched": replace(plain, form="unbatched", B=1),
            "-forward-only": replace(plain, hx=True, needs_grad=False, training=False),
            "-forward-final_only": replace(plain, options=options["final_only"], needs_grad=False),
            "-eval-mode": replace(plain, training=False),
            "-no-rows": replace(full, B=0),
            "-no-rows-lengths": replace(full, B=0, lengths=True),
            "-no-rows-resets": replace(full, B=0, resets=True),
        }
        two = replace(full, spec=spec(cell, num_layers=2), dropout=1.0)
        own |= {"-dropout": two, "-dropout-eval-mode": replace(two, training=False)}
        for layers in (2, 3, 4):
            own[f"-{layers}-layers"] = replace(plain, spec=spec(cell, num_layers=layers))
        for name, asked in options.items():
            own[f"-{name}"] = replace(both, options=asked)
            own[f"-{name}-lengths"] = replace(both, options=asked, lengths=True)
        found |= {f"{cell}{name}": case for name, case in own.items()}
    if "lstm" in cells:
        projected = spec(proj_size=2, bidirectional=True, num_layers=2)
        found["lstm-projection"] = Case(spec(proj_size=2), T=7)
        found["lstm-projection-reverse-lengths"] = Case(projected, T=7, lengths=True)
    return found


def shapes() -> dict[str, Case]:
    """Every T and B, and with each of them another H and cell; and larger ones of every cell."""
    found = {}
    for number, (steps, rows) in enumerate(itertools.product(SIZES, SIZES)):
        hidden = HIDDEN[(number + number // 4) % 4]
        cell = CELLS[(number + number // 4 + number // 8) % len(CELLS)]
        shape = spec(cell, hidden, input_size=1 + number % 5, bidirectional=number % 3 == 0)
        found[f"{cell}-T{steps}-B{rows}-H{hidden}"] = Case(shape, steps, rows)
    steps, rows, hidden = BEYOND
    for cell in CELLS:
        found[f"{cell}-T{steps}-B{rows}-H{hidden}"] = Case(spec(cell, hidden), steps, rows)
    return found


def dtypes(cells: Sequence[str] = CELLS) -> dict[str, Case]:
    """Every cell in every dtype."""
    found = {}
    for cell, dtype in itertools.product(cells, DTYPES):
        shape = spec(cell, 33, num_layers=2, bidirectional=True)
        name = f"{cell}-{str(dtype).removeprefix('torch.')}"
        found[name] = Case(shape, T=9, dtype=dtype)
    return found


def pairwise(axes: dict[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Few combinations in which every value of an axis meets every value of every other."""
    sizes = [len(values) for values in axes.values()]
    left = {
        (a, x, b, y)
        for a, b in itertools.combinations(range(len(sizes)), 2)
        for x in range(sizes[a])
        for y in range(sizes[b])
    }
    rows: list[dict[str, Any]] = []
    while left:
        a, x, b, y = min(left)
        row: list[int] = []
        for axis, size in enumerate(sizes):
            if axis in (a, b):
                row.append(x if axis == a else y)
                continue
            gains = [
                sum((i, row[i], axis, value) in left for i in range(axis)) for value in range(size)
            ]
            # of values that gain as much, another one in every row
            order = [(value + len(rows)) % size for value in range(size)]
            row.append(max(order, key=gains.__getitem__))
        left -= {(i, row[i], j, row[j]) for i, j in itertools.combinations(range(len(row)), 2)}
        chosen = zip(axes.items(), row, strict=True)
        rows.append({name: values[value] for (name, values), value in chosen})
    return rows


ROWS = (*FORMS, "lengths", "resets", "lengths_resets")
KEPT = {
    "plain": Options(),
    "final_only": Options(final_only=True),
    "recompute": Options(recompute=2),
    "all_states": Options(all_states=True),
    "final_only_all_states": Options(final_only=True, all_states=True),
}
MODES = {"train": (True, True), "eval_train": (True, False), "forward": (False, False)}


def mixtures() -> dict[str, Case]:
    """Everything with everything else, two by two."""
    found = {}
    axes: dict[str, Sequence[Any]] = {
        "cell": [*CELLS, "projection"], "rows": ROWS, "kept": tuple(KEPT), "dtype": DTYPES,
        "mode": tuple(MODES), "layers": (1, 2, 3), "bidirectional": (False, True),
        "bias": (True, False), "hx": (True, False), "T": (6, 1), "B": (4, 1),
    }  # fmt: skip
    for number, row in enumerate(pairwise(axes)):
        cell = "lstm" if row["cell"] == "projection" else row["cell"]
        is_form = row["rows"] in FORMS
        kept = row["kept"]
        if kept == "recompute" and "resets" in row["rows"]:
            kept = "plain"  # fastrnn refuses both at once
        needs_grad, training = MODES[row["mode"]]
        shape = spec(
            cell, 5, num_layers=row["layers"], bidirectional=row["bidirectional"],
            bias=row["bias"], proj_size=2 if row["cell"] == "projection" else 0,
        )  # fmt: skip
        found[f"{number:02}-{row['cell']}-{row['rows']}-{kept}-{row['mode']}"] = Case(
            shape, row["T"], 1 if row["rows"] == "unbatched" else row["B"], row["dtype"],
            row["rows"] if is_form else "time_major", row["hx"],
            lengths="lengths" in row["rows"], resets="resets" in row["rows"],
            options=KEPT[kept], needs_grad=needs_grad, training=training,
        )  # fmt: skip
    return found


def regularisers() -> dict[str, LayerCase]:
    """Masks of h, zoneout and the clip, each alone and all together."""
    alone = {
        "recurrent_dropout": Options(recurrent_dropout=0.4),
        "zoneout": Options(zoneout=(0.3, 0.4)),
        "error_clip": Options(error_clip=0.05),
        "all": Options(recurrent_dropout=0.4, zoneout=(0.3, 0.4), error_clip=0.05, all_states=True),
    }
    found = {}
    for (name, options), cell in itertools.product(alone.items(), CELLS):
        plain = LayerCase(cell, options=options)
        found[f"{cell}-{name}"] = plain
        found[f"{cell}-{name}-lengths-resets"] = replace(plain, lengths=True, resets=True)
    return found


def autocast(subject: Subject) -> None:
    """In a region of bfloat16 results are bfloat16, and gradients those of the parameters."""
    case = Case(spec(CELLS[0], 33), dtype=torch.bfloat16)
    subject.must_claim(case)
    problem = case.problem(torch.float32, subject.device)
    weights = tuple(weight.requires_grad_() for weight in problem.weights)
    with torch.autocast(subject.device, torch.bfloat16):
        made = forward(case, problem._replace(weights=weights), subject.name)
    assert made.output is not None
    assert made.output.dtype == torch.bfloat16, f"output is {made.output.dtype}, not bfloat16"
    found = torch.autograd.grad(made.output.float().sum(), weights)
    for gradient in found:
        assert gradient.dtype == torch.float32, f"a gradient is {gradient.dtype}, not float32"


def _checks() -> dict[str, Callable[[Subject], None]]:
    found: dict[str, Callable[[Subject], None]] = {}
    cases = {**features(), **shapes(), **dtypes()}
    cases |= {f"mixed-{name}": case for name, case in mixtures().items()}
    found |= {name: partial(assert_true, case=case) for name, case in cases.items()}
    layers = {f"layer-{name}": case for name, case in regularisers().items()}
    found |= {name: partial(assert_layer_true, case=case) for name, case in layers.items()}
    return found | {"autocast": autocast}


def of_cells(cells: Sequence[str]) -> dict[str, Callable[[Subject], None]]:
    """The same of cells that plugins bring, as far as it depends on the cell."""
    cases = {**features(cells), **dtypes(cells)}
    return {name: partial(assert_true, case=case) for name, case in cases.items()}


CHECKS = _checks()
