"""The learner: folds the journal's records into a life, and remembers their chunks.

The same fold whether a record has just been written or is replayed after a crash: same records,
same life, to the last bit. Used by one thread, ``catch_up`` by any. Knows nothing of queues, files
or HTTP.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, groupby

import msgpack
import numpy as np
import numpy.typing as npt

from organism.chunking import Chunking, Spans, chunk_spans
from organism.encoder import encode_spans
from organism.genome import from_bytes
from organism.living import LivingCortex, Trace
from server.episodes import Episodes
from server.life import LegacySnapshot, Life
from server.observer import Observer, Stretch
from server.storage.segment import MESSAGES, Kind, Record
from server.wire import Receipt

# Records are learned together up to about so many bytes; a longer one by itself.
BATCH_BYTES = 1 << 16
# Chunks learned between two looks at what else there is to do: about a millisecond.
_BLOCK_CHUNKS = 64
# Chunks that may be remembered behind the receipts: a reader may have to wait for a millisecond.
_PUT_OFF_CHUNKS = 256

CHUNKINGS: dict[Kind, Chunking] = {Kind.LINES: "lines", Kind.WINDOWS: "windows"}


@dataclass(frozen=True)
class CueReading:
    """What the cortex makes of a cue, and the offset it had then."""

    familiarity: float
    entropy: float
    offset: int


class Learner:
    """One living cortex and its episode memory, moved on by ``fold`` alone.

    A few chunks may be remembered after their receipts were told: whoever reads the episodes calls
    ``catch_up`` before, from any thread.
    """

    def __init__(self, episodes: Episodes) -> None:
        self.episodes = episodes
        self._life: Life | None = None
        self._put_off: deque[Callable[[], None]] = deque()
        self._catching_up = threading.Lock()
        self._cortex: LivingCortex  # ahead of the life's own while records are being folded

    @property
    def alive(self) -> bool:
        """Whether it has been born, or woken."""
        return self._life is not None

    @property
    def life(self) -> Life:
        """The organism after the last whole record."""
        assert self._life is not None, "not born yet"
        return self._life

    def wake(self, life: Life) -> None:
        """Go on from a life."""
        self._life = life
        self._cortex = LivingCortex(life.genome, life.kept)

    def fold(
        self,
        records: Sequence[Record],
        between: Callable[[], None] = lambda: None,
        settled: Callable[[], None] = lambda: None,
        has_time: Callable[[], bool] = lambda: True,
        lived: Callable[[Stretch], None] = lambda _: None,
    ) -> list[Receipt | Life]:
        """Live through records, in order.

        Args:
            records: that follow the life's last.
            between: called between blocks of chunks; what it raises ends the fold.
            settled: called when a group of records has been learned, and before the life moves on;
                what it raises ends the fold, and the group was never learned.
            has_time: whether ``settled`` has to wait anyway; if not, a few chunks are remembered
                by ``catch_up``, and receipts need not wait for that.
            lived: told of the chunks that were learned together, once they are remembered.

        Returns:
            What each record came to: the receipt of a message, or the life after another record.

        Raises:
            Exception: a fault; the life is the one after the last whole group of records.
        """
        outcomes: list[Receipt | Life] = []
        for (kind, _), group in groupby(records, key=lambda record: (record.kind, record.width)):
            if kind in MESSAGES:
                outcomes += self._live([*group], between, settled, has_time, lived)
            else:
                settled()
                outcomes += [self._turn(record) for record in group]
        return outcomes

    def remember(self, records: Sequence[Record]) -> None:
        """Take the chunks of records that were lived before into episode memory."""
        for (kind, _), group in groupby(records, key=lambda record: (record.kind, record.width)):
            if kind in MESSAGES:
                some = [*group]
                data, _, spans = _cut(some)
                self.episodes.add(data, spans, some[0].offset + spans[:, 0])
            elif kind is Kind.EPISODES:
                for record in group:
                    self.episodes.add(*_unpack_episodes(record.payload))

    def catch_up(self) -> None:
        """Remember what was put off, in the order it was lived."""
        with self._catching_up:
            while self._put_off:
                self._put_off.popleft()()

    def recall(self, cue: bytes) -> CueReading:
        """Ask the cortex about a cue of at least one byte. Changes nothing."""
        config = self.life.genome.config
        span = np.array([[0, len(cue)]])
        (e,) = encode_spans(cue, span, config.encoder, config.cortex.d_in)
        return CueReading(*self._cortex.recall(e), self.life.offset)

    def _live(
        self,
        records: Sequence[Record],
        between: Callable[[], None],
        settled: Callable[[], None],
        has_time: Callable[[], bool],
        lived: Callable[[Stretch], None],
    ) -> list[Receipt]:
        before = self.life
        data, ends, spans = _cut(records)
        try:
            trace = self._learn(data, spans, between)
            # Before the wait for the disk, all that can be done without knowing how it ends.
            receipts = _receipts(before, trace, np.searchsorted(spans[:, 0], ends).tolist(), ends)
            life = Life(
                genome=before.genome,
                kept=self._cortex.copy(),
                offset=before.offset + len(data),
                sequence=records[-1].sequence,
                generation=before.generation,
                entropy=float(trace.entropy[-1]) if len(spans) else before.entropy,
            )

            def take_in(settled: Callable[[], None]) -> None:
                new = self.episodes.add(data, spans, before.offset + spans[:, 0], settled)
                settled()
                lived(Stretch(data, spans, before.offset, trace, new))

            if has_time() or len(spans) > _PUT_OFF_CHUNKS:
                self.catch_up()
                take_in(settled)
            else:
                settled()
                self._put_off.append(partial(take_in, lambda: None))
        except BaseException:
            self._cortex.restore(before.kept)
            raise
        self._life = life
        return receipts

    def _learn(self, data: bytes, spans: Spans, between: Callable[[], None]) -> Trace:
        """Learn chunks in order, a block at a time."""
        traces = []
        for first in range(0, len(spans), _BLOCK_CHUNKS):
            traces.append(self._cortex.live(data, spans[first : first + _BLOCK_CHUNKS]))
            between()
        return Trace.joined(traces)

    def _turn(self, record: Record) -> Life:
        """Live through a record that is no message."""
        if record.kind is Kind.GENOME:
            genome = from_bytes(record.payload)
            if self._life is None:
                self.wake(Life.born(genome, record.sequence, record.offset))
                return self.life
            self._cortex.follow(genome)
            self._life = replace(self._life, genome=genome, generation=self._life.generation + 1)
        else:
            self.remember([record])
        self._life = replace(self.life, sequence=record.sequence)
        return self._life


def batches(records: Iterable[Record], covered: int) -> Iterator[list[Record]]:
    """Group records that can be folded together; none reaches across a sequence."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.payload)
        if size >= BATCH_BYTES or record.sequence == covered:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def pack_episodes(legacy: LegacySnapshot) -> bytes:
    """Write the payload of a record of chunks lived before the journal began."""
    content = [legacy.chunks, legacy.spans.tolist(), legacy.offsets.tolist()]
    packed: bytes = msgpack.packb(content)
    return packed


def warm_up(life: Life) -> None:
    """Compile every kernel, or load it from the cache, before the first message comes."""
    cue = b"a first line"
    learner = Learner(Episodes(1, len(cue)))
    learner.wake(life)
    record = Record(Kind.LINES, len(cue), life.sequence + 1, life.offset, cue)
    learner.fold([record], lived=Observer().note)
    learner.recall(cue)


def _unpack_episodes(payload: bytes) -> tuple[bytes, Spans, npt.NDArray[np.int64]]:
    chunks, spans, offsets = msgpack.unpackb(payload)
    return chunks, np.array(spans, np.int64).reshape(-1, 2), np.array(offsets, np.int64)


def _cut(records: Sequence[Record]) -> tuple[bytes, list[int], Spans]:
    """Join messages of one kind and width, and cut them into chunks."""
    data = b"".join([record.payload for record in records])
    ends = list(accumulate(len(record.payload) for record in records))
    first = records[0]
    return data, ends, chunk_spans(data, CHUNKINGS[first.kind], first.width, ends)


def _receipts(before: Life, trace: Trace, counts: list[int], ends: list[int]) -> list[Receipt]:
    """Receipts of messages that end after so many chunks and bytes of a batch."""
    receipts, first, beta = [], 0, before.beta
    entropies, familiarities = trace.entropy.tolist(), trace.familiarity.tolist()
    betas = trace.beta.tolist()
    for last, end in zip(counts, ends, strict=True):
        entropy = familiarity = None
        if (chunks := last - first) == 1:  # as most small messages are
            entropy, familiarity, beta = entropies[first], familiarities[first], betas[first]
        elif chunks:
            entropy = sum(entropies[first:last]) / chunks
            familiarity = sum(familiarities[first:last]) / chunks
            beta = betas[last - 1]
        receipts.append(Receipt(before.offset + end, chunks, entropy, familiarity, beta, False))
        first = last
    return receipts
