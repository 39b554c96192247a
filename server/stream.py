"""``WS /ingest/ws``: binary frames in, acknowledgements out, a bounded window between."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future

from fastapi import APIRouter, WebSocket, WebSocketDisconnect
from starlette.websockets import WebSocketState

from server.engine import Engine, Receipt
from server.errors import Problem
from server.routes import parse_offset
from server.settings import ServerSettings

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


def make_stream_router(settings: ServerSettings, engine: Engine) -> APIRouter:
    """Build the WebSocket route around one engine."""
    router = APIRouter()

    @router.websocket("/ingest/ws")
    async def stream(websocket: WebSocket) -> None:
        await websocket.accept()
        receipts: asyncio.Queue[Future[Receipt]] = asyncio.Queue()
        window = asyncio.Semaphore(settings.ws_window)
        tasks = [
            asyncio.create_task(_take(websocket, engine, receipts, window)),
            asyncio.create_task(_acknowledge(websocket, receipts, window)),
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


async def _take(
    websocket: WebSocket,
    engine: Engine,
    receipts: asyncio.Queue[Future[Receipt]],
    window: asyncio.Semaphore,
) -> None:
    """Submit frames as they come, at most a window ahead of the acknowledgements."""
    try:
        claimed = websocket.query_params.get("offset")
        offset = None if claimed is None else parse_offset(claimed)
        while True:
            await window.acquire()
            data = await _frame(websocket)
            receipt = engine.submit(data, offset)
            receipts.put_nowait(receipt)
            if offset is not None:
                # Frames behind a refused one must not be learned: wait for the verdict.
                await asyncio.wrap_future(receipt)
                offset = None
    except (Problem, _Refused) as refusal:
        await receipts.join()
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


async def _acknowledge(
    websocket: WebSocket, receipts: asyncio.Queue[Future[Receipt]], window: asyncio.Semaphore
) -> None:
    """Send the offset of each message learned; one acknowledgement covers all before it."""
    while True:
        try:
            receipt = await asyncio.wrap_future(await receipts.get())
        except Problem as problem:
            raise _refusal(problem) from problem
        if websocket.client_state is WebSocketState.CONNECTED:
            await websocket.send_json({"offset": receipt.offset})
        window.release()
        receipts.task_done()


def _refusal(refusal: Problem | _Refused) -> _Refused:
    if isinstance(refusal, _Refused):
        return refusal
    codes = {400: _INVALID_PAYLOAD, 409: _OFFSET_MISMATCH}
    return _Refused(codes.get(refusal.status, _TRY_AGAIN_LATER), str(refusal))
