"""The intake: one sync for all that wait, by the policy that was set; nothing told before."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from server.engine import Engine
from server.errors import Problem
from server.storage.disk import Disk
from server.wire import Receipt
from tests.server.conftest import engine, until


class Slow(Disk):
    """A disk whose syncs are counted, and wait while the gate is shut."""

    def __init__(self) -> None:
        self.syncs = 0
        self.written = 0
        self.gate = threading.Event()
        self.gate.set()
        self.waiting = threading.Event()

    def write(self, file: int, parts: Sequence[bytes]) -> None:
        """Count the bytes."""
        self.written += sum(map(len, parts))
        super().write(file, parts)

    def sync(self, file: int) -> None:
        """Wait for the gate, and count."""
        self.waiting.set()
        assert self.gate.wait(30)
        super().sync(file)
        self.syncs += 1


def test_one_sync_stands_for_all_that_wait(tmp_path: Path) -> None:
    """Nobody is told before it; those that came while it ran share the next."""
    disk = Slow()
    with engine(tmp_path, disk, fsync="always") as running:
        running.submit(b"the first segment begins\n").result(timeout=60)
        before = disk.syncs
        disk.waiting.clear()
        disk.gate.clear()
        first = running.submit(b"first\n")
        assert disk.waiting.wait(30)
        others = [running.submit(b"message %d\n" % i) for i in range(50)]
        assert not first.done()
        assert running.recall(b"first").result(timeout=30).offset == 25
        disk.gate.set()
        offsets = [other.result(timeout=60).offset for other in others]
        assert first.result(timeout=60).offset == 31
        assert offsets == sorted(offsets)
        assert disk.syncs == before + 2


def test_a_message_is_learned_while_it_is_synced(tmp_path: Path) -> None:
    """The cortex has it before the disk; nobody is told, and the life has not moved on."""
    disk = Slow()
    with engine(tmp_path, disk, fsync="always") as running:
        running.submit(b"the first segment begins\n").result(timeout=60)
        before, unknown = running.life, running.recall(b"a new line").result(timeout=30)
        disk.gate.clear()
        receipt = running.submit(b"a new line\n")
        until(lambda: running.recall(b"a new line").result(timeout=30) != unknown)
        assert not receipt.done()
        assert running.life is before
        assert running.offset == before.offset
        assert running.episodes.search(b"a new line", 1)[0].similarity < 1
        disk.gate.set()
        assert receipt.result(timeout=30).offset == running.offset == running.life.offset == 36
        assert running.episodes.search(b"a new line", 1)[0].similarity == 1


class Told:
    """Takes what becomes of messages, in their order."""

    def __init__(self) -> None:
        self.what: list[tuple[int, int] | str] = []
        self.done = threading.Event()

    def told(self, receipt: Receipt, messages: int, /) -> None:
        """Note the offset, and for how many; 0 for a duplicate."""
        self.what.append((receipt.offset, 0 if receipt.duplicate else messages))

    def refused(self, problem: Problem, /) -> None:
        """Note the refusal."""
        self.what.append(problem.slug)

    def flush(self) -> None:
        """All were told."""
        self.done.set()


def put(running: Engine, messages: Sequence[bytes], claimed: int | None = None) -> Told:
    """Put messages that came together, and wait for what becomes of them."""
    sink = Told()
    assert running.put(messages, claimed, sink) == len(messages)
    running.wake()
    assert sink.done.wait(30)
    return sink


def test_messages_that_came_together(tmp_path: Path) -> None:
    """One record where nobody can tell, from the chunks, that they were many; else one each."""
    with engine(tmp_path) as running:
        before = running.life.sequence
        assert put(running, [b"one\n", b"two\n", b"three"]).what == [(13, 3)]
        assert running.life.sequence == before + 1
        assert put(running, [b"no end", b" of a line\n"]).what == [(19, 1), (30, 1)]
        assert running.life.sequence == before + 3
        assert [e.chunk for e in running.episodes.all()] == [
            b"one",
            b"two",
            b"three",
            b"no end",
            b" of a line",
        ]


def test_messages_that_came_together_are_judged_one_by_one(tmp_path: Path) -> None:
    """Those that the stream has are duplicates, those behind them are learned; or all are off."""
    with engine(tmp_path) as running:
        assert put(running, [b"one\n", b"two\n"], 0).what == [(8, 2)]
        told = put(running, [b"one\n", b"two\n", b"new\n", b"too\n"], 0)
        assert told.what == [(4, 0), (8, 0), (12, 1), (16, 1)]
        assert put(running, [b"a\n", b"b\n"], 99).what == ["offset-mismatch"] * 2
        assert put(running, [b"a\n", b"b\n"], 16).what == [(20, 2)]
        assert running.life.offset == 20


def test_a_genome_takes_over_when_it_is_on_the_disk(tmp_path: Path) -> None:
    """Not before."""
    disk = Slow()
    with engine(tmp_path, disk, fsync="always") as running:
        running.submit(b"the first segment begins\n").result(timeout=60)
        disk.waiting.clear()
        disk.gate.clear()
        swapped = running.swap(running.life.genome)
        assert disk.waiting.wait(30)
        running.recall(b"anything").result(timeout=30)
        assert running.life.generation == 0
        assert not swapped.done()
        disk.gate.set()
        assert swapped.result(timeout=30).generation == running.life.generation == 1


def test_everysec_tells_at_once_and_syncs_within_a_second(tmp_path: Path) -> None:
    """An answer does not wait for the disk; the disk follows by itself."""
    disk = Slow()
    with engine(tmp_path, disk, fsync="everysec") as running:
        running.submit(b"the first segment begins\n").result(timeout=60)
        until(lambda: not running._journal.is_behind)
        before = disk.syncs
        disk.gate.clear()
        assert running.submit(b"told before it is synced\n").result(timeout=30).chunks == 1
        disk.gate.set()
        until(lambda: disk.syncs == before + 1)
        assert not running._journal.is_behind


def test_no_leaves_the_time_to_the_system(tmp_path: Path) -> None:
    """Nothing is synced but with a snapshot, which must not be ahead of the journal."""
    disk = Slow()
    with engine(tmp_path, disk, fsync="no") as running:
        running.submit(b"the first segment begins\n").result(timeout=60)
        before, written = disk.syncs, disk.written
        for i in range(20):
            running.submit(b"message %d\n" % i).result(timeout=60)
        assert disk.syncs == before
        assert disk.written > written
        running.snapshot()
        assert disk.syncs == before + 2
        assert not running._journal.is_behind
