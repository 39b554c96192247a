"""A frozen genome's life through given lines, or through a world that does not change, in figures.

A newborn cortex lives once at ρ = 0, and each chunk's familiarity is read before it is learned.
Owns the labels and what is measured; knows nothing of peers, commands or pictures.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from organism.auroc import auroc
from organism.calibration import brier_score, expected_calibration_error
from organism.config import CortexConfig
from organism.encoder import encode
from organism.genome import Genome
from organism.jit import F64
from organism.lifetime import live
from organism.tasks.streams import damage, stationary_stream

LONG_LIFE = 50_000
"""Steps of a life in a stationary world."""
_EARLY, _LATE = slice(5_000, 10_000), slice(LONG_LIFE - 5_000, LONG_LIFE)


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
    stream = stationary_stream(LONG_LIFE, random.Random(f"stationary:{seed}"))
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


def with_columns(genome: Genome, count: int) -> Genome:
    """The genome in a cortex of another width: θ does not depend on it.

    Raises:
        ValueError: fewer columns than a cortex has.
    """
    cortex = CortexConfig.model_validate({**genome.config.cortex.model_dump(), "d_hidden": count})
    return replace(genome, config=genome.config.model_copy(update={"cortex": cortex}))


def _frozen(genome: Genome) -> Genome:
    cortex = genome.config.cortex.model_copy(update={"plasticity": False})
    return replace(genome, config=genome.config.model_copy(update={"cortex": cortex}))
