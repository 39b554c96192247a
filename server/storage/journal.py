"""The journal: every message and genome in the order they were taken, appended and synced.

It is the memory that everything else is rebuilt from. Owns its segments (``segment`` has their
format); not safe to share between threads. Knows nothing of what a payload means.
"""

from __future__ import annotations

import bisect
import logging
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from server.storage.disk import Disk
from server.storage.segment import (
    HEADER_BYTES,
    MESSAGES,
    RECORD_BYTES,
    Fault,
    Head,
    Kind,
    Record,
    pack_head,
    pack_record,
    read_head,
    read_records,
    record_at,
    segment_path,
    segments,
    whole_records,
)

# Stream bytes between two entries of the index of a segment: what a look-up may have to walk.
_INDEX_BYTES = 1 << 16
_MARKER_BYTES = 4

_log = logging.getLogger("organism.journal")


class JournalDamaged(RuntimeError):
    """What was acknowledged cannot be read back.

    Attributes:
        path: the segment.
        position: where in it, in bytes.
        reason: what is wrong.
    """

    def __init__(self, path: Path, position: int, reason: str) -> None:
        super().__init__(
            f"{path}, byte {position}: {reason}; "
            "python -m server verify shows what is left and how to go on"
        )
        self.path = path
        self.position = position
        self.reason = reason


class SyncFailed(OSError):
    """Nobody knows what is on the disk; whatever the system said, it is not for want of room."""


class Entry(NamedTuple):
    """What is to be appended."""

    kind: Kind
    width: int
    payload: bytes


@dataclass
class _Segment:
    """A segment, and where in it records start."""

    path: Path
    head: Head
    size: int = HEADER_BYTES
    index: list[tuple[int, int]] = field(default_factory=list)  # stream offset, position

    def note(self, offset: int, position: int) -> None:
        if not self.index or offset - self.index[-1][0] >= _INDEX_BYTES:
            self.index.append((offset, position))


class Journal:
    """A journal in a folder: call ``recover`` to its end, then append and sync.

    Attributes:
        sequence: of the last record; 0 before the first.
        offset: of the stream after it, bytes.
        durable: sequence of the last record known to be on the disk.
    """

    def __init__(self, folder: Path, disk: Disk, segment_bytes: int) -> None:
        self._folder = folder
        self._disk = disk
        self._segment_bytes = segment_bytes
        self._segments: list[_Segment] = []
        self._file: int | None = None
        self._synced_size = 0  # of the last segment
        self.sequence = self.offset = self.durable = 0

    @property
    def start(self) -> int:
        """First stream offset whose bytes are retained."""
        return self._segments[0].head.offset if self._segments else self.offset

    @property
    def size_bytes(self) -> int:
        """Bytes on the disk."""
        return sum(segment.size for segment in self._segments)

    @property
    def is_behind(self) -> bool:
        """Whether there is something to sync."""
        return self._file is not None and self.durable < self.sequence

    def recover(
        self,
        covered: int = 0,
        offset: int = 0,
        seen: int = 0,
        progress: Callable[[float], None] = lambda _: None,
    ) -> Iterator[Record]:
        """Read every record, prove each whole, and make ready for appending.

        A tail that a crash tore is cut off: nothing of it was acknowledged.

        Args:
            covered: sequence up to which the snapshot that is woken stands for the journal.
            offset: of the stream at that snapshot; where a journal without records begins.
            seen: sequence that any snapshot has seen, good or bad: up to it, all was on the disk.
            progress: told the fraction of bytes read, 0 to 1.

        Raises:
            JournalDamaged: something that was acknowledged is missing or damaged.
        """
        paths, seen = segments(self._folder), max(seen, covered)
        total, done = sum(path.stat().st_size for path in paths) or 1, 0
        for path in paths:
            data = path.read_bytes()
            try:
                for position, record in self._read(path, data, covered):
                    if record.sequence == covered and record.end != offset:
                        reason = f"record {covered} ends at {record.end}, the snapshot at {offset}"
                        raise JournalDamaged(path, position, reason)
                    yield record
                    progress((done + position) / total)
            except Fault as fault:
                self._cut(fault, data, seen, path is paths[-1])
            done += len(data)
        if not self._segments and not seen:
            self.offset = offset
        elif not self._segments:
            raise JournalDamaged(
                self._folder, 0, f"there is no journal, a snapshot has seen record {seen}"
            )
        elif self.sequence < seen:
            last = self._segments[-1]
            raise JournalDamaged(
                last.path,
                last.size,
                f"the journal ends at record {self.sequence}, a snapshot has seen {seen}",
            )
        self._open_last()
        progress(1.0)

    def append(self, entries: Sequence[Entry]) -> list[Record]:
        """Append records; on the disk only after ``sync``.

        Raises:
            OSError: they could not be written; none of them was.
            SyncFailed: as ``sync``.
        """
        if self._file is None or self._segments[-1].size >= self._segment_bytes:
            self._begin_segment()
        segment, file = self._segments[-1], self._file
        assert file is not None
        parts: list[bytes] = []
        records: list[Record] = []
        sequence, offset = self.sequence, self.offset
        for kind, width, payload in entries:
            sequence += 1
            record = Record(kind, width, sequence, offset, payload)
            parts += (pack_record(segment.head.marker, record, self.durable), payload)
            offset = record.end
            records.append(record)
        try:
            self._disk.write(file, parts)
        except OSError:
            # Some may have been written whole: gone for good, before anybody is told.
            self._disk.truncate(file, segment.size)
            try:
                self._disk.sync(file)
            except OSError as error:
                raise SyncFailed(str(error)) from error
            raise
        for record in records:
            segment.note(record.offset, segment.size)
            segment.size += RECORD_BYTES + len(record.payload)
        self.sequence, self.offset = sequence, offset
        return records

    def sync(self) -> None:
        """Wait until every record is on the disk.

        Raises:
            SyncFailed: nothing may be appended any more.
        """
        if self._file is None or not self.is_behind:
            return
        try:
            self._disk.sync(self._file)
        except OSError as error:
            raise SyncFailed(str(error)) from error
        self._synced_size = self._segments[-1].size
        self.durable = self.sequence

    def begin(self, sequence: int, offset: int) -> None:
        """Make an empty journal that goes on behind a record; in place of ``recover``."""
        self.sequence = self.durable = sequence
        self.offset = offset
        self._begin_segment()

    def drop(self, covered: int, retained_bytes: int) -> bool:
        """Remove old segments; the one that is appended to stays.

        Args:
            covered: sequence up to which snapshots stand for the journal.
            retained_bytes: bytes of the stream that stay at least.

        Returns:
            Whether anything was removed.
        """
        before = len(self._segments)
        while len(self._segments) > 1:
            following = self._segments[1].head
            if following.sequence > covered + 1 or following.offset > self.offset - retained_bytes:
                break
            # One after the other on the disk, too: a hole would be damage.
            self._disk.remove(self._segments[0].path)
            self._disk.sync_folder(self._folder)
            self._segments.pop(0)
        return len(self._segments) < before

    def read(self, offset: int, size: int) -> bytes | None:
        """Read bytes of the stream again; None where not all of them are retained."""
        if offset < self.start or offset + size > self.offset:
            return None
        starts = [segment.head.offset for segment in self._segments]
        found = bytearray()
        for segment in self._segments[max(bisect.bisect_right(starts, offset) - 1, 0) :]:
            for record in self._walk(segment, offset, offset + size):
                skipped = max(offset - record.offset, 0)
                found += record.payload[skipped : skipped + size - len(found)]
                if len(found) >= size:
                    return bytes(found)
        return None

    def abandon(self) -> None:
        """Cut off what is not known to be on the disk, if that can be done, and close."""
        if self._file is not None:
            with suppress(OSError):
                self._disk.truncate(self._file, self._synced_size)
        self.close()

    def close(self) -> None:
        """Close the segment that is appended to."""
        if self._file is not None:
            self._disk.close(self._file)
            self._file = None

    def _read(self, path: Path, data: bytes, covered: int) -> Iterator[tuple[int, Record]]:
        """Read one segment, and take note of it."""
        head = read_head(path, data)
        if not self._segments and head.sequence > covered + 1:
            raise JournalDamaged(
                path, 0, f"the journal begins at record {head.sequence}, no snapshot reaches it"
            )
        if self._segments and (head.sequence, head.offset) != (self.sequence + 1, self.offset):
            raise JournalDamaged(
                path,
                0,
                f"begins at record {head.sequence}, offset {head.offset}; the segment before it "
                f"ends at record {self.sequence}, offset {self.offset}",
            )
        self.sequence, self.offset = head.sequence - 1, head.offset
        segment = _Segment(path, head)
        self._segments.append(segment)
        for position, record in read_records(path, data, head):
            segment.note(record.offset, position)
            segment.size = position + RECORD_BYTES + len(record.payload)
            self.sequence, self.offset = record.sequence, record.end
            yield position, record

    def _cut(self, fault: Fault, data: bytes, seen: int, last: bool) -> None:
        """Cut a torn tail off; refuse anything else."""
        torn = last and fault.may_be_torn and self.sequence >= seen
        if torn and fault.position >= HEADER_BYTES:
            marker = self._segments[-1].head.marker
            behind = whole_records(data, marker, fault.position)
            torn = all(durable <= self.sequence for _, durable in behind)
        elif torn:
            # A head is synced before records follow it.
            torn = len(data) <= HEADER_BYTES
        if not torn:
            reason = fault.reason
            if fault.may_be_torn:
                reason += "; it had been acknowledged"
            raise JournalDamaged(fault.path, fault.position, reason) from fault
        _log.warning(
            "%s: a torn tail of %d bytes is cut off; none of it was acknowledged",
            fault,
            len(data) - fault.position,
        )
        if fault.position < HEADER_BYTES:
            self._disk.remove(fault.path)
            return
        file = self._disk.open(fault.path)
        try:
            self._disk.truncate(file, fault.position)
        finally:
            self._disk.close(file)

    def _open_last(self) -> None:
        # What a killed process wrote and never synced is read back all the same: from here on it
        # counts as taken, so that it has to be on the disk.
        self._disk.sync_folder(self._folder)
        if self._segments:
            self._file = self._disk.open(self._segments[-1].path)
            self._disk.sync(self._file)
            self._synced_size = self._segments[-1].size
        self.durable = self.sequence

    def _begin_segment(self) -> None:
        self.sync()
        head = Head(secrets.token_bytes(_MARKER_BYTES), self.sequence + 1, self.offset)
        path = segment_path(self._folder, head.sequence)
        file = self._disk.create(path)
        try:
            self._disk.write(file, [pack_head(head)])
            self._disk.sync(file)
            self._disk.sync_folder(self._folder)
        except OSError:
            self._disk.close(file)
            self._disk.remove(path)
            raise
        self.close()
        self._file = file
        self._segments.append(_Segment(path, head))
        self._synced_size = HEADER_BYTES

    def _walk(self, segment: _Segment, offset: int, end: int) -> Iterator[Record]:
        """Read a segment's messages that hold bytes of a range of the stream."""
        starts = [start for start, _ in segment.index]
        first = max(bisect.bisect_right(starts, offset) - 1, 0)
        last = bisect.bisect_left(starts, end)
        position = segment.index[first][1] if segment.index else segment.size
        stop = segment.index[last][1] if last < len(starts) else segment.size
        file = os.open(segment.path, os.O_RDONLY)
        try:
            data = os.pread(file, stop - position, position)
        finally:
            os.close(file)
        start = 0
        while start < len(data):
            found = record_at(data, segment.head.marker, start)
            if found is None:
                raise JournalDamaged(segment.path, position + start, "damaged since it was read")
            start += RECORD_BYTES + len(found[0].payload)
            if found[0].kind in MESSAGES and found[0].end > offset:
                yield found[0]
