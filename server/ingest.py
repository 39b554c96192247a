"""``POST /ingest`` as a bare ASGI app: for small messages, a framework costs more than learning."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from server import errors, wire
from server.errors import Problem
from server.replies import Replies
from server.settings import ServerSettings


class Ingest:
    """Learns from a message and answers with its receipt."""

    def __init__(self, settings: ServerSettings, replies: Replies) -> None:
        self._limit = settings.body_limit_bytes
        self._replies = replies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        kind, accepted, claimed = wire.OCTETS, "", None
        for name, value in scope["headers"]:
            if name == b"content-type":
                kind = value.decode("latin-1")
            elif name == b"accept":
                accepted = value.decode("latin-1")
            elif name == b"upload-offset":
                claimed = value.decode("latin-1")
        try:
            offset = None if claimed is None else wire.parse_offset(claimed)
            message = await wire.read_bytes(receive, kind, "message", "data", self._limit)
            receipt = await self._replies.submit(message, offset)
        except Problem as problem:
            response = errors.problem_response(problem, scope["state"]["request_id"])
            await response(scope, receive, send)
            return
        media_type, body = wire.pack_receipt(accepted, receipt)
        headers = [(b"content-type", media_type), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})
