"""A genome beside its peers: same features, same order, several rates and seeds of damage."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch

from organism.auroc import auroc
from organism.calibration import brier_score
from organism.cortex import centred_inputs, newborn
from organism.encoder import encode
from organism.evaluation import Evaluation, Life, Material, live_through, material
from organism.genome import Genome
from organism.jit import F64
from organism.peers import PEERS, PlattScale, Stream, strongest
from organism.tasks.streams import StreamConfig, sample_stream

_STORE = "last-k store"
# Streams that the store's scores are brought to probabilities on.
_PLATT_STREAMS, _PLATT_STEPS = 8, 1000


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


@dataclass(frozen=True)
class Comparison:
    """Rows, one a rate of damage, and the first life of the first row in full.

    Attributes:
        rows: in the order of the rates.
        given: what the first life lived through.
        life: what it gave.
        scores: of the peers on the same lines, ``(lines,)`` each; empty without peers.
    """

    rows: list[Row]
    given: Material
    life: Life
    scores: dict[str, F64]


def compare(
    genome: Genome,
    lines: Sequence[bytes],
    identities: Sequence[bytes] | None,
    damages: Sequence[float],
    seeds: Sequence[int],
    with_peers: bool,
) -> Comparison:
    """Evaluate at several rates of damage, each with all seeds, beside the peers or not.

    Args:
        genome: frozen.
        lines: in order; see ``material``.
        identities: what each line is known by; None: its text.
        damages: rates, at least one.
        seeds: of the damage, at least one; undamaged lines take the first alone.
        with_peers: whether peers are scored too.

    Raises:
        ValueError: as ``material``.
        PeerMissing: a peer's library is not installed.
    """
    scale = store_scale(genome) if with_peers else None
    rows: list[Row] = []
    first: tuple[Material, Life, dict[str, F64]] | None = None
    for fraction in damages:
        lives, peers, briers = [], [], []
        for seed in seeds if fraction else seeds[:1]:
            given = material(lines, identities, fraction, seed)
            life, scores = live_through(genome, given, fraction, seed), {}
            lives.append(life.evaluation)
            if scale is not None:
                scores = peer_scores(genome, given)
                peers.append({name: auroc(s, given.familiar) for name, s in scores.items()})
                briers.append(brier_score(scale(scores[_STORE]), given.familiar))
            first = first or (given, life, scores)
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
    assert first is not None
    return Comparison(rows, *first)


def _mean_and_spread(values: Sequence[float]) -> tuple[float, float]:
    return float(np.mean(values)), float(np.std(values))


def peer_scores(genome: Genome, given: Material) -> dict[str, F64]:
    """Score lines by the genome's peers, on its features; each ``(lines,)``.

    Args:
        genome: whose encoder, centring and state size the peers share.
        given: the lines.

    Raises:
        PeerMissing: a peer's library is not installed.
    """
    stream = _stream(genome, given)
    return {name: strongest(peer, stream, given.familiar) for name, peer in PEERS.items()}


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
    floats = newborn(genome).float_count
    return Stream(given.chunks, centred_inputs(genome, inputs)[:, 0].numpy(), floats)
