r"""A client for the daemon, in two forms: ``Organism`` for threads, ``AsyncOrganism`` for asyncio.

>>> from server.client import Organism
>>> with Organism("http://127.0.0.1:8765") as organism:  # doctest: +SKIP
...     organism.ingest(b"a line\n").familiarity
...     organism.recall(b"a line").matches[0].text

Results are the models of ``server.wire``. A stream sends again what was not acknowledged when a
connection breaks; the daemon knows repetitions by their offset and bytes, so that each byte is
learned once. Light to import: nothing of the science.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, ExitStack, suppress
from typing import Any, Generic, NamedTuple, Self, TypeVar

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
# Pulses come each second.
_EVENT_TIMEOUT_S = 15.0
# Close codes that a new connection would meet again (RFC 6455 §7.4.1); 4409 is the daemon's own.
_OFFSET_MISMATCH = 4409
_HOPELESS = {1003: 415, 1007: 400, 1008: 403, 1009: 413, _OFFSET_MISMATCH: 409}

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
        slug: the kind of problem, such as ``offset-mismatch``.
        detail: this occurrence, and what to do about it.
        request_id: of the request, as in the daemon's log.
        members: further members of the problem, such as ``offset``.
    """

    def __init__(
        self,
        status: int,
        slug: str,
        detail: str,
        request_id: str | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.slug = slug
        self.detail = detail
        self.request_id = request_id
        self.members = dict(members or {})


class OffsetLost(Refused):
    """The stream is not where the writer left it: another one writes, or the daemon lost bytes."""


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


def _retrain(request: RetrainRequest) -> _Call[Job]:
    body = request.model_dump_json().encode()
    return _Call(_as(Job), "POST", "/retrain", body, {"Content-Type": "application/json"})


def _metrics() -> _Call[str]:
    return _Call(lambda response: response.text, "GET", "/metrics")


def _snapshot() -> _Call[SnapshotReply]:
    return _Call(_as(SnapshotReply), "POST", "/snapshots")


def _refusal(response: httpx.Response) -> Refused:
    """Read a problem; what is none, such as a proxy's page, is told by its status."""
    problem: dict[str, Any] = {}
    with suppress(ValueError):
        content = json.loads(response.content)
        problem = content if isinstance(content, dict) else {}
    known = {name: problem.pop(name, None) for name in ("type", "title", "status", "detail")}
    request_id = problem.pop("request_id", response.headers.get("x-request-id"))
    slug = str(known["type"] or "unknown").rpartition(":")[2]
    detail = known["detail"] or f"status {response.status_code} {response.reason_phrase}"
    return Refused(response.status_code, slug, detail, request_id, problem)


class _Address:
    """Where a daemon is, and what every request to it brings."""

    def __init__(self, url: str, api_key: str | None) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise ValueError(f"a daemon's address begins with http:// or https://, got {url!r}")
        self.headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}

    def socket_url(self, offset: int) -> str:
        """Where frames go that follow an offset."""
        return f"ws{self.url.removeprefix('http')}/ingest/ws?offset={offset}"

    def unreachable(self, error: Exception) -> Unreachable:
        """No daemon there, and how to have one."""
        return Unreachable(
            f"no organism answers at {self.url} ({error or type(error).__name__}): "
            "start one with: organism serve"
        )

    def judge(self, call: _Call[_T], response: httpx.Response) -> _T:
        """Read a reply, or raise what it refuses."""
        if not response.is_success:
            raise _refusal(response)
        return call.read(response)


class _Backlog:
    """Frames that are not acknowledged yet, and the offset before the first of them."""

    def __init__(self, offset: int) -> None:
        self.acknowledged = offset
        self.frames: deque[bytes] = deque()
        self._size_bytes = 0
        self._since = time.monotonic()

    def add(self, frame: bytes) -> None:
        self.begin()
        self.frames.append(frame)
        self._size_bytes += len(frame)

    def has_room(self, size_bytes: int) -> bool:
        """Whether a frame may be sent; a larger one than the window alone."""
        return not self.frames or (
            len(self.frames) < _WINDOW_FRAMES and self._size_bytes + size_bytes <= _WINDOW_BYTES
        )

    def begin(self) -> None:
        """Count the time from now, where nothing waits."""
        if not self.frames:
            self._since = time.monotonic()

    def hear(self, message: str | bytes) -> None:
        """Take an acknowledgement: it covers all frames before its offset."""
        offset = json.loads(message)["offset"]
        while self.frames and self.acknowledged + len(self.frames[0]) <= offset:
            size = len(self.frames.popleft())
            self.acknowledged += size
            self._size_bytes -= size
            self._since = time.monotonic()

    def waited_s(self) -> float:
        """Time since anything was acknowledged, or tried."""
        return time.monotonic() - self._since


def _checked(data: bytes) -> bytes:
    if not data:
        raise ValueError("a frame has at least one byte")
    return bytes(data)


def _hopeless(error: ConnectionClosed | InvalidStatus) -> Refused | None:
    """What a new connection would meet again; None where it is worth another try."""
    if isinstance(error, InvalidStatus):
        status = error.response.status_code
        if status == 503:
            return None
        detail = f"the daemon refused the stream with status {status}: is the key right?"
        return Refused(status, "refused", detail)
    if error.rcvd is None or error.rcvd.code not in _HOPELESS:
        return None
    status, reason = _HOPELESS[error.rcvd.code], error.rcvd.reason or "no reason given"
    if error.rcvd.code == _OFFSET_MISMATCH:
        return OffsetLost(status, "offset-mismatch", reason)
    return Refused(status, "refused", reason)


def _pauses() -> Iterator[float]:
    pause = _FIRST_PAUSE_S
    while True:
        yield pause
        pause = min(2 * pause, _LONGEST_PAUSE_S)


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
            self._data += value
        elif not line:
            kind, data, self._kind, self._data = self._kind, self._data, "", ""
            if kind == "pulse" and data:
                return Pulse.model_validate_json(data)
        return None


class Organism:
    """A daemon, as other code sees it. Safe to use from several threads, but for its streams.

    Every method may raise ``Unreachable`` and ``Refused``.
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

    def retrain(self, request: RetrainRequest | None = None) -> Job:
        """Begin to train a successor."""
        return self._do(_retrain(request or RetrainRequest()))

    def job(self, job_id: str) -> Job:
        """Ask how a retraining goes."""
        return self._do(_get(Job, f"/jobs/{job_id}"))

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
                    raise _refusal(response)
                for line in response.iter_lines():
                    if pulse := parser.feed(line):
                        yield pulse
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error

    def stream(self, offset: int | None = None, *, patience_s: float = 60.0) -> Stream:
        """Open a stream of frames; use it in a ``with`` statement.

        Args:
            offset: where the stream is believed to be; None: where it is now.
            patience_s: how long to try again when nothing is acknowledged.
        """
        start = self.offset() if offset is None else offset
        return Stream(self._address, start, patience_s)

    def _do(self, call: _Call[_T]) -> _T:
        try:
            response = self._http.request(
                call.method, call.path, content=call.content, headers=call.headers
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error
        return self._address.judge(call, response)


class Stream:
    """Frames on their way; each is learned once, in order, though connections break.

    For one writer and one thread. Leaving the ``with`` block waits for all acknowledgements.
    """

    def __init__(self, address: _Address, offset: int, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._backlog = _Backlog(offset)
        self._open = ExitStack()
        self._socket: ClientConnection | None = None

    @property
    def offset(self) -> int:
        """Offset of the stream that is acknowledged: all bytes before it are learned."""
        return self._backlog.acknowledged

    def __enter__(self) -> Self:
        self._connected()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self._drop()

    def send(self, data: bytes) -> None:
        """Send a frame of at least one byte; wait while the window is full.

        Args:
            data: a message; the end of a frame ends its last chunk.

        Raises:
            OffsetLost: another writer's bytes came in between.
            Refused: the frame, or the stream, is not taken.
            Unreachable: nothing was acknowledged for as long as the patience lasts.
        """
        frame = _checked(data)
        while not self._backlog.has_room(len(frame)):
            self._hear(None)
        socket = self._connected()
        self._backlog.add(frame)
        try:
            socket.send(frame)
        except ConnectionClosed as error:
            self._broken(error)
        while self._hear(0):
            pass

    def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises as ``send`` does."""
        while self._backlog.frames:
            self._hear(None)

    def abandon(self) -> None:
        """Give up what is not acknowledged: leaving the block then waits for nothing."""
        self._backlog.frames.clear()

    def _hear(self, timeout_s: float | None) -> bool:
        """Take one acknowledgement, if it comes in time."""
        socket = self._connected()
        try:
            self._backlog.hear(socket.recv(self._patience_s if timeout_s is None else timeout_s))
        except TimeoutError as error:
            if timeout_s is None:
                self._drop()
                raise self._address.unreachable(error) from error
            return False
        except ConnectionClosed as error:
            self._broken(error)
            return False
        return True

    def _connected(self) -> ClientConnection:
        """Return the connection; make a new one, and send again what was not acknowledged."""
        if self._socket is None:
            self._backlog.begin()
        for pause_s in _pauses():
            if self._socket is not None:
                return self._socket
            try:
                connection = connect(
                    self._address.socket_url(self._backlog.acknowledged),
                    additional_headers=self._address.headers,
                    compression=None,
                    ping_interval=None,
                    close_timeout=1,
                )
                self._socket = self._open.enter_context(connection)
                for frame in self._backlog.frames:
                    self._socket.send(frame)
            except (ConnectionClosed, InvalidStatus) as error:
                self._broken(error)
            except (OSError, WebSocketException) as error:
                self._drop()
                if self._backlog.waited_s() > self._patience_s:
                    raise self._address.unreachable(error) from error
            else:
                continue
            time.sleep(pause_s)
        raise AssertionError("pauses have no end")

    def _broken(self, error: ConnectionClosed | InvalidStatus) -> None:
        self._drop()
        if refusal := _hopeless(error):
            raise refusal from error
        if self._backlog.waited_s() > self._patience_s:
            raise self._address.unreachable(error) from error

    def _drop(self) -> None:
        self._socket = None
        self._open.close()


class AsyncOrganism:
    """``Organism`` for asyncio: the same methods, awaited."""

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

    async def retrain(self, request: RetrainRequest | None = None) -> Job:
        """Begin to train a successor."""
        return await self._do(_retrain(request or RetrainRequest()))

    async def job(self, job_id: str) -> Job:
        """Ask how a retraining goes."""
        return await self._do(_get(Job, f"/jobs/{job_id}"))

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
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if pulse := parser.feed(line):
                        yield pulse
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error

    async def stream(self, offset: int | None = None, *, patience_s: float = 60.0) -> AsyncStream:
        """Open a stream: ``async with await organism.stream() as stream``; see ``Organism``."""
        start = await self.offset() if offset is None else offset
        return AsyncStream(self._address, start, patience_s)

    async def _do(self, call: _Call[_T]) -> _T:
        try:
            response = await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers
            )
        except httpx.TransportError as error:
            raise self._address.unreachable(error) from error
        return self._address.judge(call, response)


class AsyncStream:
    """``Stream`` for asyncio: the same methods, awaited; for one task."""

    def __init__(self, address: _Address, offset: int, patience_s: float) -> None:
        self._address = address
        self._patience_s = patience_s
        self._backlog = _Backlog(offset)
        self._open = AsyncExitStack()
        self._socket: AsyncConnection | None = None

    @property
    def offset(self) -> int:
        """Offset of the stream that is acknowledged: all bytes before it are learned."""
        return self._backlog.acknowledged

    async def __aenter__(self) -> Self:
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
        while not self._backlog.has_room(len(frame)):
            await self._hear(None)
        socket = await self._connected()
        self._backlog.add(frame)
        try:
            await socket.send(frame)
        except ConnectionClosed as error:
            await self._broken(error)
        while await self._hear(0):
            pass

    async def flush(self) -> None:
        """Wait until all that was sent is acknowledged; raises as ``send`` does."""
        while self._backlog.frames:
            await self._hear(None)

    def abandon(self) -> None:
        """Give up what is not acknowledged: leaving the block then waits for nothing."""
        self._backlog.frames.clear()

    async def _hear(self, timeout_s: float | None) -> bool:
        socket = await self._connected()
        try:
            # What has come already is returned before a timeout of 0 has its turn.
            async with asyncio.timeout(self._patience_s if timeout_s is None else timeout_s):
                self._backlog.hear(await socket.recv())
        except TimeoutError as error:
            if timeout_s is None:
                await self._drop()
                raise self._address.unreachable(error) from error
            return False
        except ConnectionClosed as error:
            await self._broken(error)
            return False
        return True

    async def _connected(self) -> AsyncConnection:
        if self._socket is None:
            self._backlog.begin()
        for pause_s in _pauses():
            if self._socket is not None:
                return self._socket
            try:
                connection = connect_async(
                    self._address.socket_url(self._backlog.acknowledged),
                    additional_headers=self._address.headers,
                    compression=None,
                    ping_interval=None,
                    close_timeout=1,
                )
                self._socket = await self._open.enter_async_context(connection)
                for frame in self._backlog.frames:
                    await self._socket.send(frame)
            except (ConnectionClosed, InvalidStatus) as error:
                await self._broken(error)
            except (OSError, WebSocketException) as error:
                await self._drop()
                if self._backlog.waited_s() > self._patience_s:
                    raise self._address.unreachable(error) from error
            else:
                continue
            await asyncio.sleep(pause_s)
        raise AssertionError("pauses have no end")

    async def _broken(self, error: ConnectionClosed | InvalidStatus) -> None:
        await self._drop()
        if refusal := _hopeless(error):
            raise refusal from error
        if self._backlog.waited_s() > self._patience_s:
            raise self._address.unreachable(error) from error

    async def _drop(self) -> None:
        self._socket = None
        await self._open.aclose()
