"""Recovery: the newest good snapshot and the journal behind it are the same life again."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from organism.genome import GenomeError, new_genome
from organism.tensorfile import TensorFileError
from server.engine import Engine, Stopped
from server.episodes import Episodes
from server.errors import Problem
from server.learner import Learner
from server.life import Life
from server.storage.disk import Disk
from server.storage.journal import Journal, JournalDamaged
from server.storage.segment import segments
from server.storage.snapshot import snapshots
from server.storage.statedir import StateDirError
from tests.conftest import small_config
from tests.server.conftest import engine, held, make_engine

FIXTURES = Path(__file__).parent / "fixtures"
MESSAGES = [b"message %d\nand a line that repeats\n" % i for i in range(40)]


def send(running: Engine, messages: Sequence[bytes]) -> None:
    """Have messages learned."""
    for message in messages:
        running.submit(message).result(timeout=60)


def killed(folder: Path) -> Path:
    """A copy of a running engine's folder: what a killed process leaves."""
    copy = folder.with_name(f"{folder.name}-killed")
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)
    return copy


def everything(running: Engine) -> tuple[object, ...]:
    """All that must be the same after a recovery."""
    life = running.life
    lived = (life.state_sha256, life.offset, life.sequence, life.generation, life.entropy)
    return (*lived, life.genome.sha256, running.episodes.all())


def test_a_whole_journal_is_the_life(tmp_path: Path) -> None:
    """Replayed from birth, genome swaps and another cutting included, bit for bit."""
    other = new_genome(small_config("mlp", calibration=True), 5)
    with engine(tmp_path) as running:
        send(running, MESSAGES[:10])
        running.swap(other).result(timeout=60)
        send(running, MESSAGES[10:15])
    with engine(tmp_path, chunking="windows", chunk_bytes=7) as running:
        send(running, MESSAGES[15:20])
        live = everything(running)
    journal = Journal(tmp_path / "journal", Disk(), 1 << 20)
    learner = Learner(Episodes(10_000, 1 << 20))
    for record in journal.recover():
        learner.fold([record])
    journal.close()
    life = learner.life
    assert live == (
        *(life.state_sha256, life.offset, life.sequence, life.generation, life.entropy),
        *(life.genome.sha256, learner.episodes.all()),
    )
    assert life.generation == 1
    for _, path in snapshots(tmp_path / "snapshots"):
        path.unlink()
    with engine(tmp_path) as running:
        assert everything(running) == live


@pytest.mark.parametrize("fsync", ["always", "everysec", "no"])
def test_a_killed_process_loses_nothing(tmp_path: Path, fsync: str) -> None:
    """Whatever the policy: what was written is the kernel's to keep, synced or not."""
    with engine(tmp_path / "state", fsync=fsync) as running:
        send(running, MESSAGES[:7])
        running.snapshot()
        send(running, MESSAGES[7:12])
        live, copy = everything(running), killed(tmp_path / "state")
    with engine(copy) as running:
        assert everything(running) == live


def test_snapshots_change_nothing(tmp_path: Path) -> None:
    """Taken after every message, or never: the same life."""
    with engine(tmp_path / "often") as often, engine(tmp_path / "never") as never:
        for message in MESSAGES[:12]:
            send(often, [message])
            send(never, [message])
            kept = often.snapshot()
            assert kept.state_sha256 == often.life.state_sha256
            assert kept.offset == often.life.offset
        assert everything(often) == everything(never)
        assert often.snapshot() == kept
    assert len(snapshots(tmp_path / "often" / "snapshots")) == 2


def test_snapshots_are_taken_from_time_to_time(tmp_path: Path) -> None:
    """Without being asked; a start then replays little."""
    with engine(tmp_path / "state", snapshot_interval_s=0.1) as running:
        send(running, MESSAGES[:3])
        seen = threading.Event()
        while not (found := snapshots(tmp_path / "state" / "snapshots")) or (
            found[0][0] < running.life.sequence
        ):
            assert not seen.wait(0.01)


def test_the_start_after_a_stop_replays_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The snapshot of the stop has seen the last record."""
    with engine(tmp_path) as running:
        send(running, MESSAGES[:9])
    caplog.set_level(logging.INFO)
    with engine(tmp_path):
        assert "; 0 records replayed" in caplog.text


def test_a_bad_snapshot_falls_back_to_the_one_before(tmp_path: Path) -> None:
    """And without any, to the birth in the journal; a bad one is set aside, not removed."""
    with engine(tmp_path / "state") as running:
        send(running, MESSAGES[:5])
        running.snapshot()
        send(running, MESSAGES[5:9])
        running.snapshot()
        send(running, MESSAGES[9:12])
        live, copy = everything(running), killed(tmp_path / "state")
    for bad in range(3):
        folder = tmp_path / f"bad-{bad}"
        shutil.copytree(copy, folder)
        for _, path in snapshots(folder / "snapshots")[:bad]:
            damaged = bytearray(path.read_bytes())
            damaged[len(damaged) // 2] ^= 1
            path.write_bytes(damaged)
        with engine(folder) as running:
            assert everything(running) == live
        assert len([*(folder / "snapshots").glob("*.bad")]) == bad


def test_a_refusal_to_start_is_one_at_every_start(tmp_path: Path) -> None:
    """What a bad snapshot has seen was on the disk, also when it is looked at again."""
    with engine(tmp_path / "state") as running:
        send(running, MESSAGES[:5])
        running.snapshot()
        copy = killed(tmp_path / "state")
    ((_, snapshot),) = snapshots(copy / "snapshots")
    snapshot.write_bytes(snapshot.read_bytes()[:-1])
    (segment,) = segments(copy / "journal")
    whole = segment.read_bytes()
    for left in (whole[:-1], None):
        if left is None:
            segment.unlink()
        else:
            segment.write_bytes(left)
        for _ in range(3):
            again = make_engine(copy)
            with pytest.raises(JournalDamaged):
                again.start().result(timeout=60)
            again.stop()
    segment.write_bytes(whole)
    with engine(copy) as running:
        assert running.life.offset == sum(map(len, MESSAGES[:5]))


def test_every_flipped_byte_of_a_snapshot_is_noticed(tmp_path: Path) -> None:
    """And every length it could be cut to."""
    with engine(tmp_path) as running:
        send(running, MESSAGES[:2])
        blob = running.life.to_snapshot()
        assert Life.from_snapshot(blob).state_sha256 == running.life.state_sha256
        assert Life.from_snapshot(blob).to_snapshot() == blob
    for position in range(len(blob)):
        flipped = bytearray(blob)
        flipped[position] ^= 1 << position % 8
        with pytest.raises((TensorFileError, GenomeError)):
            Life.from_snapshot(bytes(flipped))
        with pytest.raises((TensorFileError, GenomeError)):
            Life.from_snapshot(blob[:position])


def test_the_journal_keeps_what_it_was_set_to(tmp_path: Path) -> None:
    """Old segments go once both snapshots have seen them, and their chunks with them."""
    with engine(tmp_path / "state", journal_bytes=400) as running:
        for message in MESSAGES:
            send(running, [message])
            running.snapshot()
        start = running._journal.start
        assert running.life.offset - 800 < start <= running.life.offset - 400
        assert len(segments(tmp_path / "state" / "journal")) < 20
        assert min(episode.offset for episode in running.episodes.all()) >= start
        live, copy = everything(running), killed(tmp_path / "state")
        last = len(MESSAGES[-1])
        again = running.submit(MESSAGES[-1], running.life.offset - last).result(timeout=60)
        assert again.duplicate
        with pytest.raises(Problem, match="claims offset 0"):
            running.submit(MESSAGES[0], 0).result(timeout=60)
    with engine(copy, journal_bytes=400) as running:
        assert everything(running) == live


def test_a_duplicate_is_known_after_a_recovery(tmp_path: Path) -> None:
    """By its bytes in the journal, wherever they stand in it and however they were grouped."""
    with engine(tmp_path) as running:
        send(running, MESSAGES[:20])
    stream = b"".join(MESSAGES[:20])
    with engine(tmp_path) as running:
        before = everything(running)
        for start, end in ((0, 10), (3, len(stream)), (len(stream) - 1, len(stream))):
            receipt = running.submit(stream[start:end], start).result(timeout=60)
            assert (receipt.duplicate, receipt.chunks, receipt.offset) == (True, 0, end)
        for data, claimed in ((b"Message", 0), (stream[5:] + b"x", 5), (b"x", len(stream) + 1)):
            with pytest.raises(Problem) as caught:
                running.submit(data, claimed).result(timeout=60)
            assert caught.value.status == 409
            assert caught.value.members["offset"] == len(stream)
        assert everything(running) == before


def test_repetitions_within_one_batch_are_learned_once(tmp_path: Path) -> None:
    """A repetition that waits beside its original is a duplicate; what follows it is learned."""
    with engine(tmp_path) as running:
        with held(running._intake.call):
            sent = ((b"a\n", 0), (b"a\n", 0), (b"b\n", 2), (b"\nb", 1))
            promises = [running.submit(message, claimed) for message, claimed in sent]
        receipts = [promise.result(timeout=60) for promise in promises]
    assert [receipt.duplicate for receipt in receipts] == [False, True, False, True]
    assert [receipt.offset for receipt in receipts] == [2, 2, 4, 3]


def test_a_stop_in_the_middle_of_a_recovery_changes_nothing(tmp_path: Path) -> None:
    """The next start recovers whole."""
    with engine(tmp_path / "state") as running:
        send(running, MESSAGES)
        live, copy = everything(running), killed(tmp_path / "state")
    interrupted = make_engine(copy)
    interrupted.start()
    interrupted.stop()
    with suppress(Stopped):
        interrupted.recovered.result(timeout=60)
    with engine(copy) as running:
        assert everything(running) == live


def test_a_time_to_stop_is_kept(tmp_path: Path) -> None:
    """What is not learned by then is in the journal, and learned at the next start."""
    message = b"".join(b"line %d of a long message\n" % i for i in range(50_000))
    with engine(tmp_path) as running:
        send(running, MESSAGES[:1])
        with held(running._intake.call):
            promise = running.submit(message)
        before = running.life.offset
        running.stop(patience_s=0)
        with pytest.raises(Problem, match="starting or stopping"):
            promise.result(timeout=60)
        assert running.life.offset == before
    with engine(tmp_path) as running:
        assert running.life.offset in (before, before + len(message))


def test_a_version_without_a_journal_moves_in(tmp_path: Path) -> None:
    """Its state, offset and memory are there, and survive from then on like any other."""
    shutil.copytree(FIXTURES / "schema-1", tmp_path / "state")
    with engine(tmp_path / "state") as running:
        life = running.life
        assert life.offset == 270
        assert life.cortex.steps.item() == 12
        assert life.state_sha256.startswith("9d962cc829df387a")
        assert len(running.episodes.all()) == 7
        (match, *_) = running.episodes.search(b"line 3 of an older life", 1)
        assert (match.similarity, match.episode.offset) == (1.0, 135)
        send(running, MESSAGES[:3])
        live, copy = everything(running), killed(tmp_path / "state")
    assert not (copy / "organism.snapshot").exists()
    with engine(copy) as running:
        assert everything(running) == live


def test_a_damaged_snapshot_without_a_journal_is_refused(tmp_path: Path) -> None:
    """There is nothing to rebuild it from."""
    shutil.copytree(FIXTURES / "schema-1", tmp_path / "state")
    path = tmp_path / "state" / "organism.snapshot"
    path.write_bytes(path.read_bytes()[:-1])
    running = make_engine(tmp_path / "state")
    with pytest.raises(StateDirError, match=r"organism\.snapshot"):
        running.start().result(timeout=60)
    running.stop()


def test_the_first_format_with_a_journal_is_read(tmp_path: Path) -> None:
    """A folder of that version, killed behind a snapshot and a genome swap."""
    shutil.copytree(FIXTURES / "schema-2", tmp_path / "state")
    ((_, snapshot),) = snapshots(tmp_path / "state" / "snapshots")
    kept = Life.from_snapshot(snapshot.read_bytes())
    assert kept.state_sha256.startswith("b24dda474a29a919")
    with engine(tmp_path / "state") as running:
        life = running.life
        assert (life.offset, life.generation) == (330, 1)
        assert life.cortex.steps.item() == 15


def test_damage_is_refused(tmp_path: Path) -> None:
    """A start on a damaged journal says where; nothing is changed by it."""
    with engine(tmp_path / "state") as running:
        send(running, MESSAGES[:10])
        copy = killed(tmp_path / "state")
    (path,) = segments(copy / "journal")
    damaged = bytearray(path.read_bytes())
    damaged[damaged.find(b"message 4")] ^= 1
    path.write_bytes(damaged)
    running = make_engine(copy)
    with pytest.raises(JournalDamaged, match=f"{path}, byte "):
        running.start().result(timeout=60)
    running.stop()
    assert path.read_bytes() == damaged
