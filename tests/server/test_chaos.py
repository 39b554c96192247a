"""The chaos benchmark: a few of its kills, and that each of its counters can tell."""

from __future__ import annotations

import json
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks import chaos
from benchmarks.chaos import PROMISES, SETTINGS, Chaos, Client, Lines, Tally, Writer
from server.storage.disk import Disk
from server.storage.journal import Entry, Journal
from server.storage.segment import Record
from server.storage.statedir import journal_folder, snapshot_folder

SEED = 2
# What was written is in the journal alone, and all of it.
JOURNAL_ALONE = {
    **SETTINGS,
    "ORGANISM_SNAPSHOT_INTERVAL_S": "86400",
    "ORGANISM_JOURNAL_BYTES": str(64 << 20),
}


@pytest.mark.slow
def test_a_daemon_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    """The same as the benchmark does, with fewer kills; of this seed, one while it starts."""
    with Chaos(tmp_path, SEED) as killed:
        tally = killed.run(3)
    assert tally.flawless, tally
    assert tally.kills == 3
    assert tally.starts == 4
    assert killed.writer.acked > 0


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    """A daemon that was killed when all that was sent had been acknowledged."""
    with Chaos(tmp_path_factory.mktemp("chaos"), SEED, JOURNAL_ALONE) as made:
        made.start()
        with Client(made.daemon.port) as client:
            for _ in range(5):
                made.writer.post(client)
                made.writer.stream(client)
            made.writer.post(client)
        made.daemon.kill()
        assert made.tally.flawless
        shutil.copytree(made.daemon.state, made.daemon.state.with_name("kept"))
        yield made


def restarted(
    written: Chaos, change: Callable[[Sequence[Record]], Sequence[Record]]
) -> tuple[Tally, bytes]:
    """Start it with a journal of other records; the tally, and the last message that was sent."""
    state, acked = written.daemon.state, written.writer.acked
    shutil.rmtree(state)
    shutil.copytree(state.with_name("kept"), state)
    journal = Journal(journal_folder(state), Disk(), 1 << 30)
    records = [*journal.recover()]
    journal.close()
    for folder in (journal_folder(state), snapshot_folder(state)):
        shutil.rmtree(folder)
        folder.mkdir()
    journal = Journal(journal_folder(state), Disk(), 1 << 30)
    assert not [*journal.recover()]
    journal.append([Entry(r.kind, r.width, r.payload) for r in change(records)])
    journal.sync()
    journal.close()
    before = Tally(**vars(written.tally))
    written.start()
    written.daemon.kill()
    found = Tally(**{name: n - getattr(before, name) for name, n in vars(written.tally).items()})
    written.writer.acked = acked
    return found, records[-1].payload


@pytest.mark.slow
def test_the_counters_tell_a_journal_that_is_not_what_was_written(written: Chaos) -> None:
    """As it was: nothing. Its last message gone, of other bytes, or there twice: each is told."""
    whole, _ = restarted(written, lambda records: records)
    assert whole == Tally(starts=1)

    shortened, last = restarted(written, lambda records: records[:-1])
    assert shortened == Tally(lost_acked_bytes=len(last), starts=1)

    def spoilt(records: Sequence[Record]) -> list[Record]:
        last = records[-1]
        return [*records[:-1], last._replace(payload=b"X" + last.payload[1:])]

    assert restarted(written, spoilt)[0] == Tally(state_hash_mismatches=1, starts=1)

    repeated, last = restarted(written, lambda records: [*records, records[-1]])
    assert repeated == Tally(
        state_hash_mismatches=1, duplicates_learned=last.count(b"\n"), starts=1
    )


class Answering(Client):
    """Answers by itself; each time, its state is another."""

    def __init__(self, code: int, receipt: dict[str, Any]) -> None:
        super().__init__(0)
        self._answer = code, receipt
        self._steps = 0

    def ask(self, *_: Any, **__: Any) -> tuple[int, dict[str, Any]]:
        """Give the answer."""
        return self._answer

    def status(self) -> dict[str, Any]:
        """Tell of one step more."""
        self._steps += 1
        return {"steps": self._steps}


@pytest.mark.parametrize(
    ("code", "receipt", "lost", "learned"),
    [
        (200, {"chunks": 3, "duplicate": False}, False, 3),
        (200, {"chunks": 0, "duplicate": False}, False, 1),
        (200, {"chunks": 0, "duplicate": True}, False, 0),
        (409, {}, True, 0),
    ],
)
def test_a_repetition_that_does_something_is_counted(
    code: int, receipt: dict[str, Any], lost: bool, learned: int
) -> None:
    """Learned again, not recognised, or not known any more; and a state that moves."""
    tally = Tally()
    writer = Writer(Lines(SEED), random.Random(SEED), tally)
    writer.acked = 10_000
    writer.repeat(Answering(code, receipt))
    assert (tally.lost_acked_bytes > 0) == lost
    assert tally.duplicates_learned == learned
    assert tally.state_hash_mismatches == tally.resent == 1


def test_a_daemon_that_hangs_up_by_itself_is_a_fault() -> None:
    """Only where it was killed may a connection break."""
    struck = threading.Event()
    with pytest.raises(RuntimeError, match="by itself"), chaos.until_killed(struck):
        raise ConnectionResetError
    struck.set()
    with chaos.until_killed(struck):
        raise ConnectionResetError


@pytest.mark.parametrize("counter", ["", *PROMISES])
@pytest.mark.parametrize("fault", [None, "the daemon does not start"])
def test_the_exit_status_tells(
    counter: str,
    fault: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A counter that is not 0, or a daemon that does what it must not: the command fails."""

    def run(self: Chaos, kills: int) -> Tally:
        self.daemon.log.touch()
        self.tally.kills = kills
        if counter:
            setattr(self.tally, counter, 5)
        if fault:
            raise RuntimeError(fault)
        return self.tally

    monkeypatch.setattr(Chaos, "run", run)
    monkeypatch.setattr(sys, "argv", ["chaos", "--kills", "3", "--json"])
    assert chaos.main() == (1 if counter or fault else 0)
    found = json.loads(capsys.readouterr().out)
    assert (found["kills"], found["fault"]) == (3, fault)
    assert {name: found[name] for name in PROMISES} == {n: 5 * (n == counter) for n in PROMISES}
