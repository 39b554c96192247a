"""Evaluation of a frozen genome: ``python -m organism.evaluate``.

On the lines of a real file, alone or beside its peers: a newborn cortex lives through the file once
at ρ = 0, and each line's familiarity is read before it is learned. On the field's protocol of
continual familiarity (``--task continual``). Or through a long life in a world that does not
change (``--task stationary``). Owns the labels and the command; trains nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from organism.auroc import auroc
from organism.calibration import brier_score, expected_calibration_error
from organism.chunking import split_lines
from organism.cortex import centred_inputs
from organism.encoder import encode
from organism.figures import to_json
from organism.fused import set_threads
from organism.genome import Genome, GenomeError, load
from organism.jit import F64
from organism.lifetime import live
from organism.peers import PEERS, PeerMissing, PlattScale, Stream, strongest
from organism.tasks.continual import measure
from organism.tasks.streams import StreamConfig, damage, sample_stream

_EXIT_USAGE = 2
_CORTEX = "organism"
_STORE = "last-k store"
# Streams that a peer's scores are brought to probabilities on.
_PLATT_STREAMS, _PLATT_STEPS = 8, 1000
_LAGS = (5, 10, 20, 30, 40)
_LENGTHS = (200, 1000, 10_000, 50_000)
# A world that does not change: one law of lags, half of its chunks new, no drift, no damage.
_STATIONARY = StreamConfig(
    repeat=(0.5, 0.5),
    burst=(0.3, 0.3),
    lag_exponent=(1.0, 1.0),
    discount=(0.0, 0.0),
    concentration=(8.0, 8.0),
    drift=(0.0, 0.0),
    damaged_streams=0.0,
    stamped_streams=0.0,
    binary_streams=0.0,
    sources=1,
)
_LONG_LIFE = 50_000
_EARLY, _LATE = slice(5_000, 10_000), slice(_LONG_LIFE - 5_000, _LONG_LIFE)


@dataclass(frozen=True)
class Evaluation:
    """Figures of one life through one file; an AUROC is NaN where one class is missing.

    Attributes:
        auroc: of familiarity, positive = familiar.
        auroc_frozen: the same with α = 0: W stays innate, means, memories and calibration still
            run.
        auroc_entropy: of −H, never flipped.
        brier: mean squared difference between familiarity and label.
        calibration_error: expected calibration error of familiarity, 15 bins.
        familiarity_familiar: mean familiarity of familiar lines; ``familiarity_novel``: of novel
            ones.
        state_floats: floats the cortex carries.
        lines: lines lived, blank ones left out.
        familiar_fraction: share of familiar lines.
        damage: chance of a byte's damage.
        seed: seed of the damage.
        genome_sha256: the genome evaluated.
    """

    auroc: float
    auroc_frozen: float
    auroc_entropy: float
    brier: float
    calibration_error: float
    familiarity_familiar: float
    familiarity_novel: float
    state_floats: int
    lines: int
    familiar_fraction: float
    damage: float
    seed: int
    genome_sha256: str


@dataclass(frozen=True)
class Material:
    """Lines to live through, and which of them are familiar.

    Attributes:
        chunks: as observed, damage included.
        familiar: whether what each is known by came before.
    """

    chunks: list[bytes]
    familiar: list[bool]


@dataclass(frozen=True)
class Life:
    """What one life through lines gave.

    Attributes:
        evaluation: its figures.
        familiarity: of each line before it was learned, ``(lines,)``.
        entropy: H of each line, ``(lines,)``.
    """

    evaluation: Evaluation
    familiarity: F64
    entropy: F64


def label(identities: Sequence[bytes]) -> list[bool]:
    """Whether each identity occurred before in the sequence.

    >>> label([b"a", b"b", b"a"])
    [False, False, True]
    """
    seen: set[bytes] = set()
    labels = []
    for identity in identities:
        labels.append(identity in seen)
        seen.add(identity)
    return labels


def material(
    lines: Sequence[bytes],
    identities: Sequence[bytes] | None = None,
    damaged_fraction: float = 0.0,
    seed: int = 0,
) -> Material:
    """Label lines, then damage them.

    Args:
        lines: in order; blank ones teach nothing and are left out.
        identities: what each line is known by; None: its text.
        damaged_fraction: chance that a byte is replaced by a random printable one, after labelling.
        seed: of the damage.

    Raises:
        ValueError: no line to live through, or as many identities as lines are not given.
    """
    identities = lines if identities is None else identities
    if len(identities) != len(lines):
        raise ValueError(
            f"{len(lines)} lines but {len(identities)} identities: "
            "line t of one is known by line t of the other"
        )
    kept = [i for i, line in enumerate(lines) if line]
    if not kept:
        raise ValueError("no line to live through: every line is blank")
    rng = random.Random(f"damage:{seed}")
    chunks = [damage(lines[i], damaged_fraction, rng) for i in kept]
    return Material(chunks, label([identities[i] for i in kept]))


@torch.inference_mode()
def live_through(
    genome: Genome, given: Material, damaged_fraction: float = 0.0, seed: int = 0
) -> Life:
    """Live through lines and measure how well familiarity tells lived ones from new ones.

    Args:
        genome: frozen.
        given: the lines.
        damaged_fraction: what they were damaged by, for the record.
        seed: of that damage.
    """
    inputs = encode(given.chunks, genome.config.encoder, genome.config.cortex.d_in).unsqueeze(1)
    lived = live(genome, inputs)
    frozen = live(_frozen(genome), inputs)
    familiar = given.familiar
    positive = torch.tensor(familiar)
    familiarity = torch.sigmoid(lived.logit[:, 0].double())
    evaluation = Evaluation(
        auroc=auroc(lived.logit[:, 0], familiar),
        auroc_frozen=auroc(frozen.logit[:, 0], familiar),
        auroc_entropy=auroc(-lived.entropy[:, 0], familiar),
        brier=brier_score(familiarity, familiar),
        calibration_error=expected_calibration_error(familiarity, familiar),
        familiarity_familiar=float(familiarity[positive].mean()),
        familiarity_novel=float(familiarity[~positive].mean()),
        state_floats=lived.state.float_count,
        lines=len(given.chunks),
        familiar_fraction=sum(familiar) / len(familiar),
        damage=damaged_fraction,
        seed=seed,
        genome_sha256=genome.sha256,
    )
    return Life(evaluation, familiarity.numpy(), lived.entropy[:, 0].double().numpy())


def evaluate(
    genome: Genome,
    lines: Sequence[bytes],
    identities: Sequence[bytes] | None = None,
    damaged_fraction: float = 0.0,
    seed: int = 0,
) -> Evaluation:
    """Do ``live_through`` for ``material``; arguments and errors are theirs."""
    given = material(lines, identities, damaged_fraction, seed)
    return live_through(genome, given, damaged_fraction, seed).evaluation


def peer_scores(genome: Genome, given: Material, names: Sequence[str] = ()) -> dict[str, F64]:
    """Score lines by the genome's peers, on its features; each ``(lines,)``.

    Args:
        genome: whose encoder, centring and state size the peers share.
        given: the lines.
        names: of peers; none: all.

    Raises:
        PeerMissing: a peer's library is not installed.
    """
    stream = _stream(genome, given)
    return {name: strongest(PEERS[name], stream, given.familiar) for name in names or PEERS}


def store_scale(genome: Genome) -> PlattScale:
    """Fit the equal-state store's scores on synthetic streams, by Platt's method."""
    scores, familiar = [], []
    for k in range(_PLATT_STREAMS):
        synthetic = sample_stream(StreamConfig(), _PLATT_STEPS, random.Random(f"platt:{k}"))
        given = Material(synthetic.chunks, synthetic.familiar)
        scores += [float(score) for score in next(PEERS[_STORE](_stream(genome, given)))]
        familiar += synthetic.familiar
    return PlattScale.fitted(scores, familiar)


@torch.inference_mode()
def _stream(genome: Genome, given: Material) -> Stream:
    config = genome.config
    inputs = encode(given.chunks, config.encoder, config.cortex.d_in).unsqueeze(1)
    floats = live(genome, inputs[:1]).state.float_count
    return Stream(given.chunks, centred_inputs(genome, inputs)[:, 0].numpy(), floats)


def with_columns(genome: Genome, count: int) -> Genome:
    """The genome in a cortex of another width: θ does not depend on it."""
    cortex = genome.config.cortex.model_copy(update={"d_hidden": count})
    return replace(genome, config=genome.config.model_copy(update={"cortex": cortex}))


def _frozen(genome: Genome) -> Genome:
    cortex = genome.config.cortex.model_copy(update={"plasticity": False})
    return replace(genome, config=genome.config.model_copy(update={"cortex": cortex}))


@dataclass(frozen=True)
class Row:
    """A genome and its peers at one rate of damage.

    Attributes:
        damage: chance of a byte's damage.
        mean: of each figure over the seeds.
        spread: its standard deviation over the seeds.
        peers: AUROC of each peer, mean and spread; empty where none were asked for.
        store_brier: Brier score of the store of equal size, Platt-scaled on synthetic streams, mean
            over the seeds; None where no peers were asked for.
    """

    damage: float
    mean: dict[str, float]
    spread: dict[str, float]
    peers: dict[str, tuple[float, float]]
    store_brier: float | None


def compare(
    genome: Genome,
    lines: Sequence[bytes],
    identities: Sequence[bytes] | None,
    damages: Sequence[float],
    seeds: Sequence[int],
    with_peers: bool,
) -> list[Row]:
    """Evaluate at several rates of damage, each with all seeds, beside the peers or not.

    Raises:
        ValueError: as ``material``.
        PeerMissing: a peer's library is not installed.
    """
    scale = store_scale(genome) if with_peers else None
    rows = []
    for fraction in damages:
        lives, peers, briers = [], [], []
        for seed in seeds if fraction else seeds[:1]:
            given = material(lines, identities, fraction, seed)
            lives.append(live_through(genome, given, fraction, seed).evaluation)
            if scale is not None:
                scores = peer_scores(genome, given)
                peers.append({name: auroc(s, given.familiar) for name, s in scores.items()})
                briers.append(brier_score(scale(scores[_STORE]), given.familiar))
        figures = [f.name for f in fields(Evaluation) if f.type == "float" and f.name != "damage"]
        values = {name: [float(getattr(life, name)) for life in lives] for name in figures}
        rows.append(
            Row(
                damage=fraction,
                mean={name: _mean_and_spread(found)[0] for name, found in values.items()},
                spread={name: _mean_and_spread(found)[1] for name, found in values.items()},
                peers={name: _mean_and_spread([p[name] for p in peers]) for name in peers[0]}
                if peers
                else {},
                store_brier=float(np.mean(briers)) if briers else None,
            )
        )
    return rows


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 unusable arguments or files."""
    options = _parser().parse_args(arguments)
    set_threads(1)
    try:
        genome = load(options.genome)
        if options.columns:
            genome = with_columns(genome, options.columns)
        if options.task == "continual":
            return _continual(genome, options)
        if options.task == "stationary":
            return _stationary(genome, options)
        return _lines(genome, options)
    except (OSError, GenomeError, PeerMissing, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return _EXIT_USAGE


def _lines(genome: Genome, options: argparse.Namespace) -> int:
    if options.lines is None:
        raise ValueError("--lines FILE is needed: the file whose lines are lived")
    identities = split_lines(options.identity.read_bytes()) if options.identity else None
    lines = split_lines(options.lines.read_bytes())
    seeds = range(options.seed, options.seed + options.seeds)
    rows = compare(genome, lines, identities, options.damage, seeds, options.peers)
    given = material(lines, identities, options.damage[0], options.seed)
    life = live_through(genome, given, options.damage[0], options.seed)
    if options.plot:
        from organism.plots import plot_life

        peers = peer_scores(genome, given) if options.peers else {}
        curves = {_CORTEX: [row.mean["auroc"] for row in rows]}
        curves |= {name: [row.peers[name][0] for row in rows] for name in rows[0].peers}
        scores = {_CORTEX: life.familiarity, **peers}
        title, rates = options.lines.name, options.damage
        plot_life(options.plot, title, given.familiar, scores, life.entropy, rates, curves)
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


@dataclass(frozen=True)
class LongLife:
    """A life of 50,000 steps in a world that does not change.

    Attributes:
        seed: of the stream.
        auroc_early: of steps 5,000 to 10,000.
        auroc_late: of the last 5,000.
        finite: whether every number of the life and of its end is.
        largest_weight: of W at the end, in size.
    """

    seed: int
    auroc_early: float
    auroc_late: float
    finite: bool
    largest_weight: float


@torch.inference_mode()
def long_life(genome: Genome, seed: int) -> LongLife:
    """Live through a stationary synthetic stream."""
    stream = sample_stream(_STATIONARY, _LONG_LIFE, random.Random(f"stationary:{seed}"))
    inputs = encode(stream.chunks, genome.config.encoder, genome.config.cortex.d_in)
    lived = live(genome, inputs.unsqueeze(1))
    logit, familiar = lived.logit[:, 0], stream.familiar
    parts = [getattr(lived.state, f.name) for f in fields(lived.state)]
    return LongLife(
        seed=seed,
        auroc_early=auroc(logit[_EARLY], familiar[_EARLY]),
        auroc_late=auroc(logit[_LATE], familiar[_LATE]),
        finite=all(bool(torch.isfinite(part).all()) for part in (logit, *parts)),
        largest_weight=float(lived.state.w.abs().max()),
    )


def _stationary(genome: Genome, options: argparse.Namespace) -> int:
    lives = [long_life(genome, options.seed + k) for k in range(options.seeds)]
    if options.json:
        rows = [asdict(life) for life in lives]
        print(to_json({"genome_sha256": genome.sha256, "rows": rows}))
        return 0
    _print_rows(f"{options.genome.name}: {_LONG_LIFE} steps in a stationary world", lives)
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
