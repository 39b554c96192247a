"""``WS /ingest/ws``: frames in, acknowledgements out, a bounded window.

An ASGI app for how a connection begins and ends. In between, frames come from the parser and
acknowledgements go back by the connection itself (``Connection``): an event, a queue and a task
for each would cost more than learning from it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol
from urllib.parse import parse_qs

from starlette.types import Receive, Scope, Send

from server.errors import Problem, malformed
from server.replies import Replies
from server.settings import ServerSettings
from server.wire import Receipt, parse_offset

CONNECTION = "organism.connection"
"""Key of the ``Connection`` among the extensions of a scope."""

# Close codes: RFC 6455 §7.4.1, its registry, and 4409 of the private range for an offset mismatch.
_UNSUPPORTED_DATA = 1003
_INVALID_PAYLOAD = 1007
_TRY_AGAIN_LATER = 1013
_OFFSET_MISMATCH = 4409
_REASON_BYTES = 120


class Connection(Protocol):
    """A WebSocket, past ASGI's queues. For the event loop alone."""

    def listen(self, take: Callable[[list[bytes]], None], ready: Callable[[], None]) -> None:
        """Have binary messages taken as they come, those that came together at once.

        Args:
            take: takes messages, at least one.
            ready: called when ``say`` would say something again.
        """

    def say(self, text: str) -> bool:
        """Send a text; whether it went out, or no longer can: not while the client reads none."""

    def hold(self, held: bool) -> None:
        """Read nothing more for now; or go on."""


class _Refused(Exception):
    """The connection ends with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class Stream:
    """Learns from frames and acknowledges them."""

    def __init__(self, settings: ServerSettings, replies: Replies) -> None:
        self._settings = settings
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, until either side ends it."""
        await receive()
        await send({"type": "websocket.accept"})
        connection: Connection = scope["extensions"].pop(CONNECTION)
        window = _Window(self._replies, self._settings.ws_window, connection)
        try:
            window.open(_opening_offset(scope))
        except Problem as problem:
            window.refuse(problem)
        watching = asyncio.create_task(_watch(receive, window))
        try:
            refusal = await window.over
        finally:
            watching.cancel()
        if refusal is not None:
            reason = str(refusal).encode()[:_REASON_BYTES].decode(errors="ignore")
            with suppress(OSError):  # the server's word that the client is gone
                await send({"type": "websocket.close", "code": refusal.code, "reason": reason})


class _Window:
    """Frames put to the engine and not yet acknowledged: no more than so many.

    It is the engine's sink for all of them. They are learned in their order, so that the last
    receipt stands for those before it.

    Attributes:
        over: done when the connection is to end: with what refuses it, or None where the client
            has left.
    """

    def __init__(self, replies: Replies, size: int, connection: Connection) -> None:
        self._replies = replies
        self._size = size
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[_Refused | None] = self._loop.create_future()
        self._came: list[bytes] = []  # and found no room yet
        self._offset: int | None = None  # where the writer believes the first of them to belong
        self._open = 0
        self._refusal: _Refused | None = None
        self._left = False
        # How many were learned, by the learner alone; how many of them were told, by the loop.
        self._learned = 0
        self._counted = 0
        self._receipt: Receipt | None = None
        self._problem: Problem | None = None
        self._told = False

    def open(self, offset: int | None) -> None:
        """Take frames as they come.

        Args:
            offset: where the writer believes the stream to be before the first.
        """
        self._offset = offset
        self._connection.listen(self._take, self._acknowledge)

    def refuse(self, refusal: Problem | _Refused) -> None:
        """Take no more; end when all that was taken is acknowledged. The first refusal counts."""
        self._refusal = self._refusal or _closing(refusal)
        self._came.clear()
        self._end()

    def leave(self) -> None:
        """The client reads no more; what came from it is learned all the same."""
        self._left = True
        self._acknowledge()

    def told(self, receipt: Receipt, messages: int, /) -> None:
        """Take a receipt, on the learner's thread."""
        # What was learned behind a refused frame is not acknowledged: it would stand for that too.
        if self._problem is None:
            self._receipt = receipt
            self._learned += messages

    def refused(self, problem: Problem, /) -> None:
        """Take a refusal, on the learner's thread; the first counts."""
        self._problem = self._problem or problem

    def flush(self) -> None:
        """Wake the loop, once for all that was taken."""
        if not self._told:
            self._told = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hear)

    def _take(self, frames: list[bytes]) -> None:
        if self._refusal is None:
            self._came += frames
            self._put()

    def _put(self) -> None:
        """Put what came to the engine, as far as there is room."""
        try:
            while self._came and self._open < self._size:
                whole = self._came[: self._size - self._open]
                if b"" in whole:
                    whole = whole[: whole.index(b"")]
                if not whole:
                    raise _Refused(_INVALID_PAYLOAD, "a frame has at least one byte")
                taken = self._replies.queue(whole, self._offset, self)
                self._open += taken
                if self._offset is not None:
                    # Behind a refused frame, every other claims a place the stream is not at.
                    self._offset += sum(map(len, whole[:taken]))
                del self._came[:taken]
        except (Problem, _Refused) as refusal:
            self.refuse(refusal)
        self._connection.hold(bool(self._came))

    def _hear(self) -> None:
        self._told = False
        self._acknowledge()

    def _acknowledge(self) -> None:
        """Send the offset of what has been learned; one acknowledgement covers all before it."""
        # In this order: all that was learned before a problem is counted; and the receipt may be
        # a later one, and never an earlier.
        problem = self._problem
        count, receipt = self._learned - self._counted, self._receipt
        if count and receipt is not None:
            if not self._connection.say(f'{{"offset": {receipt.offset}}}'):
                return
            self._counted += count
            self._open -= count
        if problem is not None:
            self.refuse(problem)
        if self._came:
            self._put()
        self._end()

    def _end(self) -> None:
        """End if nothing is left to be done."""
        if self.over.done():
            return
        if self._left and not self._came:
            self.over.set_result(None)
        elif self._refusal is not None and (not self._open or self._problem is not None):
            self.over.set_result(self._refusal)


async def _watch(receive: Receive, window: _Window) -> None:
    """See to what comes by the long way: text, or the end."""
    while (await receive())["type"] != "websocket.disconnect":
        window.refuse(_Refused(_UNSUPPORTED_DATA, "send binary frames, not text"))
    window.leave()


def _opening_offset(scope: Scope) -> int | None:
    """Where the writer says it stands: ``?offset=N``, and nothing else."""
    query = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
    if not query:
        return None
    if list(query) != ["offset"] or len(query["offset"]) != 1:
        raise malformed(f"expected the one query parameter 'offset', got {sorted(query)}")
    return parse_offset(query["offset"][0])


def _closing(refusal: Problem | _Refused) -> _Refused:
    if isinstance(refusal, _Refused):
        return refusal
    codes = {400: _INVALID_PAYLOAD, 409: _OFFSET_MISMATCH}
    return _Refused(codes.get(refusal.status, _TRY_AGAIN_LATER), str(refusal))
