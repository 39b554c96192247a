"""``verify``: the daemon's own verdict on a folder, and a repair that deletes nothing."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import pytest

from server import verify
from server.engine import Engine
from server.storage.segment import segments
from server.storage.snapshot import snapshots
from server.storage.statedir import StateDirError
from tests.server.conftest import make_engine

MESSAGES = [b"message %d\n" % i for i in range(30)]


def started(folder: Path) -> Engine:
    """An engine that has recovered; segments of a few messages."""
    engine = make_engine(folder, journal_bytes=2400)
    try:
        engine.start().result(timeout=60)
    except BaseException:
        engine.stop()
        raise
    return engine


def lived(folder: Path, snapshot_after: int | None) -> tuple[str, int]:
    """A folder of a killed process, with one snapshot or none; its state and offset."""
    engine = started(folder.with_name("live"))
    for count, message in enumerate(MESSAGES, start=1):
        engine.submit(message).result(timeout=60)
        if count == snapshot_after:
            engine.snapshot()
    shutil.copytree(folder.with_name("live"), folder)
    found = engine.life.state_sha256, engine.life.offset
    engine.stop()
    return found


def damage(folder: Path, payload: bytes) -> Path:
    """Flip a bit of a message in the journal."""
    for path in segments(folder / "journal"):
        data = bytearray(path.read_bytes())
        if (at := data.find(payload)) >= 0:
            data[at] ^= 1
            path.write_bytes(data)
            return path
    raise AssertionError(payload)


def files(folder: Path) -> dict[Path, bytes]:
    """Everything in a folder."""
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_good_folder_is_good(tmp_path: Path) -> None:
    """What it holds is counted, and nothing is touched."""
    _, offset = lived(tmp_path / "state", snapshot_after=10)
    before = files(tmp_path / "state")
    report = verify.inspect(tmp_path / "state")
    assert (report.verdict, report.offset) == ("good", offset)
    assert (report.messages, report.genomes, report.records) == (30, 1, 31)
    assert [snapshot.fault for snapshot in report.snapshots] == [None]
    assert files(tmp_path / "state") == before
    assert verify.repair(tmp_path / "state") == "nothing to repair"


def test_a_torn_tail_is_told_and_left(tmp_path: Path) -> None:
    """The next start cuts it; looking at it does not."""
    lived(tmp_path / "state", snapshot_after=None)
    path = segments(tmp_path / "state" / "journal")[-1]
    path.write_bytes(path.read_bytes()[:-1])
    before = files(tmp_path / "state")
    report = verify.inspect(tmp_path / "state")
    assert (report.verdict, report.messages) == ("torn", 29)
    assert files(tmp_path / "state") == before


@pytest.mark.parametrize("message", [3, 9, 29])
def test_damage_that_a_snapshot_has_seen_costs_only_memory(tmp_path: Path, message: int) -> None:
    """The cortex goes on as if nothing had been; the bytes before the damage are set aside."""
    state, offset = lived(tmp_path / "state", snapshot_after=30)
    path = damage(tmp_path / "state", MESSAGES[message])
    before = path.read_bytes()
    report = verify.inspect(tmp_path / "state")
    assert report.verdict == "damaged"
    assert str(path) in str(report.detail)
    assert "set aside" not in verify.repair(tmp_path / "state")
    assert verify.inspect(tmp_path / "state").verdict == "good"
    engine = started(tmp_path / "state")
    assert (engine.life.state_sha256, engine.life.offset) == (state, offset)
    lost = {episode.chunk for episode in engine.episodes.all()}
    assert lost == {m[:-1] for m in MESSAGES[message + 1 :]}
    engine.stop()
    assert (tmp_path / "state" / "damaged-1" / "journal" / path.name).read_bytes() == before


def test_damage_that_no_snapshot_has_seen_ends_the_stream_there(tmp_path: Path) -> None:
    """What is whole before it is kept; the writer goes on from there."""
    lived(tmp_path / "state", snapshot_after=5)
    damage(tmp_path / "state", MESSAGES[12])
    assert f"offset {sum(map(len, MESSAGES[:12]))}" in verify.repair(tmp_path / "state")
    engine = started(tmp_path / "state")
    assert engine.life.offset == sum(map(len, MESSAGES[:12]))
    assert engine.life.cortex.steps.item() == 12
    engine.submit(MESSAGES[12], engine.life.offset).result(timeout=60)
    engine.stop()


def test_a_lost_segment_is_damage_too(tmp_path: Path) -> None:
    """In the middle, or the last that a snapshot has seen."""
    state, _ = lived(tmp_path / "middle", snapshot_after=30)
    shutil.copytree(tmp_path / "middle", tmp_path / "last")
    segments(tmp_path / "middle" / "journal")[2].unlink()
    segments(tmp_path / "last" / "journal")[-1].unlink()
    for name in ("middle", "last"):
        assert verify.inspect(tmp_path / name).verdict == "damaged"
        verify.repair(tmp_path / name)
        engine = started(tmp_path / name)
        assert engine.life.state_sha256 == state
        engine.stop()


def test_what_cannot_be_repaired_is_left(tmp_path: Path) -> None:
    """Neither a snapshot nor the beginning of the journal: said, and nothing is touched."""
    lived(tmp_path / "state", snapshot_after=5)
    segments(tmp_path / "state" / "journal")[0].unlink()
    for _, path in snapshots(tmp_path / "state" / "snapshots"):
        path.write_bytes(b"")
    before = files(tmp_path / "state")
    with pytest.raises(StateDirError, match="put a copy of the folder back"):
        verify.repair(tmp_path / "state")
    assert files(tmp_path / "state") == before


def test_a_repair_that_is_cut_short_is_finished(tmp_path: Path) -> None:
    """Wherever: a start refuses until it is, and nothing is born anew."""
    state, _ = lived(tmp_path / "state", snapshot_after=30)
    damage(tmp_path / "state", MESSAGES[3])
    verify.repair(tmp_path / "state")
    journal = tmp_path / "state" / "journal"
    journal.rename(tmp_path / "state" / "journal.rebuilt")
    for _ in range(2):
        with pytest.raises(StateDirError, match="cut short"):
            started(tmp_path / "state")
    assert "finished" in verify.repair(tmp_path / "state")
    engine = started(tmp_path / "state")
    assert engine.life.state_sha256 == state
    engine.stop()


def test_the_only_snapshot_of_an_older_version_is_judged_too(tmp_path: Path) -> None:
    """A start refuses, and so does the report."""
    fixture = Path(__file__).parent / "fixtures" / "schema-1"
    shutil.copytree(fixture, tmp_path / "state")
    assert verify.inspect(tmp_path / "state").verdict == "good"
    path = tmp_path / "state" / "organism.snapshot"
    path.write_bytes(path.read_bytes()[:-1])
    assert verify.inspect(tmp_path / "state").verdict == "damaged"


def test_a_running_daemon_is_not_repaired(tmp_path: Path) -> None:
    """Its folder is held; it can be looked at all the same."""
    engine = started(tmp_path / "state")
    try:
        with pytest.raises(StateDirError, match="held by another daemon"):
            verify.repair(tmp_path / "state")
        assert verify.inspect(tmp_path / "state").verdict == "good"
    finally:
        engine.stop()


def test_the_command_prints_for_people_and_programs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And its status says whether a daemon would start."""
    lived(tmp_path / "state", snapshot_after=5)

    def run(*options: str) -> int:
        parser = argparse.ArgumentParser()
        verify.describe(parser.add_subparsers())
        return verify.run(parser.parse_args(["verify", *options]), tmp_path / "state")

    assert run() == 0
    assert "30 of messages, 1 of genomes" in capsys.readouterr().out
    damage(tmp_path / "state", MESSAGES[7])
    assert run("--json") == 1
    assert json.loads(capsys.readouterr().out)["verdict"] == "damaged"
    assert run("--repair") == 0
    assert "is kept" in (said := capsys.readouterr()).err or "are kept" in said.err
    assert run(str(tmp_path / "nowhere")) == 1
    assert "no state folder" in capsys.readouterr().err
