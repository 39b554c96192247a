"""The journal: append-only, proved whole on reading, cut only where a crash tore it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.storage.disk import Disk
from server.storage.journal import Entry, Journal, JournalDamaged
from server.storage.segment import HEADER_BYTES, RECORD_BYTES, Fault, Kind, Record, read_head
from server.storage.segment import segments as segment_files

PAYLOADS = [b"first\n", b"", b"the third, a little longer\n", bytes(range(60)), b"last\n"]


def entry(payload: bytes, kind: Kind = Kind.LINES) -> Entry:
    """A record to be."""
    return Entry(kind, 4096, payload)


def opened(
    folder: Path, segment_bytes: int = 1 << 20, covered: int = 0, offset: int = 0, seen: int = 0
) -> tuple[Journal, list[Record]]:
    """A journal that has been recovered, and its records."""
    journal = Journal(folder, Disk(), segment_bytes)
    return journal, [*journal.recover(covered, offset, seen)]


def written(folder: Path, segment_bytes: int = 1 << 20) -> list[Record]:
    """A journal of a few records, each synced by itself; what is in it."""
    journal, _ = opened(folder, segment_bytes)
    records: list[Record] = []
    for payload in PAYLOADS:
        records += journal.append([entry(payload)])
        journal.sync()
    journal.close()
    return records


@given(
    payloads=st.lists(st.binary(max_size=200), max_size=30),
    grouped=st.lists(st.integers(1, 4), max_size=30),
    segment_bytes=st.integers(1, 600),
)
def test_what_is_appended_is_read_back(
    payloads: list[bytes],
    grouped: list[int],
    segment_bytes: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """In order, with sequences and offsets, however it is grouped and cut into segments."""
    folder = tmp_path_factory.mktemp("journal")
    journal, _ = opened(folder, segment_bytes)
    records: list[Record] = []
    rest = payloads
    while rest:
        size = grouped[len(records) % len(grouped)] if grouped else 1
        records += journal.append([entry(payload) for payload in rest[:size]])
        rest = rest[size:]
    journal.close()
    assert [r.payload for r in records] == payloads
    assert [r.sequence for r in records] == [*range(1, len(payloads) + 1)]
    again, found = opened(folder, segment_bytes)
    assert found == records
    assert (again.sequence, again.offset) == (len(payloads), sum(map(len, payloads)))
    stream = b"".join(payloads)
    for start in range(0, len(stream), 37):
        for size in (1, 50, 300):
            expected = stream[start : start + size] if start + size <= len(stream) else None
            assert again.read(start, size) == expected
    again.close()


def test_only_messages_move_the_offset(tmp_path: Path) -> None:
    """A genome is a record, and no byte of the stream."""
    journal, _ = opened(tmp_path)
    records = journal.append([entry(b"abc"), entry(b"a genome", Kind.GENOME), entry(b"def")])
    assert [record.offset for record in records] == [0, 3, 3]
    assert journal.read(1, 4) == b"bcde"
    journal.close()


def test_every_cut_leaves_the_prefix_of_whole_records(tmp_path: Path) -> None:
    """A file cut at any byte is a torn tail; what was whole before the cut is there."""
    records = written(tmp_path / made(tmp_path, "whole"))
    (path,) = segment_files(tmp_path / "whole")
    whole = path.read_bytes()
    ends = [HEADER_BYTES]
    for record in records:
        ends.append(ends[-1] + RECORD_BYTES + len(record.payload))
    for size in range(len(whole)):
        folder = tmp_path / made(tmp_path, f"cut-{size}")
        (folder / path.name).write_bytes(whole[:size])
        journal, found = opened(folder)
        count = sum(end <= size for end in ends[1:])
        assert found == records[:count]
        # It goes on from there, and is whole again.
        journal.append([entry(b"afterwards")])
        journal.close()
        _, again = opened(folder)
        assert [r.payload for r in again] == [*PAYLOADS[:count], b"afterwards"]


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    """Refused with file and position; only the very last record can pass for a torn tail."""
    records = written(tmp_path / made(tmp_path, "whole"))
    (path,) = segment_files(tmp_path / "whole")
    whole = path.read_bytes()
    last = len(whole) - RECORD_BYTES - len(PAYLOADS[-1])
    folder = tmp_path / made(tmp_path, "flipped")
    for position in range(len(whole)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        (folder / path.name).write_bytes(flipped)
        if position >= last:
            journal, found = opened(folder)
            journal.close()
            assert found == records[:-1]
            (folder / path.name).write_bytes(flipped)
            with pytest.raises(JournalDamaged):
                opened(folder, seen=len(records))
            continue
        with pytest.raises(JournalDamaged, match="python -m server verify") as caught:
            opened(folder)
        assert caught.value.path == folder / path.name
        assert caught.value.position <= position
        assert (folder / path.name).read_bytes() == flipped


def test_every_flipped_byte_of_an_older_segment_is_noticed(tmp_path: Path) -> None:
    """Nothing before the last segment can be torn; nor can a segment be missing."""
    written(tmp_path, segment_bytes=100)
    paths = segment_files(tmp_path)
    assert len(paths) > 2
    for path in paths[:-1]:
        whole = path.read_bytes()
        for position in range(len(whole)):
            flipped = bytearray(whole)
            flipped[position] ^= 0x10
            path.write_bytes(flipped)
            with pytest.raises(JournalDamaged) as caught:
                opened(tmp_path)
            assert caught.value.path == path
        for size in (0, HEADER_BYTES, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(JournalDamaged):
                opened(tmp_path)
        path.unlink()
        with pytest.raises(JournalDamaged, match="begins at record"):
            opened(tmp_path)
        path.write_bytes(whole)


def test_a_journal_that_ends_before_a_snapshot_is_refused(tmp_path: Path) -> None:
    """What a snapshot has seen was on the disk: its absence is damage."""
    written(tmp_path)
    with pytest.raises(JournalDamaged, match="ends at record 5, a snapshot has seen 6"):
        opened(tmp_path, covered=6)


def test_a_torn_batch_is_cut_where_it_begins(tmp_path: Path) -> None:
    """Pages of one write may reach the disk in any order: whole records behind a hole go, too."""
    journal, _ = opened(tmp_path)
    journal.append([entry(b"synced\n")])
    journal.sync()
    size = journal.size_bytes
    journal.append([entry(b"lost\n"), entry(b"whole, and never acknowledged\n")])
    journal.close()
    (path,) = segment_files(tmp_path)
    data = bytearray(path.read_bytes())
    data[size + 3] ^= 1
    path.write_bytes(data)
    journal, found = opened(tmp_path)
    journal.close()
    assert [record.payload for record in found] == [b"synced\n"]


def test_a_payload_cannot_pose_as_a_record(tmp_path: Path) -> None:
    """A message that holds a journal's bytes changes no verdict: each segment has its marker."""
    made(tmp_path, "forged")
    forged, _ = opened(tmp_path / "forged")
    for _ in range(9):
        forged.append([entry(b"forged\n")])
        forged.sync()
    forged.close()
    (source,) = segment_files(tmp_path / "forged")
    folder = tmp_path / made(tmp_path, "real")
    journal, _ = opened(folder)
    journal.append([entry(source.read_bytes())])
    journal.close()
    (path,) = segment_files(folder)
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES] ^= 1
    path.write_bytes(data)
    journal, found = opened(folder)
    journal.close()
    assert found == []


def test_segments_are_dropped_when_a_snapshot_covers_them(tmp_path: Path) -> None:
    """Never before, never what is to be retained, never the last."""
    journal, _ = opened(tmp_path, 100)
    for i in range(40):
        journal.append([entry(b"message %d\n" % i)])
        journal.sync()
    count = len(segment_files(tmp_path))
    assert not journal.drop(covered=0, retained_bytes=0)
    assert not journal.drop(covered=40, retained_bytes=10_000)
    assert len(segment_files(tmp_path)) == count
    assert journal.drop(covered=40, retained_bytes=100)
    start = journal.start
    assert 0 < start <= journal.offset - 100
    assert journal.read(start - 1, 2) is None
    assert journal.read(start, 3) == b"mes"
    journal.drop(covered=40, retained_bytes=0)
    assert len(segment_files(tmp_path)) == 1
    journal.close()
    again, found = opened(tmp_path, covered=40, offset=journal.offset)
    again.close()
    assert found[-1].sequence == 40
    with pytest.raises(JournalDamaged, match="no snapshot reaches it"):
        opened(tmp_path)
    with pytest.raises(JournalDamaged, match="record 40 ends at 430, the snapshot at 431"):
        opened(tmp_path, covered=40, offset=431)


def test_a_segment_that_cannot_be_removed_is_tried_again(tmp_path: Path) -> None:
    """The next drop begins with it: no hole comes into being."""

    class Stubborn(Disk):
        refuses = True

        def remove(self, path: Path) -> None:
            """Fail, once."""
            if self.refuses:
                self.refuses = False
                raise OSError("not now")
            super().remove(path)

    journal = Journal(tmp_path, Stubborn(), 100)
    assert [*journal.recover()] == []
    for i in range(40):
        journal.append([entry(b"message %d\n" % i)])
        journal.sync()
    with pytest.raises(OSError, match="not now"):
        journal.drop(covered=40, retained_bytes=100)
    assert journal.drop(covered=40, retained_bytes=100)
    journal.close()
    again, found = opened(tmp_path, covered=40, offset=journal.offset)
    again.close()
    assert found[0].offset == journal.start == again.start


def test_a_journal_that_is_gone_is_damage(tmp_path: Path) -> None:
    """If any snapshot has seen a record of it."""
    with pytest.raises(JournalDamaged, match="there is no journal"):
        opened(tmp_path, seen=3)


def test_a_kind_of_a_later_version_is_not_cut_off(tmp_path: Path) -> None:
    """It is whole: refused, and left as it is."""
    journal, _ = opened(tmp_path)
    journal.append([entry(b"known\n"), entry(b"later\n", Kind.UNKNOWN)])
    journal.close()
    (path,) = segment_files(tmp_path)
    before = path.read_bytes()
    with pytest.raises(JournalDamaged, match="a kind that this version does not know"):
        opened(tmp_path)
    assert path.read_bytes() == before


def test_a_segment_of_another_schema_is_not_read(tmp_path: Path) -> None:
    """Nor one under another name."""
    written(tmp_path)
    (path,) = segment_files(tmp_path)
    data = path.read_bytes()
    with pytest.raises(Fault, match="the name says otherwise"):
        read_head(path.with_name("00000000000000000007.journal"), data)


def made(folder: Path, name: str) -> str:
    """Make a folder in another."""
    (folder / name).mkdir()
    return name
