"""Continual familiarity: was this chunk lived through before? Learned at ρ = 0.

A batch of lifetimes runs on from one outer step to the next, a segment at a time (truncated
backpropagation through time), until each life's drawn length is over and a newborn takes its
place: gradients see short segments, the genome sees cortices of every age. The loss is the binary
cross-entropy of each chunk's familiarity before it is learned; of how each lived chunk ranks
against each new one of its segment, the smooth counterpart of AUROC; and, at each segment's end,
of cues as ``/recall`` gets them: lived chunks, chunks of the same world that were never lived, and
chunks of other worlds. A batch may be shared between cortices of several widths, so that one
genome serves them all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from organism.auroc import auroc
from organism.calibration import expected_calibration_error
from organism.config import GenomeConfig, Settings
from organism.cortex import CortexState, newborn, recall, step
from organism.encoder import encode
from organism.genome import Genome
from organism.lifetime import live
from organism.recruitment import evidence, features, log_odds
from organism.tasks.protocol import Carry, Metrics, Outcome
from organism.tasks.streams import Stream, StreamConfig, sample_stream

_CONDITIONS = ("plain", "damaged", "stamped")
_DAMAGE = 0.05
_PAIRS = 2000
_RIDGE = 1e-4


class FamiliarityConfig(Settings):
    """Sizes of batches, segments and lifetimes."""

    streams: StreamConfig = StreamConfig()
    batch: int = Field(16, ge=2, le=4096, description="lifetimes side by side")
    segment_steps: int = Field(50, ge=1, le=10_000, description="steps of an outer step")
    longest_life: int = Field(
        1000, ge=1, le=100_000, description="lives last log-uniformly from one segment to this"
    )
    widths: tuple[int, ...] = Field(
        (), description="columns of cortices that share a batch, the genome's own among them"
    )
    ranking_weight: float = Field(0.0, ge=0, description="weight of the ranking loss")
    probes: int = Field(12, ge=0, le=1024, description="cues of each kind asked at a segment's end")
    probe_weight: float = Field(1.5, ge=0, description="weight of the probes' loss")
    probe_span: int = Field(100, ge=1, description="lived cues are among the last this many chunks")
    fitted_streams: int = Field(
        0, ge=0, le=4096, description="lifetimes that the readout is fitted on at the end; 0: none"
    )
    fitted_steps: int = Field(1500, ge=2, le=100_000, description="their length")
    held_out_seed: int = Field(
        1000, ge=0, description="seed of the held-out streams, the same for all that are compared"
    )
    held_out_streams: int = Field(16, ge=1, le=1024, description="held-out lifetimes")
    held_out_steps: int = Field(2000, ge=2, le=100_000, description="their length")

    @model_validator(mode="after")
    def _shared(self) -> FamiliarityConfig:
        if any(width < 2 for width in self.widths):
            raise ValueError(f"a cortex has at least 2 columns, got widths {self.widths}")
        if self.batch < 2 * len(self.widths):
            raise ValueError(
                f"batch {self.batch} is too small for {len(self.widths)} widths: each needs two "
                "lifetimes, so that one has cues that are foreign to the other"
            )
        return self


@dataclass(frozen=True)
class _Group:
    """Slots of a batch whose cortices have one width: their genome, and where they are carried."""

    genome: Genome
    slots: range
    prefix: str


class FamiliarityTask:
    """Lifetimes on synthetic streams; see the module's head."""

    def __init__(self, config: FamiliarityConfig, genome: GenomeConfig, seed: int) -> None:
        self._config = config
        self._encoder = genome.encoder
        self._width = genome.cortex.d_in
        self._seed = seed
        self._stream = lru_cache(maxsize=2 * config.batch)(self._draw)

    def begin(self) -> Carry:
        """Every slot waits for a first life."""
        return {}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Live a segment on in every slot, then answer the probes."""
        losses, scores = [], []
        kept: dict[str, Tensor] = {}
        for group in self._groups(genome):
            own = {
                n.removeprefix(group.prefix): t
                for n, t in carry.items()
                if n.startswith(group.prefix)
            }
            outcome = self._segment(group, own, index)
            losses.append(outcome.loss)
            scores.append(outcome.metrics["auroc"])
            kept |= {group.prefix + name: tensor for name, tensor in outcome.carry.items()}
        loss = torch.stack(losses).mean()
        return Outcome(loss, {"auroc": sum(scores) / len(scores)}, kept)

    def finish(self, genome: Genome) -> Genome:
        """Fit the readout on whole lifetimes, with recruitment; else return the genome as it is.

        At the genome's own width. What a recruiting cortex learns does not depend on its readout,
        so that a second-order method can have all of many lifetimes at once: where the features are
        nearly collinear, first-order steps on segments stay far from the optimum.
        """
        if not self._config.fitted_streams or not genome.config.cortex.recruitment:
            return genome
        seen, level, familiar = self._observed(genome)
        theta = {name: tensor.clone() for name, tensor in genome.theta.items()}
        fitted = [theta[name].requires_grad_() for name in ("readout", "calibration")]
        pairs = _pairs(familiar, random.Random(f"pairs:{self._seed}"))
        optimiser = torch.optim.LBFGS(fitted, max_iter=500, line_search_fn="strong_wolfe")

        def loss() -> Tensor:
            optimiser.zero_grad()
            found = evidence(theta["readout"], seen)
            logit = log_odds(theta["calibration"], found, level)
            lived, new = pairs
            total = binary_cross_entropy_with_logits(logit, familiar)
            ranking = softplus(logit.T.flatten()[new] - logit.T.flatten()[lived]).mean()
            total = total + self._config.ranking_weight * ranking
            total = total + _RIDGE * sum(tensor.square().sum() for tensor in fitted)
            torch.autograd.backward(total)
            return total

        optimiser.step(loss)  # type: ignore[no-untyped-call]
        return replace(genome, theta={name: t.detach() for name, t in theta.items()})

    @torch.no_grad()
    def _observed(self, genome: Genome) -> tuple[Tensor, Tensor, Tensor]:
        """Live through streams; features, levels and labels, ``(steps, streams, ...)``."""
        config = self._config
        streams = [
            sample_stream(
                config.streams, config.fitted_steps, random.Random(f"fitted:{self._seed}:{k}")
            )
            for k in range(config.fitted_streams)
        ]
        inputs = self._encode([s.chunks for s in streams])
        state = newborn(genome, len(streams))
        seen, levels = [], []
        for e in inputs.to(state.w):
            before = state
            state, reading = step(genome, state, e)
            match = reading.drive / before.beta.unsqueeze(1)
            seen.append(features(match, before.trace))
            levels.append(before.level)
        familiar = torch.tensor([s.familiar for s in streams]).T.to(state.w)
        return torch.stack(seen), torch.stack(levels), familiar

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """Measure on held-out streams: plain, damaged, stamped, and as trained.

        Of each condition the mean AUROC, the same against variants of one field only, the
        cross-entropy and the expected calibration error. ``held_out_auroc`` is the mean over the
        first three conditions; less the calibration error on plain streams it is
        ``held_out_score``, which selects.
        """
        conditions = {
            name: self._measured(genome, name, ranges)
            for name, ranges in self._conditions().items()
        }
        three = [conditions[name]["auroc"] for name in _CONDITIONS]
        metrics = {
            f"held_out_{name}_{figure}": value
            for name, figures in conditions.items()
            for figure, value in figures.items()
        }
        mean = sum(three) / len(three)
        score = mean - conditions["plain"]["calibration_error"]
        return {"held_out_score": score, "held_out_auroc": mean, **metrics}

    def _groups(self, genome: Genome) -> Iterator[_Group]:
        """Share the slots of a batch between the widths."""
        widths = self._config.widths or (genome.config.cortex.d_hidden,)
        batch = self._config.batch
        for k, width in enumerate(widths):
            slots = range(batch * k // len(widths), batch * (k + 1) // len(widths))
            cortex = genome.config.cortex.model_copy(update={"d_hidden": width})
            config = genome.config.model_copy(update={"cortex": cortex})
            yield _Group(replace(genome, config=config), slots, f"{k}.")

    def _segment(self, group: _Group, carry: Carry, index: int) -> Outcome:
        """Live a segment on in the slots of one group."""
        births, positions, state = self._succession(group, carry, index)
        streams = [
            self._stream(birth, slot) for birth, slot in zip(births, group.slots, strict=True)
        ]
        steps = self._config.segment_steps
        chunks = [s.chunks[p : p + steps] for s, p in zip(streams, positions, strict=True)]
        labels = [s.familiar[p : p + steps] for s, p in zip(streams, positions, strict=True)]
        familiar = torch.tensor(labels).T.to(state.w)
        lived = live(group.genome, self._encode(chunks).to(state.w), state)
        loss = binary_cross_entropy_with_logits(lived.logit, familiar)
        if self._config.ranking_weight:
            loss = loss + self._config.ranking_weight * ranking_loss(lived.logit, familiar > 0)
        positions = [p + steps for p in positions]
        if self._config.probes:
            rng = random.Random(f"probes:{self._seed}:{index}:{group.slots.start}")
            probes = self._probe_loss(group.genome, lived.state, streams, positions, rng)
            loss = loss + self._config.probe_weight * probes
        metrics = {"auroc": auroc(lived.logit.detach().cpu().flatten(), familiar.cpu().flatten())}
        return Outcome(loss, metrics, _pack(births, positions, lived.state.detach()))

    def _conditions(self) -> dict[str, StreamConfig]:
        plain: dict[str, Any] = {"damaged_streams": 0.0, "stamped_streams": 0.0}
        changes: dict[str, dict[str, Any]] = {
            "plain": plain,
            "damaged": {**plain, "damaged_streams": 1.0, "damage": (_DAMAGE, _DAMAGE)},
            "stamped": {**plain, "stamped_streams": 1.0},
            "trained": {},
        }
        return {
            name: self._config.streams.model_copy(update=change) for name, change in changes.items()
        }

    def _measured(self, genome: Genome, name: str, ranges: StreamConfig) -> Metrics:
        config = self._config
        streams = [
            sample_stream(
                ranges,
                config.held_out_steps,
                random.Random(f"held-out:{config.held_out_seed}:{name}:{k}"),
            )
            for k in range(config.held_out_streams)
        ]
        inputs = self._encode([s.chunks for s in streams]).to(genome.theta["log_alpha"])
        logits = live(genome, inputs).logit.cpu()
        familiar = torch.tensor([s.familiar for s in streams]).T
        near = familiar | torch.tensor([s.variant for s in streams]).T
        columns = range(len(streams))
        probability = torch.sigmoid(logits)
        return {
            "auroc": _mean(auroc(logits[:, k], familiar[:, k]) for k in columns),
            "variant_auroc": _mean(
                auroc(logits[near[:, k], k], familiar[near[:, k], k]) for k in columns
            ),
            "cross_entropy": float(
                binary_cross_entropy_with_logits(logits.double(), familiar.double())
            ),
            "calibration_error": _mean(
                expected_calibration_error(probability[:, k], familiar[:, k]) for k in columns
            ),
        }

    def _draw(self, birth: int, slot: int) -> Stream:
        """The stream of the life born in one slot at one outer step; its length is drawn first."""
        rng = random.Random(f"train:{self._seed}:{birth}:{slot}")
        segment, longest = self._config.segment_steps, self._config.longest_life
        segments = math.exp(rng.uniform(0, math.log(max(longest / segment, 1))))
        return sample_stream(self._config.streams, segment * max(1, int(segments)), rng)

    def _succession(
        self, group: _Group, carry: Carry, index: int
    ) -> tuple[list[int], list[int], CortexState]:
        """Replace each life that is over by a newborn; an empty carry has none."""
        state = newborn(group.genome, len(group.slots))
        if not carry:
            return [index] * len(group.slots), [0] * len(group.slots), state
        births, positions = carry["births"].tolist(), carry["positions"].tolist()
        fresh = [
            position >= len(self._stream(birth, slot).chunks)
            for slot, birth, position in zip(group.slots, births, positions, strict=True)
        ]
        births = [index if new else birth for new, birth in zip(fresh, births, strict=True)]
        positions = [0 if new else position for new, position in zip(fresh, positions, strict=True)]
        mask = torch.tensor(fresh, device=state.w.device)
        merged = {}
        for f in fields(CortexState):
            born, old = getattr(state, f.name), carry[f"state.{f.name}"]
            merged[f.name] = torch.where(mask.view(-1, *[1] * (born.dim() - 1)), born, old.to(born))
        return births, positions, CortexState(**merged)

    def _probe_loss(
        self,
        genome: Genome,
        state: CortexState,
        streams: list[Stream],
        positions: list[int],
        rng: random.Random,
    ) -> Tensor:
        """Cross-entropy of cues: half lived, a quarter new of the same world, a quarter foreign."""
        config = self._config
        span, count = config.probe_span, config.probes
        lived = [s.chunks[max(0, p - span) : p] for s, p in zip(streams, positions, strict=True)]
        unlived = [s.unlived for s in streams]
        foreign = [streams[slot - 1].unlived for slot in range(len(streams))]
        loss = torch.zeros((), device=state.w.device)
        for pools, label, weight in ((lived, 1.0, 0.5), (unlived, 0.0, 0.25), (foreign, 0.0, 0.25)):
            cues = self._encode([rng.choices(pool, k=count) for pool in pools]).to(state.w)
            logits = recall(genome, state, cues).logit
            labels = torch.full_like(logits, label)
            loss = loss + weight * binary_cross_entropy_with_logits(logits, labels)
        return loss

    def _encode(self, chunks: list[list[bytes]]) -> Tensor:
        """Encode one list of chunks a lifetime into ``(steps, batch, d_in)``."""
        flat = [chunk for lifetime in chunks for chunk in lifetime]
        vectors = encode(flat, self._encoder, self._width)
        return vectors.view(len(chunks), len(chunks[0]), -1).transpose(0, 1)


def ranking_loss(logit: Tensor, familiar: Tensor) -> Tensor:
    """Mean softplus of new minus lived over all such pairs of a lifetime; 0 where there is none.

    It bounds the share of pairs in the wrong order, 1 − AUROC, from above, but for a factor
    log 2 (Clémençon, Lugosi & Vayatis, "Ranking and empirical minimization of U-statistics",
    Annals of Statistics 2008).

    Args:
        logit: ``(steps, batch)``.
        familiar: ``(steps, batch)`` booleans.
    """
    excess = logit.unsqueeze(0) - logit.unsqueeze(1)  # (lived, new, batch)
    pairs = familiar.unsqueeze(1) & ~familiar.unsqueeze(0)
    return (softplus(excess) * pairs).sum() / pairs.sum().clamp_min(1)


def _pairs(familiar: Tensor, rng: random.Random) -> tuple[Tensor, Tensor]:
    """Draw pairs of a lived and a new chunk within lifetimes, as places in ``(streams·steps,)``."""
    steps, _ = familiar.shape
    lived: list[int] = []
    new: list[int] = []
    for k, labels in enumerate(familiar.T.tolist()):
        places: tuple[list[int], list[int]] = ([], [])
        for t, label in enumerate(labels):
            places[int(label)].append(k * steps + t)
        if all(places):
            new += rng.choices(places[0], k=_PAIRS)
            lived += rng.choices(places[1], k=_PAIRS)
    return torch.tensor(lived), torch.tensor(new)


def _mean(values: Iterator[float]) -> float:
    """Mean of the numbers among values: NaN says that a stream had one class only."""
    numbers = [value for value in values if not math.isnan(value)]
    return sum(numbers) / len(numbers) if numbers else float("nan")


def _pack(births: list[int], positions: list[int], state: CortexState) -> Carry:
    carry = {"births": torch.tensor(births), "positions": torch.tensor(positions)}
    return carry | {f"state.{f.name}": getattr(state, f.name) for f in fields(CortexState)}
