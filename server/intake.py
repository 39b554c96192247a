"""The intake: messages in, commits out. What a commit holds is in the journal.

Owns the queue of what waits, its bound in bytes, the journal while it is appended to, and the
verdict on each message's offset: learned once, a duplicate, or refused. On one thread. One sync
stands for all messages that wait together; a commit is delivered before it, so that it can be
learned meanwhile, and says when it may be told of.
"""

from __future__ import annotations

import errno
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

from organism.chunking import are_cut_as_one
from server import errors
from server.errors import Problem
from server.learner import BATCH_BYTES, CHUNKINGS
from server.metrics import Metrics
from server.settings import ServerSettings
from server.storage.journal import Entry, Journal, JournalDamaged
from server.storage.segment import MESSAGES, Kind, Record


class Duplicate(NamedTuple):
    """The verdict on bytes that the stream has already; where they end in it."""

    end: int


Verdict = Problem | Duplicate | Literal["learned"]

_SYNC_EVERY_S = 1.0
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger("organism.intake")
_T = TypeVar("_T")


class Sink(Protocol):
    """Takes what became of messages, in their order, on the learner's thread."""

    def told(self, result: Any, messages: int, /) -> None:
        """Take the receipt of the next message; or of so many, that of all of them together."""

    def refused(self, problem: Problem, /) -> None:
        """Take what refused the next message."""

    def flush(self) -> None:
        """Pass on what was taken: all who were told together have been."""


class Promise(Future[Any]):
    """A future of something that is done once it is taken: a client that leaves cannot undo it."""

    def __init__(self) -> None:
        super().__init__()
        self.set_running_or_notify_cancel()

    def told(self, result: Any, _: int, /) -> None:
        """Take the result."""
        self.set_result(result)

    def refused(self, problem: Problem, /) -> None:
        """Take what there is instead of one."""
        self.set_exception(problem)

    def flush(self) -> None:
        """Nothing is left to pass on."""


class Answer(NamedTuple):
    """Whom to tell what, and for how many messages."""

    sink: Sink
    verdict: Verdict
    messages: int


@dataclass(eq=False)
class Commit:
    """Messages that were judged together.

    Attributes:
        records: in the journal, to be learned in order.
        answers: in order; each ``learned`` stands for the next record.
        size: bytes that no longer wait once they are told.
        settled: whether the records are on the disk, or whatever the policy asks for; before, none
            may be told of.
        failure: why they could not be brought there: none of them is in the journal.
    """

    records: list[Record]
    answers: list[Answer]
    size: int
    settled: bool = False
    failure: Problem | None = None


class _Waiting(NamedTuple):
    """Messages of one writer that wait, one behind the other; or a genome."""

    kind: Kind
    payloads: Sequence[bytes]
    size: int
    claimed: int | None
    sink: Sink

    def apart(self) -> Iterator[_Waiting]:
        """Each by itself."""
        claimed = self.claimed
        for payload in self.payloads:
            yield _Waiting(self.kind, (payload,), len(payload), claimed, self.sink)
            if claimed is not None:
                claimed += len(payload)


class Intake:
    """Takes messages from any thread once it is open; delivers commits from its own.

    Attributes:
        queued_bytes: of messages that were taken and not told of yet.
        queue_limit_bytes: how many may wait.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        journal: Journal,
        deliver: Callable[[Commit], None],
        settle: Callable[[Commit, Problem | None], None],
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._journal = journal
        self._deliver = deliver
        self._settle = settle
        self._kind = next(kind for kind, name in CHUNKINGS.items() if name == settings.chunking)
        self._condition = threading.Condition(threading.Lock())
        self._queue: deque[_Waiting] = deque()
        self._chores: deque[Callable[[], None]] = deque()
        self._refusal: Callable[[], Problem] | None = errors.not_ready
        self._closed = self._ending = self._running = False
        self._deadline = float("inf")
        self._synced_at = time.monotonic()
        self._offset = 0
        self._is_committing = False
        self._thread = threading.Thread(target=self._run, name="journal")
        self.queued_bytes = 0
        self.queue_limit_bytes = settings.queue_limit_bytes

    @property
    def offset(self) -> int:
        """Offset of the stream after the last message that was committed."""
        return self._offset

    def open(self) -> None:
        """Take messages from now on, unless closed before; the journal has been recovered."""
        self._offset = self._journal.offset
        with self._condition:
            if not self._closed:
                self._refusal = None
            self._running = True
        self._thread.start()

    def put(self, messages: Sequence[bytes], claimed: int | None, sink: Sink) -> int:
        """Queue messages of at least one byte each, one behind the other; ``wake`` has them seen.

        Args:
            messages: their bytes; not to be changed any more.
            claimed: where the writer believes the stream to be before the first; judged when the
                turn of each comes.
            sink: told what became of each, in order.

        Returns:
            How many were taken, those that there is room for.

        Raises:
            Problem: none was: not open, or too many bytes wait.
        """
        together = _Waiting(self._kind, messages, sum(map(len, messages)), claimed, sink)
        taken = 0
        with self._condition:
            if together.size <= BATCH_BYTES and self._take(together):
                return len(messages)
            for waiting in together.apart():
                if not self._take(waiting):
                    break
                taken += 1
        if not taken:
            raise errors.overloaded()
        return taken

    def put_genome(self, genome: bytes, sink: Sink) -> None:
        """Queue a genome that takes over, in order with the messages.

        Raises:
            Problem: not open, or too many bytes wait.
        """
        with self._condition:
            taken = self._take(_Waiting(Kind.GENOME, (genome,), len(genome), None, sink))
            self._condition.notify()
        if not taken:
            raise errors.overloaded()

    def wake(self) -> None:
        """Have the thread look at what was put: once for many messages."""
        with self._condition:
            if not self._is_committing:  # or else it looks when the commit is released
                self._condition.notify()

    def released(self, commit: Commit) -> None:
        """Its messages have been told of."""
        with self._condition:
            self.queued_bytes -= commit.size
            self._is_committing = False
            if self._queue or self._ending:
                self._condition.notify()

    def call(self, chore: Callable[[], _T]) -> Future[_T]:
        """Do something to the journal between two commits."""
        future: Future[_T] = Future()

        def run() -> None:
            try:
                future.set_result(chore())
            except Exception as error:  # whoever asked gets the fault
                future.set_exception(error)

        with self._condition:
            if self._running:
                self._chores.append(run)
                self._condition.notify()
                return future
        run()
        return future

    def refusal(self) -> Problem | None:
        """Why messages are not taken; None where they are."""
        refusal = self._refusal
        return None if refusal is None else refusal()

    def refuse(self, refusal: Callable[[], Problem]) -> None:
        """Take nothing more; what waits is refused too."""
        with self._condition:
            self._refusal = refusal
            self._deadline = float("-inf")
            self._condition.notify()

    def close(self) -> None:
        """Take nothing more; what waits is committed."""
        with self._condition:
            self._closed = True
            self._refusal = self._refusal or errors.not_ready
            self._condition.notify()

    def stop(self, deadline: float) -> None:
        """Close, commit what waits until a time by the monotonic clock, and end the thread."""
        self.close()
        with self._condition:
            self._deadline = min(self._deadline, deadline)
            self._ending = True
            self._condition.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _take(self, waiting: _Waiting) -> bool:
        """Queue what waits, if there is room; the caller holds the condition."""
        if self._refusal is not None:
            raise self._refusal()
        if self.queued_bytes + waiting.size > self.queue_limit_bytes:
            return False
        self._queue.append(waiting)
        self.queued_bytes += waiting.size
        return True

    def _run(self) -> None:
        while True:
            with self._condition:
                while not (self._may_commit() or self._chores or self._sync_is_due()):
                    if self._ending and not self._queue:
                        break
                    self._condition.wait(self._patience())
                chores, batch = [*self._chores], self._next()
                self._chores.clear()
                if not chores and not self._queue and not batch and self._ending:
                    self._running = False
                    return
            for chore in chores:
                chore()
            if batch:
                self._commit(batch)
            if self._sync_is_due():
                self._sync()

    def _may_commit(self) -> bool:
        # One commit at a time: what comes meanwhile is the next, and costs one sync.
        return bool(self._queue) and not self._is_committing

    def _next(self) -> list[_Waiting]:
        """Take a batch; the caller holds the condition."""
        batch: list[_Waiting] = []
        size = 0
        while self._may_commit() and size < BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        return batch

    def _commit(self, batch: list[_Waiting]) -> None:
        """Journal what is to be learned of a batch, and deliver it with a verdict for each."""
        records: list[Record] = []
        if time.monotonic() > self._deadline:
            judged = _all_refused(batch, (self._refusal or errors.not_ready)())
        else:
            try:
                judged = self._judge(batch)
                records = self._append(judged)
            except Problem as problem:
                judged = _all_refused(batch, problem)
            except Exception as error:  # the thread's edge: whoever waits is told
                judged = _all_refused(batch, self._failed(error))
        answers = [
            Answer(waiting.sink, verdict, len(waiting.payloads)) for waiting, verdict in judged
        ]
        with self._condition:
            self._is_committing = True
        commit = Commit(records, answers, sum(waiting.size for waiting in batch))
        self._deliver(commit)
        failure = None
        if records and self._settings.fsync == "always":
            failure = self._sync()
        if records and failure is None:
            self._offset = self._journal.offset
        self._settle(commit, failure)

    def _append(self, judged: list[tuple[_Waiting, Verdict]]) -> list[Record]:
        width = self._settings.chunk_bytes
        entries = [
            Entry(
                waiting.kind, width if waiting.kind in MESSAGES else 0, b"".join(waiting.payloads)
            )
            for waiting, verdict in judged
            if verdict == "learned"
        ]
        if not entries:
            return []
        try:
            records = self._journal.append(entries)
        except OSError as error:
            if error.errno in _DISK_FULL:
                refused = sum(len(waiting.payloads) for waiting, _ in judged)
                _log.warning("disk full: %d messages are refused", refused)
                raise errors.disk_full() from error
            raise self._failed(error) from error
        return records

    def _sync(self) -> Problem | None:
        start = time.monotonic()
        try:
            self._journal.sync()
        except Exception as error:  # the thread's edge: whoever waits is told
            return self._failed(error)
        self._synced_at = time.monotonic()
        self._metrics.journal_fsync.observe(self._synced_at - start)
        return None

    def _failed(self, error: Exception) -> Problem:
        """Stop learning: nobody knows what of the last bytes is on the disk."""
        _log.critical("learning has stopped, the journal failed: %s", error)
        # What is not synced was not acknowledged where each is synced; else it was.
        if self._settings.fsync == "always":
            self._journal.abandon()
        else:
            self._journal.close()
        self.refuse(errors.halted)
        return errors.halted()

    def _sync_is_due(self) -> bool:
        return self._patience() == 0.0

    def _patience(self) -> float | None:
        """Seconds until the journal is to be synced; None where nothing asks for it."""
        journal = self._journal
        if self._settings.fsync != "everysec" or not journal.is_behind:
            return None
        if self._refusal is not None:
            return 0.0
        return max(self._synced_at + _SYNC_EVERY_S - time.monotonic(), 0.0)

    def _judge(self, batch: list[_Waiting]) -> list[tuple[_Waiting, Verdict]]:
        """What becomes of what waits, were all before it learned.

        Messages that came together stay together where they fit, and where nobody can tell, from
        the chunks that they are cut into, that they were not one.
        """
        judged: list[tuple[_Waiting, Verdict]] = []
        learned: list[bytes] = []
        offset = self._journal.offset
        for waiting in batch:
            payloads = waiting.payloads
            together = waiting.claimed in (None, offset) and (
                len(payloads) == 1
                or are_cut_as_one(payloads, CHUNKINGS[waiting.kind], self._settings.chunk_bytes)
            )
            for part in (waiting,) if together else waiting.apart():
                verdict: Verdict = "learned"
                if part.claimed is not None and part.claimed != offset:
                    verdict = self._misplaced(part, offset, learned)
                elif part.kind in MESSAGES:
                    learned += part.payloads
                    offset += part.size
                judged.append((part, verdict))
        return judged

    def _misplaced(self, waiting: _Waiting, offset: int, learned: list[bytes]) -> Verdict:
        """What becomes of a message that claims another place than the end of the stream."""
        assert waiting.claimed is not None
        there = self._committed(waiting.claimed, waiting.size, b"".join(learned))
        if there == waiting.payloads[0]:
            return Duplicate(waiting.claimed + waiting.size)
        return errors.offset_mismatch(waiting.claimed, offset)

    def _committed(self, claimed: int, size: int, pending: bytes) -> bytes | None:
        """Bytes of the stream, those of this batch included; None where not all are retained."""
        written = self._journal.offset
        old = b""
        if claimed < written:
            try:
                found = self._journal.read(claimed, min(size, written - claimed))
            except (JournalDamaged, OSError) as error:
                _log.error("the journal cannot be read back: %s", error)
                return None
            if found is None:
                return None
            old = found
        start = max(claimed - written, 0)
        return old + pending[start : start + size - len(old)]


def _all_refused(batch: list[_Waiting], problem: Problem) -> list[tuple[_Waiting, Verdict]]:
    return [(part, problem) for waiting in batch for part in waiting.apart()]
