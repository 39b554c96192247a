"""Prometheus series of the daemon. All are present from the start; none has a label that grows."""

from __future__ import annotations

import platform
from functools import partial
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
        self.familiarity = Histogram(
            "organism_familiarity",
            "Familiarity of each chunk before learning it, 0 to 1.",
            buckets=_TENTHS,
            registry=self.registry,
        )
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

    def render(self) -> bytes:
        """Render all series in the text format of Prometheus."""
        return generate_latest(self.registry)
