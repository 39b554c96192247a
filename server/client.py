r"""A client for the daemon, in two forms: ``Organism`` for threads, ``AsyncOrganism`` for asyncio.

>>> from server.client import Organism
>>> with Organism("http://127.0.0.1:8765") as organism:  # doctest: +SKIP
...     receipt = organism.ingest(b"a line to live through\n")
...     print(organism.recall(b"a line to live through").matches[0].text)
a line to live through

Results are the models of ``server.wire``. When a connection breaks, a stream sends again what was
not acknowledged, from where that began. The daemon knows repetitions by their offset and bytes, so
that each byte is learned once; had it been asked for its offset alone, another writer's bytes could
pass for ours. Light to import: nothing of the science.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Generic, NamedTuple, NoReturn, Self, TypeVar
from urllib.parse import quote

import httpx
import msgpack
from pydantic import BaseModel
from websockets.asyncio.client import ClientConnection as AsyncConnection
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from server.wire import (
    MSGPACK,
    OCTETS,
    GenomeReply,
    IngestReply,
    Job,
    Pulse,
    RecallReply,
    RetrainRequest,
    RuleReply,
    SnapshotReply,
    StatusReply,
)

DEFAULT_URL = "http://127.0.0.1:8765"

_WINDOW_FRAMES = 64
_WINDOW_BYTES = 8 << 20
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_OPEN_TIMEOUT_S = 10.0
_CLOSE_TIMEOUT_S = 1.0
# Pulses come each second.
_EVENT_TIMEOUT_S = 15.0
_PROBLEM = "urn:organism:problem:"
_OFFSET_MISMATCH = "offset-mismatch"
_PASSING = (429, 502, 503, 504)
# Close codes that a new connection would meet again (RFC 6455 §7.4.1; 4409 is the daemon's own):
# the status and the kind of problem that each stands for. 1013, and any other, may pass.
_LASTING = {
    1003: (415, "unsupported-media-type"),
    1007: (400, "malformed-request"),
    1008: (403, "not-let-in"),
    1009: (413, "too-large"),
    4409: (409, _OFFSET_MISMATCH),
}

_T = TypeVar("_T")
_M = TypeVar("_M", bound=BaseModel)


class OrganismError(Exception):
    """Whatever keeps a call from its result."""


class Unreachable(OrganismError):
    """No daemon answers."""


class Refused(OrganismError):
    """The daemon refused the request, and nothing was learned from it.

    Attributes:
        status: the HTTP status; for a stream, the one that its close code stands for.
        type: the kind of problem, such as ``urn:organism:problem:too-large``; stable.
        title: the kind of problem, for people.
        detail: this occurrence, and what to do about it.
        request_id: of the request, as in the daemon's log.
        members: further members of the problem, such as ``offset``.
    """

    def __init__(
        self,
        status: int,
        type: str,
        title: str,
        detail: str,
        request_id: str | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.request_id = request_id
        self.members = dict(members or {})

    @property
    def slug(self) -> str:
        """Last part of the type, such as ``too-large``."""
        return self.type.rpartition(":")[2]


class OffsetLost(Refused):
    """The stream is not where the writer says: another one writes, or the daemon lost bytes."""


class _Call(NamedTuple, Generic[_T]):
    """A request, and how its reply is read."""

    read: Callable[[httpx.Response], _T]
    method: str
    path: str
    content: bytes | None = None
    headers: Mapping[str, str] = {}


def _as(model: type[_M]) -> Callable[[httpx.Response], _M]:
    return lambda response: model.model_validate(msgpack.unpackb(response.content))


def _get(model: type[_M], path: str) -> _Call[_M]:
    return _Call(_as(model), "GET", path)


def _ingest(data: bytes, offset: int | None) -> _Call[IngestReply]:
    headers = {"Content-Type": OCTETS}
    if offset is not None:
        headers["Upload-Offset"] = str(offset)
    return _Call(_as(IngestReply), "POST", "/ingest", data, headers)


def _recall(cue: bytes) -> _Call[RecallReply]:
    return _Call(_as(RecallReply), "POST", "/recall", cue, {"Content-Type": OCTETS})


def _offset() -> _Call[int]:
    return _Call(lambda response: int(response.headers["Upload-Offset"]), "HEAD", "/ingest")


def _retrain(request: RetrainRequest | None, changes: Mapping[str, int]) -> _Call[Job]:
    asked = RetrainRequest.model_validate({**(request.model_dump() if request else {}), **changes})
    body = asked.model_dump_json().encode()
    return _Call(_as(Job), "POST", "/retrain", body, {"Content-Type": "application/json"})


def _job(job_id: str) -> _Call[Job]:
    return _get(Job, f"/jobs/{quote(job_id, safe='')}")


def _metrics() -> _Call[str]:
    return _Call(lambda response: response.text, "GET", "/metrics")


def _snapshot() -> _Call[SnapshotReply]:
    return _Call(_as(SnapshotReply), "POST", "/snapshots")


def _refusal(status: int, phrase: str, content: bytes, request_id: str | None) -> Refused:
    """Read a problem; what is none, such as a proxy's page, is told by its status."""
    problem: dict[str, Any] = {}
    with suppress(ValueError):
        found = json.loads(content)
        problem = found if isinstance(found, dict) else {}
    hint = ": is the key right?" if status in (401, 403) else ""
    kind = str(problem.pop("type", f"{_PROBLEM}unknown"))
    title = str(problem.pop("title", phrase))
    detail = str(problem.pop("detail", f"status {status} {phrase}{hint}"))
    request_id = problem.pop("request_id", request_id)
    problem.pop("status", None)
    refused = OffsetLost if kind == _PROBLEM + _OFFSET_MISMATCH else Refused
    return refused(status, kind, title, detail, request_id, problem)


def _refusal_of(response: httpx.Response) -> Refused:
    request_id = response.headers.get("x-request-id")
    return _refusal(response.status_code, response.reason_phrase, response.content, request_id)


def _lasting(error: Exception) -> Refused | None:
    """What a new connection of a stream would meet again; None where it may pass."""
    if isinstance(error, InvalidStatus):
        found = error.response
        if found.status_code in _PASSING:
            return None
        request_id = found.headers.get("x-request-id")
        return _refusal(found.status_code, found.reason_phrase, bytes(found.body), request_id)
    if not isinstance(error, ConnectionClosed) or error.rcvd is None:
        return None
    if error.rcvd.code not in _LASTING:
        return None
    status, slug = _LASTING[error.rcvd.code]
    refused = OffsetLost if slug == _OFFSET_MISMATCH else Refused
    detail = error.rcvd.reason or f"the daemon closed the stream with code {error.rcvd.code}"
    return refused(status, _PROBLEM + slug, slug.replace("-", " ").capitalize(), detail)


class _Address:
    """Where a daemon is, and what every request to it brings."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a daemon's address begins with http:// or https://, got {url!r}")
        try:
            httpx.URL(self.url)
        except httpx.InvalidURL as error:
            raise ValueError(f"{url!r} is no address: {error}") from error
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def socket_url(self, offset: int) -> str:
        """Where frames go that follow an offset."""
        return f"ws{self.url.removeprefix('http')}/ingest/ws?offset={offset}"

    def unreachable(self, why: object) -> Unreachable:
        """No daemon there, and how to have one."""
        return Unreachable(
            f"no organism answers at {self.url} ({why}): start one with: organism serve"
        )

    def judge(self, call: _Call[_T], response: httpx.Response) -> _T:
        """Read a reply, or raise what it refuses."""
        if not response.is_success:
            raise _refusal_of(response)
        try:
            return call.read(response)
        except (ValueError, KeyError) as error:
            raise self.unreachable("what does is another server, or another version") from error


class _Backlog:
    """What a stream has sent and knows nothing of yet, and what to do when its connection breaks.

    Knows no connection. Both streams ask it: which frames to send again, and after which pause.

    Attributes:
        acknowledged: offset before the first frame.
        frames: not acknowledged, in order.
        patience_s: how long a call may wait while nothing is acknowledged.
    """

    def __init__(
        self,
        address: _Address,
        offset: int,
        patience_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if patience_s <= 0:
            raise ValueError(f"expected some patience, got {patience_s} s")
        self.acknowledged = offset
        self.frames: deque[bytes] = deque()
        self.patience_s = patience_s
        self._address = address
        self._clock = clock
        self._size_bytes = 0
        self._cause: Exception | None = None
        self._progressed()

    def has_room(self, frame: bytes) -> bool:
        """Whether a frame may be sent; one that is larger than the window goes alone."""
        return not self.frames or (
            len(self.frames) < _WINDOW_FRAMES and self._size_bytes + len(frame) <= _WINDOW_BYTES
        )

    def add(self, frame: bytes) -> None:
        """Keep a frame that is sent."""
        self.frames.append(frame)
        self._size_bytes += len(frame)

    def hear(self, message: str | bytes) -> None:
        """Take an acknowledgement: it covers all frames before its offset.

        Raises:
            OffsetLost: it ends within a frame.
        """
        offset = json.loads(message)["offset"]
        while self.frames and self.acknowledged + len(self.frames[0]) <= offset:
            size = len(self.frames.popleft())
            self.acknowledged += size
            self._size_bytes -= size
            self._progressed()
        if offset != self.acknowledged:
            detail = f"the stream is at {offset}, where no frame ends: do others write?"
            raise OffsetLost(409, _PROBLEM + _OFFSET_MISMATCH, "Offset mismatch", detail)

    def abandon(self) -> None:
        """Forget what is not acknowledged."""
        self.frames.clear()
        self._size_bytes = 0

    def begin(self) -> None:
        """Be patient from now on: a caller who was away is not waited for."""
        self._since = self._clock()

    def left_s(self) -> float:
        """How much patience is left."""
        return max(self._since + self.patience_s - self._clock(), 0.0)

    def pause_s(self) -> float:
        """How long to wait before the next connection: longer each time, until one helps."""
        if not self._failures:
            return 0.0
        pause_s = min(_FIRST_PAUSE_S * 2.0 ** min(self._failures - 1, 10), _LONGEST_PAUSE_S)
        return min(pause_s, self.left_s())

    def lost(self, error: Exception) -> None:
        """Judge what ended a connection, or kept it from coming to be.

        Raises:
            Refused: a new connection would meet the same.
            Unreachable: nothing was acknowledged for as long as the patience lasts.
        """
        if refusal := _lasting(error):
            raise refusal from error
        self._failures += 1
        if self._cause is None or not isinstance(error, TimeoutError):  # the last try has no time
            self._cause = error
        if self.left_s() <= 0:
            self._give_up(self._cause)

    def _give_up(self, error: Exception) -> NoReturn:
        if isinstance(error, ConnectionClosed) and error.rcvd and error.rcvd.reason:
            raise Unreachable(
                f"the organism at {self._address.url} has taken nothing for "
                f"{self.patience_s:g} s: {error.rcvd.reason}"
            ) from error
        raise self._address.unreachable(_why(error)) from error

    def _progressed(self) -> None:
        self.begin()
        self._failures = 0
        self._cause = None


def _why(error: Exception) -> str:
    return str(error) or type(error).__name__


def _checked(data: bytes) -> bytes:
    if not data:
        raise ValueError("a frame has at least one byte")
    return bytes(data)


def _limit_sending(connection: ClientConnection, timeout_s: float) -> None:
    """Have a send fail that makes no headway: a peer that hangs would block it for ever."""
    seconds, rest = divmod(max(timeout_s, 0.001), 1)
    limit = struct.pack("ll", int(seconds), int(rest * 1e6))
    connection.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


async def _close(connection: AsyncConnection) -> None:
    """End a connection in good time: a close would wait for what cannot be sent."""
    try:
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await connection.close()
    finally:
        connection.transport.abort()


class _Events:
    """Parses server-sent events: https://html.spec.whatwg.org/#event-stream-interpretation."""

    def __init__(self) -> None:
        self._kind, self._data = "", ""

    def feed(self, line: str) -> Pulse | None:
        """Take a line; return the pulse that it ends."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "event":
            self._kind = value
        elif name == "data":
            self._data += value + "\n"
        elif not line:
            kind, data, self._kind, self._data = self._kind, self._data, "", ""
            if kind == "pulse" and data:
                return Pulse.model_validate_json(data)
        return None


class Organism:
    r"""A daemon, as other code sees it. Safe to use from several threads, but for its streams.

    Every method may raise ``Unreachable`` and ``Refused``.

    >>> with Organism("http://127.0.0.1:8765") as organism:  # doctest: +SKIP
    ...     offset = organism.offset()
    ...     organism.ingest(b"said twice\n", offset).duplicate
    ...     organism.ingest(b"said twice\n", offset).duplicate
    False
    True
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 60.0
    ) -> None:
        """Name a daemon; nothing is sent yet.

        Args:
            url: where it listens.
            api_key: its key, if it asks for one.
            timeout_s: how long to wait for a reply.

        Raises:
            ValueError: no address of a daemon.
        """
        self._address = _Address(url, api_key)
        self._http = httpx.Client(
            base_url=self._address.url,
            headers={**self._address.headers, "Accept": MSGPACK},
            timeout=timeout_s,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its connections."""
        self._http.close()

    def ingest(self, data: bytes, offset: int | None = None) -> IngestReply:
        """Have a message of at least one byte learned.

        Args:
            data: its bytes, no more than the daemon's limit.
            offset: where the stream is believed to be: then the message is learned once, however
                often it is sent.
        """
        return self._do(_ingest(data, offset))

    def recall(self, cue: bytes) -> RecallReply:
        """Ask about a cue of one chunk."""
        return self._do(_recall(cue))

    def offset(self) -> int:
        """Where the stream stands, bytes."""
        return self._do(_offset())

    def status(self) -> StatusReply:
        """Where the organism stands."""
        return self._do(_get(StatusReply, "/status"))

    def genome(self) -> GenomeReply:
        """The running genome."""
        return self._do(_get(GenomeReply, "/genome"))

    def rule(self) -> RuleReply:
        """The learned rule, drawn and named."""
        return self._do(_get(RuleReply, "/genome/rule"))

    def retrain(self, request: RetrainRequest | None = None, **changes: int) -> Job:
        """Begin to train a successor.

        Args:
            request: what to train; None for the defaults.
            **changes: fields of the request to set, such as ``outer_steps``.

        Raises:
            ValueError: no such request.
        """
        return self._do(_retrain(request, changes))

    def job(self, job_id: str) -> Job:
        """Ask how a retraining goes."""
        return self._do(_job(job_id))

    def snapshot(self) -> SnapshotReply:
        """Have the state kept as it is now."""
        return self._do(_snapshot())

    def metrics(self) -> str:
        """The Prometheus series, as text."""
        return self._do(_metrics())

    def ready(self) -> bool:
        """Whether a daemon is there and takes messages."""
        try:
            return self._http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def events(self) -> Iterator[Pulse]:
        """Yield the organism's pulses, one a second, until it stops."""
        parser = _Events()
        try:
            with self._http.stream("GET", "/events", timeout=_EVENT_TIMEOUT_S) as response:
                if not response.is_success:
                    response.read()
                    raise _refusal_of(response)
                for line in response.iter_lines():
                    if pulse := parser.feed(line):
                        yield pulse
        except httpx.TransportError as error:
            raise self._address.unreachable(_why(error)) from error

    def stream(self, offset: int | None = None, *, patience_s: float = 60.0) -> Stream:
        """Open a stream of frames; use it in a ``with`` statement.

        Args:
            offset: where the stream is believed to be; None: where it is now.
            patience_s: how long a call may try again, or wait, while nothing is acknowledged.
        """
        start = self.offset() if offset is None else offset
        return Stream(self._address, _Backlog(self._address, start, patience_s))

    def _do(self, call: _Call[_T]) -> _T:
        try:
            response = self._http.request(
                call.method, call.path, content=call.content, headers=call.headers
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(_why(error)) from error
        return self._address.judge(call, response)


class Stream:
    r"""Frames on their way; each is learned once, in order, though connections break.

    For one writer and one thread. Leaving the ``with`` block waits for all acknowledgements; where
    an exception leaves it, nothing is waited for.

    >>> with Organism("http://127.0.0.1:8765") as organism:  # doctest: +SKIP
    ...     with organism.stream() as stream:
    ...         start = stream.offset
    ...         for line in (b"one line\n", b"and one more\n"):
    ...             stream.send(line)
    ...     print(stream.offset - start)
    22
    """

    def __init__(self, address: _Address, backlog: _Backlog) -> None:
        self._address = address
        self._backlog = backlog
        self._open = ExitStack()
        self._connection: ClientConnection | None = None

    @property
    def offset(self) -> int:
        """Offset of the stream that is acknowledged: all bytes before it are learned."""
        return self._backlog.acknowledged

    def __enter__(self) -> Self:
        self._backlog.begin()
        self._connected()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._drop()

    def send(self, data: bytes) -> None:
        """Send a frame, whole; wait while the window is full.

        A frame is a message: its end ends its last chunk, so end it where a line ends. Many small
        frames are well; what is larger than the daemon takes in one is yours to split. A send that
        is interrupted counts as sent: flush, or leave the stream.

        Args:
            data: at least one byte, at most the daemon's ``ORGANISM_BODY_LIMIT_BYTES``.

        Raises:
            ValueError: no bytes.
            OffsetLost: another writer's bytes came in between.
            Refused: the frame, or the stream, is not taken.
            Unreachable: nothing was acknowledged for as long as the patience lasts.
        """
        frame = _checked(data)
        self._backlog.begin()
        while not self._backlog.has_room(frame):
            self._hear(waiting=True)
        connection = self._connected()
        with self._guarded():
            self._backlog.add(frame)
            connection.send(frame)
        while self._connection is not None and self._hear(waiting=False):
            pass

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises as ``send`` does."""
        self._backlog.begin()
        while self._backlog.frames:
            self._hear(waiting=True)

    def abandon(self) -> None:
        """Give up what is not acknowledged: leaving the block then waits for nothing.

        Whether it was learned is unknown; nothing more may be sent here.
        """
        self._backlog.abandon()

    def _hear(self, *, waiting: bool) -> bool:
        """Take an acknowledgement, waiting for it or not; return whether there was one."""
        connection = self._connected()
        with self._guarded():
            try:
                message = connection.recv(self._backlog.left_s() if waiting else 0)
            except TimeoutError:
                if waiting:
                    raise
                return False
            self._backlog.hear(message)
            return True
        return False

    def _connected(self) -> ClientConnection:
        """Return the connection; make a new one, and send again what was not acknowledged."""
        while self._connection is None:
            time.sleep(self._backlog.pause_s())
            with self._guarded():
                connection = connect(
                    self._address.socket_url(self._backlog.acknowledged),
                    additional_headers=self._address.headers,
                    compression=None,
                    ping_interval=None,
                    open_timeout=min(_OPEN_TIMEOUT_S, self._backlog.left_s()),
                    close_timeout=_CLOSE_TIMEOUT_S,
                )
                self._open.enter_context(connection)
                _limit_sending(connection, self._backlog.patience_s)
                for frame in self._backlog.frames:
                    connection.send(frame)
                self._connection = connection
        return self._connection

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Use the connection; after any exception it is not used again, for who knows its state."""
        try:
            yield
        except (OSError, WebSocketException) as error:
            self._drop()
            self._backlog.lost(error)
        except BaseException:
            self._drop()
            raise

    def _drop(self) -> None:
        self._connection = None
        self._open.close()


class AsyncOrganism:
    r"""``Organism`` for asyncio: the same methods, awaited.

    >>> async def tell() -> int:
    ...     async with AsyncOrganism("http://127.0.0.1:8765") as organism:
    ...         async with await organism.stream() as stream:
    ...             start = stream.offset
    ...             await stream.send(b"a line\n")
    ...         return stream.offset - start
    >>> asyncio.run(tell())  # doctest: +SKIP
    7
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, api_key: str | None = None, timeout_s: float = 60.0
    ) -> None:
        """Name a daemon; see ``Organism``."""
        self._address = _Address(url, api_key)
        self._http = httpx.AsyncClient(
            base_url=self._address.url,
            headers={**self._address.headers, "Accept": MSGPACK},
            timeout=timeout_s,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of its connections."""
        await self._http.aclose()

    async def ingest(self, data: bytes, offset: int | None = None) -> IngestReply:
        """Have a message learned; see ``Organism.ingest``."""
        return await self._do(_ingest(data, offset))

    async def recall(self, cue: bytes) -> RecallReply:
        """Ask about a cue of one chunk."""
        return await self._do(_recall(cue))

    async def offset(self) -> int:
        """Where the stream stands, bytes."""
        return await self._do(_offset())

    async def status(self) -> StatusReply:
        """Where the organism stands."""
        return await self._do(_get(StatusReply, "/status"))

    async def genome(self) -> GenomeReply:
        """The running genome."""
        return await self._do(_get(GenomeReply, "/genome"))

    async def rule(self) -> RuleReply:
        """The learned rule, drawn and named."""
        return await self._do(_get(RuleReply, "/genome/rule"))

    async def retrain(self, request: RetrainRequest | None = None, **changes: int) -> Job:
        """Begin to train a successor; see ``Organism.retrain``."""
        return await self._do(_retrain(request, changes))

    async def job(self, job_id: str) -> Job:
        """Ask how a retraining goes."""
        return await self._do(_job(job_id))

    async def snapshot(self) -> SnapshotReply:
        """Have the state kept as it is now."""
        return await self._do(_snapshot())

    async def metrics(self) -> str:
        """The Prometheus series, as text."""
        return await self._do(_metrics())

    async def ready(self) -> bool:
        """Whether a daemon is there and takes messages."""
        try:
            return (await self._http.get("/readyz")).is_success
        except httpx.TransportError:
            return False

    async def events(self) -> AsyncIterator[Pulse]:
        """Yield the organism's pulses, one a second, until it stops."""
        parser = _Events()
        try:
            async with self._http.stream("GET", "/events", timeout=_EVENT_TIMEOUT_S) as response:
                if not response.is_success:
                    await response.aread()
                    raise _refusal_of(response)
                async for line in response.aiter_lines():
                    if pulse := parser.feed(line):
                        yield pulse
        except httpx.TransportError as error:
            raise self._address.unreachable(_why(error)) from error

    async def stream(self, offset: int | None = None, *, patience_s: float = 60.0) -> AsyncStream:
        """Open a stream: ``async with await organism.stream() as stream``; see ``Organism``."""
        start = await self.offset() if offset is None else offset
        return AsyncStream(self._address, _Backlog(self._address, start, patience_s))

    async def _do(self, call: _Call[_T]) -> _T:
        try:
            response = await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(_why(error)) from error
        return self._address.judge(call, response)


class AsyncStream:
    """``Stream`` for asyncio: the same methods, awaited; for one task."""

    def __init__(self, address: _Address, backlog: _Backlog) -> None:
        self._address = address
        self._backlog = backlog
        self._open = AsyncExitStack()
        self._connection: AsyncConnection | None = None

    @property
    def offset(self) -> int:
        """Offset of the stream that is acknowledged: all bytes before it are learned."""
        return self._backlog.acknowledged

    async def __aenter__(self) -> Self:
        self._backlog.begin()
        await self._connected()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                await self.flush()
        finally:
            await self._drop()

    async def send(self, data: bytes) -> None:
        """Send a frame; see ``Stream.send``."""
        frame = _checked(data)
        self._backlog.begin()
        while not self._backlog.has_room(frame):
            await self._hear(waiting=True)
        connection = await self._connected()
        async with self._guarded(), asyncio.timeout(self._backlog.left_s()):
            self._backlog.add(frame)
            await connection.send(frame)
        while self._connection is not None and await self._hear(waiting=False):
            pass

    async def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises as ``send`` does."""
        self._backlog.begin()
        while self._backlog.frames:
            await self._hear(waiting=True)

    def abandon(self) -> None:
        """Give up what is not acknowledged: leaving the block then waits for nothing.

        Whether it was learned is unknown; nothing more may be sent here.
        """
        self._backlog.abandon()

    async def _hear(self, *, waiting: bool) -> bool:
        """Take an acknowledgement, waiting for it or not; return whether there was one."""
        connection = await self._connected()
        async with self._guarded():
            try:
                # What has come already is returned before a timeout of 0 has its turn.
                async with asyncio.timeout(self._backlog.left_s() if waiting else 0):
                    message = await connection.recv()
            except TimeoutError:
                if waiting:
                    raise
                return False
            self._backlog.hear(message)
            return True
        return False

    async def _connected(self) -> AsyncConnection:
        """Return the connection; make a new one, and send again what was not acknowledged."""
        while self._connection is None:
            await asyncio.sleep(self._backlog.pause_s())
            async with self._guarded(), asyncio.timeout(self._backlog.left_s()):
                connection = await connect_async(
                    self._address.socket_url(self._backlog.acknowledged),
                    additional_headers=self._address.headers,
                    compression=None,
                    ping_interval=None,
                    open_timeout=_OPEN_TIMEOUT_S,
                    close_timeout=_CLOSE_TIMEOUT_S,
                )
                self._open.push_async_callback(_close, connection)
                for frame in self._backlog.frames:
                    await connection.send(frame)
                self._connection = connection
        return self._connection

    @asynccontextmanager
    async def _guarded(self) -> AsyncIterator[None]:
        """Use the connection; after any exception it is not used again, for who knows its state."""
        try:
            yield
        except (OSError, WebSocketException) as error:
            await self._drop()
            self._backlog.lost(error)
        except BaseException:
            await self._drop()
            raise

    async def _drop(self) -> None:
        self._connection = None
        await self._open.aclose()
