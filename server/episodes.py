"""Episode memory: the most recent distinct chunks, found again by embedding and edit distance.

Owns what a reply to recall shows as matches. Never decides familiarity: that is the cortex's. An
anti-Hebbian cortex suppresses what it has seen, so chunks are searched by a plain embedding of
their own, wider than the cortex's.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rapidfuzz.distance import Levenshtein

from organism.config import EncoderConfig
from organism.encoder import encode

_WIDTH = 256
_ENCODER = EncoderConfig(orders=(2, 3), buckets=1 << 14, seed=1)
# Candidates of the embedding search that the edit distance re-ranks: enough that damage loses
# few, in under a millisecond for log lines.
_CANDIDATES = 64
# Bounds the memory that a large message's n-grams take.
_ENCODED_AT_ONCE = 512


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
        self._episodes: list[Episode | None] = [None] * max_chunks
        self._vectors = np.zeros((max_chunks, _WIDTH), np.float32)
        self._taken = np.zeros(max_chunks, bool)
        self._free = list(range(max_chunks - 1, -1, -1))
        self._lock = threading.Lock()

    def add(self, episodes: Sequence[Episode]) -> None:
        """Remember chunks in the order they were lived; the oldest give way."""
        for first in range(0, len(episodes), _ENCODED_AT_ONCE):
            some = episodes[first : first + _ENCODED_AT_ONCE]
            vectors = _unit_vectors([e.chunk for e in some])
            with self._lock:
                for episode, vector in zip(some, vectors, strict=True):
                    self._add(episode, vector)

    def all(self) -> list[Episode]:
        """All episodes, oldest occurrence first; added to an empty memory, they restore it."""
        with self._lock:
            found = [self._episodes[slot] for slot in self._slots.values()]
        return [episode for episode in found if episode is not None]

    def search(self, cue: bytes, count: int) -> list[FoundEpisode]:
        """Find the lived chunks nearest to a cue, most similar first.

        Args:
            cue: at least one byte.
            count: most results.
        """
        vector = _unit_vectors([cue])[0]
        with self._lock:
            scores = np.where(self._taken, self._vectors @ vector, -np.inf)
            kept = min(_CANDIDATES, len(scores))
            nearest = np.argpartition(-scores, kept - 1)[:kept]
            candidates = [e for e in (self._episodes[i] for i in nearest) if e is not None]
        found = [
            FoundEpisode(e, Levenshtein.normalized_similarity(cue, e.chunk)) for e in candidates
        ]
        return sorted(found, key=lambda f: (-f.similarity, -f.episode.offset))[:count]

    def _add(self, episode: Episode, vector: np.ndarray) -> None:
        slot = self._slots.pop(episode.chunk, None)
        if slot is None:
            if len(episode.chunk) > self._max_bytes:
                return
            while not self._free or self._size_bytes + len(episode.chunk) > self._max_bytes:
                self._forget_oldest()
            slot = self._free.pop()
            self._size_bytes += len(episode.chunk)
            self._vectors[slot] = vector
            self._taken[slot] = True
        self._slots[episode.chunk] = slot
        self._episodes[slot] = episode

    def _forget_oldest(self) -> None:
        chunk, slot = self._slots.popitem(last=False)
        self._size_bytes -= len(chunk)
        self._episodes[slot] = None
        self._taken[slot] = False
        self._free.append(slot)


def _unit_vectors(chunks: Sequence[bytes]) -> np.ndarray:
    return torch.nn.functional.normalize(encode(chunks, _ENCODER, _WIDTH)).numpy()
