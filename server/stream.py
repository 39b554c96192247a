"""``WS /ingest/ws``: binary frames in, acknowledgements out, a bounded window between."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from server.engine import Engine
from server.errors import Problem
from server.replies import Replies
from server.settings import ServerSettings
from server.wire import Receipt, parse_offset

# Close codes: RFC 6455 §7.4.1, its registry, and 4409 of the private range for an offset mismatch.
_UNSUPPORTED_DATA = 1003
_INVALID_PAYLOAD = 1007
_TRY_AGAIN_LATER = 1013
_OFFSET_MISMATCH = 4409


class _Refused(Exception):
    """The connection ends with a close code and a reason."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def make_stream_router(settings: ServerSettings, engine: Engine, replies: Replies) -> APIRouter:
    """Build the WebSocket route around one engine."""
    router = APIRouter()

    @router.websocket("/ingest/ws")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        window = _Window(settings.ws_window)
        tasks = [
            asyncio.create_task(_take(websocket, engine, replies, window)),
            asyncio.create_task(_acknowledge(websocket, replies, window)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                await task
        except _Refused as refusal:
            if websocket.client_state is WebSocketState.CONNECTED:
                await websocket.close(refusal.code, str(refusal)[:120])
        except WebSocketDisconnect:
            pass  # what was taken before it is learned all the same
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return router


class _Window:
    """Frames taken and not yet acknowledged, oldest first: no more than so many."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._receipts: deque[Future[Receipt]] = deque()
        self._open = 0
        self._changed = asyncio.Event()

    async def room(self) -> None:
        """Wait until one more frame may be taken."""
        await self._until(lambda: self._open < self._size)

    async def drained(self) -> None:
        """Wait until all that was taken is acknowledged."""
        await self._until(lambda: not self._open)

    def take(self, receipt: Future[Receipt]) -> None:
        """Take a frame."""
        self._receipts.append(receipt)
        self._open += 1
        self._changed.set()

    async def learned(self, replies: Replies) -> tuple[Receipt, int]:
        """Wait for the oldest frame; return the last receipt of all learned by now, and how many.

        Raises:
            Problem: the oldest frame was refused.
        """
        await self._until(lambda: bool(self._receipts))
        receipt = await replies.wait(self._receipts.popleft())
        count = 1
        while self._receipts and self._receipts[0].done() and not self._receipts[0].exception():
            receipt = self._receipts.popleft().result()
            count += 1
        return receipt, count

    def acknowledged(self, count: int) -> None:
        """Close so many frames."""
        self._open -= count
        self._changed.set()

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()


async def _take(websocket: WebSocket, engine: Engine, replies: Replies, window: _Window) -> None:
    """Submit frames as they come, at most a window ahead of the acknowledgements."""
    try:
        claimed = websocket.query_params.get("offset")
        offset = None if claimed is None else parse_offset(claimed)
        while True:
            await window.room()
            data = await _frame(websocket)
            receipt = engine.submit(data, offset)
            window.take(receipt)
            if offset is not None:
                # Frames behind a refused one must not be learned: wait for the verdict.
                await replies.wait(receipt)
                offset = None
    except (Problem, _Refused) as refusal:
        await window.drained()
        raise _refusal(refusal) from refusal


async def _frame(websocket: WebSocket) -> bytes:
    message = await websocket.receive()
    if message["type"] == "websocket.disconnect":
        raise WebSocketDisconnect(message["code"])
    data: bytes | None = message.get("bytes")
    if data is None:
        raise _Refused(_UNSUPPORTED_DATA, "send binary frames, not text")
    if not data:
        raise _Refused(_INVALID_PAYLOAD, "a frame has at least one byte")
    return data


async def _acknowledge(websocket: WebSocket, replies: Replies, window: _Window) -> None:
    """Send the offset of what has been learned; one acknowledgement covers all before it."""
    while True:
        try:
            receipt, count = await window.learned(replies)
        except Problem as problem:
            raise _refusal(problem) from problem
        if websocket.client_state is WebSocketState.CONNECTED:
            await websocket.send_json({"offset": receipt.offset})
        window.acknowledged(count)


def _refusal(refusal: Problem | _Refused) -> _Refused:
    if isinstance(refusal, _Refused):
        return refusal
    codes = {400: _INVALID_PAYLOAD, 409: _OFFSET_MISMATCH}
    return _Refused(codes.get(refusal.status, _TRY_AGAIN_LATER), str(refusal))
