"""Associative memory: an independent random target for each cue, many pairs to a lifetime.

A target cannot be computed from its cue, so that what is recalled has been remembered. Owns the
pairs, how they are shown, and a task that trains on it; `organism.lab.memory` measures with it.

Lifetimes are short, and a rule whose W grows a little with each of them scores well on newborns,
and ends in ruin after thousands of pairs; one that corrects too little never unlearns what it was
shown many times. So some lifetimes start with a full W, and some with one that knows by heart what
they are to unlearn.

A pair is shown by one step of the cortex with the target clamped (ρ = 1); a rule with phases sees
the cue freely first (ρ = 0), and learns in both. Recall has the cue alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from organism.config import GenomeConfig, Settings
from organism.cortex import CortexState, newborn, respond
from organism.genome import Genome
from organism.lifetime import live
from organism.tasks.protocol import Carry, Metrics, Outcome

_TRAINING, _HELD_OUT = range(2)
_FEWEST_PAIRS = 4
# Norms of the columns of a full cortex, 64 synapses to a column: rules settle at 3 to 9.
_OLD_NORMS = (1.0, 8.0)
_MOST_PASSES = 5
# Pairs known by heart: at most so many to an input, or no weights of a sensible size hold them; and
# how strongly they drive their targets. After five passes of a learned rule that is 1.3.
_MOST_BY_HEART = 0.75
_DRIVES = (0.5, 2.0)


class AssociationConfig(Settings):
    """Sizes of batches and lifetimes."""

    batch: int = Field(8, ge=1, le=4096, description="lifetimes of each kind, side by side")
    longest: int = Field(
        64, ge=6 * _FEWEST_PAIRS, le=4096, description="presentations of a lifetime, passes and all"
    )
    weights: tuple[float, float, float] = Field(
        (0.4, 0.4, 0.2),
        description="of lifetimes that fill a newborn, overwrite, and find a full cortex",
    )
    held_out_lifetimes: int = Field(
        16, ge=1, le=4096, description="lifetimes of each kind to a measurement"
    )

    @model_validator(mode="after")
    def _shares(self) -> AssociationConfig:
        if min(self.weights) < 0 or abs(sum(self.weights) - 1) > 1e-9:
            raise ValueError(f"weights are shares that sum to 1, got {self.weights}")
        return self


@dataclass(frozen=True)
class Pairs:
    """Pairs of each of a batch of lifetimes.

    Attributes:
        keys: cues at unit norm, ``(pairs, batch, d_in)``.
        targets: ±1, ``(pairs, batch, d_hidden)``.
    """

    keys: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, which: slice) -> Pairs:
        return Pairs(self.keys[which], self.targets[which])


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Put pairs behind each other."""
    return Pairs(torch.cat([part.keys for part in parts]), torch.cat([p.targets for p in parts]))


def draw_pairs(count: int, batch: int, genome: GenomeConfig, rng: np.random.Generator) -> Pairs:
    """Draw Gaussian keys, scaled to unit norm as a chunk's vector is, and independent ±1 targets.

    Args:
        count: pairs a lifetime.
        batch: lifetimes.
        genome: for the sizes.
        rng: source of all randomness.
    """
    d_in, d_hidden = genome.cortex.d_in, genome.cortex.d_hidden
    keys = torch.from_numpy(rng.standard_normal((count, batch, d_in), np.float32))
    return Pairs(_unit(keys), draw_targets((count, batch, d_hidden), rng))


def draw_targets(shape: tuple[int, ...], rng: np.random.Generator) -> Tensor:
    """Draw ±1 at random."""
    return torch.from_numpy(rng.choice(np.array([-1, 1], np.float32), shape))


def shown(genome: Genome, pairs: Pairs, passes: int = 1) -> tuple[Tensor, Tensor, list[float]]:
    """Lay out how pairs are shown, in their order: inputs and targets of each step, and ρ."""
    like = genome.theta["log_alpha"]
    phases = [0.0, 1.0] if genome.config.rule.phases else [1.0]
    keys, targets = (
        part.to(like).repeat_interleave(len(phases), 0).repeat(passes, 1, 1)
        for part in (pairs.keys, pairs.targets)
    )
    return keys, targets, phases * (len(pairs) * passes)


def store(genome: Genome, state: CortexState, pairs: Pairs, passes: int = 1) -> CortexState:
    """Show pairs, as often as asked, and return the cortices after it."""
    keys, targets, ratios = shown(genome, pairs, passes)
    return live(genome, keys, state, targets, ratios).state


def answer(genome: Genome, state: CortexState, keys: Tensor) -> Tensor:
    """Recall cues, ``(cues, batch, d_in)``, and return h, ``(cues, batch, d_hidden)``."""
    return respond(genome, state, keys.to(state.w))


def cosine(answers: Tensor, targets: Tensor) -> Tensor:
    """Cosine of each answer with its target, over the last axis; a zero answer's is 0."""
    return torch.nn.functional.cosine_similarity(answers, targets.to(answers), dim=-1)


def bit_error(answers: Tensor, targets: Tensor) -> Tensor:
    """Share of the bits of each target whose answer has another sign; an answer of 0 is half."""
    wrong = answers.sign() - targets.to(answers)
    return wrong.abs().mean(-1) / 2


def least_squares(pairs: Pairs) -> Tensor:
    """Find the W of least norm that errs least on pairs, ``(batch, d_in, d_hidden)`` in float64."""
    keys, targets = (part.transpose(0, 1).double() for part in (pairs.keys, pairs.targets))
    w: Tensor = torch.linalg.pinv(keys) @ targets
    return w


_Asked = tuple[Tensor, Tensor]
"""Answers and targets of what is asked after a lifetime."""


class AssociationTask:
    """One minus the cosine of what is recalled after lifetimes of three kinds, weighted."""

    def __init__(self, config: AssociationConfig, genome: GenomeConfig, seed: int) -> None:
        self._config = config
        self._genome = genome
        self._seed = seed

    def begin(self) -> Carry:
        """Lifetimes end with their outer step: nothing is carried."""
        return {}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Store the pairs of a batch of lifetimes of each kind, and recall them."""
        rng = np.random.default_rng([self._seed, _TRAINING, index])
        near, wrong = self._lived(genome, self._config.batch, rng)
        return Outcome(1 - near, {"cosine": float(near.detach()), "bit_error": wrong}, {})

    def finish(self, genome: Genome) -> Genome:
        """Nothing is left to fit."""
        return genome

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """Mean cosine and bit error over lifetimes that no outer step draws, weighted as there."""
        found = []
        for index in range(self._config.held_out_lifetimes):
            rng = np.random.default_rng([self._seed, _HELD_OUT, index])
            found.append(self._lived(genome, 1, rng))
        return {
            "held_out_cosine": fmean(float(near) for near, _ in found),
            "held_out_bit_error": fmean(wrong for _, wrong in found),
        }

    def _lived(self, genome: Genome, batch: int, rng: np.random.Generator) -> tuple[Tensor, float]:
        """Live lifetimes of each kind: the cosine and the bit error of what is asked then."""
        near, wrong = torch.zeros(()), 0.0
        kinds = self._capacity, self._overwriting, self._old_age
        for kind, weight in zip(kinds, self._config.weights, strict=True):
            if not weight:
                continue
            answers, targets = kind(genome, batch, rng)
            near = near + weight * cosine(answers, targets).mean()
            wrong += weight * float(bit_error(answers.detach(), targets).mean())
        return near, wrong

    def _capacity(self, genome: Genome, batch: int, rng: np.random.Generator) -> _Asked:
        """A newborn is shown pairs, once or up to five times, and asked for all of them."""
        passes = _drawn_passes(rng)
        count = _drawn_count(self._config.longest // passes, rng)
        pairs = draw_pairs(count, batch, self._genome, rng)
        state = store(genome, newborn(genome, batch), pairs, passes)
        return answer(genome, state, pairs.keys), pairs.targets

    def _overwriting(self, genome: Genome, batch: int, rng: np.random.Generator) -> _Asked:
        """Two cues of three are given new targets once; all are asked for, each with its latest.

        What they had before was shown in the same lifetime, or is known by heart from the start.
        Two of three, since among as many of either rules that hardly correct score as well.
        """
        by_heart = rng.random() < 0.5
        passes = 0 if by_heart else _drawn_passes(rng)
        most = 3 * self._config.longest // (3 * passes + 2)
        if by_heart:
            most = min(most, int(_MOST_BY_HEART * self._genome.cortex.d_in))
        pairs = draw_pairs(_drawn_count(most, rng), batch, self._genome, rng)
        changed = 2 * len(pairs) // 3
        fresh = draw_targets((changed, *pairs.targets.shape[1:]), rng)
        state = newborn(genome, batch)
        if by_heart:
            state = _knowing(state, pairs, rng)
        # In one piece: a lifetime that goes on from another's end has no fused gradient.
        course = joined([pairs] * passes + [Pairs(pairs.keys[:changed], fresh)])
        state = store(genome, state, course)
        targets = torch.cat([fresh, pairs.targets[changed:]])
        return answer(genome, state, pairs.keys), targets

    def _old_age(self, genome: Genome, batch: int, rng: np.random.Generator) -> _Asked:
        """A cortex full of other memories is shown pairs once, and asked for the last of them."""
        pairs = draw_pairs(self._config.longest, batch, self._genome, rng)
        state = store(genome, _filled(newborn(genome, batch), rng), pairs)
        last = pairs[-int(rng.integers(len(pairs) // 2, len(pairs) + 1)) :]
        return answer(genome, state, last.keys), last.targets


def _drawn_passes(rng: np.random.Generator) -> int:
    """Draw how often pairs are shown: once, or as often any number of times up to five."""
    return int(rng.integers(1, _MOST_PASSES + 1)) if rng.random() < 0.5 else 1


def _drawn_count(most: int, rng: np.random.Generator) -> int:
    """Draw how many pairs a lifetime has: half of those that fit into it, or more."""
    most = max(most, _FEWEST_PAIRS)
    return int(rng.integers(max(most // 2, _FEWEST_PAIRS), most + 1))


def _filled(state: CortexState, rng: np.random.Generator) -> CortexState:
    """Give newborns weights such as an old cortex has, at a size that is drawn: random ones."""
    norm = float(np.exp(rng.uniform(*np.log(_OLD_NORMS))))
    noise = torch.from_numpy(rng.standard_normal(tuple(state.w.shape), np.float32))
    return replace(state, w=state.w + norm / math.sqrt(state.w.shape[1]) * noise.to(state.w))


def _knowing(state: CortexState, pairs: Pairs, rng: np.random.Generator) -> CortexState:
    """Let cortices know pairs by heart, as after many passes, as strongly as is drawn."""
    drive = float(np.exp(rng.uniform(*np.log(_DRIVES))))
    return replace(state, w=state.w + drive * least_squares(pairs).to(state.w))


def _unit(keys: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
    return keys / norm
