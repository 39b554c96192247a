"""The field's protocol of continual familiarity: random vectors that recur once, at a known lag.

Each step shows a random ±1 vector: with probability one half the one of ``lag`` steps ago, if that
was new then, and else a new one; two thirds are new. The question is which (Tyulmankov, Yang &
Abbott, "Meta-learning synaptic plasticity and memory addressing for continual familiarity
detection", Neuron 2022). Owns the sequences, a task that trains on them, and the measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from organism.auroc import auroc
from organism.config import GenomeConfig, Settings
from organism.genome import Genome
from organism.jit import F32
from organism.lifetime import live
from organism.tasks.protocol import Carry, Metrics, Outcome

Bools = npt.NDArray[np.bool_]

_TRAINING, _HELD_OUT, _THRESHOLD, _TEST = range(4)
_LEAST_STEPS = 5000


class ContinualConfig(Settings):
    """Sizes of batches and lifetimes."""

    batch: int = Field(16, ge=2, le=4096, description="lifetimes side by side")
    steps: int = Field(200, ge=2, le=10_000, description="length of a lifetime")
    longest_lag: int = Field(40, ge=1, le=1000, description="lags are drawn from 1 to this")
    held_out_sequences: int = Field(8, ge=1, le=1024, description="held-out lifetimes")


@dataclass(frozen=True)
class Shown:
    """One lifetime's inputs, ``(steps, d_in)``, and whether each recurs, ``(steps,)``."""

    inputs: F32
    familiar: list[bool]


def sample_sequence(d_in: int, steps: int, lag: int, rng: np.random.Generator) -> Shown:
    """Draw a sequence.

    Args:
        d_in: width of the vectors.
        steps: how many.
        lag: between a vector and its repetition, R.
        rng: source of all randomness.
    """
    inputs = rng.choice(np.array([-1, 1], np.float32), (steps, d_in))
    recurs = rng.random(steps) < 0.5
    familiar: list[bool] = []
    for t in range(steps):
        again = bool(t >= lag and not familiar[t - lag] and recurs[t])
        if again:
            inputs[t] = inputs[t - lag]
        familiar.append(again)
    return Shown(inputs, familiar)


class ContinualTask:
    """Binary cross-entropy of familiarity on whole lifetimes, each with a lag of its own."""

    def __init__(self, config: ContinualConfig, genome: GenomeConfig, seed: int) -> None:
        self._config = config
        self._width = genome.cortex.d_in
        self._seed = seed

    def begin(self) -> Carry:
        """Lifetimes end with their outer step: nothing is carried."""
        return {}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Live through a batch of sequences."""
        logit, familiar = self._lived(genome, self._config.batch, [_TRAINING, index])
        loss = binary_cross_entropy_with_logits(logit, familiar)
        metrics = {"auroc": auroc(logit.detach().cpu().flatten(), familiar.cpu().flatten())}
        return Outcome(loss, metrics, {})

    def finish(self, genome: Genome) -> Genome:
        """Nothing is left to fit."""
        return genome

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """AUROC and cross-entropy on lifetimes that no outer step draws."""
        logit, familiar = self._lived(genome, self._config.held_out_sequences, [_HELD_OUT])
        return {
            "held_out_auroc": auroc(logit.cpu().flatten(), familiar.cpu().flatten()),
            "held_out_cross_entropy": float(binary_cross_entropy_with_logits(logit, familiar)),
        }

    def _lived(self, genome: Genome, count: int, key: list[int]) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng([self._seed, *key])
        lags = rng.integers(1, self._config.longest_lag + 1, count)
        drawn = [sample_sequence(self._width, self._config.steps, lag, rng) for lag in lags]
        inputs = torch.from_numpy(np.stack([s.inputs for s in drawn], axis=1))
        familiar = torch.tensor([s.familiar for s in drawn]).T
        like = genome.theta["log_alpha"]
        return live(genome, inputs.to(like)).logit, familiar.to(like)


@dataclass(frozen=True)
class ContinualScore:
    """How a genome did at one lag and length.

    Attributes:
        lag: R.
        steps: T.
        accuracy: share of right answers.
        hit_rate: share of repetitions called familiar.
        false_alarm_rate: share of new vectors called familiar.
    """

    lag: int
    steps: int
    accuracy: float
    hit_rate: float
    false_alarm_rate: float


@torch.inference_mode()
def measure(
    genome: Genome, lags: Sequence[int], lengths: Sequence[int], seed: int = 0
) -> tuple[float, list[ContinualScore]]:
    """Fix a threshold on held-out sequences, then measure on others.

    Args:
        genome: frozen.
        lags: each is measured over max(5000, 20·lag) steps.
        lengths: each is measured at the first lag.
        seed: of the sequences.

    Returns:
        The threshold on the log-odds, one for all, and the scores.
    """
    runs = [(lag, max(_LEAST_STEPS, 20 * lag)) for lag in lags]
    runs += [(lags[0], length) for length in lengths]
    rng = np.random.default_rng([seed, _THRESHOLD])
    drawn = [_answered(genome, lag, _LEAST_STEPS, rng) for lag in lags]
    threshold = best_threshold(
        np.concatenate([logit for logit, _ in drawn]),
        np.concatenate([familiar for _, familiar in drawn]),
    )
    rng = np.random.default_rng([seed, _TEST])
    return threshold, [_score(genome, lag, steps, threshold, rng) for lag, steps in runs]


def best_threshold(logit: F32, familiar: Bools) -> float:
    """Find the threshold with the most right answers, halfway between its neighbours.

    Args:
        logit: ``(n,)``.
        familiar: ``(n,)``.

    >>> best_threshold(np.array([-3.0, 1.0, 2.0]), np.array([False, False, True]))
    1.5
    """
    order = np.argsort(logit, kind="stable")
    values, labels = logit[order], familiar[order]
    # Below the first, between each two, above the last.
    rejected = np.concatenate([[0], np.cumsum(~labels)])
    accepted = np.concatenate([np.cumsum(labels[::-1])[::-1], [0]])
    bounds = np.concatenate([[values[0] - 1], (values[1:] + values[:-1]) / 2, [values[-1] + 1]])
    return float(bounds[(rejected + accepted).argmax()])


def _answered(genome: Genome, lag: int, steps: int, rng: np.random.Generator) -> tuple[F32, Bools]:
    sequence = sample_sequence(genome.config.cortex.d_in, steps, lag, rng)
    lived = live(genome, torch.from_numpy(sequence.inputs).unsqueeze(1))
    return lived.logit[:, 0].numpy(), np.array(sequence.familiar)


def _score(
    genome: Genome, lag: int, steps: int, threshold: float, rng: np.random.Generator
) -> ContinualScore:
    logit, familiar = _answered(genome, lag, steps, rng)
    called = logit > threshold
    return ContinualScore(
        lag=lag,
        steps=steps,
        accuracy=float((called == familiar).mean()),
        hit_rate=float(called[familiar].mean()) if familiar.any() else float("nan"),
        false_alarm_rate=float(called[~familiar].mean()),
    )
