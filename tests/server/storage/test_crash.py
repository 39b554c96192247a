"""A crash of the machine at any moment: recovery from every prefix of what was done to the disk.

An organism lives through all that touches the disk, on a disk that remembers (``recorder``); once
undisturbed, and once for every sync with its process killed there and started again. Then the
machine crashes after every single operation of these lives, with what was not synced lost, kept or
torn, and the organism wakes from each. Last, each sync is taken out of the code in turn: then some
crash must lose something.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

from organism.genome import to_bytes
from server.engine import Engine
from server.episodes import Episodes
from server.errors import Problem
from server.intake import Promise
from server.learner import Learner
from server.metrics import Metrics
from server.settings import ServerSettings
from server.storage.disk import Disk
from server.storage.journal import JournalDamaged
from server.storage.segment import RECORD_BYTES, Kind, Record
from server.storage.statedir import StateDirError
from tests.server.conftest import small_genome
from tests.server.storage.recorder import Operation, Recorder, Tree, crash_points, digest, lay_out

STATE = "above/state"
MESSAGES = [b"message %d, the %s\n" % (i, b"x" * (7 * i % 50)) for i in range(24)]
REFUSED_AFTER = 9
REFUSED = [b"refused\n", b"refused as well\n"]
# In flight, what is going to be refused may be there as well.
STREAMS = [b"".join(MESSAGES), b"".join([*MESSAGES[:REFUSED_AFTER], *REFUSED])]


class SmallSegments(ServerSettings):
    """Settings with a few messages a segment, so that a short life has many."""

    @property
    def segment_bytes(self) -> int:
        """Room for two or three."""
        return 200


def started(root: Path, disk: Disk, fsync: str) -> Engine:
    """An engine that has recovered; it takes snapshots only when it is asked for them."""
    settings = SmallSegments.model_validate(
        {
            "state_dir": root / STATE,
            "fsync": fsync,
            "journal_bytes": 240,
            "snapshot_interval_s": 86_400,
            "episode_chunks": 32,
        }
    )
    engine = Engine(settings, Metrics(), small_genome, disk)
    try:
        engine.start().result(timeout=60)
    except BaseException:
        with suppress(OSError):
            engine.stop()
        raise
    return engine


@dataclass
class Driver:
    """Leads a life of an organism, and goes on with it after a kill."""

    root: Path
    fsync: str
    kill_at: Callable[[Operation], bool] = lambda _: False
    operations: list[Operation] = field(default_factory=list)
    acknowledged: int = 0
    was_full: bool = False

    def live(self) -> list[Operation]:
        """Birth, segments, snapshots that drop the oldest, a full disk, a stop and a start."""
        self._start()
        steps: list[Callable[[], None]] = [
            lambda: self._send_until(5),
            self._snapshot,
            lambda: self._send_until(REFUSED_AFTER),
            self._send_to_a_full_disk,
            lambda: self._send_until(10),
            self._snapshot,
            lambda: self._send_until(16),
            self._snapshot,
            self._stop,
            self._start,
            lambda: self._send_until(20),
            self._snapshot,
            self._stop,
        ]
        for step in steps:
            try:
                step()
            except (OSError, Problem):
                self._start_after_a_kill()
                step()
        return self.operations

    def _start(self) -> None:
        self.disk = Recorder(self.root, self.operations)
        self.disk.kill_at = self.kill_at
        try:
            self.engine = started(self.root, self.disk, self.fsync)
        except (OSError, StateDirError):
            self._start_after_a_kill()

    def _start_after_a_kill(self) -> None:
        assert self.disk.dead
        with suppress(OSError, AttributeError):
            self.engine.stop()
        self.kill_at = lambda _: False
        self.disk = Recorder(self.root, self.operations)
        self.disk.mark("killed")
        self.engine = started(self.root, self.disk, self.fsync)

    def _send_until(self, count: int) -> None:
        """Each message with its offset: after a kill, the last may be a duplicate."""
        while self.acknowledged < count:
            message = MESSAGES[self.acknowledged]
            offset = sum(map(len, MESSAGES[: self.acknowledged]))
            self.disk.mark("sent", message)
            self.engine.submit(message, offset).result(timeout=60)
            self.acknowledged += 1
            self.disk.mark("acknowledged", message)

    def _send_to_a_full_disk(self) -> None:
        """Two messages in one batch, of which the first finds room: both are refused."""
        if self.was_full:
            return
        self.was_full = True
        self.disk.mark("sent", *REFUSED)
        self.disk.fill_up_after(RECORD_BYTES + len(REFUSED[0]) + 10)
        told = [Promise(), Promise()]
        for message, future in zip(REFUSED, told, strict=True):
            self.engine.put([message], None, future)
        self.engine.wake()
        for future in told:
            with pytest.raises(Problem, match="disk is full"):
                future.result(timeout=60)
        self.disk.mark("refused")

    def _snapshot(self) -> None:
        self.disk.mark("kept", self.engine.snapshot().offset)

    def _stop(self) -> None:
        self.engine.stop()
        if self.disk.dead:
            raise OSError("killed")


@dataclass
class Promised:
    """What recovery owes at a moment: marks read so far."""

    fsync: str
    acknowledged: tuple[bytes, ...] = ()
    sent: tuple[bytes, ...] = ()
    owed: int = 0  # bytes that must be there

    def read(self, mark: Operation) -> None:
        """Take one mark into account."""
        if mark.name == "sent":
            self.sent = mark.arguments
        elif mark.name == "refused":
            self.sent = ()
        elif mark.name == "acknowledged":
            self.acknowledged, self.sent = (*self.acknowledged, *mark.arguments), ()
            if self.fsync == "always":
                self.owed = sum(map(len, self.acknowledged))
        elif mark.name == "kept":
            self.owed = max(self.owed, mark.arguments[0])

    def allows(self, offset: int, state: str) -> bool:
        """Whether a recovered state is one of a prefix of what was sent, and long enough."""
        lived = (*self.acknowledged, *self.sent)
        prefixes = [lived[:count] for count in range(len(lived) + 1)]
        states = {sum(map(len, p)): state_after(p) for p in prefixes}
        return offset >= self.owed and states.get(offset) == state


@cache
def state_after(messages: tuple[bytes, ...]) -> str:
    """The oracle: a fold in memory, without a disk."""
    learner = Learner(Episodes(8, 1000))
    learner.fold([Record(Kind.GENOME, 0, 1, 0, to_bytes(small_genome()))])
    offset = 0
    for sequence, message in enumerate(messages, start=2):
        learner.fold([Record(Kind.LINES, 4096, sequence, offset, message)])
        offset += len(message)
    return learner.life.state_sha256


class NoWait(Disk):
    """A disk that crashes no more: nothing to wait for."""

    def sync(self, file: int) -> None:
        """Nothing."""

    def sync_folder(self, path: Path) -> None:
        """Nothing."""


class Sleeper:
    """Wakes an organism from a tree; remembers what it woke as."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._numbers = itertools.count()
        self._known: dict[bytes, tuple[int, str] | str] = {}

    def wake(self, tree: Tree) -> tuple[int, str] | str:
        """Offset and state; or why it could not wake."""
        key = digest(tree)
        if key not in self._known:
            folder = self._root / str(next(self._numbers))
            folder.mkdir(parents=True)
            lay_out(tree, folder)
            try:
                engine = started(folder, NoWait(), "always")
            except (JournalDamaged, OSError) as error:
                self._known[key] = str(error)
            else:
                life = engine.life
                start = engine._journal.start
                retained = engine._journal.read(start, life.offset - start) or b""
                engine.stop()
                whole = retained in (stream[start : life.offset] for stream in STREAMS)
                self._known[key] = (
                    (life.offset, life.state_sha256) if whole else "retained bytes differ"
                )
            shutil.rmtree(folder)
        return self._known[key]


def failures(
    life: Sequence[Operation], fsync: str, sleeper: Sleeper, without: str | None = None
) -> Iterator[str]:
    """Every crash of a life that recovery does not answer for."""
    promised, read = Promised(fsync), 0
    for done, tree in crash_points(life, without):
        for mark in life[read:done]:
            promised.read(mark)
        read = done
        found = sleeper.wake(tree)
        if isinstance(found, str) or not promised.allows(*found):
            yield f"after {done}, {life[done - 1]}: {found}, {promised.owed} bytes are owed"


@dataclass
class Lives:
    """All lives that are led, and the sites of their syncs."""

    led: list[tuple[str, list[Operation]]]
    sites: list[str]
    sleeper: Sleeper


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    """Undisturbed under each policy, and killed at every sync."""
    led = []
    for fsync in ("always", "no"):
        led.append((fsync, Driver(tmp_path_factory.mktemp(fsync), fsync).live()))
    sites = sorted({op.site for _, life in led for op in life if op.site})
    for site in sites:
        passed = itertools.count()

        def at_its_second(
            operation: Operation, site: str = site, passed: Iterator[int] = passed
        ) -> bool:
            return operation.site == site and next(passed) == 1

        root = tmp_path_factory.mktemp("killed")
        led.append(("always", Driver(root, "always", at_its_second).live()))
    return Lives(led, sites, Sleeper(tmp_path_factory.mktemp("woken")))


@pytest.mark.slow
def test_every_crash_point_recovers(lives: Lives) -> None:
    """Whatever was acknowledged is there, what was refused is not, and the state is its fold."""
    assert sum(len(life) for _, life in lives.led) > 1000
    for fsync, life in lives.led:
        assert [*failures(life, fsync, lives.sleeper)] == []


@pytest.mark.slow
def test_every_sync_is_needed(lives: Lives) -> None:
    """Any one of them taken out of the code, some crash loses what was acknowledged."""
    assert len(lives.sites) >= 9, lives.sites
    idle = [
        site
        for site in lives.sites
        if not any(
            next(failures(life, fsync, lives.sleeper, without=site), None)
            for fsync, life in lives.led
        )
    ]
    assert idle == []
