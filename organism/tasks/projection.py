"""The original's task: recall a fixed random projection of the cue [D26 §5.4].

The target is a function of the cue, the same for all tasks: this measures regression by
plasticity, not memory. Targets have a mean square near 0.03, so an MSE says little: NMSE = MSE /
mean(target²) is reported beside it, 1 for the answer zero.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from organism.config import GenomeConfig, Settings
from organism.cortex import CortexState, newborn
from organism.encoder import encode
from organism.genome import Genome
from organism.lifetime import Lifetime, live
from organism.tasks.protocol import Carry, Metrics, Outcome

_MEMORIES = ("short_term", "long_term")


class ProjectionConfig(Settings):
    """Sizes of the bank and of a lifetime."""

    bank: int = Field(10, ge=1, le=4096, description="fixed training pairs [D26 §6.4: 10]")
    fresh: int = Field(100, ge=1, le=4096, description="pairs never trained on, for validation")
    cue_bytes: int = Field(
        10, ge=1, le=4096, description="length of a cue; the original gives none"
    )
    inner_steps: int = Field(5, ge=1, le=1000, description="steps of a lifetime [D26 §6.4: 5]")
    teacher_forcing: bool = Field(
        True, description="ρ falls from 1 to 0 over a lifetime [D26 §5.2]; off: 0 throughout"
    )
    leaking: bool = Field(
        False, description="memories outlive their lifetime, as [D26 §6.3] forbids"
    )
    whole_bank: bool = Field(
        False, description="every pair in each outer step; off: one pair, in turn [D26 App. D]"
    )


def falling(steps: int) -> list[float]:
    """ρ of each step of a lifetime, from the teacher's 1 to 0 [D26 §5.2]; 1 for a single step."""
    return [1 - t / max(steps - 1, 1) for t in range(steps)]


class ProjectionTask:
    """A bank of (cue, target) pairs; target = tanh(P·e) with P at the scale of torch's Linear.

    Attributes:
        bank: cues ``(bank, d_in)`` and targets ``(bank, d_hidden)`` to train on.
        fresh: the same, never trained on.
    """

    def __init__(self, config: ProjectionConfig, genome: GenomeConfig, seed: int) -> None:
        self._config = config
        draws = np.random.default_rng([seed, 0])
        d_in, d_hidden = genome.cortex.d_in, genome.cortex.d_hidden
        bound = 1 / math.sqrt(d_in)
        projection = draws.uniform(-bound, bound, (d_in, d_hidden)).astype(np.float32)
        cues = [draws.bytes(config.cue_bytes) for _ in range(config.bank + config.fresh)]
        encoded = encode(cues, genome.encoder, d_in)
        targets = torch.tanh(encoded @ torch.from_numpy(projection))
        self.bank = encoded[: config.bank], targets[: config.bank]
        self.fresh = encoded[config.bank :], targets[config.bank :]

    def begin(self) -> Carry:
        """Carry nothing: the first lifetime starts newborn, as do all unless memories leak."""
        return {}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Live through the bank, or through its pair of turn ``index``, and measure the recall."""
        pairs = self.bank
        if not self._config.whole_bank:
            turn = index % self._config.bank
            pairs = pairs[0][turn : turn + 1], pairs[1][turn : turn + 1]
        loss, nmse, end = self._recall_error(genome, *pairs, carry)
        kept = {name: getattr(end, name).detach() for name in _MEMORIES}
        metrics = {"nmse": float(nmse.detach())}
        return Outcome(loss, metrics, kept if self._config.leaking else {})

    def finish(self, genome: Genome) -> Genome:
        """Nothing is left to fit."""
        return genome

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """Errors on the bank and on fresh pairs, raw and normalised, and that of answering zero."""
        bank_mse, bank_nmse, _ = self._recall_error(genome, *self.bank, {})
        fresh_mse, fresh_nmse, _ = self._recall_error(genome, *self.fresh, {})
        return {
            "bank_mse": float(bank_mse),
            "bank_nmse": float(bank_nmse),
            "fresh_mse": float(fresh_mse),
            "fresh_nmse": float(fresh_nmse),
            "zero_mse": float(self.bank[1].square().mean()),
        }

    def learn(self, genome: Genome, cues: Tensor, targets: Tensor, memories: Carry) -> Lifetime:
        """Live a lifetime for each pair, ρ falling from 1 to 0 or 0 throughout [D26 §5.2].

        At its end it is asked for its cue once more.

        Args:
            genome: the rule.
            cues: ``(batch, d_in)``.
            targets: ``(batch, d_hidden)``.
            memories: fields of the state to start from that are not a newborn's.
        """
        steps = self._config.inner_steps
        ratios = falling(steps) if self._config.teacher_forcing else [0.0] * steps
        start = replace(newborn(genome, len(cues)), **memories)
        return live(genome, cues.expand(steps, -1, -1), start, targets, ratios, cues)

    def _recall_error(
        self, genome: Genome, cues: Tensor, targets: Tensor, memories: Carry
    ) -> tuple[Tensor, Tensor, CortexState]:
        """MSE and NMSE at recall after a lifetime [D26 §5.2], and the cortices then."""
        like = genome.theta["log_alpha"]
        cues, targets = cues.to(like), targets.to(like)
        lived = self.learn(genome, cues, targets, memories)
        mse = mse_loss(lived.answer, targets)
        return mse, mse / targets.square().mean(), lived.state
