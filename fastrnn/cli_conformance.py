"""`fastrnn conformance`: does a backend keep the contract?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrnn import cli_common
from fastrnn.cli_common import print_json
from fastrnn.progress import Progress

if TYPE_CHECKING:
    import argparse

    from fastrnn.cli_common import Parser


def add_conformance_arguments(parser: Parser) -> None:
    """The arguments of `fastrnn conformance`."""
    parser.add_argument("backend", type=cli_common.backend, metavar="NAME", help="the backend")
    what = "cpu or cuda (default: cpu, or cuda for a backend that runs nothing on a cpu)"
    parser.add_argument("--device", type=cli_common.present_device, metavar="cpu|cuda", help=what)
    parser.add_argument("-k", default="", metavar="TEXT", help="checks with this in their names")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_conformance(options: argparse.Namespace) -> int:
    """Run the checks, and print a report of them."""
    from fastrnn.testing import conformance  # of use to nobody else

    chosen = conformance.checks(options.k)
    if not chosen:
        options.parser.error(f"argument -k: got {options.k!r}, expected a part of a check's name")
    with Progress(len(chosen)) as progress:
        report = conformance.run(
            options.backend, device=options.device, only=options.k, progress=progress.step
        )
    if options.json:
        print_json(report.as_json())
    else:
        print(report)
    return 1 if report.failures else 0
