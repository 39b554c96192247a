"""Prometheus series of the daemon. All are present from the start; none has a label that grows."""

from __future__ import annotations

import platform
from importlib.metadata import version

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

_TENTHS = tuple(i / 10 for i in range(1, 11))


class Metrics:
    """The daemon's series; written by the engine, the retrainer and the recall route."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.ingest_bytes = Counter(
            "organism_ingest_bytes_total", "Bytes learned.", registry=registry
        )
        self.ingest_chunks = Counter(
            "organism_ingest_chunks_total", "Chunks learned.", registry=registry
        )
        self.ingest_queue_bytes = Gauge(
            "organism_ingest_queue_bytes",
            "Bytes of messages that wait to be learned.",
            registry=registry,
        )
        self.entropy = Gauge(
            "organism_entropy",
            "H = std(h) of the last chunk, the original's proxy for entropy, 0 to 1.",
            registry=registry,
        )
        self.metabolic_beta = Gauge(
            "organism_metabolic_beta",
            "Metabolic gain beta on the cortex's input.",
            registry=registry,
        )
        self.plasticity_rate = Gauge(
            "organism_plasticity_rate",
            "Entropy-modulated plasticity rate alpha of the last chunk.",
            registry=registry,
        )
        self.familiarity = Histogram(
            "organism_familiarity",
            "Familiarity of each chunk before learning it, 0 to 1.",
            buckets=_TENTHS,
            registry=registry,
        )
        self.recall_error = Gauge(
            "organism_recall_error",
            "Normalised edit distance from the last cue to its first match; NaN before any.",
            registry=registry,
        )
        self.recall_error.set(float("nan"))
        self.retrain_in_progress = Gauge(
            "organism_retrain_in_progress",
            "1 while a genome is being retrained.",
            registry=registry,
        )
        self.genome_swaps = Counter(
            "organism_genome_swaps_total",
            "Retrained genomes by outcome.",
            ["result"],
            registry=registry,
        )
        for result in ("promoted", "rejected", "failed"):
            self.genome_swaps.labels(result)
        self.stream_offset = Gauge(
            "organism_stream_offset_bytes",
            "Offset of the stream, bytes since birth.",
            registry=registry,
        )
        build = Gauge(
            "organism_build_info",
            "1, labelled by the versions that run.",
            ["version", "python"],
            registry=registry,
        )
        build.labels(version("organism"), platform.python_version()).set(1)

    def render(self) -> bytes:
        """Render all series in the text format of Prometheus."""
        return generate_latest(self.registry)
