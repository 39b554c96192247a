"""Results of the learner's thread, brought into the event loop: many with one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, Generic, TypeVar

from server.engine import Engine
from server.wire import Receipt

_T = TypeVar("_T")


class Replies:
    """Answers of the engine, awaited by the coroutines of one event loop.

    Waking a loop from another thread costs a system call. A batch of messages is learned together
    and answered together: the first answer wakes the loop, the others ride along.
    """

    def __init__(self) -> None:
        self._come: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False
        self._waking = False

    def submit(
        self, engine: Engine, message: bytes, upload_offset: int | None
    ) -> asyncio.Future[Receipt]:
        """Put a message to the engine; return what a coroutine can await its receipt by.

        The learner is woken when the loop has put all that had come: they make one batch.
        """
        reply: Reply[Receipt] = Reply(self)
        engine.put(message, upload_offset, reply)
        if not self._waking:
            self._waking = True
            reply.waiting.get_loop().call_soon(self._wake, engine)
        return reply.waiting

    def wait(self, future: Future[_T]) -> asyncio.Future[_T]:
        """Return what a coroutine of the running loop can await a future by."""
        reply: Reply[_T] = Reply(self)
        future.add_done_callback(reply.take)
        return reply.waiting

    def add(self, waiting: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        """Bring an answer, from any thread."""
        # Appended before the flag is read, as it is cleared before the queue is read: none is
        # left behind.
        self._come.append((waiting, result, error))
        if not self._woken:
            self._woken = True
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                waiting.get_loop().call_soon_threadsafe(self._hand_out)

    def _wake(self, engine: Engine) -> None:
        self._waking = False
        engine.wake()

    def _hand_out(self) -> None:
        self._woken = False
        while self._come:
            waiting, result, error = self._come.popleft()
            if waiting.done():  # whoever waited has left
                continue
            if error is None:
                waiting.set_result(result)
            else:
                waiting.set_exception(error)


class Reply(Generic[_T]):
    """One answer on its way: a sink for the engine, with a future for a coroutine."""

    __slots__ = ("_replies", "waiting")

    def __init__(self, replies: Replies) -> None:
        self._replies = replies
        self.waiting: asyncio.Future[_T] = asyncio.get_running_loop().create_future()

    def set_result(self, result: _T, /) -> None:
        """Take the answer."""
        self._replies.add(self.waiting, result, None)

    def set_exception(self, exception: BaseException, /) -> None:
        """Take the refusal."""
        self._replies.add(self.waiting, None, exception)

    def take(self, future: Future[_T]) -> None:
        """Take what a future was done with."""
        error = future.exception()
        self._replies.add(self.waiting, None if error else future.result(), error)
