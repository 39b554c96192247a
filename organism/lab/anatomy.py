"""The anatomy of a learned rule: where it is asked, what it answers there, and what rule that is.

Owns the samples of a rule's inputs and what is fitted to its answers; `organism.lab.atlas` draws.
All in the scaled units that the rule sees (``organism.rules``): each input is of unit size.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from organism.cortex import newborn, step
from organism.encoder import encode
from organism.genome import Genome
from organism.rules import CLAMPED, FREE, NAMED_RULES, Powers, Theta, at_phase, make_rule
from organism.tasks.association import draw_pairs, shown
from organism.tasks.projection import ProjectionConfig, ProjectionTask, falling
from organism.tasks.streams import StreamConfig, sample_stream

World = Literal["familiarity", "projection", "association"]
WORLDS: tuple[World, ...] = ("familiarity", "projection", "association")

REACH = 2.0
"""Half the side of the box in which a rule is drawn: two standard deviations of its inputs."""

_LIVES = 4
_STEPS = {"familiarity": 400, "projection": 5, "association": 64}
_KEPT_A_STEP = 64
_BOX_POINTS = 20_000
_NEAR_ZERO = 0.25
_LARGE = 1.0
_BOOTSTRAPS = 200
_INTERVAL = (2.5, 97.5)
_REGRESSORS: tuple[Powers, ...] = ((1, 1, 0), (0, 0, 1), (0, 0, 0))
_ROOT_POINTS = 601
_MOST_TERMS = 6
_HIGHEST: Powers = (3, 3, 3)
_HIGHEST_DEGREE = 4


@dataclass(frozen=True)
class Sample:
    """Inputs of a rule at synapses, and its answers, ``(points,)`` each, in double precision."""

    pre: Tensor
    post: Tensor
    w: Tensor
    delta: Tensor

    def __len__(self) -> int:
        return len(self.delta)

    def where(self, chosen: Tensor) -> Sample:
        """Points that are chosen by a mask or by their indices."""
        return Sample(self.pre[chosen], self.post[chosen], self.w[chosen], self.delta[chosen])

    def term(self, powers: Powers) -> Tensor:
        """pre^a·post^b·w^m at each point."""
        a, b, m = powers
        return self.pre**a * self.post**b * self.w**m


@dataclass(frozen=True)
class Fit:
    """A coefficient with its 95% interval (bootstrap over points)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


@dataclass(frozen=True)
class FixedPoint:
    """A weight at which one synapse stays, given its activities, and whether it returns there."""

    pre: float
    post: float
    w: float
    stable: bool


def faces(genome: Genome) -> dict[str, Theta]:
    """The rules that a genome has: one, or with phases one for each of them."""
    if not genome.config.rule.phases:
        return {"": genome.theta}
    return {
        "clamped": at_phase(genome.theta, CLAMPED),
        "free": at_phase(genome.theta, FREE),
    }


def answers(genome: Genome, theta: Theta, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
    """G at points, ``(points,)`` each; post is clamped as the genome has it."""
    rule, clamp = make_rule(genome.config.rule), genome.config.rule.post_clamp
    if clamp:
        post = post.clamp(-clamp, clamp)
    like = theta["log_alpha"]
    pre, post = (x.to(like).reshape(-1, 1) for x in (pre, post))
    found = rule(theta, pre, post, w.to(like).reshape(-1, 1, 1))
    return found.detach().flatten().double()


def box(genome: Genome, theta: Theta, seed: int = 0) -> Sample:
    """Points drawn uniformly from the box in which the rule is drawn."""
    draws = np.random.default_rng(seed).uniform(-REACH, REACH, (3, _BOX_POINTS))
    pre, post, w = (torch.from_numpy(row) for row in draws)
    return Sample(pre, post, w, answers(genome, theta, pre, post, w))


class _Recorder:
    """A rule that is another, and keeps some of the synapses that it is asked at."""

    def __init__(self, genome: Genome, rng: np.random.Generator) -> None:
        self._rule = make_rule(genome.config.rule)
        self._rng = rng
        self.kept: list[tuple[Tensor, ...]] = []

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw as the other does."""
        return self._rule.initial(generator)

    def __call__(self, theta: Theta, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
        """Answer as the other does."""
        delta = self._rule(theta, pre, post, w)
        batch, d_in, d_hidden = w.shape
        b = torch.arange(batch).repeat_interleave(_KEPT_A_STEP)
        i = torch.from_numpy(self._rng.integers(0, d_in, len(b)))
        j = torch.from_numpy(self._rng.integers(0, d_hidden, len(b)))
        self.kept.append((pre[b, i], post[b, j], w[b, i, j], delta[b, i, j]))
        return delta


@torch.no_grad()
def visited(genome: Genome, world: World, seed: int = 0) -> dict[str, Sample]:
    """Points at which the rule is asked while it lives, by face.

    Args:
        genome: the rule.
        world: what it lives through: synthetic streams at ρ = 0, the original's pairs with a
            teacher, or random pairs in both phases.
        seed: of lives and of the synapses that are kept.
    """
    rng = np.random.default_rng([seed, WORLDS.index(world)])
    inputs, target, ratios = _world(genome, world, seed, rng)
    recorders = {name: _Recorder(genome, rng) for name in faces(genome)}
    state = newborn(genome, inputs.shape[1])
    for t, (e, ratio) in enumerate(zip(inputs, ratios, strict=True)):
        recorder = recorders.get("clamped" if ratio else "free") or recorders[""]
        y = None if target is None else target[t]
        state, _ = step(genome, state, e, y, ratio, recorder)
    return {
        name: Sample(*(torch.cat(part).double() for part in zip(*recorder.kept, strict=True)))
        for name, recorder in recorders.items()
        if recorder.kept
    }


def _world(
    genome: Genome, world: World, seed: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor | None, Sequence[float]]:
    """Inputs ``(steps, lives, d_in)``, targets at each step, and ρ."""
    like, steps = genome.theta["log_alpha"], _STEPS[world]
    if world == "familiarity":
        streams = [
            sample_stream(StreamConfig(), steps, random.Random(f"anatomy:{seed}:{k}"))
            for k in range(_LIVES)
        ]
        flat = [chunk for stream in streams for chunk in stream.chunks]
        vectors = encode(flat, genome.config.encoder, genome.config.cortex.d_in)
        return vectors.view(_LIVES, steps, -1).transpose(0, 1).to(like), None, [0.0] * steps
    if world == "projection":
        cues, targets = ProjectionTask(ProjectionConfig(), genome.config, seed).fresh
        return (
            cues.expand(steps, -1, -1).to(like),
            targets.expand(steps, -1, -1).to(like),
            falling(steps),
        )
    return shown(genome, draw_pairs(steps, _LIVES, genome.config, rng))


def coefficient(sample: Sample, powers: Powers, seed: int = 0) -> Fit:
    """Coefficient of pre·post, w or 1 when all three are fitted together, with its interval.

    Together, since where a rule lives they are correlated: w is what pre and post have made of it.
    """
    x = torch.stack([sample.term(p) for p in _REGRESSORS], 1).numpy()
    y, place = sample.delta.numpy(), _REGRESSORS.index(powers)
    rng = np.random.default_rng(seed)

    def solved(chosen: Any) -> float:
        rows, answers = x[chosen], y[chosen]
        return float(np.linalg.lstsq(rows.T @ rows, rows.T @ answers, rcond=None)[0][place])

    found = [solved(rng.integers(0, len(y), len(y))) for _ in range(_BOOTSTRAPS)]
    low, high = np.percentile(found, _INTERVAL)
    return Fit(solved(slice(None)), float(low), float(high))


def hebbian(sample: Sample) -> Fit:
    """Coefficient of pre·post where w is near zero [D26 §8.4]."""
    return coefficient(sample.where(sample.w.abs() < _NEAR_ZERO), (1, 1, 0))


def decay(sample: Sample) -> Fit:
    """Coefficient of w where it is large [D26 §8.4]."""
    return coefficient(sample.where(sample.w.abs() > _LARGE), (0, 0, 1))


def projections(sample: Sample) -> dict[str, tuple[float, float]]:
    """Each named rule scaled to fit best: its factor, and the R² that it reaches alone."""
    found = {}
    for name, rule in NAMED_RULES.items():
        x = torch.stack([c * sample.term(powers) for powers, c in rule.items()]).sum(0)
        factor = float(x @ sample.delta / (x @ x))
        found[name] = factor, r_squared(factor * x, sample.delta)
    return found


def r_squared(found: Tensor, true: Tensor) -> float:
    """One minus the squared error, of the sum of squares: an answer of zero is the naive one."""
    return float(1 - (found - true).square().sum() / true.square().sum())


def distilled(sample: Sample, terms: int = _MOST_TERMS) -> dict[Powers, float]:
    """At most so many terms that together come closest to the answers.

    Orthogonal matching pursuit (Pati, Rezaiifar & Krishnaprasad, Asilomar 1993), then each term in
    turn is exchanged for any other as long as that comes closer.

    Args:
        sample: of the rule.
        terms: how many.

    Returns:
        Coefficients by the powers of pre, post and w.
    """
    of_pre, of_post, of_w = (range(bound + 1) for bound in _HIGHEST)
    every = [p for p in product(of_pre, of_post, of_w) if sum(p) <= _HIGHEST_DEGREE]
    columns = torch.stack([sample.term(powers) for powers in every], 1)
    norms = columns.square().mean(0).sqrt()
    columns = columns / norms
    gram, moments = columns.T @ columns, columns.T @ sample.delta

    def solved(chosen: Sequence[int]) -> tuple[Tensor, float]:
        picked = torch.tensor(chosen)
        found = torch.linalg.lstsq(gram[picked][:, picked], moments[picked].unsqueeze(1)).solution
        return found.squeeze(1), float(moments[picked] @ found.squeeze(1))

    chosen: list[int] = []
    while len(chosen) < terms:
        others = [k for k in range(len(every)) if k not in chosen]
        chosen.append(max(others, key=lambda k: solved([*chosen, k])[1]))
    for _ in range(terms):
        before = solved(chosen)[1]
        for place in range(terms):
            rest = chosen[:place] + chosen[place + 1 :]
            others = [k for k in range(len(every)) if k not in rest]
            chosen = [*rest, max(others, key=lambda k: solved([*rest, k])[1])]
        if solved(chosen)[1] <= before * (1 + 1e-9):
            break
    coefficients, _ = solved(chosen)
    return {every[k]: float(c / norms[k]) for k, c in zip(chosen, coefficients, strict=True)}


def form(terms: Mapping[Powers, float], sample: Sample) -> Tensor:
    """What a sum of terms answers at the points of a sample."""
    return torch.stack([c * sample.term(powers) for powers, c in terms.items()]).sum(0)


def fixed_points(genome: Genome, theta: Theta, pre: float, post: float) -> list[FixedPoint]:
    """Weights in twice the box at which G(pre, post, w) = 0; stable where it falls through zero."""
    w = torch.linspace(-2 * REACH, 2 * REACH, _ROOT_POINTS, dtype=torch.float64)
    g = answers(genome, theta, torch.full_like(w, pre), torch.full_like(w, post), w)
    found = []
    for k in range(len(w) - 1):
        if g[k] == 0 or g[k] * g[k + 1] < 0:
            share = float(g[k] / (g[k] - g[k + 1])) if g[k] != g[k + 1] else 0.0
            place = float(w[k] + share * (w[k + 1] - w[k]))
            found.append(FixedPoint(pre, post, place, bool(g[k + 1] < g[k])))
    return found
