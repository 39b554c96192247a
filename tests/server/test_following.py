"""Files as streams: whole lines, growth, rotation, and the memory of how far it was."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from server.following import Ledger, Piece, Place, Places, Reader, pieces


@given(
    st.lists(st.sampled_from([b"a", b"bc\n", b"\n", b"long " * 9]), max_size=40).map(b"".join),
    st.sampled_from([None, 1, 7, 64]),
)
def test_pieces_are_the_file(data: bytes, block: int | None) -> None:
    """Nothing is lost or doubled, and each but the last is whole: lines, or a block exactly."""
    found = [*pieces(io.BytesIO(data), 100, block)]
    assert b"".join(piece.data for piece in found) == data
    end = 100
    for piece in found:
        end += len(piece.data)
        assert piece.position == end
    for piece in found[:-1]:
        assert piece.data.endswith(b"\n") if block is None else len(piece.data) == block


class _Ended(Exception):
    """Nothing more happens to the file."""


class _World:
    """What happens to a file between two looks at it."""

    def __init__(self, *events: Callable[[], object]) -> None:
        self.events = [*events]

    def __call__(self, _: float) -> None:
        if not self.events:
            raise _Ended
        self.events.pop(0)()


def _followed(path: Path, *events: Callable[[], object]) -> list[bytes]:
    """What following a file gives while these things happen to it."""
    found: list[bytes] = []
    with closing(Reader(path, 0, None, _World(*events))) as reader, suppress(_Ended):
        found.extend(piece.data for piece in reader)
    return found


def _append(path: Path, data: bytes) -> Callable[[], object]:
    def act() -> None:
        with path.open("ab") as file:
            file.write(data)

    return act


def test_growth_is_followed_line_by_line(tmp_path: Path) -> None:
    """A line is held back until its end has come."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntw")
    found = _followed(path, _append(path, b"o\nthr"), lambda: None, _append(path, b"ee\n"))
    assert found == [b"one\n", b"two\n", b"three\n"]


def test_a_rotated_file_is_read_to_its_end(tmp_path: Path) -> None:
    """Also what was written to it last, without a line end; then the new one from its start."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    path.write_bytes(b"one\n")

    def rotate() -> None:
        _append(path, b"last words")()
        os.rename(path, old)
        path.write_bytes(b"new\n")

    found = _followed(path, rotate, lambda: None, lambda: None)
    assert found == [b"one\n", b"last words", b"new\n"]


def test_a_slow_writer_of_a_rotated_file_is_waited_for(tmp_path: Path) -> None:
    """What it writes between two looks, after another file has the name, is not lost."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    path.write_bytes(b"one\n")

    def rotate() -> None:
        os.rename(path, old)
        path.write_bytes(b"new\n")

    found = _followed(path, rotate, _append(old, b"late\n"), lambda: None)
    assert found == [b"one\n", b"late\n", b"new\n"]


def test_a_very_long_line_is_sent_in_parts(tmp_path: Path) -> None:
    """Followed too: it does not hold up what comes behind it."""
    path = tmp_path / "log"
    data = b"x" * (5 << 19) + b"\nshort\n"
    path.write_bytes(data)
    found = _followed(path)
    assert b"".join(found) == data
    assert max(map(len, found)) <= 9 << 17


def test_a_file_may_be_gone_for_a_while(tmp_path: Path) -> None:
    """Between the rename and the new file, it waits."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    path.write_bytes(b"one\n")
    found = _followed(
        path,
        lambda: os.rename(path, old),
        lambda: None,
        lambda: path.write_bytes(b"new\n"),
        lambda: None,
    )
    assert found == [b"one\n", b"new\n"]


def test_a_truncated_file_is_read_from_its_start(tmp_path: Path) -> None:
    """As log rotation by copying leaves it."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    assert _followed(path, lambda: path.write_bytes(b"new\n"), lambda: None) == [
        b"one\ntwo\n",
        b"new\n",
    ]


def test_a_file_cut_and_grown_again_between_two_looks_is_noticed(tmp_path: Path) -> None:
    """Though it is no shorter than it was: what came before tells."""
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    found = _followed(path, lambda: path.write_bytes(b"another\nlonger\n"))
    assert found == [b"one\n", b"another\nlonger\n"]


def _place(path: Path, position: int, offset: int) -> Place:
    with path.open("rb") as file:
        return Place.of(file, position, offset)


def test_a_place_is_of_one_file_and_one_daemon(tmp_path: Path) -> None:
    """Known again after growth; unknown for another file of that name, or another daemon."""
    path, home = tmp_path / "log", tmp_path / "home"
    path.write_bytes(b"one\ntwo\n")
    places = Places("http://a", path, home)
    assert places.recall() is None
    place = _place(path, 8, 108)
    places.keep(place)
    _append(path, b"three\n")()
    assert Places("http://a", path, home).recall() == place
    assert Places("http://b", path, home).recall() is None
    path.write_bytes(b"another file, and longer\n")
    assert places.recall() is None
    path.write_bytes(b"one\n")
    assert places.recall() is None
    next(iter(home.iterdir())).write_text("{ damaged")
    assert places.recall() is None


def test_a_copy_is_the_same_file_where_enough_of_it_is_known(tmp_path: Path) -> None:
    """Rewritten by an editor it goes on; a new log that begins like the old one is new."""
    path = tmp_path / "log"
    places = Places("http://a", path, tmp_path / "home")
    for data, known in ((b"".join(b"%d\n" % i for i in range(2000)), True), (b"head\n", False)):
        path.write_bytes(data)
        places.keep(_place(path, len(data), len(data)))
        (tmp_path / "other").write_bytes(data)
        os.rename(tmp_path / "other", path)
        assert (places.recall() is not None) == known


def test_a_ledger_never_says_too_much(tmp_path: Path) -> None:
    """Settled only while nothing is on its way; at any time no further than is acknowledged."""
    path = tmp_path / "log"
    path.write_bytes(b"one\ntwo\n")
    places = Places("http://a", path, tmp_path / "home")

    def kept() -> tuple[int, int, bool]:
        place = places.recall()
        assert place is not None
        return place.position, place.offset, place.settled

    ledger = Ledger(places, _place(path, 0, 100))
    assert kept() == (0, 100, False)
    with path.open("rb") as file:
        one, two = Piece(b"one\n", 4), Piece(b"two\n", 8)
        ledger.sending(file, one)
        ledger.acknowledged(104)
        ledger.settle()
        assert kept() == (4, 104, True)
        ledger.sending(file, two)
        assert kept() == (4, 104, False)
        ledger.acknowledged(107)
        ledger.close()
        assert kept() == (4, 104, False)
        ledger.acknowledged(108)
        ledger.close()
        assert kept() == (8, 108, False)
