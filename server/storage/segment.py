r"""The journal's format: segments of records, each of which proves itself whole.

All integers are little-endian. A segment is a file, named by its first sequence::

    8 bytes   magic, b"ORGJRNL\n"
    4 bytes   schema
    4 bytes   marker, drawn at random for this segment
    8 bytes   sequence of the first record
    8 bytes   stream offset of the first record
    4 bytes   CRC-32C of everything before it
    records   one behind the other

and a record is::

    4 bytes   the segment's marker
    4 bytes   CRC-32C of everything behind it
    4 bytes   length of the payload
    4 bytes   width: the longest chunk of a message, in bytes; 0 for other kinds
    1 byte    kind
    8 bytes   sequence, one more than that of the record before
    8 bytes   stream offset at which the payload starts
    8 bytes   durable: the last sequence that was known to be on the disk when this was written
    payload

The marker lets a search find whole records behind a damaged one. Nobody outside knows it, so that
no payload can pose as a record, nor the remains of another file. ``durable`` tells damage from a
torn write: what a whole record says was on the disk before it was written, no crash can have torn.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import NamedTuple

import google_crc32c

_SCHEMA = 1
_SUFFIX = ".journal"

_MAGIC = b"ORGJRNL\n"
_HEADER = struct.Struct("<8sI4sQQI")
_RECORD = struct.Struct("<4sIIIBQQQ")
_PROTECTED = struct.Struct("<IIBQQQ")
_CRC_END = 8

HEADER_BYTES = _HEADER.size
RECORD_BYTES = _RECORD.size
"""Bytes of a record before its payload."""


class Kind(IntEnum):
    """What a payload is."""

    LINES = 1
    """Messages that, joined, are cut at line ends as each is by itself; or one."""
    WINDOWS = 2
    """The same, cut into windows."""
    GENOME = 3
    """The genome that learns from here on, its file's bytes."""
    EPISODES = 4
    """Chunks lived before the journal began: remembered, not learned."""
    UNKNOWN = 0
    """Never written: what a later version has added."""


_KINDS = {int(kind) for kind in Kind}

MESSAGES = (Kind.LINES, Kind.WINDOWS)
"""Kinds whose payload moves the stream's offset."""


class Record(NamedTuple):
    """One entry of the journal."""

    kind: Kind
    width: int
    sequence: int
    offset: int
    payload: bytes

    @property
    def end(self) -> int:
        """Stream offset after it."""
        return self.offset + (len(self.payload) if self.kind in MESSAGES else 0)


@dataclass(frozen=True)
class Head:
    """What a segment says of itself."""

    marker: bytes
    sequence: int
    offset: int


class Fault(ValueError):
    """Bytes of a segment that are not what they must be.

    Attributes:
        path: the segment.
        position: where in it, in bytes.
        reason: what is wrong.
        may_be_torn: whether a write that was cut short can have left it.
    """

    def __init__(self, path: Path, position: int, reason: str, may_be_torn: bool = True) -> None:
        super().__init__(f"{path}, byte {position}: {reason}")
        self.may_be_torn = may_be_torn
        self.path = path
        self.position = position
        self.reason = reason


def segment_path(folder: Path, sequence: int) -> Path:
    """Where the segment that begins with a sequence stands."""
    return folder / f"{sequence:020d}{_SUFFIX}"


def segments(folder: Path) -> list[Path]:
    """The segments of a journal, oldest first."""
    return sorted(folder.glob(f"*{_SUFFIX}"))


def pack_head(head: Head) -> bytes:
    """Write a segment's head."""
    fields = (_MAGIC, _SCHEMA, head.marker, head.sequence, head.offset)
    checked = _HEADER.pack(*fields, 0)[:-4]
    return checked + struct.pack("<I", google_crc32c.value(checked))


def read_head(path: Path, data: bytes) -> Head:
    """Read a segment's head.

    Raises:
        Fault: it is cut short, damaged, or of a schema that is not read.
    """
    if len(data) < HEADER_BYTES:
        raise Fault(path, 0, f"the head has {len(data)} bytes, {HEADER_BYTES} were expected")
    magic, schema, marker, sequence, offset, crc = _HEADER.unpack_from(data)
    if magic != _MAGIC or google_crc32c.value(data[: HEADER_BYTES - 4]) != crc:
        raise Fault(path, 0, "the head is damaged: its checksum does not match")
    if schema != _SCHEMA:
        reason = f"schema {schema}, this version reads {_SCHEMA}: use the one it is of"
        raise Fault(path, 0, reason, may_be_torn=False)
    if path.name != segment_path(path.parent, sequence).name:
        reason = f"the head begins at sequence {sequence}, the name says otherwise"
        raise Fault(path, 0, reason, may_be_torn=False)
    return Head(marker, sequence, offset)


def pack_record(marker: bytes, record: Record, durable: int) -> bytes:
    """Write what stands before a record's payload."""
    kind, width, sequence, offset, payload = record
    fields = _PROTECTED.pack(len(payload), width, kind, sequence, offset, durable)
    crc: int = google_crc32c.extend(google_crc32c.value(fields), payload)
    return marker + crc.to_bytes(4, "little") + fields


def record_at(data: bytes, marker: bytes, position: int) -> tuple[Record, int] | None:
    """Read the whole record at a position; with it, its ``durable``. None where there is none."""
    if position + RECORD_BYTES > len(data):
        return None
    found, crc, length, width, kind, sequence, offset, durable = _RECORD.unpack_from(data, position)
    start = position + RECORD_BYTES
    if found != marker or start + length > len(data):
        return None
    payload = data[start : start + length]
    fields = data[position + _CRC_END : start]
    if google_crc32c.extend(google_crc32c.value(fields), payload) != crc:
        return None
    known = Kind(kind) if kind in _KINDS else Kind.UNKNOWN
    return Record(known, width, sequence, offset, payload), durable


def read_records(path: Path, data: bytes, head: Head) -> Iterator[tuple[int, Record]]:
    """Read a segment's records in order, each with its position.

    Raises:
        Fault: at the first that is not whole, or does not follow the one before.
    """
    position, sequence, offset = HEADER_BYTES, head.sequence, head.offset
    while position < len(data):
        found = record_at(data, head.marker, position)
        if found is None:
            raise Fault(path, position, f"record {sequence} is cut short or damaged")
        record, _ = found
        if record.kind is Kind.UNKNOWN:
            reason = f"record {sequence} is of a kind that this version does not know"
            raise Fault(path, position, reason, may_be_torn=False)
        if (record.sequence, record.offset) != (sequence, offset):
            raise Fault(path, position, f"record {record.sequence} stands where {sequence} must")
        yield position, record
        position += RECORD_BYTES + len(record.payload)
        sequence, offset = sequence + 1, record.end


def whole_records(data: bytes, marker: bytes, position: int) -> Iterator[tuple[Record, int]]:
    """Search for whole records from a position on, whatever lies between; each with ``durable``."""
    while (position := data.find(marker, position)) >= 0:
        found = record_at(data, marker, position)
        if found is None:
            position += 1
        else:
            yield found
            position += RECORD_BYTES + len(found[0].payload)
