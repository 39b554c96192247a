"""Answers of another thread, in the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import cast

import pytest

from server.engine import Engine
from server.errors import Problem, not_ready
from server.intake import Sink
from server.replies import Replies


def test_answers_come_to_whoever_waits() -> None:
    """Results and refusals of another thread, each to its own."""

    async def ask() -> list[object]:
        replies = Replies(cast(Engine, None))
        futures: list[Future[int]] = [Future() for _ in range(50)]
        waiting = [replies.wait(future) for future in futures]

        def answer() -> None:
            for i, future in enumerate(futures):
                if i == 7:
                    future.set_exception(not_ready())
                else:
                    future.set_result(i)

        threading.Thread(target=answer).start()
        return await asyncio.gather(*waiting, return_exceptions=True)

    answers = asyncio.run(ask())
    assert isinstance(answers[7], Problem)
    assert answers[:7] + answers[8:] == [*range(7), *range(8, 50)]


def test_a_batch_wakes_the_loop_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many answers it brings."""

    async def ask() -> int:
        loop, wakes = asyncio.get_running_loop(), 0
        wake = loop.call_soon_threadsafe

        def counted(*arguments: object) -> object:
            nonlocal wakes
            wakes += 1
            return wake(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(loop, "call_soon_threadsafe", counted)
        replies = Replies(cast(Engine, None))
        futures: list[Future[int]] = [Future() for _ in range(20)]
        waiting = [replies.wait(future) for future in futures]
        for future in futures:
            future.set_result(1)
        await asyncio.gather(*waiting)
        return wakes

    assert asyncio.run(ask()) == 1


class Counting:
    """An engine that keeps what is put to it, and counts how often it is woken."""

    def __init__(self) -> None:
        self.sinks: list[Sink] = []
        self.wakes = 0

    def put(self, messages: Sequence[bytes], upload_offset: int | None, sink: Sink) -> int:
        """Take messages."""
        self.sinks.append(sink)
        return len(messages)

    def wake(self) -> None:
        """Count."""
        self.wakes += 1


def test_messages_of_one_turn_wake_the_engine_once() -> None:
    """However many they are; their answers come after the flush."""

    async def ask() -> tuple[int, list[object]]:
        engine = Counting()
        replies = Replies(cast(Engine, engine))
        waiting = [replies.submit(b"message", None) for _ in range(20)]
        await asyncio.sleep(0)
        for i, sink in enumerate(engine.sinks):
            if i % 2:
                sink.told(i, 1)
            else:
                sink.refused(not_ready())
        assert not any(one.done() for one in waiting)
        for sink in engine.sinks:
            sink.flush()
        return engine.wakes, await asyncio.gather(*waiting, return_exceptions=True)

    wakes, answers = asyncio.run(ask())
    assert wakes == 1
    assert answers[1::2] == [*range(1, 20, 2)]
    assert all(isinstance(answer, Problem) for answer in answers[::2])


def test_whoever_has_left_is_passed_over() -> None:
    """A cancelled waiter does not keep the others from their answers."""

    async def ask() -> int:
        replies = Replies(cast(Engine, None))
        left, stays = Future[int](), Future[int]()
        replies.wait(left).cancel()
        waiting = replies.wait(stays)
        left.set_result(1)
        stays.set_result(2)
        return await waiting

    assert asyncio.run(ask()) == 2
