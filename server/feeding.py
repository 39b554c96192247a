"""Files and pipes go to a daemon: from where a file stood last, each byte once, after any cut.

Knows the client and where files stand (`server.following`), and no command line: `server.cli` asks.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from server.client import OffsetLost, Organism, OrganismError, Refused, Stream
from server.following import MESSAGE_BYTES, Arriving, Ledger, Place, Places, Reader, pieces
from server.watching import printable

_CONFLICT = 409


class NotResumable(OrganismError):
    """A file cannot go on where it stood; the message says why, and what to do."""


@dataclass(frozen=True)
class How:
    """How something is fed.

    Attributes:
        following: go on as the file grows, or is rotated.
        block_bytes: send blocks of so many bytes; None: whole lines.
        patience_s: how long a daemon that is away is waited for.
        interrupted: whether a signal asked to end.
    """

    following: bool
    block_bytes: int | None
    patience_s: float
    interrupted: Callable[[], bool]


def feed_pipe(organism: Organism, path: Path, name: str, how: How) -> dict[str, Any]:
    """Have what comes from a pipe learned, until it ends or a signal comes.

    Args:
        organism: the client.
        path: the pipe; not read where the name is ``-``, standard input.
        name: what it is called on the terminal.
        how: in what pieces, and how long a daemon that is away is waited for.

    Returns:
        ``bytes`` learned and the stream's ``offset``.

    Raises:
        OrganismError: the daemon refuses, or stayed away.
    """
    with ExitStack() as opened:
        source = sys.stdin.buffer if name == "-" else opened.enter_context(path.open("rb"))
        stream = opened.enter_context(organism.stream(patience_s=how.patience_s))
        show = opened.enter_context(_progress(name, 0, None))
        start = stream.offset
        arriving = Arriving(source, stream.flush, how.interrupted)
        for piece in pieces(arriving, 0, how.block_bytes):
            stream.send(piece.data)
            show(stream.offset - start)
        stream.flush()
        show(stream.offset - start)
    return {"bytes": stream.offset - start, "offset": stream.offset}


def _beginning(
    organism: Organism, places: Places, path: Path, again: bool, base: int | None
) -> Place:
    """Where in the file to begin, and where the stream is then."""
    now = organism.offset()
    place = None if again else places.recall()
    with path.open("rb") as file:
        if base is not None:
            size = os.fstat(file.fileno()).st_size
            if not 0 <= now - base <= size:
                raise NotResumable(
                    f"--offset {base}: the stream is at {now}, which would be byte {now - base} "
                    f"of {path}, and it has {size}"
                )
            return Place.of(file, now - base, now)
        if place is None:
            return Place.of(file, 0, now)
        if now < place.offset:
            return Place.of(file, _lost(organism, file, place, now), now)
        known = 0 if place.settled else _known_bytes(organism, file, place, now)
        return Place.of(file, place.position + known, now)


def _known_bytes(organism: Organism, file: BinaryIO, place: Place, now: int) -> int:
    """How much behind a place was learned: the daemon is asked whether it knows these bytes.

    A repetition changes nothing, and what is none is refused, since the stream is further on.
    """
    known, total = 0, now - place.offset
    while known < total:
        size = min(MESSAGE_BYTES, total - known)
        data = os.pread(file.fileno(), size, place.position + known)
        try:
            if len(data) == size:
                organism.ingest(data, place.offset + known)
                known += size
                continue
        except Refused as refusal:
            if refusal.status != _CONFLICT:
                raise
        raise _another_writer(Path(file.name), place, now)
    return total


def _another_writer(path: Path, place: Place, now: int) -> NotResumable:
    remedy = "from the beginning with --again"
    if now >= place.position:
        remedy += f", or from byte {place.position} with --offset {now - place.position}"
    return NotResumable(
        f"{path}: another writer's bytes are in the stream at {place.offset}, behind byte "
        f"{place.position} of the file; go on {remedy}"
    )


def _lost(organism: Organism, file: BinaryIO, place: Place, now: int) -> int:
    """Where in the file a stream stands that has less than it had: another one at the beginning."""
    position = place.position - (place.offset - now)
    size = min(position, MESSAGE_BYTES, now)
    if size <= 0:
        return 0
    try:
        organism.ingest(os.pread(file.fileno(), size, position - size), now - size)
    except Refused as refusal:
        if refusal.status != _CONFLICT:
            raise
        return 0
    return position


class _Interrupted(Exception):
    """A signal came while a file was waited for."""


def feed_file(
    organism: Organism,
    places: Places,
    path: Path,
    how: How,
    again: bool = False,
    base: int | None = None,
) -> dict[str, Any]:
    """Have a file learned from where it stood, until its end, or with ``following`` a signal.

    Args:
        organism: the client.
        places: where files stood with this daemon; kept up to date.
        path: the file.
        how: in what pieces, whether the file is followed, and how long a daemon is waited for.
        again: begin at the file's first byte, whatever was learned.
        base: the stream offset of the file's first byte; what is behind it is taken as learned.

    Returns:
        ``bytes`` learned, the stream's ``offset``, the ``position`` in the file, and ``seconds``.

    Raises:
        NotResumable: another writer's bytes are in the way, or ``base`` does not fit the file.
        OrganismError: the daemon refuses, or stayed away.
    """
    ledger = Ledger(places, _beginning(organism, places, path, again, base))
    began, start = time.monotonic(), ledger.place.offset
    total = None if how.following else path.stat().st_size
    with _progress(path.name, ledger.place.position, total) as show:
        while True:
            try:
                with organism.stream(ledger.place.offset, patience_s=how.patience_s) as stream:
                    _send(stream, ledger, path, how, show)
                break
            except OffsetLost as lost:
                # Frames of a run that was killed may have been learned since the stream was asked.
                ledger.close()
                further = _beginning(organism, places, path, False, None)
                if further.position <= ledger.place.position:
                    raise _another_writer(path, ledger.place, organism.offset()) from lost
                ledger = Ledger(places, further)
            finally:
                ledger.close()
    return {
        "bytes": ledger.place.offset - start,
        "offset": ledger.place.offset,
        "position": ledger.place.position,
        "seconds": round(time.monotonic() - began, 3),
    }


def _send(
    stream: Stream, ledger: Ledger, path: Path, how: How, show: Callable[[int], object]
) -> None:
    def heard() -> None:
        ledger.acknowledged(stream.offset)
        show(ledger.place.position)

    def settled() -> None:
        stream.flush()
        heard()
        ledger.settle()

    def wait(seconds: float) -> None:
        settled()
        if how.interrupted():
            raise _Interrupted
        time.sleep(seconds)

    position = ledger.place.position
    waiting = wait if how.following else None
    with closing(Reader(path, position, how.block_bytes, waiting)) as reader:
        with suppress(_Interrupted):
            for piece in reader:
                ledger.sending(reader.file, piece)
                stream.send(piece.data)
                heard()
                if how.interrupted():
                    break
        settled()


@contextmanager
def _progress(name: str, start: int, total: int | None) -> Iterator[Callable[[int], object]]:
    """Show how much is acknowledged, on a terminal; yields what takes the position."""
    if not sys.stderr.isatty():
        yield lambda position: None
        return
    columns = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    ]
    if total is not None:
        columns.append(TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(printable(name), total=total, completed=start)
        yield lambda position: progress.update(task, completed=position)
