"""Files as streams: read in whole lines, followed as they grow, and gone on with after a cut.

Knows files, and nothing of the daemon.
"""

from __future__ import annotations

import hashlib
import json
import os
import select
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

MESSAGE_BYTES = 64 << 10
"""About how much is sent at a time."""

# A line that is longer is sent in parts.
_LONGEST_LINE_BYTES = 1 << 20
# So much before a place tells whether it is the same file; less does so with its inode alone.
_MARK_BYTES = 4096
_LOOK_S = 0.2
_KEEP_EVERY_S = 1.0


class Source(Protocol):
    """What pieces are read from."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes; none at the end."""


class Piece(NamedTuple):
    """Some bytes of a source, and where they end in it."""

    data: bytes
    position: int


def pieces(source: Source, position: int, block_bytes: int | None) -> Iterator[Piece]:
    """Read to the end, in whole lines or in blocks; the last piece may be neither.

    Args:
        source: read from here on.
        position: where that is in it.
        block_bytes: size of a block; None for lines.
    """
    held = b""
    while data := source.read((block_bytes or MESSAGE_BYTES) - (len(held) if block_bytes else 0)):
        held += data
        if whole := _whole_bytes(held, block_bytes):
            position += whole
            yield Piece(held[:whole], position)
            held = held[whole:]
    if held:
        yield Piece(held, position + len(held))


def _whole_bytes(held: bytes, block_bytes: int | None) -> int:
    """How much of what is held is whole lines, or a block."""
    if block_bytes:
        return block_bytes if len(held) >= block_bytes else 0
    if len(held) >= _LONGEST_LINE_BYTES and b"\n" not in held:
        return len(held)
    return held.rfind(b"\n") + 1


class Reader:
    """A file, read once; or for ever as it grows, through rotation and truncation.

    Followed, a line or block is held back until its end comes, or until another file has taken the
    place of this one.

    Attributes:
        file: the one that the last piece came from.
    """

    def __init__(
        self,
        path: Path,
        position: int,
        block_bytes: int | None,
        wait: Callable[[float], object] | None = None,
    ) -> None:
        """Open a file.

        Args:
            path: of the file; it must be there.
            position: where to begin in it.
            block_bytes: size of a block; None for lines.
            wait: called with the seconds until the next look; None: the file is read once.

        Raises:
            OSError: it cannot be read.
        """
        self._path = path
        self._position = position
        self._block_bytes = block_bytes
        self._wait = wait
        self.file = path.open("rb")
        self._mark = self._before()

    def __iter__(self) -> Iterator[Piece]:
        if self._wait is None:
            yield from self._look(whole=False)
        else:
            yield from self._follow(self._wait)

    def close(self) -> None:
        """Let go of the file."""
        self.file.close()

    def _follow(self, wait: Callable[[float], object]) -> Iterator[Piece]:
        leaving = False
        while True:
            if self._rewritten():
                self._position, self._mark = 0, b""
            replaced = self._is_replaced()
            found = False
            for piece in self._look(whole=not leaving):
                found = True
                yield piece
            # Its writer may be slower than whoever renamed it: it has one more look to write in.
            if leaving and not found and self._go_on_with_the_next():
                leaving = False
                continue
            leaving = replaced
            wait(_LOOK_S)

    def _look(self, whole: bool) -> Iterator[Piece]:
        """Pieces that are there now, whole ones alone or all."""
        self.file.seek(self._position)
        for piece in pieces(self.file, self._position, self._block_bytes):
            if whole and _whole_bytes(piece.data, self._block_bytes) != len(piece.data):
                return
            self._position = piece.position
            self._mark = piece.data[-_MARK_BYTES:]
            yield piece

    def _rewritten(self) -> bool:
        """Whether it was cut, or cut and written anew."""
        return self._before(len(self._mark)) != self._mark

    def _before(self, size: int = _MARK_BYTES) -> bytes:
        start = max(self._position - size, 0)
        return os.pread(self.file.fileno(), self._position - start, start)

    def _is_replaced(self) -> bool:
        """Whether another file has its name; not while none has."""
        now, ours = _identity(self._path), os.fstat(self.file.fileno())
        return now is not None and now != (ours.st_dev, ours.st_ino)

    def _go_on_with_the_next(self) -> bool:
        try:
            following = self._path.open("rb")
        except FileNotFoundError:  # gone again
            return False
        self.file.close()
        self.file, self._position, self._mark = following, 0, b""
        return True


@dataclass(frozen=True)
class Place:
    """How far a file has been learned: what a later run goes on from.

    Attributes:
        inode: of the file.
        mark_bytes: how much before the position is remembered.
        mark_sha256: checksum of that.
        position: bytes of the file that are acknowledged.
        offset: of the stream after them.
        settled: whether nothing behind the position was sent.
    """

    inode: int
    mark_bytes: int
    mark_sha256: str
    position: int
    offset: int
    settled: bool

    @classmethod
    def of(cls, file: BinaryIO, position: int, offset: int, settled: bool = False) -> Place:
        """Describe a place in an open file."""
        size = min(position, _MARK_BYTES)
        inode = os.fstat(file.fileno()).st_ino
        return cls(inode, size, _mark(file, position, size), position, offset, settled)

    def is_in(self, file: BinaryIO) -> bool:
        """Whether it is a place in this file."""
        if self.mark_bytes < _MARK_BYTES and self.inode != os.fstat(file.fileno()).st_ino:
            return False
        return _mark(file, self.position, self.mark_bytes) == self.mark_sha256


class Places:
    """Remembers, in the user's own folder, how far a file has been learned by which daemon."""

    def __init__(self, url: str, path: Path, folder: Path | None = None) -> None:
        key = hashlib.sha256(f"{url}\n{path.absolute()}".encode()).hexdigest()[:32]
        self._path = path
        self._memory = (folder or _state_home() / "organism") / f"{key}.json"

    def recall(self) -> Place | None:
        """The place in the file as it is now; None where it is another file, or was never read.

        Raises:
            OSError: the file cannot be read.
        """
        try:
            place = Place(**json.loads(self._memory.read_text()))
        except (OSError, ValueError, TypeError):
            return None
        with self._path.open("rb") as file:
            return place if place.is_in(file) else None

    def keep(self, place: Place) -> None:
        """Remember a place, instead of the one before."""
        self._memory.parent.mkdir(parents=True, exist_ok=True)
        fresh = self._memory.with_suffix(f".{os.getpid()}.new")
        fresh.write_text(json.dumps(asdict(place)))
        fresh.replace(self._memory)


class Ledger:
    """What of a file was sent, how much of it is acknowledged, and what a later run is told.

    Attributes:
        place: up to where all is acknowledged.
    """

    def __init__(self, places: Places, place: Place) -> None:
        self.place = place
        self._places = places
        self._sent: deque[Place] = deque()
        self._end = place.offset
        self._settled, self._kept_at = False, time.monotonic()
        places.keep(place)

    def sending(self, file: BinaryIO, piece: Piece) -> None:
        """Note a piece, before it is sent."""
        if self._settled:
            self._places.keep(self.place)
            self._settled = False
        self._end += len(piece.data)
        self._sent.append(Place.of(file, piece.position, self._end))

    def acknowledged(self, offset: int) -> None:
        """Note that all before an offset of the stream is learned."""
        while self._sent and self._sent[0].offset <= offset:
            self.place = self._sent.popleft()
        if time.monotonic() > self._kept_at + _KEEP_EVERY_S:
            self.close()

    def settle(self) -> None:
        """Note that nothing was sent that is not acknowledged."""
        if not self._settled:
            self._places.keep(replace(self.place, settled=True))
            self._settled = True

    def close(self) -> None:
        """Keep what is known."""
        self._kept_at = time.monotonic()
        if not self._settled:
            self._places.keep(self.place)


class Arriving:
    """Bytes of a pipe, as they come."""

    def __init__(
        self, source: BinaryIO, idle: Callable[[], None], interrupted: Callable[[], bool]
    ) -> None:
        """Read a pipe.

        Args:
            source: the pipe; nothing of it is buffered yet.
            idle: called before it is waited for.
            interrupted: whether to wait no longer.
        """
        self._source = source
        self._idle = idle
        self._interrupted = interrupted

    def read(self, size: int, /) -> bytes:
        """Return what is there, at most ``size`` bytes; wait for the first, unless interrupted."""
        wait_s = 0.0
        while not select.select([self._source], [], [], wait_s)[0]:
            if not wait_s:
                self._idle()
            if self._interrupted():
                return b""
            wait_s = _LOOK_S
        return os.read(self._source.fileno(), size)


def _state_home() -> Path:
    """Where programs keep such things: the XDG base directory specification."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")


def _mark(file: BinaryIO, position: int, size: int) -> str:
    return hashlib.sha256(os.pread(file.fileno(), size, position - size)).hexdigest()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino
