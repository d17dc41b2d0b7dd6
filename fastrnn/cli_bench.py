"""The commands that measure: `fastrnn bench`, and `fastrnn tune`, which keeps what it measured."""

from __future__ import annotations

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING

import torch

from fastrnn import bench, bench_cases, bench_hooks, bench_plot, cli_common, floor, measured
from fastrnn.cli_common import comma_separated, integer, print_json
from fastrnn.discovery import describe
from fastrnn.machine import present_devices
from fastrnn.plugins import registry
from fastrnn.progress import Progress
from fastrnn.tables import table
from fastrnn.tune import tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from fastrnn.benchmark import Case, Peer
    from fastrnn.cli_common import Parser
    from fastrnn.floor import Attained
    from fastrnn.measured import Store
    from fastrnn.tune import Outcome


def add_bench_arguments(parser: Parser) -> None:
    """The arguments of `fastrnn bench`."""
    _add_problem_arguments(parser)
    what = (
        "what backends are compared with; torch.nn always is (default: all but those that take "
        "long to get ready, see --list, unless the preset has them)"
    )
    peer = comma_separated(_known("peer", _peers_and_all))
    parser.add_argument("--peers", type=peer, metavar="NAME,...|all", help=what)
    parser.add_argument("--list", action="store_true", help="show presets and peers, and end")
    what = "every row with its samples, the floors, and what they were measured on"
    parser.add_argument("--json", type=cli_common.writable, metavar="FILE", help=what)
    parser.add_argument("--csv", type=cli_common.writable, metavar="FILE", help="every row")
    what = "draw time against H, B or T, whichever vary (.png, .svg, .pdf); needs matplotlib"
    parser.add_argument("--plot", type=cli_common.writable, metavar="FILE", help=what)


def add_tune_arguments(parser: Parser) -> None:
    """The arguments of `fastrnn tune`."""
    _add_problem_arguments(parser)
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="measure, and store nothing")
    instead.add_argument("--list", action="store_true", help="show what is stored, and end")
    instead.add_argument("--forget", action="store_true", help="delete what is stored, and end")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_problem_arguments(parser: Parser) -> None:
    sizes = comma_separated(integer(1))
    own = ", ".join(preset.name for preset in bench_cases.PRESETS)
    what = f"sizes where they are not given: {own}, or a plugin's (default: %(default)s)"
    preset = _known("preset", bench_hooks.presets)
    parser.add_argument("--preset", type=preset, default="quick", metavar="NAME", help=what)
    cell, backend = comma_separated(cli_common.cell), comma_separated(cli_common.backend)
    what = "lstm, gru, rnn_tanh, ..., or a plugin's (see fastrnn plugins)"
    parser.add_argument("--cell", type=cell, metavar="NAME,...", help=what)
    for name, what in (("T", "steps"), ("B", "rows of the batch"), ("H", "hidden units")):
        parser.add_argument(f"--{name}", type=sizes, metavar="N,...", help=what)
    parser.add_argument("--I", type=integer(1), metavar="N", help="inputs (default: as H)")
    parser.add_argument("--layers", type=integer(1), metavar="N", help="(default: 1)")
    parser.add_argument("--bidirectional", action="store_true")
    dtype = comma_separated(_dtype)
    what = f"{', '.join(cli_common.DTYPES)} (default: the preset's)"
    parser.add_argument("--dtype", type=dtype, metavar="NAME,...", help=what)
    what = (
        "forward: a pass in eval mode without gradients; inference: the same under "
        "torch.inference_mode; train: forward and backward; both: forward and train (default)"
    )
    modes = tuple(bench_cases.MODES)
    parser.add_argument("--mode", choices=modes, default="both", help=what)
    parser.add_argument("--backends", type=backend, metavar="NAME,...")
    device = cli_common.present_device
    what = "(default: the preset's)"
    parser.add_argument("--device", type=device, metavar="cpu|cuda", help=what)
    parser.add_argument("--threads", type=integer(1), metavar="N", help="of the CPU")
    parser.add_argument("--repeats", type=integer(1), default=bench.REPEATS, metavar="N")


def run_bench(options: argparse.Namespace) -> int:
    """`fastrnn bench`: what a caller would get here, by what `fastrnn tune` has stored as well."""
    if options.list:
        return _list_offers()
    cases = _cases(options)
    if options.plot and (complaint := bench_plot.complaint(options.plot, cases)):
        options.parser.error(f"argument --plot: {complaint}")
    beside, left_out = _peers(options)
    rows: list[bench.Row] = []
    with _threads(options.threads):
        try:
            with Progress(len(cases)) as progress:
                attained = {case.dtype: floor.attained_for(case) for case in cases}
                for row in bench.measure(
                    cases, backends=options.backends, peers=beside, repeats=options.repeats,
                    attained=attained, progress=progress.step,
                ):  # fmt: skip
                    rows.append(row)
        finally:  # a measurement may have taken an hour, and what ends it is a Ctrl-C
            if rows:
                print(bench.report(rows))
                failures = _write(options, rows, attained)
                code = _end(failures + bench.failures(rows, options.backends))
    if left_out:
        print(f"left out, since it takes long to get ready: {', '.join(left_out)} "
              "(--peers all has it)")  # fmt: skip
    return code


def _write(
    options: argparse.Namespace, rows: Sequence[bench.Row], attained: Mapping[str, Attained]
) -> list[str]:
    """Write the files that were asked for, and say which could not be."""
    settings = {
        key: value
        for key, value in vars(options).items()
        if key not in ("command", "parser", "json", "csv", "plot", "list")
    }
    writers: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (options.json, lambda path: bench.write_json(path, rows, settings, attained)),
        (options.csv, lambda path: bench.write_csv(path, rows)),
        (options.plot, lambda path: bench_plot.plot(path, rows)),
    )
    failures = []
    for path, write in writers:
        try:
            if path is not None:
                write(path)
        except Exception as error:  # the other files, and the exit code, must not suffer
            failures.append(f"{path} was not written: {describe(error)}")
    return failures


def _peers(options: argparse.Namespace) -> tuple[list[Peer], list[str]]:
    """What backends are compared with, and the names of what nobody asked for."""
    peers = bench_hooks.peers()
    if options.peers is None:
        preset = bench_hooks.presets()[options.preset]
        named = [n for n, peer in peers.items() if not peer.on_demand or n in preset.peers]
    elif bench_hooks.ALL in options.peers:
        named = list(peers)
    else:
        named = [bench_cases.BASELINE, *options.peers]
    left_out = [n for n in peers if n not in named] if options.peers is None else []
    return [peer for name, peer in peers.items() if name in named], left_out


def run_tune(options: argparse.Namespace) -> int:
    """`fastrnn tune`."""
    if options.list:
        return _list(options.json)
    if options.forget:
        return _forget(options.json)
    cases = _cases(options)
    with _threads(options.threads):
        with Progress(len(cases)) as progress:
            outcome = tune(
                cases, backends=options.backends, repeats=options.repeats,
                keep=not options.dry_run, progress=progress.step, note=progress.note,
            )  # fmt: skip
        failures = outcome.faults + bench.failures(outcome.rows, options.backends)
        if options.json:
            print_json(_outcome_as_json(outcome, failures))
        else:
            print("\n".join([bench.report(outcome.rows), *_summary(outcome)]))
    return _end(failures)


def _cases(options: argparse.Namespace) -> list[Case]:
    """What the options ask for, which are then complete."""
    preset = bench_hooks.presets()[options.preset]
    axes = preset.axes
    given = {axis: getattr(options, axis) for axis in axes._fields if getattr(options, axis)}
    options.dtype = options.dtype or list(preset.dtypes)
    if options.device is None:
        options.device = preset.device
        if preset.device not in {device for device, _ in present_devices()}:
            options.parser.error(
                f"argument --preset: got {preset.name!r}, which is for {preset.device}, and torch "
                "sees no GPU here (--device cpu measures it on the CPU)"
            )
    return [
        case
        for dtype in options.dtype
        for case in bench_cases.cases(
            axes._replace(**given),
            mode=options.mode, input_size=options.I or preset.input_size,
            layers=options.layers or preset.layers,
            bidirectional=options.bidirectional or preset.bidirectional,
            dtype=dtype, device=options.device,
        )
    ]  # fmt: skip


def _dtype(text: str) -> str:
    if text not in cli_common.DTYPES:
        expected = ", ".join(cli_common.DTYPES)
        raise argparse.ArgumentTypeError(f"got {text!r}, expected one of {expected}")
    return text


def _peers_and_all() -> dict[str, object]:
    return {**bench_hooks.peers(), bench_hooks.ALL: None}


def _known(kind: str, offers: Callable[[], Mapping[str, object]]) -> Callable[[str], str]:
    """The type of an argument that is a name; plugins are asked when a command line has one."""

    def name(text: str) -> str:
        if text not in offers():
            expected = ", ".join(offers())
            raise argparse.ArgumentTypeError(f"got {text!r}, expected a {kind}: {expected}")
        return text

    return name


def _list_offers() -> int:
    rows = [[preset.name, preset.summary] for preset in bench_hooks.presets().values()]
    print(table(["preset", "cases"], rows), end="\n\n")
    rows = [
        [peer.name, "named or all" if peer.on_demand else "always", peer.summary]
        for peer in bench_hooks.peers().values()
    ]
    print(table(["peer", "compared", "what it is"], rows))
    return 0


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    """Have torch use this many threads of the CPU; as many as before if None."""
    before = torch.get_num_threads()
    if number:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _end(failures: Sequence[str]) -> int:
    for failure in failures:
        print(f"fastrnn: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _summary(outcome: Outcome) -> list[str]:
    changed, total = outcome.changed, len(outcome.choices)
    dry = outcome.path is None
    lines = [
        "dry run: nothing is stored"
        if dry
        else f"stored: {outcome.stored} of {total} problems, in {outcome.path}",
        f"auto: {len(changed)} of {total} choices {'would change' if dry else 'changed'}",
        *(f"  {case}: {before} -> {after}" for case, before, after in changed),
    ]
    for name, count in outcome.missing.items():
        lines.append(
            f"estimates still count in {count} problems, because {name} can run there and has no "
            "stored timing"
        )
    return lines


def _outcome_as_json(outcome: Outcome, failures: Sequence[str]) -> dict[str, object]:
    return {
        "path": None if outcome.path is None else str(outcome.path),
        "stored": outcome.stored,
        "changed": [
            {"case": case._asdict(), "before": before, "after": after}
            for case, before, after in outcome.changed
        ],
        "missing": outcome.missing,
        "failures": list(failures),
        "results": [row.record() for row in outcome.rows],
    }


def _stores() -> list[Store]:
    found = (measured.store(*device) for device in present_devices())
    return [store for store in found if store is not None]


def _list(as_json: bool) -> int:
    stores = _stores()
    if as_json:
        return print_json(
            [
                {
                    "machine": store.machine._asdict(),
                    "path": None if store.path is None else str(store.path),
                    "complaint": store.complaint,
                    "problems": store.as_json(),
                }
                for store in stores
            ]
        )
    for store in stores:
        print(f"{store.machine.describe()}: {store.path}")
        if store.complaint:
            print(f"fastrnn: warning: {store.path} is ignored: {store.complaint}", file=sys.stderr)
        rows = [
            [
                request.describe() + (f", {request.threads} threads" if request.threads else ""),
                backend, f"{1e3 * timing.seconds:.3f}", timing.date[:10], timing.version,
            ]
            for request, timings in store.records()
            for backend, timing in timings.items()
        ]  # fmt: skip
        header = ["problem", "backend", "median ms", "date", "version"]
        print(table(header, rows, "llr") if rows else "nothing is stored")
    return 0


def _forget(as_json: bool) -> int:
    deleted = [measured.forget(*device) for device in present_devices()]
    paths = [str(path) for path in deleted if path is not None]
    failures = []
    for name, backend in registry().backends.items():
        try:
            paths += [str(path) for path in backend.forget()]
        except Exception as error:  # the others must forget as well
            failures.append(f"{name} failed to forget: {describe(error)}")
    if as_json:
        print_json({"deleted": paths, "failures": failures})
    else:
        print("\n".join(f"deleted: {path}" for path in paths) or "nothing was stored")
    return _end(failures)
