"""Evaluation of a frozen genome: ``python -m organism.evaluate``.

On the lines of a real file, alone or beside its peers; on the field's protocol of continual
familiarity (``--task continual``); or through a long life in a world that does not change
(``--task stationary``). Owns the command; trains nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from organism.chunking import split_lines
from organism.comparison import Row, compare
from organism.evaluation import LONG_LIFE, Evaluation, long_life, with_columns
from organism.figures import to_json
from organism.fused import set_threads
from organism.genome import Genome, GenomeError, load
from organism.peers import PeerMissing
from organism.tasks.continual import measure

_EXIT_USAGE = 2
_CORTEX = "organism"
_LAGS = (5, 10, 20, 30, 40)
_LENGTHS = (200, 1000, 10_000, 50_000)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 unusable arguments or files."""
    options = _parser().parse_args(arguments)
    set_threads(1)
    try:
        genome = load(options.genome)
        if options.columns:
            genome = with_columns(genome, options.columns)
        if options.task != "familiarity":
            _refuse_what_plays_no_part(options)
        if options.task == "continual":
            return _continual(genome, options)
        if options.task == "stationary":
            return _stationary(genome, options)
        return _lines(genome, options)
    except (OSError, GenomeError, PeerMissing, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return _EXIT_USAGE


def _refuse_what_plays_no_part(options: argparse.Namespace) -> None:
    """Synthetic tasks bring their own chunks."""
    names = ["lines", "identity", "peers", "plot"]
    given = [f"--{name}" for name in names if getattr(options, name)]
    given += ["--damage"] if options.damage != [0.0] else []
    given += ["--seeds"] if options.task == "continual" and options.seeds != 1 else []
    if given:
        raise ValueError(f"--task {options.task} takes no {', '.join(given)}: leave it out")


def _lines(genome: Genome, options: argparse.Namespace) -> int:
    if options.lines is None:
        raise ValueError("--lines FILE is needed: the file whose lines are lived")
    identities = split_lines(options.identity.read_bytes()) if options.identity else None
    lines = split_lines(options.lines.read_bytes())
    seeds = range(options.seed, options.seed + options.seeds)
    found = compare(genome, lines, identities, options.damage, seeds, options.peers)
    rows, life = found.rows, found.life
    if options.plot:
        from organism.plots import plot_life

        curves = {_CORTEX: [row.mean["auroc"] for row in rows]}
        curves |= {name: [row.peers[name][0] for row in rows] for name in rows[0].peers}
        scores = {_CORTEX: life.familiarity, **found.scores}
        title, known, rates = options.lines.name, found.given.familiar, options.damage
        plot_life(options.plot, title, known, scores, life.entropy, rates, curves)
    if options.json:
        print(to_json(_summary(life.evaluation, rows)))
    else:
        _show(f"{options.genome.name} on {options.lines.name}", life.evaluation, rows)
    return 0


def _summary(first: Evaluation, rows: Sequence[Row]) -> dict[str, Any]:
    """Figures of the first rate of damage, means over its seeds, then all rates."""
    return {**asdict(first), **rows[0].mean, "rows": [asdict(row) for row in rows]}


def _show(title: str, first: Evaluation, rows: Sequence[Row]) -> None:
    figures = Table(title=title)
    figures.add_column("figure")
    for row in rows:
        figures.add_column(f"{row.damage:.0%} damaged", justify="right")
    for name in rows[0].mean:
        figures.add_row(name, *(_spread(row.mean[name], row.spread[name]) for row in rows))
    if rows[0].store_brier is not None:
        figures.add_row("brier of the store", *(f"{row.store_brier:.4f}" for row in rows))
    for name in ("state_floats", "lines", "genome_sha256"):
        figures.add_row(name, *[str(getattr(first, name))[:16]] * len(rows))
    Console().print(figures)
    if not rows[0].peers:
        return
    peers = Table(title="AUROC, same features and order")
    peers.add_column("peer")
    for row in rows:
        peers.add_column(f"{row.damage:.0%} damaged", justify="right")
    own = (_spread(row.mean["auroc"], row.spread["auroc"]) for row in rows)
    peers.add_row(_CORTEX, *own, style="bold")
    for name in rows[0].peers:
        peers.add_row(name, *(_spread(*row.peers[name]) for row in rows))
    Console().print(peers)


def _spread(mean: float, deviation: float) -> str:
    return f"{mean:.3f} ± {deviation:.3f}" if deviation else f"{mean:.4f}"


def _continual(genome: Genome, options: argparse.Namespace) -> int:
    threshold, scores = measure(genome, _LAGS, _LENGTHS, options.seed)
    if options.json:
        rows = [asdict(score) for score in scores]
        print(to_json({"genome_sha256": genome.sha256, "threshold": threshold, "rows": rows}))
        return 0
    cortex = genome.config.cortex
    synapses = cortex.d_in * cortex.d_hidden
    _print_rows(f"{options.genome.name}: continual familiarity, {synapses} synapses", scores)
    return 0


def _stationary(genome: Genome, options: argparse.Namespace) -> int:
    lives = [long_life(genome, options.seed + k) for k in range(options.seeds)]
    if options.json:
        rows = [asdict(life) for life in lives]
        print(to_json({"genome_sha256": genome.sha256, "rows": rows}))
        return 0
    _print_rows(f"{options.genome.name}: {LONG_LIFE} steps in a stationary world", lives)
    return 0


def _print_rows(title: str, rows: Sequence[Any]) -> None:
    """Print equal dataclasses, a row each."""
    table = Table(title=title)
    for f in fields(rows[0]):
        table.add_column(f.name.replace("_", " "), justify="right")
    for row in rows:
        values = asdict(row).values()
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in values))
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m organism.evaluate", description=__doc__)
    parser.add_argument("--genome", type=Path, required=True, help="genome file")
    parser.add_argument(
        "--task",
        choices=("familiarity", "continual", "stationary"),
        default="familiarity",
        help="lines of a file, random vectors by the field's protocol, or one long synthetic life",
    )
    parser.add_argument("--lines", type=Path, help="file whose lines are lived")
    parser.add_argument(
        "--identity",
        type=Path,
        help="file whose line t says what line t of --lines is known by (default: its text)",
    )
    parser.add_argument(
        "--damage",
        type=_fraction,
        nargs="+",
        default=[0.0],
        help="chances that a byte is replaced by a random printable one, after labelling",
    )
    parser.add_argument("--columns", type=_count, help="columns of W, if other than the genome's")
    parser.add_argument("--seeds", type=_count, default=1, help="how many seeds of damage or lives")
    parser.add_argument(
        "--seed", type=int, default=0, help="the first of them, or that of the continual sequences"
    )
    parser.add_argument(
        "--peers", action="store_true", help="beside its peers; needs pip install '.[peers]'"
    )
    parser.add_argument(
        "--plot",
        type=Path,
        help="PNG of the ROC, of familiarity and entropy over time, and of AUROC against damage",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction from 0 to 1, got {text}")
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
