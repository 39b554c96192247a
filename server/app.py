"""The application: engine, retrainer and routes put together, behind the door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from server import errors
from server.door import Door
from server.engine import Engine
from server.ingest import Ingest
from server.metrics import Metrics
from server.replies import Replies
from server.retrain import Retrainer
from server.routes import make_router
from server.settings import ServerSettings
from server.stream import Stream


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
    return Door(_ShortWay(app, ingest, Stream(settings, engine)), settings, metrics)


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
