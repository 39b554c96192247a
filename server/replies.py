"""Results of the learner's thread, brought into the event loop: many with one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from concurrent.futures import Future
from functools import partial
from typing import Any, TypeVar

_T = TypeVar("_T")


class Replies:
    """Futures of the engine, awaited by the coroutines of one event loop.

    Waking a loop from another thread costs a system call. A batch of messages is learned together
    and its futures are done together: the first wakes the loop, the others ride along.
    """

    def __init__(self) -> None:
        self._done: deque[tuple[asyncio.Future[Any], Future[Any]]] = deque()
        self._woken = False

    def wait(self, future: Future[_T]) -> asyncio.Future[_T]:
        """Return what a coroutine of the running loop can await."""
        loop = asyncio.get_running_loop()
        waiting: asyncio.Future[_T] = loop.create_future()
        future.add_done_callback(partial(self._add, loop, waiting))
        return waiting

    def _add(
        self, loop: asyncio.AbstractEventLoop, waiting: asyncio.Future[Any], future: Future[Any]
    ) -> None:
        # The learner's thread. Appended before the flag is read, as it is cleared before the
        # queue is read: none is left behind.
        self._done.append((waiting, future))
        if not self._woken:
            self._woken = True
            loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._woken = False
        while self._done:
            waiting, future = self._done.popleft()
            if waiting.done():  # whoever waited has left
                continue
            error = future.exception()
            if error is None:
                waiting.set_result(future.result())
            else:
                waiting.set_exception(error)
