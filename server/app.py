"""The application: engine, retrainer and routes put together, behind the door."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any, NamedTuple

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from server import errors, wire
from server.door import Door
from server.engine import Engine
from server.express import Express
from server.ingest import Ingest
from server.metrics import Metrics
from server.replies import Replies
from server.retrain import Retrainer
from server.routes import make_router
from server.settings import ServerSettings
from server.stream import Stream


class Served(NamedTuple):
    """What is served.

    Attributes:
        app: the application.
        express: the short way past it, for those requests that it takes.
    """

    app: ASGIApp
    express: Express


def make_app(settings: ServerSettings, engine: Engine, metrics: Metrics) -> Served:
    """Build the application around an engine, which its caller starts and stops."""
    retrainer, replies = Retrainer(engine, metrics), Replies(engine)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        express.give_up()
        await retrainer.stop()

    app = _Described(
        title="organism",
        version=version("organism"),
        summary="A daemon that never stops learning: novelty and recall on byte streams.",
        lifespan=lifespan,
    )
    app.asks_for_key = settings.api_key is not None
    ingest = Ingest(settings, replies)
    app.include_router(make_router(settings, engine, retrainer, metrics, replies, ingest))
    app.add_exception_handler(errors.Problem, _on_problem)
    app.add_exception_handler(HTTPException, _on_http_exception)
    door = Door(_PastTheFramework(app, ingest, Stream(settings, replies)), settings, metrics)
    express = Express(settings, door, replies)
    return Served(door, express)


class _Described(FastAPI):
    """FastAPI's application; its document also shows the key, and what refusals look like."""

    asks_for_key = False

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        components = document["components"]
        components["schemas"][wire.ProblemReply.__name__] = wire.ProblemReply.model_json_schema()
        if self.asks_for_key:
            components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
            document["security"] = [{"key": []}]
        return document


class _PastTheFramework:
    """Takes messages to the apps that serve them."""

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
    headers = dict(error.headers or {})
    if error.status_code == 405:
        headers["Allow"] = ", ".join(_methods(request))
    problem = errors.Problem(error.status_code, slug, error.detail, detail, headers)
    return errors.problem_response(problem, _request_id(request))


def _methods(request: Request) -> list[str]:
    """What can be done at a path: the framework names the methods of its first route alone."""
    routes = [route for route in request.app.routes if isinstance(route, Route)]
    found = [route for route in routes if route.matches(request.scope)[0] is not Match.NONE]
    return sorted({method for route in found for method in route.methods or ()})
