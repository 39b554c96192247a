"""What those who watch are shown."""

from __future__ import annotations

import numpy as np
import pytest

from organism.chunking import chunk_spans
from organism.living import Trace
from server.observer import FAMILIARITY_BOUNDS, Observer, Stretch


class _Clock:
    """Time that passes when told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _stretch(chunks: list[bytes], familiarity: list[float], offset: int = 0) -> Stretch:
    data = b"".join(chunk + b"\n" for chunk in chunks)
    spans = chunk_spans(data, "lines", 4096, [len(data)])
    scores = np.array(familiarity, np.float32)
    trace = Trace(scores / np.float32(2), scores, scores)
    return Stretch(data, spans, offset, trace, scores < 0.4)


def test_totals_are_sums_over_all_stretches() -> None:
    """Chunks, bytes, and what their means are made of; blank messages move the bytes alone."""
    observer = Observer()
    observer.note(_stretch([b"one", b"two"], [0.25, 0.5]))
    observer.note(_stretch([b""], []))
    observer.note(_stretch([b"three"], [1.0]))
    *sums, scores = observer.totals
    assert sums == pytest.approx([3, 15, 0.875, 1.75])
    assert sum(scores) == 3


def test_familiarity_is_counted_between_bounds() -> None:
    """A bound belongs to what lies below it; what is no number, to what lies above all."""
    observer = Observer()
    observer.note(_stretch([b"a", b"b"], [0.0, 0.25]))
    observer.note(_stretch([b"c", b"d", b"e"], [0.5, 1.0, float("nan")]))
    counted = dict(zip([*FAMILIARITY_BOUNDS, "above"], observer.totals.scores, strict=True))
    assert {bound: count for bound, count in counted.items() if count} == {
        0.01: 1,
        0.3: 1,
        0.5: 1,
        1.0: 1,
        "above": 1,
    }


def test_the_least_familiar_come_first() -> None:
    """With offset and bytes; what is familiar is no novelty, however little else there is."""
    observer = Observer()
    observer.note(_stretch([b"known", b"strange", b"odd"], [0.9, 0.1, 0.3], offset=100))
    found = observer.novel(8)
    assert [(item.chunk, item.offset) for item in found] == [(b"strange", 106), (b"odd", 114)]
    assert [item.familiarity for item in found] == pytest.approx([0.1, 0.3])


def test_the_strangest_of_many_is_kept() -> None:
    """Whatever comes before and after it within the same seconds, one by one or at once."""
    rng = np.random.default_rng(0)
    scores = rng.uniform(0.01, 0.49, 400).astype(np.float32)
    chunks = [b"chunk %d" % i for i in range(400)]
    expected = [chunks[i] for i in np.argsort(scores)[:8]]
    for size in (1, 7, 400):
        observer = Observer(_Clock())
        for first in range(0, 400, size):
            some = slice(first, first + size)
            observer.note(_stretch(chunks[some], scores[some].tolist(), offset=first * 100))
        assert [item.chunk for item in observer.novel(8)] == expected


def test_novelties_are_of_the_last_minutes() -> None:
    """A burst does not push out what came before it, but time does."""
    clock = _Clock()
    observer = Observer(clock)
    observer.note(_stretch([b"first"], [0.2]))
    clock.now = 60.0
    observer.note(_stretch([b"burst %d" % i for i in range(100)], [0.1] * 100))
    assert b"first" in [item.chunk for item in observer.novel(100)]
    assert observer.age_s(observer.novel(100)[-1]) == 60.0
    clock.now = 301.0
    assert b"first" not in [item.chunk for item in observer.novel(100)]
    assert observer.novel(100)


def test_scores_of_new_chunks_are_the_last_ones() -> None:
    """Of those alone that episode memory did not have, bounded."""
    observer = Observer()
    observer.note(_stretch([b"a", b"b", b"c"], [0.3, 0.8, 0.1]))
    assert observer.new_scores == pytest.approx([0.3, 0.1])
    observer.note(_stretch([b"x"] * 5000, [0.2] * 5000))
    kept = observer.new_scores
    assert kept == pytest.approx([0.2] * len(kept))
    assert 0 < len(kept) < 5000


def test_a_long_chunk_is_shown_in_part() -> None:
    """What is kept for show is bounded in bytes."""
    observer = Observer()
    observer.note(_stretch([b"y" * 4000], [0.0]))
    assert observer.novel(1)[0].chunk == b"y" * 512
