"""The application: engine, retrainer and routes put together, behind request ids and the key."""

from __future__ import annotations

import hmac
import itertools
import logging
import re
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server import errors
from server.engine import Engine
from server.ingest import Ingest
from server.metrics import Metrics
from server.replies import Replies
from server.retrain import Retrainer
from server.routes import make_router
from server.settings import ServerSettings
from server.stream import Stream

_OPEN_PATHS = ("/healthz", "/readyz")
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_POLICY_VIOLATION = 1008
# Ids of requests that bring none: this process, and a count.
_PROCESS_ID = secrets.token_hex(8)
_request_numbers = itertools.count(1)

_log = logging.getLogger("organism.app")


def make_app(settings: ServerSettings, engine: Engine, metrics: Metrics) -> ASGIApp:
    """Build the application around an engine, which its caller starts and stops."""
    retrainer = Retrainer(engine, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await retrainer.stop()

    app = FastAPI(
        title="organism",
        version=version("organism"),
        summary="A daemon that never stops learning: novelty and recall on byte streams.",
        lifespan=lifespan,
    )
    replies = Replies()
    ingest = Ingest(settings, engine, replies)
    app.include_router(make_router(settings, engine, retrainer, metrics, replies, ingest))
    app.add_exception_handler(errors.Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    key = settings.api_key.get_secret_value() if settings.api_key is not None else None
    return _Door(_ShortWay(app, ingest, Stream(settings, engine)), key)


class _ShortWay:
    """Takes messages past the framework, to the apps that serve them."""

    def __init__(self, app: ASGIApp, ingest: ASGIApp, stream: ASGIApp) -> None:
        self._app = app
        self._ingest = ingest
        self._stream = stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] == "http":
            if scope["path"] == "/ingest" and scope["method"] == "POST":
                app = self._ingest
        elif scope["type"] == "websocket" and scope["path"] == "/ingest/ws":
            app = self._stream
        await app(scope, receive, send)


class _Door:
    """Gives each request an id, lets in only who has the key, where one is set, and stays calm.

    A fault of ours becomes a 500 that tells the client nothing of its inside.
    """

    def __init__(self, app: ASGIApp, key: str | None) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        request_id, key = _request_id_and_key(scope)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_id(message: Message) -> None:
            nonlocal started
            started = True
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", request_id.encode()),
                ]
            await send(message)

        if not self._admits(scope, key):
            await _refuse(scope, receive, send_with_id, request_id)
            return
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:  # the process's edge
            _log.exception("request %s failed", request_id)
            if started or scope["type"] == "websocket":
                raise
            await errors.problem_response(errors.failed(), request_id)(scope, receive, send_with_id)

    def _admits(self, scope: Scope, key: bytes) -> bool:
        if self._key is None or scope["path"] in _OPEN_PATHS:
            return True
        return hmac.compare_digest(key, b"Bearer " + self._key.encode())


def _request_id_and_key(scope: Scope) -> tuple[str, bytes]:
    """Read the two headers that every request is asked for, in one pass."""
    request_id, key = "", b""
    for name, value in scope["headers"]:
        if name == b"x-request-id":
            request_id = value.decode("latin-1")
        elif name == b"authorization":
            key = value
    if not request_id or not _REQUEST_ID.fullmatch(request_id):
        request_id = f"{_PROCESS_ID}-{next(_request_numbers):x}"
    return request_id, key


async def _refuse(scope: Scope, receive: Receive, send: Send, request_id: str) -> None:
    """Turn away who has no key."""
    if scope["type"] == "websocket":
        reason = "the daemon's key is needed"
        await send({"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": reason})
    else:
        await errors.problem_response(errors.unauthorised(), request_id)(scope, receive, send)


def _request_id(request: Request) -> str:
    request_id: str = request.state.request_id
    return request_id


async def _on_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.Problem)
    return errors.problem_response(error, _request_id(request))


async def _on_http_exception(request: Request, error: Exception) -> Response:
    """Give the framework's own refusals (no such path, wrong method) the same form."""
    assert isinstance(error, HTTPException)
    slug = error.detail.lower().replace(" ", "-")
    detail = (
        f"{request.method} {request.url.path}: {error.detail.lower()}; /docs lists what there is"
    )
    problem = errors.Problem(
        error.status_code, slug, error.detail, detail, dict(error.headers or {})
    )
    return errors.problem_response(problem, _request_id(request))
