"""Evaluation of a frozen genome on the lines of a real file: ``python -m organism.evaluate``.

The cortex is newborn and lives through the file once at ρ = 0; each line's familiarity is read
before it is learned. Owns the labels and the figures; trains nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from organism.auroc import auroc
from organism.chunking import split_lines
from organism.encoder import encode
from organism.figures import to_json
from organism.fused import set_threads
from organism.genome import Genome, GenomeError, load
from organism.lifetime import live
from organism.tasks.streams import damage

_EXIT_USAGE = 2


@dataclass(frozen=True)
class Evaluation:
    """Figures of one life through one file; an AUROC is NaN where one class is missing.

    Attributes:
        auroc: of familiarity, positive = familiar.
        auroc_frozen: the same with α = 0: W stays innate, means, memories and calibration still
            run.
        auroc_entropy: of −H, never flipped.
        brier: mean squared difference between familiarity and label.
        familiarity_familiar: mean familiarity of familiar lines; ``familiarity_novel``: of novel
            ones.
        state_floats: floats the cortex carries: W, memories, mean, β and calibration.
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
    familiarity_familiar: float
    familiarity_novel: float
    state_floats: int
    lines: int
    familiar_fraction: float
    damage: float
    seed: int
    genome_sha256: str


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


@torch.inference_mode()
def evaluate(
    genome: Genome,
    lines: Sequence[bytes],
    identities: Sequence[bytes] | None = None,
    damaged_fraction: float = 0.0,
    seed: int = 0,
) -> Evaluation:
    """Live through lines and measure how well familiarity tells lived ones from new ones.

    Args:
        genome: frozen.
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
    familiar = label([identities[i] for i in kept])
    rng = random.Random(f"damage:{seed}")
    chunks = [damage(lines[i], damaged_fraction, rng) for i in kept]
    inputs = encode(chunks, genome.config.encoder, genome.config.cortex.d_in).unsqueeze(1)
    lived = live(genome, inputs)
    frozen = _frozen(genome)
    positive = torch.tensor(familiar)
    familiarity = torch.sigmoid(lived.logit[:, 0])
    return Evaluation(
        auroc=_column_auroc(lived.logit, positive),
        auroc_frozen=_column_auroc(live(frozen, inputs).logit, positive),
        auroc_entropy=_column_auroc(-lived.entropy, positive),
        brier=float((familiarity - positive.float()).square().mean()),
        familiarity_familiar=float(familiarity[positive].mean()),
        familiarity_novel=float(familiarity[~positive].mean()),
        state_floats=lived.state.float_count,
        lines=len(chunks),
        familiar_fraction=sum(familiar) / len(familiar),
        damage=damaged_fraction,
        seed=seed,
        genome_sha256=genome.sha256,
    )


def _frozen(genome: Genome) -> Genome:
    cortex = genome.config.cortex.model_copy(update={"plasticity": False})
    return replace(genome, config=genome.config.model_copy(update={"cortex": cortex}))


def _column_auroc(scores: Tensor, positive: Tensor) -> float:
    return auroc(scores[:, 0].numpy(), positive.numpy())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 done, 2 unusable arguments or files."""
    options = _parser().parse_args(arguments)
    set_threads(1)
    try:
        identities = split_lines(options.identity.read_bytes()) if options.identity else None
        lines = split_lines(options.lines.read_bytes())
        result = evaluate(load(options.genome), lines, identities, options.damage, options.seed)
    except (OSError, GenomeError, ValueError) as error:
        print(f"evaluate: {error}", file=sys.stderr)
        return _EXIT_USAGE
    figures = asdict(result)
    if options.json:
        print(to_json(figures))
        return 0
    table = Table(title=f"{options.genome.name} on {options.lines.name}")
    table.add_column("figure")
    table.add_column("value", justify="right")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m organism.evaluate", description=__doc__)
    parser.add_argument("--genome", type=Path, required=True, help="genome file")
    parser.add_argument("--lines", type=Path, required=True, help="file whose lines are lived")
    parser.add_argument(
        "--identity",
        type=Path,
        help="file whose line t says what line t of --lines is known by (default: its text)",
    )
    parser.add_argument(
        "--damage",
        type=_fraction,
        default=0.0,
        help="chance that a byte is replaced by a random printable one, after labelling",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction from 0 to 1, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
