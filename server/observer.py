"""The observer: what the learner has just lived through, kept for those who watch.

Totals, the least familiar of the recent chunks, and the scores of chunks that were new. Written by
one thread at a time, read from any. Forgotten at a stop: nothing here is learned.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from organism.chunking import Spans
from organism.jit import F32, kernel
from organism.living import Trace

# The least familiar chunks of each stretch of time, for so many stretches.
_STRETCH_S = 10.0
_STRETCHES = 30
_NOVEL_A_STRETCH = 8
# Above it, a chunk is no novelty.
_NOVEL_BELOW = 0.5
_SHOWN_BYTES = 512
_NEW_SCORES = 256
# Finer at both ends, where a good genome's familiarity is.
FAMILIARITY_BOUNDS = (0.01, 0.05, *(i / 10 for i in range(1, 10)), 0.95, 0.99, 1.0)
"""What familiarity is counted by; a count takes what is above the last bound and not this one."""
_BOUNDS = np.array(FAMILIARITY_BOUNDS)


class Stretch(NamedTuple):
    """Chunks that were learned together.

    Attributes:
        data: bytes that hold them.
        spans: where each starts and ends in them, ``(chunks, 2)``.
        offset: of the first of these bytes in the stream.
        trace: what each step gave.
        new: which of them episode memory did not have, ``(chunks,)``.
    """

    data: bytes
    spans: Spans
    offset: int
    trace: Trace
    new: npt.NDArray[np.bool_]


class Totals(NamedTuple):
    """Sums over all that was lived since the start.

    Attributes:
        chunks: how many.
        size_bytes: of the messages.
        entropy: sum of H.
        familiarity: sum of it.
        scores: chunks by familiarity: up to each of its bounds, and above the last.
    """

    chunks: int = 0
    size_bytes: int = 0
    entropy: float = 0.0
    familiarity: float = 0.0
    scores: tuple[int, ...] = (0,) * (len(FAMILIARITY_BOUNDS) + 1)


class Novelty(NamedTuple):
    """A chunk that was hardly familiar when it came.

    Attributes:
        familiarity: before it was learned, 0 to 1.
        offset: where it starts in the stream, bytes.
        chunk: its bytes, cut if long.
        when_s: when it was learned, by the observer's clock.
    """

    familiarity: float
    offset: int
    chunk: bytes
    when_s: float


class Observer:
    """Watches one organism."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._totals = Totals()
        self._scores = np.zeros(len(FAMILIARITY_BOUNDS) + 1, np.int64)
        self._novel: deque[tuple[float, list[tuple[float, int, Novelty]]]] = deque(
            maxlen=_STRETCHES
        )
        self._new: deque[float] = deque(maxlen=_NEW_SCORES)

    @property
    def totals(self) -> Totals:
        """Sums since the start."""
        return self._totals

    @property
    def new_scores(self) -> list[float]:
        """Familiarity, before it was learned, of each of the last chunks that were new."""
        with self._lock:
            return list(self._new)

    def note(self, stretch: Stretch) -> None:
        """Take in what was just learned."""
        familiarity = stretch.trace.familiarity
        before = self._totals
        with self._lock:
            entropy_sum, familiarity_sum = _tally(stretch.trace.entropy, familiarity, self._scores)
            self._totals = Totals(
                before.chunks + len(familiarity),
                before.size_bytes + len(stretch.data),
                before.entropy + entropy_sum,
                before.familiarity + familiarity_sum,
                tuple(self._scores.tolist()),
            )
            if len(familiarity):
                self._new.extend(familiarity[stretch.new][-_NEW_SCORES:].tolist())
                self._keep_novel(stretch)

    def novel(self, count: int) -> list[Novelty]:
        """The least familiar of the chunks of the last minutes, least familiar first."""
        oldest = self._clock() - _STRETCH_S * _STRETCHES
        with self._lock:
            kept = [item for _, heap in self._novel for _, _, item in heap]
        recent = [item for item in kept if item.when_s >= oldest]
        return sorted(recent, key=lambda item: (item.familiarity, -item.offset))[:count]

    def age_s(self, item: Novelty) -> float:
        """How long ago a chunk was learned."""
        return self._clock() - item.when_s

    def _keep_novel(self, stretch: Stretch) -> None:
        now = self._clock()
        if not self._novel or now >= self._novel[-1][0] + _STRETCH_S:
            self._novel.append((now, []))
        heap = self._novel[-1][1]  # the most familiar of the kept on top
        bar = -heap[0][0] if len(heap) == _NOVEL_A_STRETCH else _NOVEL_BELOW
        familiarity = stretch.trace.familiarity
        under = np.flatnonzero(familiarity < bar)
        if len(under) > _NOVEL_A_STRETCH:
            least = np.argpartition(familiarity[under], _NOVEL_A_STRETCH)[:_NOVEL_A_STRETCH]
            under = np.sort(under[least])
        for i in under.tolist():
            first, last = stretch.spans[i].tolist()
            chunk = stretch.data[first : min(last, first + _SHOWN_BYTES)]
            offset, score = stretch.offset + first, float(familiarity[i])
            item = (-score, offset, Novelty(score, offset, chunk, now))
            if len(heap) < _NOVEL_A_STRETCH:
                heapq.heappush(heap, item)
            else:
                heapq.heappushpop(heap, item)


@kernel(release=False)
def _tally(entropy: F32, familiarity: F32, scores: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Add to the counts of ``Totals.scores``; sum H and familiarity up."""
    entropy_sum, familiarity_sum = 0.0, 0.0
    for t in range(familiarity.shape[0]):
        entropy_sum += entropy[t]
        familiarity_sum += familiarity[t]
        k = 0
        while k < _BOUNDS.shape[0] and not familiarity[t] <= _BOUNDS[k]:
            k += 1
        scores[k] += 1
    return entropy_sum, familiarity_sum
