"""Episode memory: the most recent distinct chunks, found again by embedding and edit distance.

Owns what a reply to recall shows as matches. Never decides familiarity: that is the cortex's, which
keeps no bytes. Chunks are searched by a plain embedding of their own, wider than the cortex's: one
product with a matrix of small integers gives the candidates, most alike as a whole or most nearly
containing the cue; edit distance ranks them.
"""

from __future__ import annotations

import math
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process
from rapidfuzz.distance import OSA, Levenshtein

from organism.chunking import Bytes, Spans
from organism.encoder import gram_hash, place_of
from organism.jit import F32, kernel

_WIDTH = 256
_ORDERS = (1, 2, 3)
_LARGEST = np.int32(127)
# Candidates of each kind that the edit distance ranks: enough that damage loses few, in about a
# millisecond for log lines.
_CANDIDATES = 128
# A chunk contains a cue that fits into it this well, 0 to 100.
_CONTAINED = 97
# Shorter runs of equal bytes are there by chance.
_SHORTEST_RUN = 3
# Chunks added under one hold of the lock, so that no search waits for a large message.
_ADDED_AT_ONCE = 512


@dataclass(frozen=True)
class Episode:
    """A lived chunk and where its latest occurrence starts in the stream, in bytes."""

    chunk: bytes
    offset: int


@dataclass(frozen=True)
class FoundEpisode:
    """An episode and its similarity to a cue: 1 − normalised edit distance.

    Edits are insertions, deletions, replacements and transpositions of neighbours (optimal string
    alignment).
    """

    episode: Episode
    similarity: float


class Episodes:
    """Most recent distinct chunks, bounded in count and bytes; many read, one at a time writes."""

    def __init__(self, max_chunks: int, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._size_bytes = 0
        self._slots: OrderedDict[bytes, int] = OrderedDict()  # oldest occurrence first
        self._chunks: list[bytes | None] = [None] * max_chunks
        self._offsets = [0] * max_chunks
        self._vectors = np.zeros((max_chunks, _WIDTH), np.int8)
        self._norms = np.zeros(max_chunks, np.float32)  # 0 where nothing is
        self._free = list(range(max_chunks - 1, -1, -1))
        self._lock = threading.Lock()

    def add(
        self,
        data: bytes,
        spans: Spans,
        offsets: npt.NDArray[np.int64],
        settled: Callable[[], None] = lambda: None,
    ) -> npt.NDArray[np.bool_]:
        """Remember chunks in the order they were lived; the oldest give way.

        Args:
            data: bytes that hold the chunks.
            spans: where each starts and ends in them, ``(chunks, 2)``.
            offsets: where each starts in the stream, ``(chunks,)``.
            settled: called when all that can be done before is done; what it raises ends the call,
                and nothing has been remembered.

        Returns:
            Which of them were not remembered when their turn came, ``(chunks,)``.
        """
        new: list[bool] = []
        for first in range(0, len(spans), _ADDED_AT_ONCE):
            some = spans[first : first + _ADDED_AT_ONCE]
            vectors, norms = _embedded(data, some)
            chunks = [data[start:end] for start, end in some.tolist()]
            starts = offsets[first : first + _ADDED_AT_ONCE].tolist()
            settled()
            with self._lock:
                slots, gone = self._place(chunks, starts, new)
                _put(np.array(slots), vectors, norms, self._vectors, self._norms)
                if gone:  # some may be taken again, by chunks that came after
                    self._norms[[slot for slot in gone if self._chunks[slot] is None]] = 0
        return np.array(new, bool)

    def forget_before(self, offset: int) -> None:
        """Forget chunks whose latest occurrence lies before an offset of the stream."""
        with self._lock:
            while self._slots and self._offsets[next(iter(self._slots.values()))] < offset:
                self._norms[self._forget_oldest()] = 0

    def all(self) -> list[Episode]:
        """All episodes, oldest occurrence first."""
        with self._lock:
            return [Episode(chunk, self._offsets[slot]) for chunk, slot in self._slots.items()]

    def sample(self, count: int, rng: random.Random) -> list[Episode]:
        """Draw episodes, each as likely as any other, with repetition; fewer where one just went.

        Args:
            count: how many.
            rng: source of the randomness.
        """
        # Without the lock, as in a search; of a copy, since what is being counted may change.
        taken = np.flatnonzero(self._norms > 0)
        if not len(taken):
            return []
        slots = [int(taken[rng.randrange(len(taken))]) for _ in range(count)]
        with self._lock:
            drawn = [(self._chunks[slot], self._offsets[slot]) for slot in slots]
        return [Episode(chunk, offset) for chunk, offset in drawn if chunk is not None]

    def search(self, cue: bytes, count: int) -> list[FoundEpisode]:
        """Find the lived chunks nearest to a cue: itself, those that contain it, the most similar.

        Args:
            cue: at least one byte.
            count: most results.
        """
        (vector,), _ = _embedded(cue, np.array([[0, len(cue)]]))
        # Without the lock, so that nobody learns later for it: a slot that changes meanwhile may be
        # missed, and what is found is read afterwards.
        candidates = _candidates(self._vectors, self._norms, vector)
        with self._lock:
            found = [(self._chunks[slot], self._offsets[slot]) for slot in candidates]
        episodes = [Episode(chunk, offset) for chunk, offset in found if chunk is not None]
        if not episodes:
            return []
        chunks = [episode.chunk for episode in episodes]
        (similar,) = process.cdist([cue], chunks, scorer=OSA.normalized_similarity)
        # Only a longer chunk contains a cue; an empty one stands for those that are not.
        longer = [chunk if len(chunk) > len(cue) else b"" for chunk in chunks]
        (fit,) = process.cdist([cue], longer, scorer=fuzz.partial_ratio, score_cutoff=_CONTAINED)

        def rank(item: tuple[Episode, float, float]) -> tuple[bool, float, float, int]:
            episode, similarity, contained = item
            return episode.chunk == cue, contained, similarity, episode.offset

        ranked = sorted(
            zip(episodes, similar.tolist(), fit.tolist(), strict=True), key=rank, reverse=True
        )
        return [FoundEpisode(episode, similarity) for episode, similarity, _ in ranked[:count]]

    def _place(
        self, chunks: Sequence[bytes], offsets: Sequence[int], new: list[bool]
    ) -> tuple[list[int], list[int]]:
        """Give chunks their slots, −1 where one is larger than the whole memory; add who is new.

        Returns:
            The slots, and those of the chunks that gave way.
        """
        slots: list[int] = []
        gone: list[int] = []
        for chunk, offset in zip(chunks, offsets, strict=True):
            slot = self._slots.get(chunk)
            new.append(slot is None)
            if slot is not None:
                self._slots.move_to_end(chunk)
            elif len(chunk) > self._max_bytes:
                slots.append(-1)
                continue
            else:
                while not self._free or self._size_bytes + len(chunk) > self._max_bytes:
                    gone.append(self._forget_oldest())
                slot = self._free.pop()
                self._slots[chunk] = slot
                self._size_bytes += len(chunk)
                self._chunks[slot] = chunk
            self._offsets[slot] = offset
            slots.append(slot)
        return slots, gone

    def _forget_oldest(self) -> int:
        """Free the slot of the oldest chunk, whose norm is still to be set to 0."""
        chunk, slot = self._slots.popitem(last=False)
        self._size_bytes -= len(chunk)
        self._chunks[slot] = None
        self._free.append(slot)
        return slot


def shared_runs(cue: bytes, chunk: bytes) -> list[tuple[int, int, int]]:
    """Find the runs of bytes that a cue and a chunk share, along their cheapest alignment.

    Returns:
        Start in the cue, start in the chunk, and length of each, in order.

    >>> shared_runs(b"session 4 closed", b"session 17 closed")
    [(0, 0, 8), (9, 10, 7)]
    """
    return [
        (op.src_start, op.dest_start, op.src_end - op.src_start)
        for op in Levenshtein.opcodes(cue, chunk)
        if op.tag == "equal" and op.src_end - op.src_start >= _SHORTEST_RUN
    ]


def _candidates(vectors: npt.NDArray[np.int8], norms: F32, cue: npt.NDArray[np.int8]) -> list[int]:
    """Slots whose vectors lie nearest in direction, and those with the largest product."""
    products, cosines = np.empty((2, len(vectors)), np.float32)
    _compare(vectors, norms, cue, products, cosines)
    kept = min(_CANDIDATES, len(vectors))
    by_cosine = np.argpartition(-cosines, kept - 1)[:kept]
    by_product = np.argpartition(-products, kept - 1)[:kept]
    return list(dict.fromkeys([*by_cosine.tolist(), *by_product.tolist()]))


@kernel()
def _compare(
    vectors: npt.NDArray[np.int8],
    norms: F32,
    cue: npt.NDArray[np.int8],
    products: F32,
    cosines: F32,
) -> None:
    """Multiply each vector by the cue, and divide by its norm; minus infinity where nothing is."""
    for i in range(vectors.shape[0]):
        if norms[i] == 0:
            products[i] = cosines[i] = -np.inf
            continue
        total = np.int32(0)
        for j in range(cue.shape[0]):
            total += np.int32(vectors[i, j]) * np.int32(cue[j])
        products[i] = np.float32(total)
        cosines[i] = products[i] / norms[i]


@kernel(release=False)
def _put(
    slots: npt.NDArray[np.int64],
    vectors: npt.NDArray[np.int8],
    norms: F32,
    into: npt.NDArray[np.int8],
    norms_into: F32,
) -> None:
    """Write vectors and norms to slots; none where there is no slot."""
    for k in range(slots.shape[0]):
        if slots[k] >= 0:
            norms_into[slots[k]] = norms[k]
            for j in range(vectors.shape[1]):
                into[slots[k], j] = vectors[k, j]


def _embedded(data: bytes, spans: Spans) -> tuple[npt.NDArray[np.int8], F32]:
    return _embed(np.frombuffer(data, np.uint8), spans)


@kernel()
def _embed(data: Bytes, spans: Spans) -> tuple[npt.NDArray[np.int8], F32]:
    """Count chunks' n-grams by signed feature hashing; the counts, and their norms.

    Each n-gram adds or subtracts 1 at a place that its hash names; inner products are kept in
    expectation (Weinberger et al., "Feature hashing for large scale multitask learning", ICML
    2009). No table of rows is read, so that it costs a few nanoseconds a byte.
    """
    vectors = np.empty((spans.shape[0], _WIDTH), np.int8)
    norms = np.empty(spans.shape[0], np.float32)
    counts = np.empty(_WIDTH, np.int32)
    for c in range(spans.shape[0]):
        counts[:] = 0
        start, end = spans[c, 0], spans[c, 1]
        for order in _ORDERS:
            span = min(order, end - start)
            newest = np.uint64(8 * (span - 1))
            gram = np.uint64(0)
            for i in range(start, end):
                gram = (gram >> np.uint64(8)) | (np.uint64(data[i]) << newest)
                if i - start < span - 1:
                    continue
                code = gram_hash(gram, span)
                # Without a branch: nobody can foresee it.
                counts[place_of(code, _WIDTH)] += np.int32(code & np.uint64(1)) * 2 - 1
        square = np.int32(0)
        for j in range(_WIDTH):
            count = min(max(counts[j], -_LARGEST), _LARGEST)
            vectors[c, j] = count
            square += count * count
        # All counts may cancel out: such a chunk is nowhere near anything, but it is there.
        norms[c] = max(np.float32(math.sqrt(np.float32(square))), np.float32(1))
    return vectors, norms
