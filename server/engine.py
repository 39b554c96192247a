"""The engine: sole owner of the live cortex, on one learner thread.

Messages are learned in the order they were submitted, chunk by chunk; reads of the cortex are
answered between chunks. Everything else asks through ``submit``, ``recall``, ``life``, ``swap``
and ``stop``. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from organism import tensorfile
from organism.chunking import chunk_message
from organism.cortex import CortexState, newborn, plasticity_rate, recall, step
from organism.encoder import encode
from organism.genome import Genome, GenomeError, compatible, from_bytes, to_bytes
from server import errors
from server.episodes import Episode, Episodes
from server.metrics import Metrics
from server.settings import ServerSettings
from server.storage.snapshot import StateDir, StateDirError

SNAPSHOT_SCHEMA = 1

_KIND = "snapshot"
# Bounds the memory that a large message's n-grams take.
_ENCODED_AT_ONCE = 512

_log = logging.getLogger("organism.engine")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Life:
    """All that the organism is after a whole message; replaced whole, never changed.

    Attributes:
        genome: the running genome.
        cortex: a batch of one.
        offset: bytes of the stream lived.
        generation: genomes swapped in since birth.
        entropy: H of the last chunk; None before the first.
        last_message: start and sha256 of the last message, to recognise its repetition.
    """

    genome: Genome
    cortex: CortexState
    offset: int = 0
    generation: int = 0
    entropy: float | None = None
    last_message: tuple[int, str] | None = None

    @property
    def beta(self) -> float:
        """Metabolic β."""
        return float(self.cortex.beta)

    @property
    def state_sha256(self) -> str:
        """Checksum of cortex (calibration included) and offset, never of time."""
        return hashlib.sha256(
            self.cortex.to_bytes() + self.offset.to_bytes(8, "little")
        ).hexdigest()


@dataclass(frozen=True)
class Receipt:
    """What became of a message; means are over its chunks, before each was learned."""

    offset: int
    chunks: int
    entropy: float | None
    familiarity: float | None
    beta: float
    duplicate: bool


@dataclass(frozen=True)
class CueReading:
    """What the cortex makes of a cue, and the offset it had then."""

    familiarity: float
    entropy: float
    offset: int


class SwapRefused(ValueError):
    """A genome that cannot take over the living cortex."""


class Engine:
    """A living organism: call ``start``, then submit and ask from any thread, then ``stop``."""

    def __init__(
        self, settings: ServerSettings, metrics: Metrics, birth_genome: Callable[[], Genome]
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._birth_genome = birth_genome
        self.episodes = Episodes(settings.episode_chunks, settings.episode_bytes)
        self._condition = threading.Condition()
        self._messages: deque[Callable[[], None]] = deque()
        self._reads: deque[Callable[[], None]] = deque()
        self._queued_bytes = 0
        self._running = False
        self._thread = threading.Thread(target=self._run, name="learner")
        self._life: Life
        self._cortex: CortexState  # ahead of the life's own while a message is being learned

    @property
    def ready(self) -> bool:
        """Whether messages are taken."""
        return self._running

    @property
    def life(self) -> Life:
        """The organism after the last whole message."""
        return self._life

    def start(self) -> None:
        """Wake up: read the snapshot, or be born; then learn.

        Raises:
            StateDirError: the state folder is held by another daemon, cannot be made, or holds a
                snapshot that cannot be read.
            GenomeError: the genome to be born with is damaged.
        """
        self._state_dir = StateDir(self._settings.state_dir)
        try:
            blob = self._state_dir.read()
            self._life = self._born() if blob is None else self._woken(blob)
        except (tensorfile.TensorFileError, GenomeError) as error:
            self._state_dir.close()
            if blob is None:
                raise
            raise StateDirError(f"{self._state_dir.snapshot_path}: {error}") from error
        except BaseException:
            self._state_dir.close()
            raise
        self._cortex = self._life.cortex
        self._show(self._life)
        self._running = True
        self._thread.start()

    def submit(self, message: bytes, upload_offset: int | None = None) -> Future[Receipt]:
        """Queue a message to be learned.

        Args:
            message: at least one byte.
            upload_offset: where the writer believes the stream to be; checked when the message's
                turn comes.

        Returns:
            The receipt, once the message is learned; or the ``Problem`` that refused it.

        Raises:
            Problem: the engine is stopping, or too many bytes wait.
        """
        size = len(message)
        with self._condition:
            if self._running and self._queued_bytes + size > self._settings.queue_limit_bytes:
                raise errors.overloaded()
            future = self._enqueue(self._messages, lambda: self._learn(message, upload_offset))
            self._queued_bytes += size
            self._metrics.ingest_queue_bytes.set(self._queued_bytes)
        future.add_done_callback(lambda _: self._dequeued(size))
        return future

    def recall(self, cue: bytes) -> Future[CueReading]:
        """Ask the cortex about a cue of at least one byte, between two chunks. Changes nothing."""

        def read() -> CueReading:
            genome = self._life.genome
            reading = recall(genome, self._cortex, self._encode(genome, [cue]))
            return CueReading(float(reading.familiarity), float(reading.entropy), self._life.offset)

        with self._condition:
            return self._enqueue(self._reads, read)

    def swap(self, genome: Genome) -> Future[Life]:
        """Queue a genome to take over the cortex, in order with the messages; W is kept.

        Returns:
            The life after it; or ``SwapRefused`` where encoder, shape or innate weights differ.
        """
        with self._condition:
            return self._enqueue(self._messages, lambda: self._swap(genome))

    def stop(self) -> None:
        """Refuse what is new, learn what was queued, write the snapshot, and end. Idempotent.

        Raises:
            OSError: the snapshot cannot be written; the one before stands.
        """
        with self._condition:
            if not self._running:
                return
            self._running = False
            self._condition.notify()
        self._thread.join()
        try:
            self._state_dir.write(self._snapshot())
        finally:
            self._state_dir.close()
        _log.info(
            "stopped at offset %d after %d chunks", self._life.offset, int(self._life.cortex.steps)
        )

    def _enqueue(self, queue: deque[Callable[[], None]], work: Callable[[], _T]) -> Future[_T]:
        """Queue work for the learner; the caller holds the condition."""
        if not self._running:
            raise errors.not_ready()
        future: Future[_T] = Future()
        # What is taken is done: a client that leaves cannot call it back.
        future.set_running_or_notify_cancel()

        def run() -> None:
            try:
                result = work()
            # The learner's edge: whoever asked gets the fault, the thread lives on.
            except Exception as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        queue.append(run)
        self._condition.notify()
        return future

    def _dequeued(self, size: int) -> None:
        with self._condition:
            self._queued_bytes -= size
            self._metrics.ingest_queue_bytes.set(self._queued_bytes)

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._condition:
                while self._running and not self._messages and not self._reads:
                    self._condition.wait()
                if not self._messages and not self._reads:
                    return
                message = self._messages.popleft() if self._messages else None
            self._answer_reads()
            if message:
                message()

    def _answer_reads(self) -> None:
        while self._reads:
            self._reads.popleft()()

    def _learn(self, message: bytes, upload_offset: int | None) -> Receipt:
        before = self._life
        digest = hashlib.sha256(message).hexdigest()
        if upload_offset is not None and upload_offset != before.offset:
            if before.last_message == (upload_offset, digest):
                return Receipt(before.offset, 0, None, None, before.beta, duplicate=True)
            raise errors.offset_mismatch(upload_offset, before.offset)
        chunks = chunk_message(message, self._settings.chunking, self._settings.chunk_bytes)
        try:
            entropies, familiarities = self._live([chunk for _, chunk in chunks])
            self.episodes.add([Episode(chunk, before.offset + start) for start, chunk in chunks])
        except Exception:
            self._cortex = before.cortex
            raise
        self._life = replace(
            before,
            cortex=self._cortex,
            offset=before.offset + len(message),
            entropy=entropies[-1] if entropies else before.entropy,
            last_message=(before.offset, digest),
        )
        self._metrics.ingest_bytes.inc(len(message))
        self._metrics.ingest_chunks.inc(len(chunks))
        for familiarity in familiarities:
            self._metrics.familiarity.observe(familiarity)
        self._show(self._life)
        return Receipt(
            self._life.offset,
            len(chunks),
            _mean(entropies),
            _mean(familiarities),
            self._life.beta,
            duplicate=False,
        )

    def _live(self, chunks: list[bytes]) -> tuple[list[float], list[float]]:
        """Learn chunks in order; return H and familiarity of each, before it was learned."""
        genome = self._life.genome
        entropies: list[float] = []
        familiarities: list[float] = []
        for first in range(0, len(chunks), _ENCODED_AT_ONCE):
            for e in self._encode(genome, chunks[first : first + _ENCODED_AT_ONCE]):
                self._cortex, reading = step(genome, self._cortex, e.unsqueeze(0))
                entropies.append(float(reading.entropy))
                familiarities.append(float(reading.familiarity))
                self._answer_reads()
        return entropies, familiarities

    def _swap(self, genome: Genome) -> Life:
        if not compatible(self._life.genome, genome):
            raise SwapRefused(
                "the new genome has another encoder, shape or innate weights than the cortex: "
                "train it from the running genome"
            )
        self._life = replace(self._life, genome=genome, generation=self._life.generation + 1)
        return self._life

    def _show(self, life: Life) -> None:
        self._metrics.stream_offset.set(life.offset)
        self._metrics.metabolic_beta.set(life.beta)
        entropy = 0.0 if life.entropy is None else life.entropy
        self._metrics.entropy.set(entropy)
        self._metrics.plasticity_rate.set(
            float(plasticity_rate(life.genome, torch.tensor([entropy])))
        )

    def _encode(self, genome: Genome, chunks: list[bytes]) -> torch.Tensor:
        return encode(chunks, genome.config.encoder, genome.config.cortex.d_in)

    def _born(self) -> Life:
        genome = self._birth_genome()
        _log.info("born with genome %s", genome.sha256)
        return Life(genome, newborn(genome))

    def _woken(self, blob: bytes) -> Life:
        content = tensorfile.unpack(blob, _KIND, SNAPSHOT_SCHEMA)
        meta, tensors = content.meta, content.tensors
        raw = tensors["episodes"].numpy().tobytes()
        ends = tensors["episode_ends"].tolist()
        starts = [0, *ends][: len(ends)]
        offsets = tensors["episode_offsets"].tolist()
        self.episodes.add(
            [Episode(raw[a:b], o) for a, b, o in zip(starts, ends, offsets, strict=True)]
        )
        life = Life(
            genome=from_bytes(meta["genome"]),
            cortex=CortexState.from_bytes(meta["cortex"]),
            offset=meta["offset"],
            generation=meta["generation"],
            entropy=meta["entropy"],
            last_message=tuple(meta["last_message"]) if meta["last_message"] else None,
        )
        _log.info("woke at offset %d with genome %s", life.offset, life.genome.sha256)
        return life

    def _snapshot(self) -> bytes:
        life, episodes = self._life, self.episodes.all()
        raw = bytearray(b"".join(e.chunk for e in episodes))
        meta = {
            "genome": to_bytes(life.genome),
            "cortex": life.cortex.to_bytes(),
            "offset": life.offset,
            "generation": life.generation,
            "entropy": life.entropy,
            "last_message": life.last_message,
        }
        tensors = {
            "episodes": torch.frombuffer(raw, dtype=torch.uint8)
            if raw
            else torch.zeros(0, dtype=torch.uint8),
            "episode_ends": torch.tensor(
                [len(e.chunk) for e in episodes], dtype=torch.int64
            ).cumsum(0),
            "episode_offsets": torch.tensor([e.offset for e in episodes], dtype=torch.int64),
        }
        return tensorfile.pack(_KIND, SNAPSHOT_SCHEMA, meta, tensors)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
