"""The engine: sole owner of the live cortex, on one learner thread.

Messages are learned in the order they were submitted, chunk by chunk; those that wait together
are learned and answered together. Reads of the cortex are answered between chunks. Everything
else asks through ``submit``, ``recall``, ``life``, ``swap`` and ``stop``. Knows nothing of HTTP.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from organism import tensorfile
from organism.chunking import Spans, chunk_spans
from organism.cortex import CortexState, newborn, plasticity_rate
from organism.encoder import encode_spans
from organism.genome import Genome, GenomeError, compatible, from_bytes, to_bytes
from organism.jit import F32
from organism.kernels import BETA, State
from organism.living import LivingCortex, Trace, as_cortex, as_state
from server import errors
from server.episodes import Episodes
from server.metrics import Metrics
from server.settings import ServerSettings
from server.storage.snapshot import StateDir, StateDirError
from server.wire import Receipt

SNAPSHOT_SCHEMA = 1

_KIND = "snapshot"
# Messages are learned and answered together up to about so many bytes; a longer one by itself.
_BATCH_BYTES = 1 << 16
# Chunks learned between two looks at the reads: the delay that they can meet, about a millisecond.
_BLOCK_CHUNKS = 64

_log = logging.getLogger("organism.engine")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Life:
    """All that the organism is after a whole message; replaced whole, never changed.

    Attributes:
        genome: the running genome.
        kept: the state of the cortex.
        offset: bytes of the stream lived.
        generation: genomes swapped in since birth.
        entropy: H of the last chunk; None before the first.
        last_message: start and sha256 of the last message, to recognise its repetition.
    """

    genome: Genome
    kept: State
    offset: int = 0
    generation: int = 0
    entropy: float | None = None
    last_message: tuple[int, str] | None = None

    @property
    def beta(self) -> float:
        """Metabolic β."""
        return float(self.kept.gains[BETA])

    @property
    def cortex(self) -> CortexState:
        """The state as others read it, a batch of one."""
        return as_cortex(self.kept)

    @property
    def plasticity_rate(self) -> float:
        """α of the last chunk; α₀ before the first."""
        entropy = torch.tensor([self.entropy or 0.0])
        return float(plasticity_rate(self.genome, entropy))

    @property
    def state_sha256(self) -> str:
        """Checksum of cortex (calibration included) and offset, never of time."""
        return hashlib.sha256(
            self.cortex.to_bytes() + self.offset.to_bytes(8, "little")
        ).hexdigest()


@dataclass(frozen=True)
class CueReading:
    """What the cortex makes of a cue, and the offset it had then."""

    familiarity: float
    entropy: float
    offset: int


class Sink(Protocol):
    """Takes what became of a message, on the learner's thread; a ``Future`` is one."""

    def set_result(self, result: Receipt, /) -> None:
        """Take its receipt."""

    def set_exception(self, exception: BaseException, /) -> None:
        """Take what refused it."""


class _Message(NamedTuple):
    """A message that waits."""

    data: bytes
    upload_offset: int | None
    receipt: Sink


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
        self._condition = threading.Condition(threading.Lock())
        self._messages: deque[_Message | Callable[[], None]] = deque()
        self._reads: deque[Callable[[], None]] = deque()
        self._queued_bytes = 0
        self._running = False
        self._thread = threading.Thread(target=self._run, name="learner")
        self._life: Life
        self._cortex: LivingCortex  # ahead of the life's own while messages are being learned

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
        self._cortex = LivingCortex(self._life.genome, self._life.kept)
        self._warm_up()
        self._metrics.follow(lambda: self._life, lambda: self._queued_bytes)
        self._running = True
        self._thread.start()

    def submit(self, message: bytes, upload_offset: int | None = None) -> Future[Receipt]:
        """Queue a message to be learned; see ``put``.

        Returns:
            The receipt, once the message is learned; or the ``Problem`` that refused it.
        """
        future: Future[Receipt] = Future()
        # What is taken is done: a client that leaves cannot call it back.
        future.set_running_or_notify_cancel()
        self.put(message, upload_offset, future)
        self.wake()
        return future

    def put(self, message: bytes, upload_offset: int | None, receipt: Sink) -> None:
        """Queue a message to be learned.

        Args:
            message: at least one byte.
            upload_offset: where the writer believes the stream to be; checked when the message's
                turn comes.
            receipt: takes the receipt, once the message is learned, or the ``Problem`` that
                refused it.

        Raises:
            Problem: the engine is stopping, or too many bytes wait.
        """
        with self._condition:
            if not self._running:
                raise errors.not_ready()
            if self._queued_bytes + len(message) > self._settings.queue_limit_bytes:
                raise errors.overloaded()
            self._messages.append(_Message(message, upload_offset, receipt))
            self._queued_bytes += len(message)

    def wake(self) -> None:
        """Have the learner look at what was put: once for many messages."""
        with self._condition:
            self._condition.notify()

    def recall(self, cue: bytes) -> Future[CueReading]:
        """Ask the cortex about a cue of at least one byte. Changes nothing.

        Answered between two chunks, after at most a block of them.
        """

        def read() -> CueReading:
            (e,) = self._encode(cue, np.array([[0, len(cue)]]))
            return CueReading(*self._cortex.recall(e), self._life.offset)

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

    def _enqueue(self, queue: deque[Any], work: Callable[[], _T]) -> Future[_T]:
        """Queue work for the learner; the caller holds the condition."""
        if not self._running:
            raise errors.not_ready()
        future: Future[_T] = Future()
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

    @torch.inference_mode()
    def _run(self) -> None:
        while True:
            with self._condition:
                while self._running and not self._messages and not self._reads:
                    self._condition.wait()
                if not self._messages and not self._reads:
                    return
                work = self._next()
            self._answer_reads()
            if callable(work):
                work()
            elif work:
                self._learn(work)

    def _next(self) -> list[_Message] | Callable[[], None]:
        """Take a batch of messages, or one other piece of work; the caller holds the condition."""
        batch: list[_Message] = []
        size = 0
        while self._messages and (not batch or size < _BATCH_BYTES):
            first = self._messages[0]
            if not isinstance(first, _Message):
                if not batch:
                    self._messages.popleft()
                    return first
                break
            batch.append(first)
            size += len(first.data)
            self._messages.popleft()
        return batch

    def _answer_reads(self) -> None:
        while self._reads:
            self._reads.popleft()()

    def _learn(self, batch: list[_Message]) -> None:
        """Learn messages in their order, then answer them all."""
        answers: list[Receipt | Exception]
        try:
            answers = self._answers(batch)
        # The learner's edge, as above. Nothing of the batch has been learned.
        except Exception as error:
            self._cortex.restore(self._life.kept)
            answers = [error] * len(batch)
        with self._condition:
            self._queued_bytes -= sum(len(message.data) for message in batch)
        for message, answer in zip(batch, answers, strict=True):
            if isinstance(answer, Exception):
                message.receipt.set_exception(answer)
            else:
                message.receipt.set_result(answer)

    def _answers(self, batch: list[_Message]) -> list[Receipt | Exception]:
        if all(message.upload_offset is None for message in batch):
            return [*self._receipts(batch)]
        life = self._life
        offset, last = life.offset, life.last_message
        taken: list[_Message] = []
        refused: dict[int, Receipt | Exception] = {}
        for i, message in enumerate(batch):
            claimed, mark = message.upload_offset, _mark(offset, message.data)
            if claimed is None or claimed == offset:
                last = mark
                offset += len(message.data)
                taken.append(message)
            elif last == _mark(claimed, message.data):
                refused[i] = Receipt(offset, 0, None, None, life.beta, duplicate=True)
            else:
                refused[i] = errors.offset_mismatch(claimed, offset)
        receipts = iter(self._receipts(taken) if taken else [])
        return [refused[i] if i in refused else next(receipts) for i in range(len(batch))]

    def _receipts(self, taken: list[_Message]) -> list[Receipt]:
        """Learn messages and write the life they leave."""
        before = self._life
        data, last = b"".join([message.data for message in taken]), taken[-1].data
        ends = list(accumulate(len(message.data) for message in taken))
        spans = chunk_spans(data, self._settings.chunking, self._settings.chunk_bytes, ends)
        trace = self._live(data, spans)
        self.episodes.add(data, spans, before.offset + spans[:, 0])
        self._life = replace(
            before,
            kept=self._cortex.copy(),
            offset=before.offset + len(data),
            entropy=float(trace.entropy[-1]) if len(spans) else before.entropy,
            last_message=_mark(before.offset + len(data) - len(last), last),
        )
        self._metrics.lived(len(data), trace.familiarity)
        return _receipts(before, trace, np.searchsorted(spans[:, 0], ends).tolist(), ends)

    def _live(self, data: bytes, spans: Spans) -> Trace:
        """Learn chunks in order, a block at a time; reads are answered between blocks."""
        traces = []
        for first in range(0, len(spans), _BLOCK_CHUNKS):
            vectors = self._encode(data, spans[first : first + _BLOCK_CHUNKS])
            traces.append(self._cortex.learn(vectors))
            self._answer_reads()
        return Trace.joined(traces)

    def _swap(self, genome: Genome) -> Life:
        if not compatible(self._life.genome, genome):
            raise SwapRefused(
                "the new genome has another encoder, shape or innate weights than the cortex: "
                "train it from the running genome"
            )
        self._life = replace(self._life, genome=genome, generation=self._life.generation + 1)
        self._cortex.follow(genome)
        return self._life

    def _encode(self, data: bytes, spans: Spans) -> F32:
        config = self._life.genome.config
        return encode_spans(data, spans, config.encoder, config.cortex.d_in)

    def _warm_up(self) -> None:
        """Compile every kernel, or load it from the cache, before the first message comes."""
        cortex, cue = LivingCortex(self._life.genome), b"a first line"
        spans = chunk_spans(cue, "lines", len(cue), [len(cue)])
        vectors = self._encode(cue, spans)
        cortex.learn(vectors)
        cortex.recall(vectors[0])
        Episodes(1, len(cue)).add(cue, spans, spans[:, 0])

    def _born(self) -> Life:
        genome = self._birth_genome()
        _log.info("born with genome %s", genome.sha256)
        return Life(genome, as_state(newborn(genome)))

    def _woken(self, blob: bytes) -> Life:
        content = tensorfile.unpack(blob, _KIND, SNAPSHOT_SCHEMA)
        meta, tensors = content.meta, content.tensors
        ends = tensors["episode_ends"].numpy()
        spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1)
        raw = tensors["episodes"].numpy().tobytes()
        self.episodes.add(raw, spans, tensors["episode_offsets"].numpy())
        life = Life(
            genome=from_bytes(meta["genome"]),
            kept=as_state(CortexState.from_bytes(meta["cortex"])),
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


def _mark(offset: int, message: bytes) -> tuple[int, str]:
    """Where a message starts, and its sha256: what its repetition is known by."""
    return offset, hashlib.sha256(message).hexdigest()


def _receipts(before: Life, trace: Trace, counts: list[int], ends: list[int]) -> list[Receipt]:
    """Receipts of messages that end after so many chunks and bytes of a batch."""
    receipts, first, beta = [], 0, before.beta
    entropies, familiarities = trace.entropy.tolist(), trace.familiarity.tolist()
    betas = trace.beta.tolist()
    for last, end in zip(counts, ends, strict=True):
        entropy = familiarity = None
        if chunks := last - first:
            entropy = sum(entropies[first:last]) / chunks
            familiarity = sum(familiarities[first:last]) / chunks
            beta = betas[last - 1]
        receipts.append(Receipt(before.offset + end, chunks, entropy, familiarity, beta, False))
        first = last
    return receipts
