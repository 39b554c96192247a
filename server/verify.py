"""``python -m server verify``: what a state folder holds, and how to go on where it is damaged.

Reads with the eyes of the daemon's own start, so that both come to the same verdict. A repair keeps
what can follow a good snapshot, or the birth, and sets everything else aside; it deletes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from server.storage.disk import Disk
from server.storage.journal import Entry, Journal, JournalDamaged
from server.storage.segment import (
    HEADER_BYTES,
    MESSAGES,
    Fault,
    Kind,
    Record,
    read_head,
    segments,
    whole_records,
)
from server.storage.statedir import StateDir, StateDirError, journal_folder
from server.waking import Waking, choose

_SEGMENT_BYTES = 8 << 20


@dataclass
class SnapshotReport:
    """One snapshot: the offset it stands for, or what is wrong with it."""

    file: str
    offset: int | None
    fault: str | None = None


@dataclass
class Report:
    """What a state folder holds.

    Attributes:
        verdict: ``good``, ``torn`` (a tail that was never acknowledged is cut at the next start) or
            ``damaged`` (the daemon refuses to start).
        detail: file, byte and reason where it is not good.
        segments: files of the journal.
        records: whole records, up to the damage.
        messages: how many of them are of messages, one or several.
        genomes: how many of them are of genomes.
        start: first stream offset that is retained.
        offset: stream offset that a start would reach.
    """

    folder: str
    verdict: str = "good"
    detail: str | None = None
    snapshots: list[SnapshotReport] = field(default_factory=list)
    segments: int = 0
    records: int = 0
    messages: int = 0
    genomes: int = 0
    start: int = 0
    offset: int = 0


class _Untouched(Disk):
    """A disk that is only looked at; remembers what a start would cut."""

    def __init__(self) -> None:
        self.cut = False

    def open(self, path: Path) -> int:
        """Open a file to be read."""
        return os.open(path, os.O_RDONLY)

    def truncate(self, file: int, size: int) -> None:
        """Leave the file as it is."""
        self.cut = True

    def remove(self, path: Path) -> None:
        """Leave the file where it is."""
        self.cut = True

    def sync(self, file: int) -> None:
        """Nothing was written."""

    def sync_folder(self, path: Path) -> None:
        """Nothing was written."""


def inspect(folder: Path) -> Report:
    """Read everything, change nothing.

    Raises:
        OSError: the journal cannot be read.
    """
    report = Report(str(folder))
    waking = choose(folder)
    report.snapshots = [SnapshotReport(path.name, offset) for path, offset in waking.good]
    report.snapshots += [SnapshotReport(path.name, None, fault) for path, fault in waking.bad]
    disk = _Untouched()
    journal = Journal(journal_folder(folder), disk, _SEGMENT_BYTES)
    report.segments = len(segments(journal_folder(folder)))
    try:
        for record in waking.records(journal):
            report.records += 1
            report.messages += record.kind in MESSAGES
            report.genomes += record.kind is Kind.GENOME
    except JournalDamaged as damage:
        report.verdict = "damaged"
        report.detail = f"{damage.path}, byte {damage.position}: {damage.reason}"
    except StateDirError as error:
        report.verdict, report.detail = "damaged", str(error)
    else:
        if disk.cut:
            report.verdict, report.detail = "torn", "a tail that was never acknowledged"
    report.start, report.offset = journal.start, journal.offset
    journal.close()
    return report


def repair(folder: Path) -> str:
    """Make a damaged folder start again; return what became of it, for a person.

    Raises:
        StateDirError: a daemon runs on it, or nothing that is left can be started from.
        OSError: it cannot be written.
    """
    disk = Disk()
    state_dir = StateDir(folder, disk, repairing=True)
    try:
        if _finish(state_dir, disk):
            return "a repair that was cut short is finished"
        if inspect(folder).verdict != "damaged":
            return "nothing to repair"
        waking = choose(folder)
        kept = _following(folder, waking.covered)
        if kept is None and waking.life is None:
            raise StateDirError(
                f"{folder}: no snapshot is good and the journal's beginning is gone: put a copy of "
                "the folder back, or begin anew in another one"
            )
        end = _rebuild(state_dir.rebuilt, kept or [], waking)
        aside = next(p for n in count(1) if not (p := state_dir.path / f"damaged-{n}").exists())
        disk.make_folder(aside)
        disk.rename(state_dir.journal, aside / state_dir.journal.name)
        disk.rename(state_dir.rebuilt, state_dir.journal)
        for path, _ in waking.bad:
            disk.rename(path, aside / path.name)
        for changed in (aside, state_dir.snapshots, state_dir.path):
            disk.sync_folder(changed)
        return (
            f"{len(kept or [])} records are kept, the old journal is in {aside}; "
            f"the stream goes on at offset {end}"
        )
    finally:
        state_dir.close()


def describe(commands: Any) -> None:
    """Add the command to a parser's."""
    parser: argparse.ArgumentParser = commands.add_parser("verify", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="state folder; default: the setting's")
    parser.add_argument("--repair", action="store_true", help="make a damaged folder start again")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(options: argparse.Namespace, default: Path) -> int:
    """Run the command; 0 where the daemon would start, 1 where it would not."""
    folder: Path = options.folder or default
    if not folder.is_dir():
        print(f"organism: no state folder {folder}", file=sys.stderr)
        return 1
    if options.repair:
        try:
            print(repair(folder), file=sys.stderr)
        except (StateDirError, OSError) as error:
            print(f"organism: {error}", file=sys.stderr)
            return 1
    try:
        report = inspect(folder)
    except OSError as error:
        print(f"organism: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(report), indent=2) if options.json else _text(report))
    return int(report.verdict == "damaged")


def _finish(state_dir: StateDir, disk: Disk) -> bool:
    """End a repair that was cut short: put what it had rebuilt in place, or begin again."""
    if not state_dir.rebuilt.exists():
        return False
    if segments(state_dir.journal):
        shutil.rmtree(state_dir.rebuilt)  # a copy, and perhaps not a whole one
        return False
    disk.rename(state_dir.rebuilt, state_dir.journal)
    disk.sync_folder(state_dir.path)
    return True


def _following(folder: Path, covered: int) -> list[Record] | None:
    """The unbroken run of whole records that a state after ``covered`` can go on with."""
    run: list[Record] = []
    for record in _all_whole(folder):
        if run and record.sequence != run[-1].sequence + 1:
            if run[0].sequence <= covered + 1 <= run[-1].sequence + 1:
                break
            run = []
        run.append(record)
    fits = run and run[0].sequence <= covered + 1 <= run[-1].sequence + 1
    return run if fits else None


def _all_whole(folder: Path) -> Iterator[Record]:
    for path in segments(journal_folder(folder)):
        data = path.read_bytes()
        try:
            head = read_head(path, data)
        except Fault:
            continue
        for record, _ in whole_records(data, head.marker, HEADER_BYTES):
            yield record


def _rebuild(folder: Path, kept: list[Record], waking: Waking) -> int:
    """Write records into a new journal; return the stream's offset after them."""
    disk = Disk()
    disk.make_folder(folder)
    journal = Journal(folder, disk, _SEGMENT_BYTES)
    if kept:
        journal.begin(kept[0].sequence - 1, kept[0].offset)
    else:
        journal.begin(waking.covered, 0 if waking.life is None else waking.life.offset)
    for record in kept:
        journal.append([Entry(record.kind, record.width, record.payload)])
    journal.sync()
    journal.close()
    return journal.offset


def _text(report: Report) -> str:
    lines = [f"{report.folder}: {report.verdict}"]
    if report.detail:
        lines.append(f"  {report.detail}")
    for snapshot in report.snapshots:
        state = snapshot.fault or f"good, offset {snapshot.offset}"
        lines.append(f"  snapshot {snapshot.file}: {state}")
    lines.append(
        f"  journal: {report.segments} segments, {report.records} whole records "
        f"({report.messages} of messages, {report.genomes} of genomes), "
        f"stream from {report.start} to {report.offset}"
    )
    if report.verdict == "damaged":
        lines.append("  python -m server verify --repair keeps what can be, and deletes nothing")
    return "\n".join(lines)
