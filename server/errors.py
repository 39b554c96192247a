"""Refusals, as RFC 9457 problem details: what was expected, what came, what to do."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse


class Problem(Exception):
    """A refused request. Nothing has been learned from it.

    One exception: a message that was in the journal already when learning stopped, or the daemon,
    is refused with 503 and learned by the next start.

    Attributes:
        status: HTTP status.
        slug: stable last part of the problem's type, ``urn:organism:problem:<slug>``.
        title: the kind of problem, the same for every occurrence.
        detail: this occurrence, and what to do about it.
        headers: further HTTP headers.
        members: further members of the problem object.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        title: str,
        detail: str,
        headers: dict[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.title = title
        self.detail = detail
        self.headers = headers or {}
        self.members = members


def malformed(detail: str) -> Problem:
    """400: the request is not of the form that was asked for."""
    return Problem(400, "malformed-request", "Malformed request", detail)


def empty_body(what: str) -> Problem:
    """400: no bytes came."""
    return Problem(400, "empty-body", "Empty body", f"the {what} has no bytes: send at least one")


def unsupported_media_type(found: str) -> Problem:
    """415: bytes of a type that is not read."""
    return Problem(
        415,
        "unsupported-media-type",
        "Unsupported media type",
        f"content type {found!r} is not read here: send application/octet-stream, "
        "or application/vnd.msgpack",
        {"Accept": "application/octet-stream, application/vnd.msgpack"},
    )


def too_large(what: str, limit: int) -> Problem:
    """413: more bytes than the daemon was set to take."""
    return Problem(
        413,
        "too-large",
        "Too large",
        f"the {what} has more than {limit} bytes: send it in parts",
        limit_bytes=limit,
    )


def offset_mismatch(claimed: int, offset: int) -> Problem:
    """409: the writer's offset is not the stream's."""
    return Problem(
        409,
        "offset-mismatch",
        "Offset mismatch",
        f"the message claims offset {claimed}, the stream is at {offset}: go on from there",
        offset=offset,
    )


def disk_full() -> Problem:
    """507: the journal has no room for the message."""
    return Problem(
        507,
        "disk-full",
        "Insufficient storage",
        "the disk is full: make room and send again; recall goes on",
        {"Retry-After": "10"},
    )


def halted() -> Problem:
    """503: the journal or the learner has failed."""
    return Problem(
        503,
        "learning-stopped",
        "Learning has stopped",
        "the journal or the learner failed, the log says how: mend it and start the daemon again; "
        "recall goes on",
        {"Retry-After": "60"},
    )


def storage_failed() -> Problem:
    """507: a snapshot cannot be written."""
    return Problem(
        507,
        "snapshot-failed",
        "Insufficient storage",
        "the snapshot could not be written, the log says why; those before stand",
        {"Retry-After": "10"},
    )


def overloaded() -> Problem:
    """503: the queue of messages is full."""
    return Problem(
        503,
        "overloaded",
        "Overloaded",
        "too many bytes wait to be learned: send again later",
        {"Retry-After": "1"},
    )


def too_many_connections() -> Problem:
    """503: no place for one more client."""
    return Problem(
        503,
        "too-many-connections",
        "Too many connections",
        "as many connections are open as ORGANISM_CONNECTIONS allows: send again later",
        {"Retry-After": "1"},
    )


def too_slow(timeout_s: float) -> Problem:
    """408: the request did not come in in time."""
    return Problem(
        408,
        "too-slow",
        "Request Timeout",
        f"the request was not whole within {timeout_s:g} s: send it in smaller parts",
    )


def head_too_large(limit: int) -> Problem:
    """431: headers without end."""
    return Problem(
        431,
        "head-too-large",
        "Request Header Fields Too Large",
        f"the request's head has more than {limit} bytes",
        limit_bytes=limit,
    )


def not_ready(progress: float | None = None) -> Problem:
    """503: the daemon is stopping; or starting, and so far with its recovery, 0 to 1."""
    return Problem(
        503,
        "not-ready",
        "Not ready",
        "the organism is starting or stopping: send again later",
        {"Retry-After": "1"},
        **({} if progress is None else {"recovery_progress": round(progress, 3)}),
    )


def unauthorised() -> Problem:
    """401: no bearer key, or another."""
    return Problem(
        401,
        "unauthorised",
        "Unauthorised",
        "send the daemon's key: Authorization: Bearer <ORGANISM_API_KEY>",
        {"WWW-Authenticate": "Bearer"},
    )


def unknown_host(host: str) -> Problem:
    """421: the request names a host that this daemon is not."""
    return Problem(
        421,
        "unknown-host",
        "Unknown host",
        f"the Host header names {host[:128]!r}: ask by address or as localhost, or add the name to "
        "ORGANISM_ALLOWED_HOSTS",
    )


def cross_origin(origin: str) -> Problem:
    """403: a browser sends this for a page of another site."""
    return Problem(
        403,
        "cross-origin",
        "Cross-origin request",
        f"a page of {origin[:128]!r} asks: only pages of this daemon's own may",
    )


def failed() -> Problem:
    """500: a fault of ours."""
    detail = "the daemon failed; its log has the details under this request id"
    return Problem(500, "internal-error", "Internal error", detail)


def problem_response(problem: Problem, request_id: str) -> JSONResponse:
    """Render a problem for the request it refuses."""
    content = {
        "type": f"urn:organism:problem:{problem.slug}",
        "title": problem.title,
        "status": problem.status,
        "detail": problem.detail,
        "request_id": request_id,
        **problem.members,
    }
    return JSONResponse(content, problem.status, problem.headers, "application/problem+json")
