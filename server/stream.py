"""``WS /ingest/ws`` as a bare ASGI app: frames in, acknowledgements out, a bounded window.

Its server passes on all binary frames that wait for it as one event, whose ``frames`` are a list:
an event for each would cost more than learning from it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from urllib.parse import parse_qs

from starlette.types import Message, Receive, Scope, Send

from server.engine import Engine
from server.errors import Problem, malformed
from server.settings import ServerSettings
from server.wire import Receipt, parse_offset

# Close codes: RFC 6455 §7.4.1, its registry, and 4409 of the private range for an offset mismatch.
_UNSUPPORTED_DATA = 1003
_INVALID_PAYLOAD = 1007
_TRY_AGAIN_LATER = 1013
_OFFSET_MISMATCH = 4409
_REASON_BYTES = 120


class _Refused(Exception):
    """The connection ends with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class _Left(Exception):
    """The client has closed the connection, or is gone."""


class Stream:
    """Learns from frames and acknowledges them."""

    def __init__(self, settings: ServerSettings, engine: Engine) -> None:
        self._settings = settings
        self._engine = engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, until either side ends it."""
        await receive()
        await send({"type": "websocket.accept"})
        window = _Window(self._engine, self._settings.ws_window)
        tasks = [
            asyncio.create_task(_take(scope, receive, window)),
            asyncio.create_task(_acknowledge(send, window)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        except _Refused as refusal:
            reason = str(refusal).encode()[:_REASON_BYTES].decode(errors="ignore")
            with suppress(OSError):
                await send({"type": "websocket.close", "code": refusal.code, "reason": reason})
        except (_Left, OSError):  # an OSError is the server's word that the client is gone
            pass  # what was taken before it is learned all the same
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


class _Window:
    """Frames put to the engine and not yet acknowledged: no more than so many.

    It is the engine's sink for all of them. They are learned in their order, so that the last
    receipt stands for those before it.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine = engine
        self._size = size
        self._open = 0
        # How many were learned, by the learner alone; how many of them were told, by the loop.
        self._learned = 0
        self._counted = 0
        self._receipt: Receipt | None = None
        self._refusal: Problem | None = None
        self._changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._waking = False
        self._told = False

    def put(self, frames: Sequence[bytes], offset: int | None) -> int:
        """Put frames to the engine; it is woken when the loop has put all that had come.

        Args:
            frames: that came together, at least one.
            offset: where the writer believes the stream to be before the first.

        Returns:
            How many were taken: those that the window, and the engine, have room for.

        Raises:
            Problem: the engine takes none.
        """
        taken = self._engine.put(frames[: self._size - self._open], offset, self)
        self._open += taken
        if not self._waking:
            self._waking = True
            self._loop.call_soon(self._wake)
        return taken

    def set_result(self, receipt: Receipt, /) -> None:
        """Take a receipt, on the learner's thread."""
        # What was learned behind a refused frame is not acknowledged: it would stand for that too.
        if self._refusal is None:
            self._receipt = receipt
            self._learned += 1

    def set_exception(self, error: Problem, /) -> None:
        """Take a refusal, on the learner's thread; the first counts."""
        self._refusal = self._refusal or error

    def flush(self) -> None:
        """Wake the loop, once for all that was taken."""
        if not self._told and (self._learned > self._counted or self._refusal is not None):
            self._told = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hear)

    @property
    def full(self) -> bool:
        """Whether no further frame may be taken."""
        return self._open >= self._size

    async def room(self) -> None:
        """Wait until a further frame may be taken."""
        await self._until(lambda: not self.full)

    async def drained(self) -> None:
        """Wait until all that was taken is acknowledged, or one of it refused."""
        await self._until(lambda: not self._open or self._refusal is not None)

    async def learned(self) -> tuple[Receipt, int]:
        """Wait for frames to be learned; return the last receipt, and how many it covers.

        Raises:
            Problem: a frame was refused, and all before it have been returned.
        """
        await self._until(lambda: self._learned > self._counted or self._refusal is not None)
        # In this order: the receipt may be a later one, and never an earlier.
        count, receipt = self._learned - self._counted, self._receipt
        if count and receipt is not None:
            self._counted += count
            return receipt, count
        assert self._refusal is not None
        raise self._refusal

    def acknowledged(self, count: int) -> None:
        """Close so many frames."""
        self._open -= count
        self._changed.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    def _wake(self) -> None:
        self._waking = False
        self._engine.wake()

    def _hear(self) -> None:
        self._told = False
        self._changed.set()


async def _take(scope: Scope, receive: Receive, window: _Window) -> None:
    """Put frames as they come, at most a window ahead of the acknowledgements."""
    try:
        offset = _opening_offset(scope)
        while True:
            frames = _frames(await receive())
            whole = frames.index(b"") if b"" in frames else len(frames)
            first = 0
            while first < whole:
                if window.full:
                    await window.room()
                last = first + window.put(frames[first:whole], offset)
                if offset is not None:
                    # Behind a refused frame, every other claims a place that the stream is not at.
                    offset += sum(map(len, frames[first:last]))
                first = last
            if whole < len(frames):
                raise _Refused(_INVALID_PAYLOAD, "a frame has at least one byte")
    except (Problem, _Refused) as refusal:
        await window.drained()
        raise _refusal(refusal) from refusal


def _opening_offset(scope: Scope) -> int | None:
    """Where the writer says it stands: ``?offset=N``, and nothing else."""
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if not query:
        return None
    if list(query) != ["offset"] or len(query["offset"]) != 1:
        raise malformed(f"expected the one query parameter 'offset', got {sorted(query)}")
    return parse_offset(query["offset"][0])


def _frames(message: Message) -> list[bytes]:
    """Read the frames that came together; at least one."""
    if message["type"] == "websocket.disconnect":
        raise _Left
    frames: list[bytes] | None = message.get("frames")
    if frames is None:
        raise _Refused(_UNSUPPORTED_DATA, "send binary frames, not text")
    return frames


async def _acknowledge(send: Send, window: _Window) -> None:
    """Send the offset of what has been learned; one acknowledgement covers all before it."""
    while True:
        try:
            receipt, count = await window.learned()
        except Problem as problem:
            raise _refusal(problem) from problem
        await send({"type": "websocket.send", "text": json.dumps({"offset": receipt.offset})})
        window.acknowledged(count)


def _refusal(refusal: Problem | _Refused) -> _Refused:
    if isinstance(refusal, _Refused):
        return refusal
    codes = {400: _INVALID_PAYLOAD, 409: _OFFSET_MISMATCH}
    return _Refused(codes.get(refusal.status, _TRY_AGAIN_LATER), str(refusal))
