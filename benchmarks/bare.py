"""The least that a server can do, for the others to be measured against.

``python -m benchmarks.bare PORT``: an ASGI app, served as the daemon is. Over HTTP it reads the
body and answers 100 bytes; over WebSocket it sends every frame back.
"""

from __future__ import annotations

import sys

import uvicorn
from starlette.types import Receive, Scope, Send

from server.__main__ import SERVING

_ANSWER = b"x" * 100
_HEADERS = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(_ANSWER))]


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Serve one connection of a socket, or one request."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            await send({"type": "websocket.send", "bytes": message["bytes"]})
        return
    if scope["type"] != "http":
        return
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _ANSWER})


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        lifespan="off",
        log_level="error",
        http="httptools",
        ws="websockets-sansio",
        **SERVING,
    )
