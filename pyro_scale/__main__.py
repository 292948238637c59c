"""Saved posteriors from the command line: `python -m pyro_scale report run.nc`, or `summary run.nc`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

import pyro_scale
from pyro_scale.errors import PyroScaleError

DESCRIPTION = (
    "Look at a posterior that Posterior.save wrote. The model is not needed, and nothing in a file is executed."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Does what the arguments say; 0, or 1 with one line on what was wrong with them."""
    given = _parser().parse_args(arguments)
    try:
        given.run(given)
    except (PyroScaleError, OSError, ImportError) as error:
        print(f"pyro_scale: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m pyro_scale", description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    report = commands.add_parser(
        "report",
        help="write an HTML page",
        description="Write one HTML file with the verdict, tables and pictures; it opens offline.",
    )
    summary = commands.add_parser(
        "summary",
        help="print a table",
        description="Print the verdict, and moments, quantiles, effective sample sizes and R-hat of every value.",
    )
    for command in (report, summary):
        command.add_argument("posterior", type=Path, metavar="POSTERIOR", help="a .nc or .zarr file")
    report.add_argument(
        "-o", "--output", type=Path, metavar="REPORT", help="the page (default: POSTERIOR, ending in .html)"
    )
    report.set_defaults(run=_report)
    summary.set_defaults(run=_summary)
    return parser


def _report(given: argparse.Namespace) -> None:
    output = given.posterior.with_suffix(".html") if given.output is None else given.output
    print(pyro_scale.diagnostics.report(given.posterior, output))


def _summary(given: argparse.Namespace) -> None:
    print(import_module("pyro_scale.diagnostics.reporting").as_text(given.posterior))


if __name__ == "__main__":
    sys.exit(main())
