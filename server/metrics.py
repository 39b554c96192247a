"""Prometheus series of the daemon. All are present from the start; none has a label that grows."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from typing import Protocol

import numpy as np
import numpy.typing as npt
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_TENTHS = tuple(i / 10 for i in range(1, 11))


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


class _Familiarity(Collector):
    """A histogram that takes a batch of values at once."""

    def __init__(self) -> None:
        self._counts = np.zeros(len(_TENTHS) + 1, np.int64)
        self._sum = 0.0

    def observe(self, values: npt.NDArray[np.float32]) -> None:
        """Count values; a bucket takes what is not above its bound."""
        found = np.searchsorted(_TENTHS, values)
        self._counts = self._counts + np.bincount(found, minlength=len(self._counts))
        self._sum += float(values.sum())

    def collect(self) -> Iterator[Metric]:
        """Give the series to a scrape."""
        bounds = [*(str(bound) for bound in _TENTHS), "+Inf"]
        yield HistogramMetricFamily(
            "organism_familiarity",
            "Familiarity of each chunk before learning it, 0 to 1.",
            list(zip(bounds, np.cumsum(self._counts).tolist(), strict=True)),
            self._sum,
        )


class Metrics:
    """The daemon's series; written by the engine, the retrainer and the recall route."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        counter = partial(Counter, registry=self.registry)
        gauge = partial(Gauge, registry=self.registry)
        self.ingest_bytes = counter("organism_ingest_bytes_total", "Bytes learned.")
        self.ingest_chunks = counter("organism_ingest_chunks_total", "Chunks learned.")
        self.ingest_queue_bytes = gauge(
            "organism_ingest_queue_bytes", "Bytes of messages that wait to be learned."
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
        self._familiarity = _Familiarity()
        self.registry.register(self._familiarity)
        self.recall_error = gauge(
            "organism_recall_error",
            "Normalised edit distance from the last cue to its first match; NaN before any.",
        )
        self.recall_error.set(float("nan"))
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
        build = gauge(
            "organism_build_info", "1, labelled by the versions that run.", ["version", "python"]
        )
        build.labels(version("organism"), platform.python_version()).set(1)

    def follow(self, life: Callable[[], Observed], queued_bytes: Callable[[], int]) -> None:
        """Read the gauges, at each scrape, from where these lead."""
        self.ingest_queue_bytes.set_function(queued_bytes)
        self.stream_offset.set_function(lambda: life().offset)
        self.entropy.set_function(lambda: life().entropy or 0.0)
        self.metabolic_beta.set_function(lambda: life().beta)
        self.plasticity_rate.set_function(lambda: life().plasticity_rate)

    def lived(self, size_bytes: int, familiarity: npt.NDArray[np.float32]) -> None:
        """Count what was learned, and the familiarity of each chunk before it."""
        self.ingest_bytes.inc(size_bytes)
        self.ingest_chunks.inc(len(familiarity))
        self._familiarity.observe(familiarity)

    def render(self) -> bytes:
        """Render all series in the text format of Prometheus."""
        return generate_latest(self.registry)
