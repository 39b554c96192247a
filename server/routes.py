"""HTTP routes: parse, ask the engine, render. No state of their own."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from fastapi.sse import EventSourceResponse, ServerSentEvent
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from organism.portrait import portrait
from server import errors, page, wire
from server.engine import Engine
from server.episodes import shared_runs
from server.events import Pulses
from server.metrics import Metrics
from server.replies import Replies
from server.retrain import Retrainer
from server.settings import ServerSettings
from server.wire import Job, RetrainRequest

_log = logging.getLogger("organism.routes")

_RETRAIN_LIMIT_BYTES = 1 << 16

_OFFSET: dict[str, Any] = {
    "description": "offset of the stream, bytes",
    "schema": {"type": "integer", "minimum": 0, "maximum": (1 << 63) - 1},
}
_UPLOAD_OFFSET = {
    "name": "Upload-Offset",
    "in": "header",
    "required": False,
    **_OFFSET,
    "description": "where the writer believes the stream to be: then the message is learned once",
}

_JOB_ID = {"name": "job_id", "in": "path", "required": True, "schema": {"type": "string"}}
_NO_KEY: dict[str, Any] = {"security": []}

# What any request may be refused with before a route sees it: not HTTP, no key, a page of another
# site, too slow, a Host that is not ours, a head without end, no place or no organism yet.
_ANYWHERE = (400, 401, 403, 408, 421, 431, 503)
_TEMPORARY = (503, 507)
_RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}


def _refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe what a route refuses, beside what is refused anywhere."""
    refusal = {
        "description": "Refused; nothing changed",
        "content": {wire.PROBLEM: {"schema": wire.reference(wire.ProblemReply)}},
    }
    return {
        status: refusal | ({"headers": _RETRY_AFTER} if status in _TEMPORARY else {})
        for status in sorted({*_ANYWHERE, *statuses})
    }


def _replies(model: type[BaseModel], *refusals: int, status: int = 200) -> dict[str, Any]:
    """Describe a reply in either format, and what a route refuses."""
    packed = {wire.MSGPACK: {"schema": wire.reference(model)}}
    return {
        "status_code": status,
        "response_model": model,
        "responses": {status: {"content": packed}, **_refusals(*refusals)},
    }


def _bytes_body(key: str, what: str) -> dict[str, Any]:
    """Describe a body that is raw bytes or a one-key msgpack map."""
    raw = {"type": "string", "format": "binary", "minLength": 1}
    packed = {
        "type": "object",
        "properties": {key: raw},
        "required": [key],
        "additionalProperties": False,
    }
    content = {wire.OCTETS: {"schema": raw}, wire.MSGPACK: {"schema": packed}}
    return {"requestBody": {"required": True, "description": what, "content": content}}


def make_router(
    settings: ServerSettings,
    engine: Engine,
    retrainer: Retrainer,
    metrics: Metrics,
    replies: Replies,
    ingest: ASGIApp,
) -> APIRouter:
    """Build the routes around one engine."""
    router = APIRouter()
    _add_ingest(router, engine, ingest)
    _add_recall(router, settings, engine, replies)
    _add_status(router, engine)
    _add_events(router, Pulses(engine, retrainer))
    _add_dashboard(router)
    _add_retraining(router, engine, retrainer)
    _add_operation(router, settings, engine, metrics)
    return router


def _add_ingest(router: APIRouter, engine: Engine, app: ASGIApp) -> None:
    @router.post(
        "/ingest",
        **_replies(wire.IngestReply, 409, 413, 415, 507),
        openapi_extra=_bytes_body("data", "bytes of the stream") | {"parameters": [_UPLOAD_OFFSET]},
        summary="Learn from a message",
    )
    async def learned() -> None:
        """The message's lines are learned in order; the receipt tells of them before that."""

    @router.head(
        "/ingest",
        response_class=Response,
        responses={200: {"headers": {"Upload-Offset": _OFFSET}}, **_refusals()},
        summary="Where the stream stands",
    )
    async def offset() -> Response:
        headers = {"Upload-Offset": str(engine.offset), "Cache-Control": "no-store"}
        return Response(headers=headers)

    (route,) = (r for r in router.routes if isinstance(r, APIRoute) and r.endpoint is learned)
    route.app = app


def _add_recall(
    router: APIRouter,
    settings: ServerSettings,
    engine: Engine,
    replies: Replies,
) -> None:
    def matching(cue: bytes) -> list[wire.Match]:
        return [
            wire.Match(
                offset=f.episode.offset,
                similarity=f.similarity,
                raw=f.episode.chunk,
                text=f.episode.chunk.decode(errors="replace"),
                shared=shared_runs(cue, f.episode.chunk),
            )
            for f in engine.episodes.search(cue, settings.matches)
        ]

    async def answer(request: Request, cue: bytes) -> Response:
        # Alignments of long chunks take milliseconds: not in the event loop.
        reading, matches = await asyncio.gather(
            replies.wait(engine.recall(cue)), asyncio.to_thread(matching, cue)
        )
        error = 1 - matches[0].similarity if matches else None
        reply = wire.RecallReply(
            familiarity=reading.familiarity,
            entropy=reading.entropy,
            recall_error=error,
            matches=matches,
            offset=reading.offset,
        )
        return wire.render(request, reply)

    @router.post(
        "/recall",
        **_replies(wire.RecallReply, 413, 415),
        openapi_extra=_bytes_body("cue", "one chunk"),
        summary="Ask about a cue",
    )
    async def recall_posted(request: Request) -> Response:
        # Room for the line end that ``as_chunk`` drops.
        kind = request.headers.get("content-type", wire.OCTETS)
        cue = await wire.read_bytes(request.receive, kind, "cue", "cue", settings.chunk_bytes + 2)
        return await answer(request, _as_chunk(settings, cue))

    @router.get(
        "/recall",
        **_replies(wire.RecallReply, 413),
        openapi_extra={
            "parameters": [
                {
                    "name": "cue",
                    "in": "query",
                    "required": True,
                    "schema": {"type": "string", "minLength": 1},
                }
            ]
        },
        summary="Ask about a short cue",
    )
    async def recall_queried(request: Request) -> Response:
        return await answer(request, _as_chunk(settings, wire.query_bytes(request, "cue")))


def _add_status(router: APIRouter, engine: Engine) -> None:
    @router.get("/status", **_replies(wire.StatusReply), summary="Where the organism stands")
    async def status(request: Request) -> Response:
        life = engine.life
        reply = wire.StatusReply(
            offset=life.offset,
            steps=int(life.cortex.steps),
            state_sha256=life.state_sha256,
            genome_sha256=life.genome.sha256,
            beta=life.beta,
            entropy=life.entropy,
            genome_generation=life.generation,
        )
        return wire.render(request, reply)

    @router.get("/genome", **_replies(wire.GenomeReply), summary="The running genome")
    async def genome(request: Request) -> Response:
        life = engine.life
        reply = wire.GenomeReply(
            sha256=life.genome.sha256,
            generation=life.generation,
            parameters=life.genome.parameter_count,
            config=life.genome.config.model_dump(mode="json"),
            theta={name: tensor.tolist() for name, tensor in life.genome.theta.items()},
            provenance=dict(life.genome.provenance),
        )
        return wire.render(request, reply)

    @router.get(
        "/genome/rule", **_replies(wire.RuleReply), summary="The learned rule, drawn and named"
    )
    async def rule(request: Request) -> Response:
        drawn = await asyncio.to_thread(portrait, engine.life.genome)
        return wire.render(request, wire.RuleReply(**drawn.plain()))


def _add_events(router: APIRouter, pulses: Pulses) -> None:
    @router.get(
        "/events",
        response_class=EventSourceResponse,
        responses=_refusals(),
        summary="The organism each second, as server-sent events",
    )
    async def events() -> AsyncIterator[ServerSentEvent]:
        """Events named `pulse`; the data of each is a Pulse."""
        async for pulse in pulses.follow():
            yield ServerSentEvent(raw_data=pulse.model_dump_json(), event="pulse")


def _add_dashboard(router: APIRouter) -> None:
    for path in page.PATHS:
        router.add_api_route(path, page.serve(path), include_in_schema=False)


def _add_retraining(router: APIRouter, engine: Engine, retrainer: Retrainer) -> None:
    @router.post(
        "/retrain",
        **_replies(Job, 409, 413, status=202),
        openapi_extra={
            "requestBody": {
                "content": {"application/json": {"schema": RetrainRequest.model_json_schema()}}
            }
        },
        summary="Train a successor and swap it in if it is no worse",
    )
    async def retrain(request: Request) -> Response:
        if refusal := engine.refusal():
            raise refusal
        return wire.render(request, retrainer.start(await _retrain_request(request)), 202)

    @router.get(
        "/jobs/{job_id}",
        **_replies(Job, 404),
        openapi_extra={"parameters": [_JOB_ID]},
        summary="How a retraining goes",
    )
    async def job(request: Request) -> Response:
        return wire.render(request, retrainer.job(request.path_params["job_id"]))


def _add_operation(
    router: APIRouter, settings: ServerSettings, engine: Engine, metrics: Metrics
) -> None:
    @router.get(
        "/metrics",
        response_class=PlainTextResponse,
        responses=_refusals(),
        openapi_extra=_NO_KEY if settings.metrics_open else {},
        summary="Prometheus series",
    )
    async def prometheus() -> Response:
        return Response(metrics.render(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @router.get(
        "/healthz",
        responses=_refusals(),
        openapi_extra=_NO_KEY,
        summary="Whether the process lives",
    )
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @router.get(
        "/readyz",
        responses=_refusals(),
        openapi_extra=_NO_KEY,
        summary="Whether messages are taken",
    )
    async def readyz() -> dict[str, str]:
        if refusal := engine.refusal():
            raise refusal
        return {"status": "ready"}

    one_at_a_time = asyncio.Lock()

    @router.post(
        "/snapshots",
        **_replies(wire.SnapshotReply, 507),
        summary="Keep the state as it is now",
    )
    async def snapshot(request: Request) -> Response:
        try:
            async with one_at_a_time:  # recall needs the other threads
                kept = await asyncio.to_thread(engine.snapshot)
        except OSError as error:
            _log.error("no snapshot could be taken: %s", error)
            raise errors.storage_failed() from error
        return wire.render(request, wire.SnapshotReply(**vars(kept)))


def _as_chunk(settings: ServerSettings, cue: bytes) -> bytes:
    """A cue is one chunk, no longer than any; where chunks are lines, without its line end."""
    if settings.chunking == "lines":
        cue = cue.removesuffix(b"\n").removesuffix(b"\r")
        if b"\n" in cue:
            raise errors.malformed("a cue is one line, this has several: ask about each")
    if not cue:
        raise errors.empty_body("cue")
    if len(cue) > settings.chunk_bytes:
        raise errors.too_large("cue", settings.chunk_bytes)
    return cue


async def _retrain_request(request: Request) -> RetrainRequest:
    body = await wire.read_body(request.receive, "request", _RETRAIN_LIMIT_BYTES)
    if not body:
        return RetrainRequest()
    try:
        return RetrainRequest.model_validate_json(body, strict=True)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc'])) or 'body'}: {e['msg']}" for e in error.errors()]
        raise errors.malformed("; ".join(faults)) from error
