"""Continual familiarity: was this chunk lived through before? Learned at ρ = 0.

A batch of lifetimes runs on from one outer step to the next, a segment at a time (truncated
backpropagation through time), until each life's drawn length is over and a newborn takes its
place: gradients see short segments, the genome sees cortices of every age. The loss is the binary
cross-entropy of each chunk's familiarity before it is learned, and, at each segment's end, of
cues as ``/recall`` gets them: lived chunks, chunks of the same world that were never lived, and
chunks of other worlds.
"""

from __future__ import annotations

import math
import random
from dataclasses import fields
from functools import lru_cache

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from organism.auroc import auroc
from organism.config import GenomeConfig, Settings
from organism.cortex import CortexState, newborn, recall
from organism.encoder import encode
from organism.genome import Genome
from organism.lifetime import live
from organism.tasks.protocol import Carry, Metrics, Outcome
from organism.tasks.streams import Stream, StreamConfig, sample_stream


class FamiliarityConfig(Settings):
    """Sizes of batches, segments and lifetimes."""

    streams: StreamConfig = StreamConfig()
    batch: int = Field(16, ge=2, le=4096, description="lifetimes side by side")
    segment_steps: int = Field(50, ge=1, le=10_000, description="steps of an outer step")
    longest_life: int = Field(
        1000, ge=1, le=100_000, description="lives last log-uniformly from one segment to this"
    )
    probes: int = Field(12, ge=0, le=1024, description="cues of each kind asked at a segment's end")
    probe_weight: float = Field(1.5, ge=0, description="weight of the probes' loss")
    probe_span: int = Field(100, ge=1, description="lived cues are among the last this many chunks")
    held_out_streams: int = Field(8, ge=1, le=1024, description="held-out lifetimes")
    held_out_steps: int = Field(800, ge=2, le=100_000, description="their length")


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
        none = torch.full((self._config.batch,), -1, dtype=torch.int64)
        return {"births": none, "positions": torch.zeros_like(none)}

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Live a segment on in every slot, then answer the probes."""
        births, positions, state = self._succession(genome, carry, index)
        streams = [self._stream(birth, slot) for slot, birth in enumerate(births)]
        steps = self._config.segment_steps
        chunks = [s.chunks[p : p + steps] for s, p in zip(streams, positions, strict=True)]
        labels = [s.familiar[p : p + steps] for s, p in zip(streams, positions, strict=True)]
        familiar = torch.tensor(labels).T.to(state.w)
        lived = live(genome, self._encode(chunks).to(state.w), state)
        loss = binary_cross_entropy_with_logits(lived.logit, familiar)
        positions = [p + steps for p in positions]
        if self._config.probes:
            rng = random.Random(f"probes:{self._seed}:{index}")
            probes = self._probe_loss(genome, lived.state, streams, positions, rng)
            loss = loss + self._config.probe_weight * probes
        metrics = {"auroc": auroc(lived.logit.detach().cpu().flatten(), familiar.cpu().flatten())}
        return Outcome(loss, metrics, _pack(births, positions, lived.state.detach()))

    @torch.no_grad()
    def held_out(self, genome: Genome) -> Metrics:
        """AUROC (mean over held-out streams) and cross-entropy; as trained, and undamaged."""
        config = self._config
        undamaged = config.streams.model_copy(update={"damaged_streams": 0.0})
        metrics: Metrics = {}
        for prefix, ranges in (("held_out", config.streams), ("held_out_undamaged", undamaged)):
            streams = [
                sample_stream(
                    ranges, config.held_out_steps, random.Random(f"held-out:{self._seed}:{k}")
                )
                for k in range(config.held_out_streams)
            ]
            inputs = self._encode([s.chunks for s in streams]).to(genome.theta["log_alpha"])
            logits = live(genome, inputs).logit.cpu()
            familiar = torch.tensor([s.familiar for s in streams]).T
            columns = [auroc(logits[:, k], familiar[:, k]) for k in range(len(streams))]
            metrics[f"{prefix}_auroc"] = sum(columns) / len(columns)
            loss = binary_cross_entropy_with_logits(logits.double(), familiar.double())
            metrics[f"{prefix}_cross_entropy"] = float(loss)
        return metrics

    def _draw(self, birth: int, slot: int) -> Stream:
        """The stream of the life born in one slot at one outer step; its length is drawn first."""
        rng = random.Random(f"train:{self._seed}:{birth}:{slot}")
        segment, longest = self._config.segment_steps, self._config.longest_life
        segments = math.exp(rng.uniform(0, math.log(max(longest / segment, 1))))
        return sample_stream(self._config.streams, segment * max(1, int(segments)), rng)

    def _succession(
        self, genome: Genome, carry: Carry, index: int
    ) -> tuple[list[int], list[int], CortexState]:
        """Replace each life that is over by a newborn."""
        births, positions = carry["births"].tolist(), carry["positions"].tolist()
        fresh = [
            birth < 0 or position >= len(self._stream(birth, slot).chunks)
            for slot, (birth, position) in enumerate(zip(births, positions, strict=True))
        ]
        births = [index if new else birth for new, birth in zip(fresh, births, strict=True)]
        positions = [0 if new else position for new, position in zip(fresh, positions, strict=True)]
        state = newborn(genome, self._config.batch)
        if all(fresh):
            return births, positions, state
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


def _pack(births: list[int], positions: list[int], state: CortexState) -> Carry:
    carry = {"births": torch.tensor(births), "positions": torch.tensor(positions)}
    return carry | {f"state.{f.name}": getattr(state, f.name) for f in fields(CortexState)}
