"""The engine: sole owner of the organism. Intake and learner, each on a thread, and its memory.

A message goes from the intake's queue through the journal to the learner, and its receipt to
whoever sent it. The learner's thread recovers at start, folds commits while they are synced, and
answers reads of the cortex between chunks, never waiting for the disk. What cannot be synced is
unlearned, before anybody has been told of it. A few chunks may be remembered only behind their
receipts: who reads the memory waits for that. Knows nothing of HTTP.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import torch

from organism.genome import Genome, compatible, to_bytes
from server import errors
from server.episodes import Episodes
from server.errors import Problem
from server.intake import Commit, Duplicate, Intake, Promise, Sink
from server.learner import (
    CueReading,
    Learner,
    batches,
    pack_episodes,
    warm_up,
)
from server.life import LegacySnapshot, Life
from server.metrics import Metrics
from server.observer import Observer
from server.probe import Measured, Probe
from server.settings import ServerSettings
from server.storage.disk import Disk
from server.storage.journal import Entry, Journal
from server.storage.segment import Kind
from server.storage.snapshot import Snapshots
from server.storage.statedir import (
    StateDir,
    journal_folder,
    legacy_snapshot,
    snapshot_folder,
)
from server.waking import choose
from server.wire import Receipt

_PROGRESS_EVERY_S = 2.0

_log = logging.getLogger("organism.engine")


@dataclass(frozen=True)
class Kept:
    """A snapshot that is on the disk."""

    sequence: int
    offset: int
    state_sha256: str
    size_bytes: int


class SwapRefused(ValueError):
    """A genome that cannot take over the living cortex."""


class Stopped(Exception):
    """The time to stop has come in the middle of something."""


class Engine:
    """A living organism: call ``start``, then submit and ask from any thread, then ``stop``.

    Attributes:
        recovered: done when messages are taken; or holds what made the recovery fail.
    """

    def __init__(
        self,
        settings: ServerSettings,
        metrics: Metrics,
        birth_genome: Callable[[], Genome],
        disk: Disk | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._birth_genome = birth_genome
        self._disk = disk or Disk()
        self._state_dir: StateDir | None = None
        self._folder = folder = settings.state_dir.absolute()
        self._journal = Journal(journal_folder(folder), self._disk, settings.segment_bytes)
        self._snapshots = Snapshots(snapshot_folder(folder), self._disk)
        self._legacy = legacy_snapshot(folder)
        self._intake = Intake(settings, metrics, self._journal, self._committed, self._settled)
        self.recovered: Future[None] = Future()
        self._episodes = Episodes(settings.episode_chunks, settings.episode_bytes)
        self._observer = Observer()
        self._learner = Learner(self._episodes)
        self._probe = Probe(self.recall, self._episodes, self._observer)
        self._condition = threading.Condition(threading.Lock())
        self._commits: deque[Commit] = deque()
        self._reads: deque[Callable[[], None]] = deque()
        self._has_recovered = self._draining = self._gone = self._stopped = False
        self._fault: Callable[[], Problem] | None = None
        self._deadline = float("inf")
        self._progress = 0.0
        self._thread = threading.Thread(target=self._run, name="learner")
        self._keeper = threading.Thread(target=self._keep, name="snapshots")
        self._stopping = threading.Event()
        self._prober = threading.Thread(
            target=self._probe.run, args=(settings.probe_interval_s, self._stopping), name="probe"
        )
        self._snapshot_lock = threading.Lock()
        self._kept: Kept | None = None

    @property
    def ready(self) -> bool:
        """Whether messages are taken."""
        return self.refusal() is None

    def refusal(self) -> Problem | None:
        """Why messages are not taken; None where they are."""
        return self._intake.refusal() if self._has_recovered else errors.not_ready(self._progress)

    @property
    def life(self) -> Life:
        """The organism after the last whole record.

        Raises:
            Problem: it has not recovered yet.
        """
        self._must_have_recovered()
        return self._learner.life

    @property
    def episodes(self) -> Episodes:
        """Its episode memory, with all that anybody has been told of."""
        self._catch_up()
        return self._episodes

    @property
    def observer(self) -> Observer:
        """What was lived since the start, with all that anybody has been told of."""
        self._catch_up()
        return self._observer

    @property
    def offset(self) -> int:
        """Offset of the stream after the last message that is in the journal."""
        self._must_have_recovered()
        return self._intake.offset

    @property
    def progress(self) -> float:
        """How much of the journal is recovered, 0 to 1."""
        return self._progress

    @property
    def alive(self) -> bool:
        """Whether it has recovered, and has a life to be asked for."""
        return self._has_recovered

    @property
    def stopping(self) -> bool:
        """Whether the end has begun."""
        return self._stopping.is_set()

    @property
    def recalled(self) -> Measured:
        """Live recall, as far as it is measured."""
        return self._probe.measured

    @property
    def queued_bytes(self) -> int:
        """Bytes of messages that wait to be learned."""
        return self._intake.queued_bytes

    def start(self) -> Future[None]:
        """Hold the state folder, and begin to recover.

        Returns:
            ``recovered``. It may hold: JournalDamaged; StateDirError, where the one snapshot of a
            version without a journal is damaged; GenomeError, where the genome to be born with is;
            OSError; Stopped.

        Raises:
            StateDirError: the folder is held by another daemon, cannot be made, or a repair of it
                was cut short.
        """
        self._state_dir = StateDir(self._settings.state_dir, self._disk)
        self._metrics.recovery_progress.set_function(lambda: self._progress)
        self._thread.start()
        return self.recovered

    def submit(self, message: bytes, upload_offset: int | None = None) -> Future[Receipt]:
        """Queue a message to be learned; see ``put``.

        Returns:
            The receipt, once the message is learned; or the ``Problem`` that refused it.
        """
        future = Promise()
        self.put([message], upload_offset, future)
        self.wake()
        return future

    def put(self, messages: Sequence[bytes], upload_offset: int | None, receipts: Sink) -> int:
        """Queue messages of at least one byte each, to be journalled and learned in their order.

        Args:
            messages: their bytes; not to be changed any more.
            upload_offset: where the writer believes the stream to be before the first; judged when
                the turn of each comes.
            receipts: takes the receipt of each, once it is learned, or the ``Problem`` that refused
                it.

        Returns:
            How many were taken, those that there is room for.

        Raises:
            Problem: none was: not ready, or too many bytes wait.
        """
        self._must_have_recovered()
        return self._intake.put(messages, upload_offset, receipts)

    def wake(self) -> None:
        """Have what was put looked at: once for many messages."""
        self._intake.wake()

    def recall(self, cue: bytes) -> Future[CueReading]:
        """Ask the cortex about a cue of at least one byte. Changes nothing.

        Answered between two chunks, after at most a block of them; while learning has stopped, too.
        """
        self._must_have_recovered()
        future = Promise()

        def read() -> None:
            try:
                future.set_result(self._learner.recall(cue))
            except Exception as error:  # whoever asked gets the fault, the thread lives on
                future.set_exception(error)

        with self._condition:
            if self._gone:
                raise errors.not_ready()
            self._reads.append(read)
            self._condition.notify()
        return future

    def swap(self, genome: Genome) -> Future[Life]:
        """Queue a genome to take over the cortex, in order with the messages; W is kept.

        Returns:
            The life after it; or the ``Problem`` that refused it.

        Raises:
            SwapRefused: encoder, shape or innate weights differ.
            Problem: not ready.
        """
        if not compatible(self.life.genome, genome):
            raise SwapRefused(
                "the new genome has another encoder, shape or innate weights than the cortex: "
                "train it from the running genome"
            )
        future = Promise()
        self._intake.put_genome(to_bytes(genome), future)
        return future

    def snapshot(self) -> Kept:
        """Keep the life as it is now, and drop what of the journal is no longer needed.

        Raises:
            Problem: it has not recovered yet.
            OSError: it cannot be written; those before stand.
        """
        with self._snapshot_lock:
            life = self.life
            if self._kept is None or self._kept.sequence != life.sequence:
                self._intake.call(self._journal.sync).result()
                if life.sequence > self._journal.durable:
                    raise OSError("the journal is behind the cortex and cannot be written")
                self._kept = self._write_snapshot(life)
            covered, retained = self._snapshots.covered(), self._settings.journal_bytes
            if self._intake.call(lambda: self._journal.drop(covered, retained)).result():
                self.episodes.forget_before(self._journal.start)
            return self._kept

    def close(self) -> None:
        """Take nothing more: not ready; what was taken is learned."""
        self._stopping.set()
        self._intake.close()

    def stop(self, patience_s: float = float("inf")) -> None:
        """Learn what was taken, write a snapshot, and end. Idempotent.

        Args:
            patience_s: what is not journalled by then is refused; what is not learned by then is
                replayed at the next start.

        Raises:
            OSError: the snapshot cannot be written; the journal has everything.
        """
        if self._stopped:
            return
        self._stopped = True
        self.close()
        self._deadline = time.monotonic() + patience_s
        self._intake.stop(self._deadline)
        with self._condition:
            self._draining = True
            self._condition.notify()
        try:
            if self._thread.ident is not None:
                self._thread.join()
                if self.recovered.exception() is None:
                    self._keeper.join()
                    self._prober.join()
                    self.snapshot()
                    _log.info("stopped at offset %d", self.life.offset)
        finally:
            self._journal.close()
            if self._state_dir is not None:
                self._state_dir.close()

    def _must_have_recovered(self) -> None:
        if not self._has_recovered:
            raise errors.not_ready(self._progress)

    def _committed(self, commit: Commit) -> None:
        with self._condition:
            self._commits.append(commit)
            self._condition.notify()

    def _settled(self, commit: Commit, failure: Problem | None) -> None:
        with self._condition:
            # In this order: the learner looks whether it is settled without the lock.
            commit.failure = failure
            commit.settled = True
            self._condition.notify()

    @torch.inference_mode()
    def _run(self) -> None:
        try:
            self._recover()
            self._metrics.follow(
                lambda: self._learner.life,
                self._intake,
                self._journal,
                lambda: self.recalled,
                lambda: self.observer.totals,
            )
            self._keeper.start()
            self._prober.start()
            self._intake.open()
        except BaseException as error:  # whoever started it is told
            self.recovered.set_exception(error)
            return
        self._has_recovered = True
        self.recovered.set_result(None)
        while True:
            with self._condition:
                while not (self._commits or self._reads or self._draining):
                    self._condition.wait()
                commit = self._commits.popleft() if self._commits else None
                if commit is None and not self._reads:
                    self._gone = True
                    return
            self._answer_reads()
            if commit is not None:
                self._learn(commit)

    def _between(self) -> None:
        self._answer_reads()
        if time.monotonic() > self._deadline:
            raise Stopped

    def _answer_reads(self) -> None:
        while self._reads:
            self._reads.popleft()()

    def _await(self, commit: Commit) -> None:
        """Wait until a commit is on the disk, and answer reads meanwhile.

        Raises:
            Problem: it cannot be brought there.
        """
        while not commit.settled:
            with self._condition:
                while not (commit.settled or self._reads):
                    self._condition.wait()
            self._answer_reads()
        if commit.failure is not None:
            raise commit.failure

    def _learn(self, commit: Commit) -> None:
        """Learn what is in the journal; once it is on the disk, answer everyone in order."""
        outcomes: list[Receipt | Life] = []
        if self._fault is None:
            try:
                outcomes = self._learner.fold(
                    commit.records,
                    between=self._between,
                    settled=partial(self._await, commit),
                    has_time=lambda: not commit.settled,
                    lived=self._observer.note,
                )
                self._await(commit)
            except Problem:
                pass  # the commit's failure
            except Stopped:
                self._fault = errors.not_ready
            except Exception:
                self._halt()
        self._tell(commit, outcomes)
        self._catch_up()

    def _catch_up(self) -> None:
        """Have everything remembered that anybody was told of; on any thread."""
        try:
            self._learner.catch_up()
        except Exception:
            self._halt()

    def _halt(self) -> None:
        """Learn no more, after a fault: the journal has what could not be learned."""
        _log.critical("learning has stopped: a fault", exc_info=True)
        self._fault = errors.halted
        self._intake.refuse(errors.halted)

    def _tell(self, commit: Commit, outcomes: Sequence[Receipt | Life]) -> None:
        """Tell all who wait for a commit what became of it."""
        refusal = self._fault() if self._fault is not None else commit.failure
        following = iter(outcomes)
        self._intake.released(commit)
        for sink, verdict, messages in commit.answers:
            if isinstance(verdict, Problem):
                sink.refused(verdict)
            elif refusal is not None:
                sink.refused(refusal)
            elif isinstance(verdict, Duplicate):
                beta = self._learner.life.beta
                sink.told(Receipt(verdict.end, 0, None, None, beta, duplicate=True), messages)
            else:
                sink.told(next(following), messages)
        for sink in {answer.sink for answer in commit.answers}:
            sink.flush()

    def _recover(self) -> None:
        """Read the newest good snapshot, and replay what the journal has beyond it."""
        waking = choose(self._folder)
        for path, fault in waking.bad:
            _log.warning("a bad snapshot: %s: %s", path, fault)
        if waking.life is not None:
            self._learner.wake(waking.life)
        covered = waking.covered
        said = time.monotonic()
        replayed = 0

        def note(progress: float) -> None:
            self._progress = min(progress, 0.999)

        for batch in batches(waking.records(self._journal, note), covered):
            if self._stopping.is_set():
                raise Stopped
            if batch[-1].sequence <= covered:
                self._learner.remember(batch)
            else:
                self._learner.fold(batch)
                replayed += len(batch)
            if time.monotonic() > said + _PROGRESS_EVERY_S:
                said = time.monotonic()
                _log.info("recovering: %.0f%% of the journal read", 100 * self._progress)
        if not self._learner.alive:
            self._be_born()
        elif waking.legacy is not None and self._journal.sequence == 0:
            self._move_in(waking.legacy)
        # Only now: until then, they say what was on the disk.
        for path, _ in waking.bad:
            self._snapshots.set_aside(path)
        life = self._learner.life
        _log.info(
            "awake at offset %d, record %d, with genome %s; %d records replayed",
            life.offset,
            life.sequence,
            life.genome.sha256,
            replayed,
        )
        warm_up(life)
        self._progress = 1.0

    def _be_born(self) -> None:
        genome = self._birth_genome()
        self._learner.fold(self._journal.append([Entry(Kind.GENOME, 0, to_bytes(genome))]))
        self._journal.sync()
        _log.info("born with genome %s", genome.sha256)

    def _move_in(self, legacy: LegacySnapshot) -> None:
        """Take the memory of a version without a journal into one."""
        self._learner.fold(self._journal.append([Entry(Kind.EPISODES, 0, pack_episodes(legacy))]))
        self._journal.sync()
        self._write_snapshot(self._learner.life)
        self._disk.remove(self._legacy)

    def _write_snapshot(self, life: Life) -> Kept:
        blob = life.to_snapshot()
        self._snapshots.write(life.sequence, blob)
        self._metrics.snapshot_taken()
        return Kept(life.sequence, life.offset, life.state_sha256, len(blob))

    def _keep(self) -> None:
        """Take snapshots from time to time."""
        while not self._stopping.wait(self._settings.snapshot_interval_s):
            try:
                self.snapshot()
            except Exception as error:  # the thread's edge
                _log.error("no snapshot could be taken, the journal goes on: %s", error)
