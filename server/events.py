"""Pulses: the organism once a second, for dashboards and terminals. Reads it, changes nothing."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator

from server import wire
from server.engine import Engine
from server.observer import Totals
from server.retrain import Retrainer

_INTERVAL_S = 1.0
# How soon a stop is noticed.
_LOOK_S = 0.1
_NOVEL = 20


class Pulses:
    """Makes the pulses of one organism, for any number of those who watch."""

    def __init__(self, engine: Engine, retrainer: Retrainer) -> None:
        self._engine = engine
        self._retrainer = retrainer

    async def follow(self) -> AsyncIterator[wire.Pulse]:
        """Tell how it is, now and then each second, until it stops."""
        before, since = self._engine.observer.totals, None
        while not self._engine.stopping:
            totals, now = self._engine.observer.totals, time.monotonic()
            yield self._pulse(before, totals, now - since if since else None)
            before, since = totals, now
            while time.monotonic() < now + _INTERVAL_S and not self._engine.stopping:
                await asyncio.sleep(_LOOK_S)

    def _pulse(self, before: Totals, totals: Totals, elapsed_s: float | None) -> wire.Pulse:
        engine = self._engine
        life = engine.life if engine.alive else None
        chunks = totals.chunks - before.chunks
        size_bytes = totals.size_bytes - before.size_bytes
        return wire.Pulse(
            ready=engine.ready,
            recovery=engine.progress,
            offset=life.offset if life else 0,
            steps=int(life.cortex.steps) if life else 0,
            chunks_per_s=chunks / elapsed_s if elapsed_s else None,
            bytes_per_s=size_bytes / elapsed_s if elapsed_s else None,
            queue_bytes=engine.queued_bytes,
            entropy=(totals.entropy - before.entropy) / chunks if chunks else None,
            familiarity=(totals.familiarity - before.familiarity) / chunks if chunks else None,
            beta=life.beta if life else None,
            plasticity_rate=life.plasticity_rate if life else None,
            recall=self._recall(),
            genome_sha256=life.genome.sha256 if life else None,
            genome_generation=life.generation if life else 0,
            retraining=self._retrainer.last,
            novel=self._novel(),
        )

    def _recall(self) -> wire.LiveRecall:
        found = self._engine.recalled
        auroc, top1, error = (None if math.isnan(value) else value for value in found)
        return wire.LiveRecall(auroc=auroc, top1=top1, error=error)

    def _novel(self) -> list[wire.NovelChunk]:
        observer = self._engine.observer
        return [
            wire.NovelChunk(
                offset=item.offset,
                familiarity=item.familiarity,
                text=item.chunk.decode(errors="replace"),
                age_s=observer.age_s(item),
            )
            for item in observer.novel(_NOVEL)
        ]
