"""The command `fastrnn`: what backends there are, which one runs a call and why, and how fast.

Data goes to stdout, and everything else to stderr. Exit codes: 0, 1 for a failure, 2 for wrong
arguments.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import torch

from fastrnn import bench, bench_cases, doctor
from fastrnn._version import __version__
from fastrnn.dispatch import AUTO, BackendError, decide
from fastrnn.plugins import PluginWarning, registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.progress import Progress
from fastrnn.request import GATES, Decision, Request
from fastrnn.tables import table

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_T = TypeVar("_T")
_DTYPES = ("float32", "float16", "bfloat16", "float64")
_DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")
_EXAMPLE_ARCHS = "such as sm_90 or gfx942"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: without the program's name; those of the process if None.

    Returns:
        The exit code.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("always", PluginWarning)
        warnings.showwarning = _show_warning
        try:
            options = _parser().parse_args(arguments)
            code = int(options.command(options))
            sys.stdout.flush()
            return code
        except BrokenPipeError:  # whoever reads stdout, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (BackendError, OSError) as error:
            print(f"fastrnn: error: {error}", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("fastrnn: interrupted", file=sys.stderr)
            return 130


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Print a plugin's warning without the place in our source, which says nothing to users."""
    text = f"fastrnn: warning: {message}\n"
    if not issubclass(category, PluginWarning):
        text = warnings.formatwarning(message, category, filename, lineno, line)
    print(text, end="", file=file or sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _parser() -> _Parser:
    parser = _Parser(prog="fastrnn", description="Backends of fastrnn: which, why, how fast.")
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> _Parser:
        added = commands.add_parser(name, help=help, description=help)
        added.set_defaults(command=run, parser=added)
        return added

    backends = command("backends", _backends, "list the backends, and which work here")
    plugins = command("plugins", _plugins, "list the plugins, and why one was not loaded")
    doctor_ = command("doctor", _doctor, "look at this machine, and say what to do")
    explain = command("explain", _explain, "say which backend runs a call, and why")
    for listing in (backends, plugins, doctor_, explain):
        listing.add_argument("--json", action="store_true", help="print JSON")
    _add_explain_arguments(explain)
    _add_bench_arguments(command("bench", _bench, "check and time the backends on this machine"))
    return parser


def _add_explain_arguments(parser: _Parser) -> None:
    size = _integer(1)
    parser.add_argument("--cell", choices=tuple(GATES), default="lstm")
    parser.add_argument("--T", type=size, default=100, metavar="N", help="steps")
    parser.add_argument("--B", type=size, default=32, metavar="N", help="rows of the batch")
    parser.add_argument("--I", type=size, default=256, metavar="N", help="inputs")
    parser.add_argument("--H", type=size, default=256, metavar="N", help="hidden units")
    parser.add_argument("--layers", type=size, default=1, metavar="N")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--proj", type=_integer(0), default=0, metavar="N", help="proj_size")
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--dropout", type=_probability, default=0.0, metavar="P")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--device", choices=_DEVICES, default="cpu", help="need not be here")
    parser.add_argument("--arch", type=_arch, help=f"of a cuda device, {_EXAMPLE_ARCHS}")
    parser.add_argument("--precision", choices=("ieee", "tf32", "tf32x3"), help="of float32")
    parser.add_argument("--threads", type=size, metavar="N", help="of the CPU")
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--packed", action="store_true", help="sequences of different lengths")
    parser.add_argument("--compile", action="store_true", help="as traced by torch.compile")
    parser.add_argument("--backend", type=_preference, default=AUTO, metavar="NAME[,NAME]")


def _add_bench_arguments(parser: _Parser) -> None:
    presets, sizes = bench_cases.PRESETS, _comma_separated(_integer(1))
    what = "cell, T, B and H where they are not given (default: %(default)s)"
    parser.add_argument("--preset", choices=tuple(presets), default="quick", help=what)
    cells = ", ".join(GATES)
    parser.add_argument("--cell", type=_comma_separated(_cell), metavar="NAME,...", help=cells)
    for name, what in (("T", "steps"), ("B", "rows of the batch"), ("H", "hidden units")):
        parser.add_argument(f"--{name}", type=sizes, metavar="N,...", help=what)
    parser.add_argument("--I", type=_integer(1), metavar="N", help="inputs (default: as H)")
    parser.add_argument("--layers", type=_integer(1), default=1, metavar="N")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--dtype", choices=_DTYPES, default="float32")
    parser.add_argument("--mode", choices=tuple(bench_cases.MODES), default="both")
    parser.add_argument("--backends", type=_comma_separated(_backend), metavar="NAME,...")
    parser.add_argument("--device", type=_present_device, default="cpu", metavar="cpu|cuda")
    parser.add_argument("--threads", type=_integer(1), metavar="N", help="of the CPU")
    parser.add_argument("--repeats", type=_integer(1), default=bench.REPEATS, metavar="N")
    parser.add_argument("--json", type=_writable, metavar="FILE")
    parser.add_argument("--csv", type=_writable, metavar="FILE")


def _backends(options: argparse.Namespace) -> int:
    current = registry()
    owners = {name: record for record in current.plugins for name in record.backends}
    found: list[dict[str, Any]] = [
        {
            "name": name,
            "plugin": owners[name].name,
            "distribution": owners[name].distribution,
            "version": owners[name].version,
            "summary": backend.summary,
            "available": not (reasons := doctor.unavailable(backend)),
            "reasons": reasons,
        }
        for name, backend in current.backends.items()
    ]
    if options.json:
        return _print_json(found)
    rows = [
        [
            b["name"],
            b["plugin"],
            f"{b['distribution']} {b['version']}".strip() or "(from Python)",
            "yes" if b["available"] else "no: " + "; ".join(b["reasons"]),
            b["summary"],
        ]
        for b in found
    ]
    print(table(["backend", "plugin", "distribution", "here", "summary"], rows))
    return 0


def _plugins(options: argparse.Namespace) -> int:
    records = registry().plugins
    if options.json:
        return _print_json([asdict(record) for record in records])
    rows = [
        [
            record.name,
            f"{record.distribution} {record.version}".strip(),
            record.state,
            ", ".join(record.backends) or "-",
            ", ".join(record.hooks) or "-",
            record.reason,
        ]
        for record in records
    ]
    print(table(["plugin", "distribution", "state", "backends", "hooks", "reason"], rows))
    return 0


def _doctor(options: argparse.Namespace) -> int:
    findings = doctor.examine()
    usable = any(f.works for f in findings if f.topic.startswith("backend "))
    if options.json:
        content = {
            "usable": usable,
            "environment": doctor.environment(),
            "findings": [asdict(finding) for finding in findings],
        }
        _print_json(content)
        return 0 if usable else 1
    for finding in findings:
        print(f"[{'ok' if finding.works else '!!'}] {finding.topic}: {finding.value}")
        if finding.advice:
            print(f"     {finding.advice}")
    if not usable:
        print("fastrnn: error: no backend works here", file=sys.stderr)
    return 0 if usable else 1


def _explain(options: argparse.Namespace) -> int:
    here = options.device == "cpu" or (options.device == "cuda" and not options.arch)
    decision = decide(_request(options), options.backend, here=here)
    if options.json:
        return _print_json(_decision_as_json(decision))
    print(decision.explain())
    if not here:
        print("  (as on a machine that has such a device and all the packages)")
    return 0


def _request(options: argparse.Namespace) -> Request:
    error, on_cpu = options.parser.error, options.device == "cpu"
    if options.proj and options.cell != "lstm":
        error(f"argument --proj: got {options.proj} with {options.cell}, expected 0 (lstm only)")
    if options.proj >= options.H:
        error(f"argument --proj: got {options.proj}, expected less than --H {options.H}")
    arch = options.arch or ""
    if options.device != "cuda" and arch:
        error(f"argument --arch: got {arch}, expected none with --device {options.device}")
    if options.device == "cuda" and not arch:
        if not torch.cuda.is_available():
            error(f"argument --arch: got nothing and no GPU is here, expected one {_EXAMPLE_ARCHS}")
        arch = arch_of(torch.device("cuda"))
    training = options.mode == "train"
    return Request(
        cell=options.cell,
        seq_len=None if options.compile else options.T,
        batch=None if options.compile else options.B,
        input_size=options.I,
        hidden_size=options.H,
        proj_size=options.proj,
        num_layers=options.layers,
        bidirectional=options.bidirectional,
        bias=not options.no_bias,
        dropout=options.dropout if training and options.layers > 1 else 0.0,
        dtype=getattr(torch, options.dtype),
        device=options.device,
        arch=arch,
        precision=options.precision or ("ieee" if on_cpu else float32_precision()),
        needs_grad=training,
        training=training,
        varlen=options.packed,
        compiling=options.compile,
        threads=(options.threads or torch.get_num_threads()) if on_cpu else 0,
    )


def _decision_as_json(decision: Decision) -> dict[str, object]:
    request = {**decision.request._asdict(), "dtype": str(decision.request.dtype)}
    candidates = []
    for candidate in decision.candidates:
        cost: dict[str, object] | None = None
        if candidate.cost is not None:
            seconds = candidate.cost.seconds  # JSON has no infinity
            cost = {
                "seconds": seconds if math.isfinite(seconds) else None,
                "why": candidate.cost.why,
            }
        candidates.append({"name": candidate.name, "reasons": candidate.reasons, "cost": cost})
    return {
        "backend": decision.backend,
        "rule": decision.rule,
        "request": request,
        "candidates": candidates,
    }


def _bench(options: argparse.Namespace) -> int:
    preset = bench_cases.PRESETS[options.preset]
    given = {axis: getattr(options, axis) for axis in preset._fields if getattr(options, axis)}
    cases = bench_cases.cases(
        preset._replace(**given),
        mode=options.mode, input_size=options.I, layers=options.layers,
        bidirectional=options.bidirectional, dtype=options.dtype, device=options.device,
    )  # fmt: skip
    threads = torch.get_num_threads()
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        with Progress(len(cases)) as progress:
            rows = bench.measure(
                cases, backends=options.backends, repeats=options.repeats, progress=progress.step
            )
        print(bench.report(rows))
        settings = {
            key: value
            for key, value in vars(options).items()
            if key not in ("command", "parser", "json", "csv")
        }
        if options.json:
            bench.write_json(options.json, rows, settings)
        if options.csv:
            bench.write_csv(options.csv, rows)
    finally:
        torch.set_num_threads(threads)
    failures = bench.failures(rows, options.backends)
    for failure in failures:
        print(f"fastrnn: error: {failure}", file=sys.stderr)
    return 1 if failures else 0


def _print_json(content: object) -> int:
    print(json.dumps(content, indent=2, allow_nan=False))
    return 0


def _wrong(expected: str, got: object) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"got {got!r}, expected {expected}")


def _integer(least: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,18}", text) or int(text) < least:
            raise _wrong(f"an integer of at least {least}", text)
        return int(text)

    return integer


def _probability(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise _wrong("a number from 0 to 1", text)
    return value


def _arch(text: str) -> str:
    if not re.fullmatch(r"sm_[0-9]{2,3}|gfx[0-9a-f]{3,4}", text):
        raise _wrong(f"an architecture {_EXAMPLE_ARCHS}", text)
    return text


def _cell(text: str) -> str:
    if text not in GATES:
        raise _wrong(f"one of {', '.join(GATES)}", text)
    return text


def _backend(text: str) -> str:
    if text not in registry().backends:
        raise _wrong(f"one of {', '.join(registry().backends)}", text)
    return text


def _preference(text: str) -> str:
    for name in text.split(","):
        if name.strip() != AUTO:
            _backend(name.strip())
    return text


def _comma_separated(one: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def several(text: str) -> list[_T]:
        return [one(part.strip()) for part in dict.fromkeys(text.split(","))]

    return several


def _present_device(text: str) -> str:
    if text == "cpu" or (text == "cuda" and torch.cuda.is_available()):
        return text
    here = "cpu or cuda" if torch.cuda.is_available() else "cpu (torch sees no GPU here)"
    raise _wrong(here, text)


def _writable(text: str) -> Path:
    path = Path(text)
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise _wrong("a file in a directory that exists", text)
    return path
