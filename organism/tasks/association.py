"""Associative memory: an independent random target for each cue, many pairs to a lifetime.

A target cannot be computed from its cue, so that what is recalled has been remembered. Owns the
pairs, how they are shown, and a task that trains on it; `organism.lab.memory` measures with it.

A pair is shown by one step of the cortex with the target clamped (ρ = 1); a rule with phases sees
the cue freely first (ρ = 0), and learns in both. Recall has the cue alone.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from organism.config import GenomeConfig, Settings
from organism.cortex import CortexState, newborn, recall
from organism.genome import Genome
from organism.lifetime import live
from organism.tasks.protocol import Carry, Metrics, Outcome

_TRAINING, _HELD_OUT = range(2)
_FEWEST_PAIRS = 4
# Of the drive that random weights give a unit key: about what a full cortex gives.
_OLD_WEIGHTS = (0.5, 1.5)
_MOST_PASSES = 5


class AssociationConfig(Settings):
    """Sizes of batches and lifetimes."""

    batch: int = Field(16, ge=1, le=4096, description="lifetimes side by side")
    longest: int = Field(
        64, ge=2 * _FEWEST_PAIRS, le=4096, description="presentations of a lifetime, passes and all"
    )
    kinds: tuple[float, float, float] = Field(
        (0.4, 0.2, 0.4),
        description="chances of lifetimes that fill a newborn, overwrite, or find a full cortex",
    )
    held_out_lifetimes: int = Field(48, ge=1, le=4096, description="lifetimes to a measurement")

    @model_validator(mode="after")
    def _chances(self) -> AssociationConfig:
        if min(self.kinds) < 0 or abs(sum(self.kinds) - 1) > 1e-9:
            raise ValueError(f"kinds are chances that sum to 1, got {self.kinds}")
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
    return recall(genome, state, keys.to(state.w)).h


def cosine(answers: Tensor, targets: Tensor) -> Tensor:
    """Cosine of each answer with its target, over the last axis; a zero answer's is 0."""
    return torch.nn.functional.cosine_similarity(answers, targets.to(answers), dim=-1)


def bit_error(answers: Tensor, targets: Tensor) -> Tensor:
    """Share of the bits of each target whose answer has another sign; an answer of 0 is half."""
    wrong = answers.sign() - targets.to(answers)
    return wrong.abs().mean(-1) / 2


class AssociationTask:
    """One minus the cosine of what is recalled of all pairs of a lifetime."""

    def __init__(self, config: AssociationConfig, genome: GenomeConfig, seed: int) -> None:
        self._config = config
        self._genome = genome
        self._seed = seed

    def begin(self) -> Carry:
        """Lifetimes end with their outer step: nothing is carried."""
        return {}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Store the pairs of a batch of lifetimes, and recall them."""
        rng = np.random.default_rng([self._seed, _TRAINING, index])
        answers, targets = self._lived(genome, self._config.batch, rng)
        near = cosine(answers, targets).mean()
        metrics = {"bit_error": float(bit_error(answers.detach(), targets).mean())}
        return Outcome(1 - near, {"cosine": float(near.detach())} | metrics, {})

    def finish(self, genome: Genome) -> Genome:
        """Nothing is left to fit."""
        return genome

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """Mean cosine and bit error over lifetimes of all kinds that no outer step draws."""
        near, wrong = [], []
        for kind in range(self._config.held_out_lifetimes):
            rng = np.random.default_rng([self._seed, _HELD_OUT, kind])
            answers, targets = self._lived(genome, 1, rng)
            near.append(float(cosine(answers, targets).mean()))
            wrong.append(float(bit_error(answers, targets).mean()))
        return {
            "held_out_cosine": sum(near) / len(near),
            "held_out_bit_error": sum(wrong) / len(wrong),
        }

    def _lived(self, genome: Genome, batch: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Live a lifetime of the kind that is drawn; answers and targets of what is asked then."""
        kind = rng.choice(3, p=self._config.kinds)
        return (self._capacity, self._overwriting, self._old_age)[kind](genome, batch, rng)

    def _capacity(
        self, genome: Genome, batch: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A newborn is shown pairs, once or up to five times, and asked for all of them."""
        passes = int(rng.integers(1, _MOST_PASSES + 1)) if rng.random() < 0.5 else 1
        most = max(self._config.longest // passes, _FEWEST_PAIRS)
        pairs = draw_pairs(int(rng.integers(_FEWEST_PAIRS, most + 1)), batch, self._genome, rng)
        state = store(genome, newborn(genome, batch), pairs, passes)
        return answer(genome, state, pairs.keys), pairs.targets

    def _overwriting(
        self, genome: Genome, batch: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """Half of the cues are given new targets; all are asked for, each with its latest."""
        count = int(rng.integers(_FEWEST_PAIRS, 2 * self._config.longest // 3 + 1))
        pairs = draw_pairs(count, batch, self._genome, rng)
        changed = count // 2
        fresh = draw_targets((changed, *pairs.targets.shape[1:]), rng)
        state = store(genome, newborn(genome, batch), pairs)
        state = store(genome, state, Pairs(pairs.keys[:changed], fresh))
        targets = torch.cat([fresh, pairs.targets[changed:]])
        return answer(genome, state, pairs.keys), targets

    def _old_age(
        self, genome: Genome, batch: int, rng: np.random.Generator
    ) -> tuple[Tensor, Tensor]:
        """A cortex full of other memories is shown pairs once, and asked for the last of them."""
        pairs = draw_pairs(self._config.longest, batch, self._genome, rng)
        state = store(genome, _filled(newborn(genome, batch), rng), pairs)
        last = pairs[-int(rng.integers(len(pairs) // 4, len(pairs) + 1)) :]
        return answer(genome, state, last.keys), last.targets


def _filled(state: CortexState, rng: np.random.Generator) -> CortexState:
    """Give newborns weights such as an old cortex has, at a size that is drawn: random ones."""
    size = rng.uniform(*_OLD_WEIGHTS) / np.sqrt(state.w.shape[1])
    noise = torch.from_numpy(rng.standard_normal(tuple(state.w.shape), np.float32))
    return replace(state, w=state.w + float(size) * noise.to(state.w))


def _unit(keys: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(keys, dim=-1, keepdim=True)
    return keys / norm
