"""Who is let in: request ids, the key, and browsers that another site sends.

A page of any site can make a browser send requests to this machine. Two marks give them away. A
name in ``Host`` that is none of ours: another site's name may be made to point here (DNS
rebinding); an address cannot. And an ``Origin`` that is not the host asked: RFC 6454 §7.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import itertools
import logging
import re
import secrets
from collections.abc import Mapping
from functools import lru_cache

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors, page
from server.errors import Problem
from server.metrics import Metrics
from server.settings import ServerSettings

# The dashboard's files hold no data: it asks for the key, as anyone must.
_OPEN_PATHS = ("/healthz", "/readyz", *page.PATHS)
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_POLICY_VIOLATION = 1008
_KNOWN_HOSTS = 1024
_LONGEST_HOST = 261  # a name of 255 bytes, and a port
# Ids of requests that bring none: this process, and a count.
_PROCESS_ID = secrets.token_hex(8)
_request_numbers = itertools.count(1)

_log = logging.getLogger("organism.door")


class Door:
    """Gives each request an id, lets in only who may come in, and stays calm.

    A fault of ours becomes a 500 that tells the client nothing of its inside.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics
        self._open_paths = (*_OPEN_PATHS, *(("/metrics",) if settings.metrics_open else ()))
        key = settings.api_key
        self._key = None if key is None else b"Bearer " + key.get_secret_value().encode()
        self._names = {
            name.lower() for name in ("localhost", settings.host, *settings.allowed_hosts)
        }
        # Few hosts differ, and most requests bring one that was seen before.
        self._is_ours = lru_cache(maxsize=_KNOWN_HOSTS)(self._recognises)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            if message.get("status", 200) >= 400:
                self.refused(scope, message["status"], request_id)
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        if refusal is not None and scope["type"] == "websocket":
            # What is closed before it was accepted is answered with 403, and no word.
            self.refused(scope, 403, request_id)
            reason = refusal.title.lower()
            await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
            return
        if refusal is not None:
            await errors.problem_response(refusal, request_id)(scope, receive, send_with_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:  # a stop has no more time for it
            if started or scope["type"] == "websocket":
                raise
            refusal = errors.not_ready()
            await errors.problem_response(refusal, request_id)(scope, receive, send_with_id)
        except Exception:  # the process's edge
            _log.exception("a request failed", extra={"request_id": request_id})
            if started or scope["type"] == "websocket":
                raise
            await errors.problem_response(errors.failed(), request_id)(scope, receive, send_with_id)

    def admits(self, path: str, headers: Mapping[bytes, bytes]) -> str | None:
        """Give a request an id if it may come in; None where it is to be refused."""
        return _request_id(headers) if self._refusal(path, headers) is None else None

    def refused(self, scope: Scope, status: int, request_id: str) -> None:
        """Count a refusal."""
        self._metrics.refused(status)
        # Not the query, which may hold a cue. At debug level, so that no client floods the log.
        _log.debug(
            "refused",
            extra={
                "request_id": request_id,
                "method": scope.get("method", "WEBSOCKET"),
                "path": scope["path"],
                "status": status,
            },
        )

    def _refusal(self, path: str, headers: Mapping[bytes, bytes]) -> Problem | None:
        host, origin = headers.get(b"host", b""), headers.get(b"origin")
        if host and (len(host) > _LONGEST_HOST or not self._is_ours(host)):
            return errors.unknown_host(host.decode("latin-1"))
        if origin is not None and origin.lower().partition(b"://")[2] != host.lower():
            return errors.cross_origin(origin.decode("latin-1"))
        if self._key is None or path in self._open_paths:
            return None
        given = headers.get(b"authorization", b"")
        return None if hmac.compare_digest(given, self._key) else errors.unauthorised()

    def _recognises(self, host: bytes) -> bool:
        name = host.decode("latin-1").lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def _request_id(headers: Mapping[bytes, bytes]) -> str:
    """The id that a request brings, if it is one; or a new one."""
    if (brought := headers.get(b"x-request-id")) is not None:
        text = brought.decode("latin-1")
        if _REQUEST_ID.fullmatch(text):
            return text
    return f"{_PROCESS_ID}-{next(_request_numbers):x}"
