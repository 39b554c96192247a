"""Files as streams: whole lines, growth, rotation, and the memory of how far it was."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from server.following import Places, follow, pieces


@given(
    st.lists(st.sampled_from([b"a", b"bc\n", b"\n", b"long " * 9]), max_size=40).map(b"".join),
    st.sampled_from([None, 1, 7, 64]),
    st.integers(0, 60),
)
def test_pieces_are_the_file(data: bytes, block: int | None, first: int) -> None:
    """Nothing is lost or doubled; each but the last is whole; one ends where it was told to."""
    found = [*pieces(io.BytesIO(data), 100, block, first)]
    assert b"".join(piece.data for piece in found) == data
    ends, end = [], 100
    for piece in found:
        end += len(piece.data)
        assert piece.position == end
        ends.append(end)
    if 0 < first <= len(data):
        assert 100 + first in ends
    for piece in found[:-1]:
        if piece.position != 100 + first:
            assert piece.data.endswith(b"\n") if block is None else piece.data


class _Ended(Exception):
    """Nothing more happens."""


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
    with suppress(_Ended):
        found.extend(piece.data for piece in follow(path, 0, None, _World(*events)))
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

    assert _followed(path, rotate, lambda: None) == [b"one\n", b"last words", b"new\n"]


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


def test_a_place_is_of_one_file_and_one_daemon(tmp_path: Path) -> None:
    """Known again after growth; unknown for another file of that name, or another daemon."""
    path, home = tmp_path / "log", tmp_path / "home"
    path.write_bytes(b"one\ntwo\n")
    places = Places("http://a", path, home)
    assert places.recall() is None
    places.move(places.begin(0, 100), 8, 108)
    _append(path, b"three\n")()
    place = Places("http://a", path, home).recall()
    assert place is not None
    assert (place.position, place.offset) == (8, 108)
    assert Places("http://b", path, home).recall() is None
    path.write_bytes(b"another file, and longer\n")
    assert places.recall() is None
    path.write_bytes(b"one\n")
    assert places.recall() is None
    next(iter(home.iterdir())).write_text("{ damaged")
    assert places.recall() is None
