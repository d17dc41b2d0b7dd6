"""The command `fastrnn`: what backends there are, which one runs a call and why, and how fast.

Data goes to stdout, and everything else to stderr. Exit codes: 0, 1 for a failure, 2 for wrong
arguments.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TextIO

import torch

from fastrnn import cli_bench, cli_common, cli_conformance, doctor
from fastrnn._version import __version__
from fastrnn.cli_common import EXAMPLE_ARCHS, Parser, integer, print_json
from fastrnn.dispatch import AUTO, BackendError, decide
from fastrnn.plugins import PluginWarning, registry
from fastrnn.precision import arch_of, float32_precision
from fastrnn.request import OPTIONS, Decision, Request
from fastrnn.tables import table

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Sequence

_DEVICES = ("cpu", "cuda", "mps", "xpu", "meta")


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
            with contextlib.redirect_stdout(sys.stderr):  # what plugins print is no data of ours
                registry()
            options = _parser().parse_args(arguments)
            code = int(options.command(options))
            if sys.stdout is not None:  # as in `fastrnn backends >&-`
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


def _parser() -> Parser:
    parser = Parser(prog="fastrnn", description="Backends of fastrnn: which, why, how fast.")
    parser.add_argument("--version", action="version", version=f"fastrnn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> Parser:
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
    what = "check and time the backends on this machine"
    cli_bench.add_bench_arguments(command("bench", cli_bench.run_bench, what))
    conformance = command("conformance", cli_conformance.run_conformance, "check one backend")
    cli_conformance.add_conformance_arguments(conformance)
    what = "time the backends and let auto go by that from now on"
    cli_bench.add_tune_arguments(command("tune", cli_bench.run_tune, what))
    return parser


def _add_explain_arguments(parser: Parser) -> None:
    size = integer(1)
    parser.add_argument("--cell", type=cli_common.cell, default="lstm", metavar="NAME")
    parser.add_argument("--T", type=size, default=100, metavar="N", help="steps")
    parser.add_argument("--B", type=size, default=32, metavar="N", help="rows of the batch")
    parser.add_argument("--I", type=size, default=256, metavar="N", help="inputs")
    parser.add_argument("--H", type=size, default=256, metavar="N", help="hidden units")
    parser.add_argument("--layers", type=size, default=1, metavar="N")
    parser.add_argument("--bidirectional", action="store_true")
    parser.add_argument("--proj", type=integer(0), default=0, metavar="N", help="proj_size")
    parser.add_argument("--no-bias", action="store_true")
    parser.add_argument("--dropout", type=cli_common.probability, default=0.0, metavar="P")
    parser.add_argument("--dtype", choices=cli_common.DTYPES, default="float32")
    parser.add_argument("--device", choices=_DEVICES, default="cpu", help="need not be here")
    parser.add_argument("--arch", type=cli_common.arch, help=f"of a cuda device, {EXAMPLE_ARCHS}")
    parser.add_argument("--precision", choices=("ieee", "tf32", "tf32x3"), help="of float32")
    parser.add_argument("--threads", type=size, metavar="N", help="of the CPU")
    parser.add_argument("--mode", choices=("forward", "train"), default="forward")
    parser.add_argument("--packed", action="store_true", help="a PackedSequence")
    parser.add_argument("--lengths", action="store_true", help="of padded rows")
    parser.add_argument("--recompute", type=size, default=0, metavar="N", help="steps kept apart")
    for name in OPTIONS:
        parser.add_argument("--" + name.replace("_", "-"), action="store_true")
    parser.add_argument("--compile", action="store_true", help="as traced by torch.compile")
    parser.add_argument(
        "--backend", type=cli_common.preference, default=AUTO, metavar="NAME[,NAME]"
    )


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
        return print_json(found)
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
        return print_json([asdict(record) for record in records])
    rows = [
        [
            record.name,
            f"{record.distribution} {record.version}".strip(),
            record.state,
            ", ".join((*record.backends, *record.cells)) or "-",
            ", ".join(record.hooks) or "-",
            record.reason,
        ]
        for record in records
    ]
    print(table(["plugin", "distribution", "state", "brings", "hooks", "reason"], rows))
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
        print_json(content)
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
        return print_json(_decision_as_json(decision))
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
            error(f"argument --arch: got nothing and no GPU is here, expected one {EXAMPLE_ARCHS}")
        arch = arch_of(torch.device("cuda"))
    if options.packed and options.lengths:
        error("argument --lengths: not allowed with argument --packed")
    if options.recompute and options.resets:
        error("argument --resets: not allowed with argument --recompute")
    training = options.mode == "train"
    asked = {name: getattr(options, name) for name in OPTIONS}
    asked["recurrent_dropout"] &= training
    asked["error_clip"] &= training
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
        varlen=options.packed or options.lengths,
        compiling=options.compile,
        threads=(options.threads or torch.get_num_threads()) if on_cpu else 0,
        recompute=options.recompute if training else 0,
        padded=options.lengths,
        **asked,
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
