"""What goes over the wire: bodies in, typed replies out, as JSON or msgpack.

Owns the formats and their refusals; knows nothing of the organism.
"""

from __future__ import annotations

import base64
from typing import Any, Literal, NamedTuple
from urllib.parse import unquote_to_bytes

import msgpack
from pydantic import BaseModel, ConfigDict, Field, field_serializer
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive

from server import errors

OCTETS = "application/octet-stream"
MSGPACK = "application/vnd.msgpack"
PROBLEM = "application/problem+json"
_MSGPACK_TYPES = (MSGPACK, "application/msgpack", "application/x-msgpack")

# msgpack framing of a one-key map around the bytes: a limit on the body must leave room for it.
_FRAMING_BYTES = 64


class IngestReply(BaseModel):
    """Receipt of one message; means over its chunks are of before each was learned."""

    offset: int = Field(
        description="stream offset after the message; for a duplicate, where it was learned, bytes"
    )
    chunks: int = Field(description="chunks learned from it")
    entropy: float | None = Field(
        description="mean H = std(h), the original's proxy; null where no chunk was learned"
    )
    familiarity: float | None = Field(
        description="mean familiarity, 0 to 1; null where no chunk was learned"
    )
    beta: float = Field(description="metabolic β after it")
    duplicate: bool = Field(
        description="the message was learned before: this is the receipt of a repetition"
    )


class Receipt(NamedTuple):
    """What became of a message: the fields of an ``IngestReply``."""

    offset: int
    chunks: int
    entropy: float | None
    familiarity: float | None
    beta: float
    duplicate: bool


class Match(BaseModel):
    """A lived chunk that resembles a cue."""

    model_config = ConfigDict(populate_by_name=True)

    offset: int = Field(description="where its latest occurrence starts in the stream, bytes")
    similarity: float = Field(description="1 − normalised edit distance to the cue, 0 to 1")
    raw: bytes = Field(alias="bytes", description="the chunk: base64 in JSON, raw in msgpack")
    text: str = Field(description="the chunk as UTF-8, undecodable bytes replaced")
    shared: list[tuple[int, int, int]] = Field(
        description="runs of bytes that cue and chunk share, in order: start in the cue, start in "
        "the chunk, length"
    )

    @field_serializer("raw", when_used="json")
    def _base64(self, value: bytes) -> str:
        return base64.b64encode(value).decode()


class RecallReply(BaseModel):
    """What the organism makes of a cue."""

    familiarity: float = Field(description="probability that the cue was lived through, 0 to 1")
    entropy: float = Field(description="H = std(h) that the cue evokes, the original's proxy")
    recall_error: float | None = Field(
        description="normalised edit distance to the first match, 0 to 1; null without a match"
    )
    matches: list[Match] = Field(description="lived chunks, most similar first")
    offset: int = Field(description="stream offset after the last whole message, bytes")


class StatusReply(BaseModel):
    """Where the organism stands."""

    offset: int = Field(description="stream offset, bytes")
    steps: int = Field(description="chunks lived")
    state_sha256: str = Field(description="checksum of cortex and offset")
    genome_sha256: str = Field(description="checksum of the running genome's file")
    beta: float = Field(description="metabolic β")
    entropy: float | None = Field(description="H of the last chunk; null before the first")
    genome_generation: int = Field(description="genomes swapped in since birth")


class SnapshotReply(BaseModel):
    """A snapshot that is on the disk."""

    offset: int = Field(description="stream offset it stands for, bytes")
    sequence: int = Field(description="last record of the journal it has seen")
    state_sha256: str = Field(description="checksum of cortex and offset")
    size_bytes: int = Field(description="its size")


class GenomeReply(BaseModel):
    """The running genome."""

    sha256: str
    generation: int
    parameters: int = Field(description="how many numbers θ has")
    config: dict[str, Any]
    theta: dict[str, Any] = Field(description="θ by name, nested lists")
    provenance: dict[str, Any]


class Term(BaseModel):
    """One product of powers in a rule, and how much of the rule it is."""

    name: str = Field(description="such as pre·post³")
    coefficient: float = Field(description="its factor, in the rule's scaled units")
    share: float = Field(
        description="its root mean square over the portrait, of the sum of all terms', 0 to 1"
    )


class RuleReply(BaseModel):
    """The learned rule, drawn: Δw over pre, post and w, in the rule's scaled units."""

    family: Literal["polynomial", "mlp"]
    pre: list[float] = Field(description="values of pre")
    post: list[float] = Field(description="values of post")
    w: list[float] = Field(description="values of w, one picture each")
    delta: list[list[list[float]]] = Field(description="G(pre, post, w), by w, pre, post")
    terms: list[Term] = Field(description="its terms, those that matter most first")
    r_squared: float = Field(
        description="how much of the rule the terms explain: 1 for a polynomial"
    )


class RetrainRequest(BaseModel):
    """What to train; everything has a default."""

    model_config = ConfigDict(extra="forbid")

    outer_steps: int = Field(200, ge=1, le=10_000, description="outer steps of meta-training")
    seed: int = Field(1, ge=0, lt=1 << 32, description="seed of the training streams")
    threads: int = Field(1, ge=1, le=64, description="cores the child may use")


class Job(BaseModel):
    """One retraining, from request to verdict."""

    id: str
    status: Literal["running", "succeeded", "failed"] = Field(
        "running", description="succeeded: a verdict was reached, for or against the successor"
    )
    step: int = Field(0, description="outer steps done")
    outer_steps: int = Field(description="outer steps asked for")
    loss: float | None = Field(None, description="training loss of the last step reported")
    auroc: float | None = Field(None, description="training AUROC of the last step reported")
    running_score: float | None = Field(None, description="held-out score of the running genome")
    candidate_score: float | None = Field(None, description="held-out score of the successor")
    promoted: bool | None = Field(
        None, description="whether the successor took over; null before the verdict"
    )
    genome_sha256: str | None = Field(None, description="checksum of the successor")
    error: str | None = Field(None, description="why it failed")


class NovelChunk(BaseModel):
    """A recent chunk that was hardly familiar when it came."""

    offset: int = Field(description="where it starts in the stream, bytes")
    familiarity: float = Field(description="before it was learned, 0 to 1")
    text: str = Field(description="the chunk as UTF-8, undecodable bytes replaced, cut if long")
    age_s: float = Field(description="how long ago it was learned")


class LiveRecall(BaseModel):
    """How well the organism recalls what it lived, measured on itself; null before it is."""

    auroc: float | None = Field(description="familiarity of damaged lived chunks against new ones")
    top1: float | None = Field(description="damaged lived chunks whose first match is the lived")
    error: float | None = Field(description="normalised edit distance of the match to the lived")


class Pulse(BaseModel):
    """The organism at one moment, as ``/events`` tells it; means are since the pulse before."""

    ready: bool = Field(description="whether messages are taken")
    recovery: float = Field(description="how much of the journal is recovered, 0 to 1")
    offset: int = Field(description="stream offset, bytes; 0 before it has recovered")
    steps: int = Field(description="chunks lived")
    chunks_per_s: float | None = Field(description="null in the first pulse: nothing before it")
    bytes_per_s: float | None = Field(description="null in the first pulse: nothing before it")
    queue_bytes: int = Field(description="bytes that wait to be learned")
    entropy: float | None = Field(description="mean H of the chunks; null where none came")
    familiarity: float | None = Field(
        description="mean familiarity of the chunks before each was learned; null where none came"
    )
    beta: float | None = Field(description="metabolic β; null before it has recovered")
    plasticity_rate: float | None = Field(description="α of the last chunk")
    recall: LiveRecall
    genome_sha256: str | None
    genome_generation: int
    retraining: Job | None = Field(description="the last retraining, under way or done")
    novel: list[NovelChunk] = Field(description="least familiar of the recent chunks first")


class ProblemReply(BaseModel):
    """A refusal, by RFC 9457; some have further members."""

    model_config = ConfigDict(extra="allow")

    type: str = Field(description="urn:organism:problem: and the kind of problem, stable")
    title: str = Field(description="the kind of problem, for people")
    status: int = Field(description="the HTTP status")
    detail: str = Field(description="this occurrence, and what to do about it")
    request_id: str = Field(description="as in X-Request-ID; none where none was read")


def reference(model: type[BaseModel]) -> dict[str, Any]:
    """Name a reply's schema, for the OpenAPI document."""
    return {"$ref": f"#/components/schemas/{model.__name__}"}


def render(request: Request, reply: BaseModel, status: int = 200) -> Response:
    """Render a reply in the format that the request accepts: msgpack if named, else JSON."""
    if _accepts_msgpack(request.headers.get("accept", "")):
        return Response(msgpack.packb(reply.model_dump(by_alias=True)), status, media_type=MSGPACK)
    return Response(reply.model_dump_json(by_alias=True), status, media_type="application/json")


def pack_receipt(accepted: str, receipt: Receipt) -> tuple[bytes, bytes]:
    """Write a receipt, whose fields are an ``IngestReply``'s, as ``render`` would.

    Returns:
        Its media type and its bytes.
    """
    fields = receipt._asdict()
    if accepted and _accepts_msgpack(accepted):
        return MSGPACK.encode(), msgpack.packb(fields)
    return b"application/json", to_json(fields)


def _accepts_msgpack(accepted: str) -> bool:
    kinds = [part.split(";")[0].strip() for part in accepted.split(",")]
    return any(kind in kinds for kind in _MSGPACK_TYPES)


def parse_offset(value: str) -> int:
    """Read a stream offset that a client sent.

    Raises:
        Problem: not a whole number from 0 to 2^63 − 1.
    """
    if not (value.isascii() and value.isdigit() and len(value) <= 19 and int(value) < 1 << 63):
        raise errors.malformed(f"an offset is a whole number of bytes from 0, got {value[:32]!r}")
    return int(value)


async def read_bytes(receive: Receive, content_type: str, what: str, key: str, limit: int) -> bytes:
    """Read the bytes a request brings: raw, or in msgpack as ``{key: bytes}``.

    Args:
        receive: of the request; its body is read up to the limit, never beyond.
        content_type: of the body.
        what: what the bytes are, for the refusals.
        key: name of the bytes in a msgpack map.
        limit: most bytes taken.

    Raises:
        Problem: empty, too large, malformed, or of a type that is not read.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == OCTETS:
        data = await read_body(receive, what, limit)
    elif kind in _MSGPACK_TYPES:
        data = _unpack(await read_body(receive, what, limit + _FRAMING_BYTES), what, key)
        if len(data) > limit:
            raise errors.too_large(what, limit)
    else:
        raise errors.unsupported_media_type(kind)
    if not data:
        raise errors.empty_body(what)
    return data


async def read_body(receive: Receive, what: str, limit: int) -> bytes:
    """Read a body up to a limit, and never beyond; one that comes in one piece is not copied.

    Args:
        receive: of the request.
        what: what the bytes are, for the refusals.
        limit: most bytes taken.

    Raises:
        Problem: too large, or the client left before it was whole.
    """
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise errors.malformed(f"the client left before the {what} was whole")
        part: bytes = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise errors.too_large(what, limit)
        parts.append(part)
        more = message.get("more_body", False)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def query_bytes(request: Request, key: str) -> bytes:
    """Percent-decode one query parameter as bytes; no other may be there.

    Raises:
        Problem: missing, given twice, or beside a parameter that is not known.
    """
    pairs = [pair.partition(b"=") for pair in request.scope["query_string"].split(b"&") if pair]
    names = [unquote_to_bytes(name).decode("latin-1") for name, _, _ in pairs]
    if names != [key]:
        raise errors.malformed(f"expected the one query parameter {key!r}, got {names}")
    return unquote_to_bytes(pairs[0][2].replace(b"+", b" "))


def _unpack(body: bytes, what: str, key: str) -> bytes:
    if not body:
        raise errors.empty_body(what)
    try:
        content = msgpack.unpackb(body)
    except (ValueError, RecursionError) as error:
        raise errors.malformed(
            f"the {what} is not msgpack: {error or type(error).__name__}"
        ) from error
    if (
        not isinstance(content, dict)
        or list(content) != [key]
        or not isinstance(content[key], bytes)
    ):
        raise errors.malformed(
            f"the {what} must be a msgpack map with the one key {key!r}, of type bin"
        )
    data: bytes = content[key]
    return data
