"""The learner: what is remembered at once, and what behind the receipts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest

from organism.genome import to_bytes
from server.episodes import Episode, Episodes
from server.learner import Learner
from server.observer import Observer
from server.storage.segment import Kind, Record
from tests.server.conftest import small_genome


def born() -> Learner:
    """A learner with nothing but a genome."""
    learner = Learner(Episodes(1000, 1 << 20))
    learner.fold([Record(Kind.GENOME, 0, 1, 0, to_bytes(small_genome()))])
    return learner


def records(*messages: bytes, kinds: Sequence[Kind] = ()) -> list[Record]:
    """Messages as the journal has them behind a genome."""
    found, offset = [], 0
    for k, message in enumerate(messages):
        kind = kinds[k] if kinds else Kind.LINES
        found.append(Record(kind, 4096, k + 2, offset, message))
        offset += len(message)
    return found


def answers(*given: bool) -> Callable[[], bool]:
    """Say these, one after the other."""
    left: Iterator[bool] = iter(given)
    return lambda: next(left)


def test_few_chunks_are_remembered_behind_their_receipts() -> None:
    """Where nobody waits for the disk; once it has caught up, all is as if done at once."""
    some, at_once = records(b"one\n", b"two\nthree\n"), born()
    learner, observer, expected = born(), Observer(), Observer()
    receipts = learner.fold(some, has_time=lambda: False, lived=observer.note)
    assert not learner.episodes.all()
    assert observer.totals.chunks == 0
    learner.catch_up()
    assert at_once.fold(some, lived=expected.note) == receipts
    assert learner.episodes.all() == at_once.episodes.all()
    assert observer.totals == expected.totals
    assert observer.new_scores == expected.new_scores
    learner.catch_up()
    assert observer.totals == expected.totals


def test_many_chunks_are_remembered_at_once() -> None:
    """Or else a reader would have to wait for them."""
    learner = born()
    learner.fold(records(b"".join(b"line %d\n" % i for i in range(500))), has_time=lambda: False)
    assert len(learner.episodes.all()) == 500


def test_what_was_put_off_comes_before_what_is_remembered_at_once() -> None:
    """Episodes stand in the order they were lived."""
    learner = born()
    some = records(b"first\n", b"second", kinds=(Kind.LINES, Kind.WINDOWS))
    learner.fold(some, has_time=answers(False, True))
    assert learner.episodes.all() == [Episode(b"first", 0), Episode(b"second", 6)]


def test_what_is_not_settled_is_not_remembered() -> None:
    """Neither at once nor later, nor learned."""

    def fail() -> None:
        raise OSError

    for has_time, message in product((True, False), (b"lost\n", b"\n")):
        learner, observer = born(), Observer()
        before = learner.life
        with pytest.raises(OSError, match=r"^$"):
            learner.fold(records(message), lambda: None, fail, answers(has_time), observer.note)
        learner.catch_up()
        assert not learner.episodes.all()
        assert observer.totals == Observer().totals
        assert learner.life is before
