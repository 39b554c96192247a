"""Live recall: the organism asked about its own past."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest

from organism.chunking import chunk_spans
from organism.living import Trace
from server.episodes import Episodes
from server.learner import CueReading
from server.observer import Observer, Stretch
from server.probe import Probe
from tests.server.conftest import engine, until


def _lived(chunks: Iterable[bytes], familiarity: float) -> tuple[Episodes, Observer]:
    """A past of chunks that were all new, and as familiar as this."""
    episodes, observer = Episodes(1000, 1 << 20), Observer()
    data = b"".join(chunk + b"\n" for chunk in chunks)
    spans = chunk_spans(data, "lines", 4096, [len(data)])
    scores = np.full(len(spans), familiarity, np.float32)
    new = episodes.add(data, spans, spans[:, 0])
    observer.note(Stretch(data, spans, 0, Trace(scores, scores, scores), new))
    return episodes, observer


def _answer(familiarity: float) -> Future[CueReading]:
    future: Future[CueReading] = Future()
    future.set_result(CueReading(familiarity, 0.1, 0))
    return future


def _lines(count: int) -> list[bytes]:
    return [b"the %d-th line of a life, quite unlike %d others" % (i, 7 * i) for i in range(count)]


@pytest.mark.parametrize(("known", "expected"), [(0.9, 1.0), (0.2, 0.5), (0.1, 0.0)])
def test_the_area_compares_damaged_lived_chunks_with_new_ones(
    known: float, expected: float
) -> None:
    """One where each damaged chunk is more familiar than any new one was, one half where equal."""
    cues: list[bytes] = []
    episodes, observer = _lived(_lines(200), familiarity=0.2)

    def recall(cue: bytes) -> Future[CueReading]:
        cues.append(cue)
        return _answer(float(np.float32(known)))

    probe = Probe(recall, episodes, observer)
    for _ in range(50):
        probe.measure()
    assert probe.measured.auroc == pytest.approx(expected)
    damaged = sum(a != b for cue in cues for a, b in zip(cue, _nearest(episodes, cue), strict=True))
    assert 0.07 < damaged / sum(map(len, cues)) < 0.13


def _nearest(episodes: Episodes, cue: bytes) -> bytes:
    return episodes.search(cue, 1)[0].episode.chunk


def test_matches_are_judged_by_what_was_lived() -> None:
    """Lines that differ enough are all found again; those that differ in a digit are confused."""
    far = Probe(lambda _: _answer(0.5), *_lived(_lines(100), 0.2))
    near = Probe(lambda _: _answer(0.5), *_lived([b"port %04d" % i for i in range(900)], 0.2))
    for probe in (far, near):
        for _ in range(30):
            probe.measure()
    assert far.measured.top1 > 0.95
    assert far.measured.error < 0.05
    assert near.measured.top1 < 0.9
    assert near.measured.error > far.measured.error


def test_too_little_says_nothing() -> None:
    """Without a past all is NaN; with a few chunks, the area is."""
    empty = Probe(lambda _: _answer(0.5), Episodes(10, 1000), Observer())
    empty.measure()
    assert all(map(math.isnan, empty.measured))
    few = Probe(lambda _: _answer(0.5), *_lived(_lines(3), 0.2))
    for _ in range(30):
        few.measure()
    assert math.isnan(few.measured.auroc)
    assert few.measured.top1 > 0.9


def test_it_rests_when_nothing_new_comes() -> None:
    """An idle daemon asks itself about as much as counts, and then nothing more."""
    asked, rounds = [0], [0]

    class Rounds(threading.Event):
        """A stop that comes after so many rounds."""

        def wait(self, timeout: float | None = None) -> bool:
            rounds[0] += 1
            return rounds[0] > 500

    def recall(_: bytes) -> Future[CueReading]:
        asked[0] += 1
        return _answer(0.5)

    Probe(recall, *_lived(_lines(50), 0.2)).run(0.0, Rounds())
    assert 256 <= asked[0] <= 272


def test_measuring_changes_nothing(tmp_path: Path) -> None:
    """A life that is probed without a pause is the life that is not, bit for bit."""
    hashes = []
    for name, interval_s in (("probed", 0.05), ("left", 86_400)):
        with engine(tmp_path / name, probe_interval_s=interval_s) as running:
            for first in range(0, 2000, 100):
                lines = b"".join(
                    b"%d squared is %d\n" % (i, i * i) for i in range(first, first + 100)
                )
                running.submit(lines).result()
            if name == "probed":
                until(lambda: not math.isnan(running.recalled.auroc))
            hashes.append(running.life.state_sha256)
    assert hashes[0] == hashes[1]
