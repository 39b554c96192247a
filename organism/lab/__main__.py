"""The laboratory's commands: ``python -m organism.lab tables``, and others; see ``--help``.

Each writes a report into a folder, ``report.html`` with its figures, beside the results that it
rests on: asked again, it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from organism.figures import to_json
from organism.fused import set_threads
from organism.genome import GenomeError, load
from organism.lab import ablations, adaptation, atlas, costs, memory, recovery, tables
from organism.lab.anatomy import WORLDS
from organism.lab.report import LabMissing, Report, command_line, plain
from organism.lab.trials import run
from organism.meta_train import TrainingError

_MODULE = "organism.lab"
_EXIT_FAILED = 1
_EXIT_USAGE = 2
_EXIT_INTERRUPTED = 130
_KEPT = "trials.jsonl"
_LEAST_SEEDS = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 done, 1 failed, 2 unusable arguments or files, 130 interrupted."""
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
    except TrainingError as error:
        print(f"lab: {error}", file=sys.stderr)
        return _EXIT_FAILED
    if options.json:
        print(to_json({"report": str(path), **report.figures}))
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
    return tables.report(results, options.seeds, others, adaptation.TUNING_SEEDS)


def _ablations(options: argparse.Namespace) -> Report:
    results = run(ablations.trials(options.seeds), options.out / _KEPT, options.processes)
    return ablations.report(results, options.seeds)


def _memory(options: argparse.Namespace) -> Report:
    kept, seeds = options.out / _KEPT, range(options.seeds)
    first = [*memory.growing(seeds), *memory.tuning()]
    results = run(first, kept, options.processes)
    results |= run(memory.measuring(results, seeds), kept, options.processes)
    return memory.report(results, seeds)


def _recovery(options: argparse.Namespace) -> Report:
    results = run(recovery.trials(options.seeds), options.out / _KEPT, options.processes)
    return recovery.report(results, options.seeds)


def _anatomy(options: argparse.Namespace) -> Report:
    set_threads(os.cpu_count() or 1)
    return atlas.report(load(options.genome), options.genome, options.world)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m {_MODULE}", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, seeds, make, text in (
        ("tables", 10, _tables, "the original's tables and claims, measured"),
        ("ablations", 10, _ablations, "ablations that the original never ran"),
        ("memory", 3, _memory, "associative memory: learned rules beside named ones"),
        ("recovery", 5, _recovery, "known rules planted, and found again"),
    ):
        command = _command(commands, name, text)
        command.set_defaults(make=make)
        command.add_argument(
            "--seeds", type=_seeds, default=seeds, help=f"how many, from 0; {seeds}"
        )
        command.add_argument(
            "--processes", type=int, default=os.cpu_count() or 1, help="that share the work"
        )
    command = _command(commands, "anatomy", "what a learned rule is made of")
    command.set_defaults(make=_anatomy)
    command.add_argument("genome", type=Path, help="genome file")
    command.add_argument(
        "--world",
        choices=WORLDS,
        default="familiarity",
        help="what the rule lives through, and what its symbolic form is tried on; familiarity",
    )
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("--out", type=Path, help=f"folder of the report; lab/{name}")
    command.add_argument("--json", action="store_true", help="print the figures as one JSON object")
    return command


def _seeds(text: str) -> int:
    value = int(text)
    if value < _LEAST_SEEDS:
        raise argparse.ArgumentTypeError(f"a spread needs {_LEAST_SEEDS} seeds, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
