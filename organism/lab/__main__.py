"""The laboratory's commands: ``python -m organism.lab tables``, and others; see ``--help``.

Each writes a report into a folder, ``report.html`` with its figures, beside the results that it
rests on: asked again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from organism.fused import set_threads
from organism.genome import GenomeError
from organism.lab import adaptation, costs, tables
from organism.lab.report import LabMissing, Report, command_line, plain
from organism.lab.trials import run

_MODULE = "organism.lab"
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_KEPT = "trials.jsonl"
_LEAST_SEEDS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 2 unusable arguments or files, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    options = _parser().parse_args(arguments)
    options.out = options.out or Path("lab") / options.command
    set_threads(1)
    try:
        report: Report = options.make(options)
        path = report.write(options.out, command_line(_MODULE, arguments))
    except KeyboardInterrupt:
        print(f"lab: interrupted; the same command goes on, from {options.out}", file=sys.stderr)
        return _EXIT_INTERRUPTED
    except (OSError, GenomeError, LabMissing, ValueError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return _EXIT_USAGE
    if options.json:
        print(json.dumps({"report": str(path), **report.figures}))
    else:
        print(plain(report), end="")
        print(path)
    return 0


def _tables(options: argparse.Namespace) -> Report:
    kept = options.out / _KEPT
    tuned = run([*tables.trials(options.seeds), *adaptation.tuning()], kept, options.processes)
    rate = adaptation.best_rate(tuned)
    results = tuned | run(adaptation.trials(options.seeds, rate), kept, options.processes)
    others = [adaptation.table(results, options.seeds, rate), costs.table()]
    return tables.report(results, options.seeds, others)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m {_MODULE}", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = _command(commands, "tables", "the original's tables and claims, measured")
    command.set_defaults(make=_tables)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--out", type=Path, help=f"folder of the report; lab/{name}")
    command.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    command.add_argument("--seeds", type=_seeds, default=10, help="how many, from 0; 10")
    command.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="that share the work"
    )
    return command


def _seeds(text: str) -> int:
    value = int(text)
    if value < _LEAST_SEEDS:
        raise argparse.ArgumentTypeError(f"a spread needs {_LEAST_SEEDS} seeds, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
