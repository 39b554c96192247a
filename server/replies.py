"""Results of the learner's thread, brought into the event loop: many with one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeAlias, TypeVar

from server.engine import Engine
from server.errors import Problem
from server.intake import Sink
from server.wire import Receipt

_T = TypeVar("_T")

Take: TypeAlias = Callable[[Any, BaseException | None], None]
"""Takes a result, or what there is instead of one; in the event loop."""


class Replies:
    """Answers of the engine, for those of one event loop who wait.

    Waking a loop from another thread costs a system call, and so does waking the engine. Messages
    that come together are put together; they are learned together and answered together, and the
    loop is woken once.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._come: deque[tuple[Take, Any, BaseException | None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = False
        self._waking = False

    def queue(self, messages: Sequence[bytes], upload_offset: int | None, sink: Sink) -> int:
        """Put messages to the engine as ``Engine.put`` does; it is woken when all have been put.

        Raises:
            Problem: the engine takes none.
        """
        taken = self._engine.put(messages, upload_offset, sink)
        if not self._waking:
            self._waking = True
            self._running_loop().call_soon(self._wake)
        return taken

    def put(self, message: bytes, upload_offset: int | None, take: Take) -> None:
        """Put a message to the engine, and have its receipt, or the ``Problem``, taken.

        Raises:
            Problem: the engine does not take the message.
        """
        self.queue((message,), upload_offset, _Sink(self, take))

    def submit(self, message: bytes, upload_offset: int | None) -> asyncio.Future[Receipt]:
        """Put a message to the engine; return what a coroutine can await its receipt by.

        Raises:
            Problem: the engine does not take the message.
        """
        waiting: asyncio.Future[Receipt] = self._running_loop().create_future()
        self.put(message, upload_offset, _resolve(waiting))
        return waiting

    def wait(self, future: Future[_T]) -> asyncio.Future[_T]:
        """Return what a coroutine of the running loop can await a future by."""
        waiting: asyncio.Future[_T] = self._running_loop().create_future()
        take = _resolve(waiting)

        def bring(done: Future[_T]) -> None:
            error = done.exception()
            self.add(take, None if error else done.result(), error)
            self.flush()

        future.add_done_callback(bring)
        return waiting

    def add(self, take: Take, result: Any, error: BaseException | None) -> None:
        """Bring an answer, from any thread; it is handed out after the next ``flush``."""
        self._come.append((take, result, error))

    def flush(self) -> None:
        """Wake the loop if there is something to hand out, from any thread."""
        # Appended before the flag is read, as it is cleared before the queue is looked at for the
        # last time: none is left behind.
        if self._come and not self._woken:
            self._woken = True
            assert self._loop is not None, "nobody has asked"
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(self._hand_out)

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    def _wake(self) -> None:
        self._waking = False
        self._engine.wake()

    def _hand_out(self) -> None:
        while self._come:
            while self._come:
                take, result, error = self._come.popleft()
                take(result, error)
            self._woken = False


class _Sink:
    """What the engine tells of a message, on its way into the loop."""

    __slots__ = ("_replies", "_take")

    def __init__(self, replies: Replies, take: Take) -> None:
        self._replies = replies
        self._take = take

    def told(self, result: Any, _: int, /) -> None:
        self._replies.add(self._take, result, None)

    def refused(self, problem: Problem, /) -> None:
        self._replies.add(self._take, None, problem)

    def flush(self) -> None:
        self._replies.flush()


def _resolve(waiting: asyncio.Future[Any]) -> Take:
    """Make what hands an answer to whoever awaits a future."""

    def take(result: Any, error: BaseException | None) -> None:
        if waiting.done():  # whoever waited has left
            return
        if error is None:
            waiting.set_result(result)
        else:
            waiting.set_exception(error)

    return take
