"""Files as streams: read in whole lines, followed as they grow, and gone on with after a cut.

Knows files, and nothing of the daemon.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

MESSAGE_BYTES = 64 << 10
"""About how much is sent at a time."""

# A line that is longer is sent in parts.
_LONGEST_LINE_BYTES = 1 << 20
_HEAD_BYTES = 256
_LOOK_S = 0.2


class Piece(NamedTuple):
    """Some bytes of a file, and where they end in it."""

    data: bytes
    position: int


def pieces(
    file: BinaryIO, position: int, block_bytes: int | None, first_bytes: int = 0
) -> Iterator[Piece]:
    """Read a file to its end, in whole lines or in blocks; the last piece may be neither.

    Args:
        file: read from here on.
        position: where that is in the file.
        block_bytes: size of a block; None for lines.
        first_bytes: end a piece exactly so many bytes from here, if there are as many.
    """
    held = b""
    while data := file.read(block_bytes or MESSAGE_BYTES):
        held += data
        while first_bytes > 0 and len(held) >= first_bytes:
            position += first_bytes
            yield Piece(held[:first_bytes], position)
            held, first_bytes = held[first_bytes:], 0
        if first_bytes:
            continue
        whole = len(held) if block_bytes else held.rfind(b"\n") + 1
        if not whole and len(held) >= _LONGEST_LINE_BYTES:
            whole = len(held)
        if whole:
            position += whole
            yield Piece(held[:whole], position)
            held = held[whole:]
    if held:
        yield Piece(held, position + len(held))


def follow(
    path: Path, position: int, block_bytes: int | None, wait: Callable[[float], object] = time.sleep
) -> Iterator[Piece]:
    """Read a file as it grows, for ever: whole lines or blocks; through rotation and truncation.

    A line is held back until its end comes; or until another file has taken the place of this one.

    Args:
        path: of the file.
        position: where to begin in it.
        block_bytes: size of a block; None for lines.
        wait: called with the seconds until the next look.
    """
    file = path.open("rb")
    try:
        while True:
            file.seek(position)
            for piece in pieces(file, position, block_bytes):
                if not _is_whole(piece, block_bytes) and _identity(path) == _identity_of(file):
                    break
                yield piece
                position = piece.position
            if os.fstat(file.fileno()).st_size < position:
                position = 0
            elif (now := _identity(path)) is not None and now != _identity_of(file):
                if _has_more(file, position):
                    continue
                file.close()
                file, position = path.open("rb"), 0
                continue
            wait(_LOOK_S)
    finally:
        file.close()


@dataclass(frozen=True)
class Place:
    """How far a file has been learned: what a later run goes on from.

    Attributes:
        head_bytes: how much of the file's beginning is remembered.
        head_sha256: checksum of that.
        position: bytes of the file that are acknowledged.
        offset: of the stream after them.
    """

    head_bytes: int
    head_sha256: str
    position: int
    offset: int


class Places:
    """Remembers, in the user's own folder, how far files have been learned by which daemon."""

    def __init__(self, url: str, path: Path, folder: Path | None = None) -> None:
        key = hashlib.sha256(f"{url}\n{path.absolute()}".encode()).hexdigest()[:32]
        self._path = path
        self._memory = (folder or _state_home() / "organism") / f"{key}.json"

    def recall(self) -> Place | None:
        """The place in the file as it is now; None where it is another file, or was never read."""
        try:
            place = Place(**json.loads(self._memory.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        if self._path.stat().st_size < place.position:
            return None
        return place if _head(self._path, place.head_bytes) == place.head_sha256 else None

    def begin(self, position: int, offset: int) -> Place:
        """Remember a place from which the file is read."""
        size = min(self._path.stat().st_size, _HEAD_BYTES)
        place = Place(size, _head(self._path, size), position, offset)
        self._write(place)
        return place

    def move(self, place: Place, position: int, offset: int) -> None:
        """Remember how far it has come."""
        self._write(replace(place, position=position, offset=offset))

    def _write(self, place: Place) -> None:
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._memory.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps(asdict(place)))
        fresh.replace(self._memory)


def _state_home() -> Path:
    """Where programs keep such things: the XDG base directory specification."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _head(path: Path, size: int) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read(size)).hexdigest()


def _is_whole(piece: Piece, block_bytes: int | None) -> bool:
    return len(piece.data) == block_bytes if block_bytes else piece.data.endswith(b"\n")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _identity_of(file: BinaryIO) -> tuple[int, int]:
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino


def _has_more(file: BinaryIO, position: int) -> bool:
    return os.fstat(file.fileno()).st_size > position
