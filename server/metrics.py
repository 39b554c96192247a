"""Prometheus series of the daemon. All are present from the start; none has a label that grows."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Protocol

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from server.observer import FAMILIARITY_BOUNDS, Totals

REFUSED_STATUSES = (400, 401, 403, 404, 405, 408, 409, 413, 415, 421, 431, 500, 503, 507)
"""Statuses that a refusal can have."""

_FSYNC_S = tuple(base * 10**e for e in range(-4, 1) for base in (1, 2.5, 5))


class Observed(Protocol):
    """The organism as the gauges show it."""

    @property
    def offset(self) -> int:
        """Bytes lived."""

    @property
    def entropy(self) -> float | None:
        """H of the last chunk."""

    @property
    def beta(self) -> float:
        """Metabolic β."""

    @property
    def plasticity_rate(self) -> float:
        """α of the last chunk."""


class Queued(Protocol):
    """What waits, and what is in the journal."""

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait."""

    @property
    def queue_limit_bytes(self) -> int:
        """How many may wait."""

    @property
    def offset(self) -> int:
        """Offset of the stream in the journal."""


class Journalled(Protocol):
    """The journal's files."""

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk."""


class Recalled(Protocol):
    """Live recall; NaN before it is measured."""

    @property
    def auroc(self) -> float:
        """AUROC of familiarity."""

    @property
    def top1(self) -> float:
        """Share of first matches that are right."""

    @property
    def error(self) -> float:
        """Mean distance of the first match."""


class _Lived(Collector):
    """What was counted since the start."""

    def __init__(self) -> None:
        self.totals: Callable[[], Totals] = Totals  # of nothing, until there is something to follow

    def collect(self) -> Iterator[Metric]:
        """Give the series to a scrape."""
        totals = self.totals()
        yield CounterMetricFamily("organism_ingest_bytes", "Bytes learned.", totals.size_bytes)
        yield CounterMetricFamily("organism_ingest_chunks", "Chunks learned.", totals.chunks)
        bounds = [*(str(bound) for bound in FAMILIARITY_BOUNDS), "+Inf"]
        yield HistogramMetricFamily(
            "organism_familiarity",
            "Familiarity of each chunk before learning it, 0 to 1.",
            list(zip(bounds, np.cumsum(totals.scores).tolist(), strict=True)),
            totals.familiarity,
        )


class Metrics:
    """The daemon's series; written by the engine, the retrainer and the door."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.ingest_queue_bytes = gauge(
            "organism_ingest_queue_bytes", "Bytes of messages that wait to be learned."
        )
        self.ingest_queue_limit_bytes = gauge(
            "organism_ingest_queue_limit_bytes", "How many may wait; beyond it messages get 503."
        )
        self.entropy = gauge(
            "organism_entropy",
            "H = std(h) of the last chunk, the original's proxy for entropy, 0 to 1.",
        )
        self.metabolic_beta = gauge(
            "organism_metabolic_beta", "Metabolic gain beta on the cortex's input."
        )
        self.plasticity_rate = gauge(
            "organism_plasticity_rate", "Entropy-modulated plasticity rate alpha of the last chunk."
        )
        self._lived = _Lived()
        self.registry.register(self._lived)
        self.recall_error = gauge(
            "organism_recall_error",
            "Live recall: mean normalised edit distance from the first match of a damaged lived "
            "chunk to the lived one, 0 to 1; NaN before it is measured.",
        )
        self.recall_auroc = gauge(
            "organism_recall_auroc_ratio",
            "Live recall: AUROC of familiarity, damaged lived chunks against new ones, 0 to 1; NaN "
            "before it is measured.",
        )
        self.recall_top1 = gauge(
            "organism_recall_top1_ratio",
            "Live recall: share of damaged lived chunks whose first match is the lived one, 0 to "
            "1; NaN before it is measured.",
        )
        for series in (self.recall_error, self.recall_auroc, self.recall_top1):
            series.set(math.nan)
        self.retrain_in_progress = gauge(
            "organism_retrain_in_progress", "1 while a genome is being retrained."
        )
        self.genome_swaps = counter(
            "organism_genome_swaps_total", "Retrained genomes by outcome.", ["result"]
        )
        for result in ("promoted", "rejected", "failed"):
            self.genome_swaps.labels(result)
        self.stream_offset = gauge(
            "organism_stream_offset_bytes", "Offset of the stream, bytes since birth."
        )
        self.journal_fsync = Histogram(
            "organism_journal_fsync_duration_seconds",
            "Time that the journal waited for the disk, each time for all messages that waited.",
            buckets=_FSYNC_S,
            registry=self.registry,
        )
        self.journal_offset = gauge(
            "organism_journal_offset_bytes", "Offset of the stream in the journal."
        )
        self.journal_size = gauge("organism_journal_size_bytes", "Bytes of the journal's files.")
        self._snapshot_time = gauge(
            "organism_snapshot_last_success_timestamp_seconds",
            "When the last snapshot was written, seconds since 1970; 0 before the first.",
        )
        self.recovery_progress = gauge(
            "organism_recovery_progress_ratio", "How much of the journal is recovered, 0 to 1."
        )
        self._refusals = counter(
            "organism_requests_refused_total", "Requests refused, by HTTP status.", ["status"]
        )
        for status in REFUSED_STATUSES:
            self._refusals.labels(status)
        build = gauge(
            "organism_build_info", "1, labelled by the versions that run.", ["version", "python"]
        )
        build.labels(version("organism"), platform.python_version()).set(1)

    def follow(
        self,
        life: Callable[[], Observed],
        queue: Queued,
        journal: Journalled,
        recalled: Callable[[], Recalled],
        totals: Callable[[], Totals],
    ) -> None:
        """Read, at each scrape, what these know."""
        self._lived.totals = totals
        self.ingest_queue_bytes.set_function(lambda: queue.queued_bytes)
        self.ingest_queue_limit_bytes.set(queue.queue_limit_bytes)
        self.journal_offset.set_function(lambda: queue.offset)
        self.journal_size.set_function(lambda: journal.size_bytes)
        self.stream_offset.set_function(lambda: life().offset)
        self.entropy.set_function(lambda: life().entropy or 0.0)
        self.metabolic_beta.set_function(lambda: life().beta)
        self.plasticity_rate.set_function(lambda: life().plasticity_rate)
        self.recall_auroc.set_function(lambda: recalled().auroc)
        self.recall_top1.set_function(lambda: recalled().top1)
        self.recall_error.set_function(lambda: recalled().error)

    def snapshot_taken(self) -> None:
        """Note that a snapshot has just been written."""
        self._snapshot_time.set_to_current_time()

    def refused(self, status: int) -> None:
        """Count a refusal; those of an unforeseen status count as 500."""
        self._refusals.labels(status if status in REFUSED_STATUSES else 500).inc()

    def render(self) -> bytes:
        """Render all series in the text format of Prometheus."""
        return generate_latest(self.registry)
