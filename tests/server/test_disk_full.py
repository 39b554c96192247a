"""A disk that is full, or fails: what is refused leaves nothing, what is kept stays."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from server.engine import Engine
from server.errors import Problem
from server.storage.disk import Disk
from tests.server.conftest import Daemon, engine, make_engine

NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


class Faulty(Disk):
    """A disk that fails when it is told to."""

    def __init__(self) -> None:
        self.room: int | None = None
        self.broken = False

    def write(self, file: int, parts: Sequence[bytes]) -> None:
        """Write what there is room for, then fail."""
        if self.room is not None:
            data = b"".join(parts)
            super().write(file, [data[: self.room]])
            if len(data) > self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        else:
            super().write(file, parts)

    def sync(self, file: int) -> None:
        """Fail as a broken device does."""
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        super().sync(file)


def refused(running: Engine, message: bytes) -> Problem:
    """Send a message that is not taken."""
    with pytest.raises(Problem) as caught:
        running.submit(message).result(timeout=30)
    return caught.value


@pytest.mark.parametrize("room", [0, 1, 40, 60, 80])
def test_a_full_disk_refuses_and_keeps_nothing_of_it(tmp_path: Path, room: int) -> None:
    """However much of the message found room; recall goes on, and so does learning afterwards."""
    disk = Faulty()
    with engine(tmp_path, disk) as running:
        running.submit(b"before\n").result(timeout=30)
        before = running.life
        disk.room = room
        problem = refused(running, b"a message for which there is no room at all, %d\n" % room)
        assert (problem.status, problem.slug) == (507, "disk-full")
        assert problem.headers["Retry-After"]
        assert running.life is before
        assert running.ready
        assert running.recall(b"before").result(timeout=30).offset == 7
        disk.room = None
        assert running.submit(b"after\n", 7).result(timeout=30).offset == 13
        state = running.life.state_sha256
    with engine(tmp_path, Disk()) as running:
        assert running.life.state_sha256 == state


def test_a_full_disk_at_a_new_segment(tmp_path: Path) -> None:
    """Not even its head finds room: no half a segment stays behind."""
    disk = Faulty()
    with engine(tmp_path, disk) as running:
        running._journal._segment_bytes = 1
        running.submit(b"before\n").result(timeout=30)
        files = sorted((tmp_path / "journal").iterdir())
        disk.room = 5
        assert refused(running, b"no room\n").status == 507
        assert sorted((tmp_path / "journal").iterdir()) == files
        disk.room = None
        running.submit(b"after\n").result(timeout=30)
        state = running.life.state_sha256
    with engine(tmp_path, Disk()) as running:
        assert running.life.state_sha256 == state


def test_no_room_for_a_snapshot(tmp_path: Path) -> None:
    """It is told; those before stand, and learning is none of its business."""
    disk = Faulty()
    with engine(tmp_path, disk) as running:
        running.submit(b"before\n").result(timeout=30)
        kept = running.snapshot()
        running.submit(b"more\n").result(timeout=30)
        disk.room = 100
        with pytest.raises(OSError, match="No space left"):
            running.snapshot()
        disk.room = None
        assert [path.name for path in (tmp_path / "snapshots").iterdir()] == [
            f"{kept.sequence:020d}.snapshot"
        ]
        assert running.snapshot().offset == 12


def test_what_cannot_be_synced_is_unlearned(tmp_path: Path) -> None:
    """It is learned while it is synced: where that fails, recall is as if it had never come."""
    disk = Faulty()
    with engine(tmp_path, disk) as running:
        running.submit(b"told\n").result(timeout=30)
        before = running.life, running.recall(b"not told").result(timeout=30)
        disk.broken = True
        assert refused(running, b"not told\n").slug == "learning-stopped"
        disk.broken = False
        assert (running.life, running.recall(b"not told").result(timeout=30)) == before
        assert len(running.episodes.all()) == 1


def test_a_failed_sync_stops_learning(tmp_path: Path) -> None:
    """Nothing more is taken, recall goes on; a start on a good disk has all that was told."""
    disk = Faulty()
    with engine(tmp_path, disk) as running:
        running.submit(b"told\n").result(timeout=30)
        before = running.life
        disk.broken = True
        assert refused(running, b"not told\n").slug == "learning-stopped"
        disk.broken = False
        assert refused(running, b"nor this\n").status == 503
        assert not running.ready
        assert (refusal := running.refusal()) is not None
        assert refusal.slug == "learning-stopped"
        assert running.offset == 5
        assert running.life is before
        assert running.recall(b"told").result(timeout=30).offset == 5
    with engine(tmp_path, Disk()) as running:
        assert running.life.state_sha256 == before.state_sha256
        assert running.submit(b"again\n", 5).result(timeout=30).offset == 11


@pytest.mark.parametrize("fsync", ["everysec", "no"])
def test_a_failed_write_takes_nothing_that_was_told(tmp_path: Path, fsync: str) -> None:
    """What is not synced was acknowledged all the same, and is still the kernel's to keep."""
    disk = Faulty()
    running = make_engine(tmp_path, disk, fsync=fsync)
    running.start().result(timeout=60)
    for _ in range(10):
        running.submit(b"told\n").result(timeout=30)
    disk.broken = True
    disk.room = 0
    assert refused(running, b"not told\n").slug == "learning-stopped"
    with suppress(OSError):
        running.stop()
    with engine(tmp_path, Disk()) as again:
        assert again.life.offset == 50


def test_a_failed_sync_is_never_a_full_disk(tmp_path: Path) -> None:
    """Some systems say only then that there is no room: the bytes may be gone all the same."""

    class Late(Faulty):
        def sync(self, file: int) -> None:
            """Fail for want of room."""
            if self.broken:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    disk = Late()
    with engine(tmp_path, disk) as running:
        running.submit(b"told\n").result(timeout=30)
        disk.broken = True
        assert refused(running, b"not told\n").slug == "learning-stopped"
        disk.broken = False
    with engine(tmp_path, Disk()) as running:
        assert running.life.offset == 5


def may_mount() -> bool:
    """Whether a small file system can be had here."""
    if shutil.which("unshare") is None:
        return False
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(command, capture_output=True).returncode == 0


class SmallDisk(Daemon):
    """A daemon whose state folder is a file system of a mebibyte, seen by it alone."""

    def command(self) -> list[str]:
        """Mount it first; the process keeps its id."""
        self.state_dir.mkdir(exist_ok=True)
        mount = f"mount -t tmpfs -o size=1m tmpfs {self.state_dir}"
        return [*NAMESPACE, "sh", "-c", f'{mount} && exec "$@"', "sh", *super().command()]

    @property
    def seen(self) -> Path:
        """Its state folder, as it sees it."""
        return Path(f"/proc/{self.process.pid}/root{self.state_dir}")


@pytest.mark.skipif(not may_mount(), reason="no user namespace in which to mount a small tmpfs")
def test_a_real_disk_that_is_full(tmp_path: Path, genome_path: Path) -> None:
    """507 and 1013, recall, and learning again when there is room; then killed, all is there."""
    settings = {"ORGANISM_SNAPSHOT_INTERVAL_S": "3600", "ORGANISM_BODY_LIMIT_BYTES": "100000"}
    message = b"".join(b"line %d of a message\n" % i for i in range(2000))
    with SmallDisk(tmp_path / "state", genome_path, settings) as daemon:
        filler = daemon.seen / "filler"
        filler.write_bytes(bytes(600_000))
        learned = until(lambda: daemon.ingest(message), lambda reply: reply.status_code != 200)
        assert 0 < len(learned) < 30
        problem = daemon.ingest(message)
        assert (problem.status_code, problem.headers["retry-after"]) == (507, "10")
        assert problem.json()["type"] == "urn:organism:problem:disk-full"
        before = daemon.status()
        assert before["offset"] == len(learned) * len(message)
        assert daemon.client.get("/readyz").status_code == 200
        assert daemon.recall(b"line 7 of a message").json()["recall_error"] == 0
        with connect(f"ws://127.0.0.1:{daemon.port}/ingest/ws") as ws:
            ws.send(message)
            with pytest.raises(ConnectionClosed) as caught:
                ws.recv(timeout=30)
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1013
        assert "disk is full" in caught.value.rcvd.reason
        assert daemon.status() == before
        filler.unlink()
        reply = daemon.ingest(message, **{"Upload-Offset": str(before["offset"])})
        assert reply.status_code == 200
        after = daemon.status()
        kept = tmp_path / "kept"
        shutil.copytree(daemon.seen, kept)
        daemon.kill()
    with Daemon(kept, genome_path, settings) as daemon:
        assert daemon.status() == after


def until(ask: Callable[[], Any], holds: Callable[[Any], bool]) -> list[Any]:
    """Ask until an answer comes that holds; those before it."""
    found: list[Any] = []
    while not holds(answer := ask()):
        found.append(answer)
    return found
