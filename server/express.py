"""``POST /ingest`` by the short way: a small message goes from the connection to the engine.

A task, and an application called with three dictionaries, cost more than learning what a small
message says. So that a request that has come whole, and that nothing speaks against, is put to the
engine by the connection that it came on, and answered where its receipt comes in. All others, those
that are to be refused among them, are ``server.ingest``'s.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

from starlette.types import Scope

from server import errors, wire
from server.door import Door
from server.errors import Problem
from server.replies import Replies
from server.settings import ServerSettings
from server.wire import Receipt

_OCTETS = wire.OCTETS.encode()

Answer: TypeAlias = Callable[[int, bytes, bytes], None]
"""Writes a whole reply: status, lines of the head with their ends, body."""


class Express:
    """Takes whole requests that ask for nothing special."""

    def __init__(self, settings: ServerSettings, door: Door, replies: Replies) -> None:
        self._limit = settings.body_limit_bytes
        self._door = door
        self._replies = replies
        self._waiting: set[_Posted] = set()

    def admit(self, scope: Scope) -> Admitted | None:
        """Say whether a request is one to learn from, by its head; None where it is another's."""
        if scope["path"] != "/ingest" or scope["method"] != "POST":
            return None
        headers = dict(scope["headers"])
        if headers.get(b"content-type", _OCTETS) != _OCTETS:
            return None
        claimed = headers.get(b"upload-offset")
        try:
            offset = None if claimed is None else wire.parse_offset(claimed.decode("latin-1"))
        except Problem:
            return None
        return Admitted(scope, headers, offset, headers.get(b"accept", b"").decode("latin-1"))

    def take(self, admitted: Admitted, body: bytes, answer: Answer) -> bool:
        """Learn from the body of a request.

        Args:
            admitted: its head.
            body: all of it.
            answer: called once, later, if the request is taken.

        Returns:
            Whether it is taken; if it is not, nothing has happened.
        """
        if not 0 < len(body) <= self._limit:
            return False
        request_id = self._door.admits(admitted.scope["path"], admitted.headers)
        if request_id is None:
            return False
        posted = _Posted(self, admitted, request_id, answer)
        try:
            self._replies.put(body, admitted.offset, posted.take)
        except Problem:
            return False
        self._waiting.add(posted)
        return True

    def give_up(self) -> None:
        """Answer all that still wait: the daemon stops, and has no more time for them."""
        for posted in [*self._waiting]:
            posted.take(None, errors.not_ready())

    def answered(self, posted: _Posted) -> bool:
        """Note that a request is answered; whether it was not before."""
        if posted not in self._waiting:
            return False
        self._waiting.remove(posted)
        return True

    def refused(self, scope: Scope, problem: Problem, request_id: str) -> None:
        """Count a refusal, as the door would."""
        self._door.refused(scope, problem.status, request_id)


class Admitted(NamedTuple):
    """What the head of a request asks for: to learn from its body.

    Attributes:
        scope: the request.
        headers: by name.
        offset: where the writer believes the stream to be.
        accepted: media types of the reply.
    """

    scope: Scope
    headers: dict[bytes, bytes]
    offset: int | None
    accepted: str

    @property
    def is_of_one_request(self) -> bool:
        """Whether no other request is likely to have this head: it names a place, or an id."""
        return self.offset is not None or b"x-request-id" in self.headers


class _Posted:
    """A request that was taken."""

    __slots__ = ("_admitted", "_answer", "_express", "_request_id")

    def __init__(
        self, express: Express, admitted: Admitted, request_id: str, answer: Answer
    ) -> None:
        self._express = express
        self._admitted = admitted
        self._request_id = request_id
        self._answer = answer

    def take(self, receipt: Receipt | None, refusal: BaseException | None) -> None:
        """Answer with a receipt, or with what refused the message."""
        if not self._express.answered(self):
            return
        if receipt is not None:
            media_type, body = wire.pack_receipt(self._admitted.accepted, receipt)
            head = b"content-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n"
            self._answer(200, head % (media_type, len(body), self._request_id.encode()), body)
            return
        problem = refusal if isinstance(refusal, Problem) else errors.failed()
        self._express.refused(self._admitted.scope, problem, self._request_id)
        response = errors.problem_response(problem, self._request_id)
        head = b"".join(b"%b: %b\r\n" % header for header in response.raw_headers)
        head += b"x-request-id: %b\r\n" % self._request_id.encode()
        self._answer(problem.status, head, bytes(response.body))
