"""Episode memory: the most recent distinct chunks, found again by embedding and edit distance.

Owns what a reply to recall shows as matches. Never decides familiarity: that is the cortex's. An
anti-Hebbian cortex suppresses what it has seen, so chunks are searched by a plain embedding of
their own, wider than the cortex's.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz.distance import Levenshtein

from organism.chunking import Bytes, Spans
from organism.encoder import gram_hash
from organism.jit import F32, kernel

_WIDTH = 256
# Candidates of the embedding search that the edit distance re-ranks: enough that damage loses
# few, in under a millisecond for log lines.
_CANDIDATES = 64
# Chunks added under one hold of the lock, so that no search waits for a large message.
_ADDED_AT_ONCE = 512


@dataclass(frozen=True)
class Episode:
    """A lived chunk and where its latest occurrence starts in the stream, in bytes."""

    chunk: bytes
    offset: int


@dataclass(frozen=True)
class FoundEpisode:
    """An episode and its similarity to a cue, 1 − normalised edit distance."""

    episode: Episode
    similarity: float


class Episodes:
    """Most recent distinct chunks, bounded in count and bytes; one writer, many readers."""

    def __init__(self, max_chunks: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # oldest occurrence first
        self._chunks: list[bytes | None] = [None] * max_chunks
        self._offsets = [0] * max_chunks
        self._vectors = np.zeros((max_chunks, _WIDTH), np.float32)
        self._taken = np.zeros(max_chunks, bool)
        self._free = list(range(max_chunks - 1, -1, -1))
        self._lock = threading.Lock()

    def add(self, data: bytes, spans: Spans, offsets: npt.NDArray[np.int64]) -> None:
        """Remember chunks in the order they were lived; the oldest give way.

        Args:
            data: bytes that hold the chunks.
            spans: where each starts and ends in them, ``(chunks, 2)``.
            offsets: where each starts in the stream, ``(chunks,)``.
        """
        for first in range(0, len(spans), _ADDED_AT_ONCE):
            some = spans[first : first + _ADDED_AT_ONCE]
            vectors = _embedded(data, some)
            where = zip(some.tolist(), offsets[first:].tolist(), strict=False)
            with self._lock:
                slots = np.array([self._place(data[a:b], offset) for (a, b), offset in where])
                kept = slots >= 0
                self._vectors[slots[kept]] = vectors[kept]

    def all(self) -> list[Episode]:
        """All episodes, oldest occurrence first; added to an empty memory, they restore it."""
        with self._lock:
            return [Episode(chunk, self._offsets[slot]) for chunk, slot in self._slots.items()]

    def search(self, cue: bytes, count: int) -> list[FoundEpisode]:
        """Find the lived chunks nearest to a cue, most similar first.

        Args:
            cue: at least one byte.
            count: most results.
        """
        (vector,) = _embedded(cue, np.array([[0, len(cue)]]))
        with self._lock:
            scores = np.where(self._taken, self._vectors @ vector, -np.inf)
            kept = min(_CANDIDATES, len(scores))
            nearest = np.argpartition(-scores, kept - 1)[:kept].tolist()
            candidates = [(self._chunks[slot], self._offsets[slot]) for slot in nearest]
        found = [
            FoundEpisode(Episode(chunk, offset), Levenshtein.normalized_similarity(cue, chunk))
            for chunk, offset in candidates
            if chunk is not None
        ]
        return sorted(found, key=lambda f: (-f.similarity, -f.episode.offset))[:count]

    def _place(self, chunk: bytes, offset: int) -> int:
        """Give a chunk its slot; −1 where it is larger than the whole memory."""
        slot = self._slots.get(chunk)
        if slot is not None:
            self._slots.move_to_end(chunk)
        else:
            if len(chunk) > self._max_bytes:
                return -1
            while not self._free or self._size_bytes + len(chunk) > self._max_bytes:
                self._forget_oldest()
            slot = self._free.pop()
            self._slots[chunk] = slot
            self._size_bytes += len(chunk)
            self._chunks[slot] = chunk
            self._taken[slot] = True
        self._offsets[slot] = offset
        return slot

    def _forget_oldest(self) -> None:
        chunk, slot = self._slots.popitem(last=False)
        self._size_bytes -= len(chunk)
        self._chunks[slot] = None
        self._taken[slot] = False
        self._free.append(slot)


def _embedded(data: bytes, spans: Spans) -> F32:
    return _embed(np.frombuffer(data, np.uint8), spans)


@kernel()
def _embed(data: Bytes, spans: Spans) -> F32:
    """Unit vectors of chunks' bigrams and trigrams by signed feature hashing.

    Each n-gram adds or subtracts 1 at a place that its hash names; inner products are kept in
    expectation (Weinberger et al., "Feature hashing for large scale multitask learning", ICML
    2009). No table of rows is read, so that it costs a few nanoseconds a byte.
    """
    vectors = np.zeros((spans.shape[0], _WIDTH), np.float32)
    for c in range(spans.shape[0]):
        start, end = spans[c, 0], spans[c, 1]
        for order in range(2, 4):
            for i in range(start, max(end - order, start) + 1):
                code = gram_hash(data, i, min(order, end - i))
                place = np.int64((code >> np.uint64(1)) % np.uint64(_WIDTH))
                vectors[c, place] += np.float32(1) if code & np.uint64(1) else np.float32(-1)
        square = np.float32(0)
        for j in range(_WIDTH):
            square += vectors[c, j] * vectors[c, j]
        if square > 0:
            factor = np.float32(1 / math.sqrt(square))
            for j in range(_WIDTH):
                vectors[c, j] *= factor
    return vectors
