"""The engine: one owner of the live cortex, a pure fold over its messages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from organism.chunking import Spans, chunk_spans
from organism.encoder import encode
from organism.genome import new_genome
from organism.lifetime import live
from organism.living import LivingCortex, Trace
from server.engine import Engine, SwapRefused
from server.episodes import Episodes
from server.errors import Problem
from server.learner import Learner
from server.storage.statedir import StateDirError
from tests.conftest import small_config
from tests.server.conftest import engine, held, make_engine, small_genome, until

MESSAGES = [b"a first line\nand a second\n", b"a third\n\n", b"a first line\n", b"end"]


def test_state_is_a_fold_over_the_messages(tmp_path: Path) -> None:
    """The engine's cortex is, bit for bit, a lifetime over the messages' chunks in order."""
    with engine(tmp_path) as running:
        for message in MESSAGES:
            running.submit(message).result(timeout=30)
        found = running.life
    genome = small_genome()
    chunks = [m[a:b] for m in MESSAGES for a, b in chunk_spans(m, "lines", 4096).tolist()]
    inputs = encode(chunks, genome.config.encoder, genome.config.cortex.d_in)
    with torch.inference_mode():
        lived = live(genome, inputs.unsqueeze(1))
    assert found.cortex.to_bytes() == lived.state.to_bytes()
    assert found.offset == sum(map(len, MESSAGES))


def test_how_chunks_are_grouped_into_messages_does_not_matter(tmp_path: Path) -> None:
    """One long message and many short ones leave the same state."""
    lines = [b"line %d of many\n" % (i % 700) for i in range(1300)]
    with engine(tmp_path / "one") as one:
        one.submit(b"".join(lines)).result(timeout=60)
        whole = one.life.state_sha256
    with engine(tmp_path / "many") as many:
        for receipt in [many.submit(line) for line in lines]:
            receipt.result(timeout=60)
        assert many.life.state_sha256 == whole


def test_sleeping_changes_nothing(tmp_path: Path) -> None:
    """Stopped and started between any two messages, it becomes the same."""
    for message in MESSAGES:
        with engine(tmp_path / "slept") as running:
            running.submit(message).result(timeout=30)
    with engine(tmp_path / "awake") as running:
        for message in MESSAGES:
            running.submit(message).result(timeout=30)
        awake = running.life
    with engine(tmp_path / "slept") as running:
        assert running.life.state_sha256 == awake.state_sha256


def test_receipts_tell_the_means_before_learning(tmp_path: Path) -> None:
    """As a lifetime reads them."""
    genome = small_genome()
    chunks = [b"a first line", b"and a second"]
    inputs = encode(chunks, genome.config.encoder, genome.config.cortex.d_in).unsqueeze(1)
    lived = live(genome, inputs)
    with engine(tmp_path) as running:
        receipt = running.submit(MESSAGES[0]).result(timeout=30)
    assert receipt.entropy == pytest.approx(lived.entropy.mean().item())
    assert receipt.familiarity == pytest.approx(torch.sigmoid(lived.logit).mean().item())


def test_what_was_queued_at_a_stop_is_learned(tmp_path: Path) -> None:
    """Stopping drains; afterwards nothing is taken, and a second stop is nothing."""
    with engine(tmp_path) as running:
        receipts = [running.submit(b"line %d\n" % i) for i in range(100)]
        running.stop()
        assert all(receipt.done() for receipt in receipts)
        with pytest.raises(Problem, match="starting or stopping"):
            running.submit(b"late\n")
        with pytest.raises(Problem, match="starting or stopping"):
            running.recall(b"late")
        running.stop()
    with engine(tmp_path) as running:
        assert running.life.cortex.steps.item() == 100


@contextmanager
def learner_held(running: Engine) -> Iterator[None]:
    """Hold the learner at a read until the block ends."""

    def read(hold: Callable[[], None]) -> None:
        with running._condition:
            running._reads.append(hold)
            running._condition.notify()

    with held(read):
        yield


def test_the_queue_is_bounded_in_bytes(tmp_path: Path) -> None:
    """Beyond the limit a message is refused with 503, and what was taken is learned."""
    with engine(tmp_path, body_limit_bytes="10", queue_limit_bytes="25") as running:
        with learner_held(running):
            taken = [running.submit(b"123456789\n") for _ in range(2)]
            with pytest.raises(Problem, match="send again later") as caught:
                running.submit(b"123456789\n")
            assert caught.value.status == 503
            assert caught.value.headers["Retry-After"]
        assert [receipt.result(timeout=30).offset for receipt in taken] == [10, 20]
        assert running.submit(b"123456789\n").result(timeout=30).offset == 30


def test_reads_are_answered_between_chunks(tmp_path: Path) -> None:
    """A cue asked while a long message is learned sees a cortex ahead of the last receipt."""
    with engine(tmp_path) as running:
        cue = b"line 1"
        before = running.recall(cue).result(timeout=30)
        long = running.submit(b"".join(b"line %d\n" % i for i in range(20_000)))
        answers = [running.recall(cue).result(timeout=30)]
        while not long.done():
            answers.append(running.recall(cue).result(timeout=30))
        during = [a for a in answers if a.offset == 0 and a.familiarity != before.familiarity]
        assert len(during) > 10
        assert running.life.offset == long.result().offset > 0


def test_life_is_that_of_whole_messages(tmp_path: Path) -> None:
    """Offset and checksum belong together: neither moves in the middle of a message."""
    with engine(tmp_path) as running:
        born = running.life.state_sha256
        long = running.submit(b"".join(b"line %d\n" % i for i in range(2000)))
        seen = set()
        while not long.done():
            life = running.life
            seen.add((life.offset, life.state_sha256))
        assert (0, born) in seen
        assert len(seen) <= 2


def test_a_fault_while_learning_stops_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its beginning is undone, nothing more is taken, recall goes on; the next start learns it."""
    with engine(tmp_path) as running:
        running.submit(MESSAGES[0]).result(timeout=30)
        before = running.life
        calls = 0

        def failing(self: LivingCortex, data: bytes, spans: Spans) -> Trace:
            nonlocal calls
            calls += 1
            if calls == 2:
                raise RuntimeError("a fault in the middle")
            return as_it_was(self, data, spans)

        as_it_was = LivingCortex.live
        monkeypatch.setattr(LivingCortex, "live", failing)
        with pytest.raises(Problem, match="learner failed"):
            running.submit(b"line\n" * 100).result(timeout=30)
        after = running.life
        assert (after.state_sha256, after.entropy) == (before.state_sha256, before.entropy)
        assert not running.ready
        with pytest.raises(Problem, match="learner failed"):
            running.submit(b"four\n")
        assert running.recall(b"line").result(timeout=30).offset == before.offset
    monkeypatch.setattr(LivingCortex, "live", as_it_was)
    with engine(tmp_path) as running:
        assert running.life.offset == before.offset + 500
        assert running.submit(b"four\n").result(timeout=30).chunks == 1


def test_whoever_was_told_finds_it_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Episodes and counts have each message from its receipt on, be the learner ever so slow."""
    caught_up = Learner.catch_up

    def by_readers_alone(self: Learner) -> None:
        if threading.current_thread().name != "learner":
            caught_up(self)

    monkeypatch.setattr(Learner, "catch_up", by_readers_alone)
    with engine(tmp_path, fsync="no") as running:
        for k in range(300):
            running.submit(b"message %d\n" % k).result(timeout=30)
            if k % 2:
                assert running.observer.totals.chunks == k + 1
            else:
                assert running.episodes.all()[-1].chunk == b"message %d" % k


def test_a_fault_while_remembering_stops_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether before the receipts or behind them: nothing more is taken, and recall goes on."""

    def fail(*_: object) -> None:
        raise MemoryError

    with engine(tmp_path, fsync="no") as running:
        monkeypatch.setattr(Episodes, "add", fail)
        future = running.submit(b"a first line\n")
        until(lambda: not running.ready)
        problem = future.exception(timeout=30)
        assert problem is None or isinstance(problem, Problem)
        with pytest.raises(Problem, match="learner failed"):
            running.submit(b"a second line\n")
        running.recall(b"a first line").result(timeout=30)
        monkeypatch.undo()


def test_a_genome_takes_over_in_turn_and_w_is_kept(tmp_path: Path) -> None:
    """Messages before it are learned by the old genome, W stays, the generation counts."""
    other = new_genome(small_config("mlp", calibration=True), 5)
    with engine(tmp_path) as running:
        running.submit(MESSAGES[0]).result(timeout=30)
        before = running.life
        swapped = running.swap(other).result(timeout=30)
        assert swapped.cortex.to_bytes() == before.cortex.to_bytes()
        assert swapped.offset == before.offset
        assert swapped.generation == 1
        assert swapped.genome.sha256 == other.sha256
        running.submit(MESSAGES[1]).result(timeout=30)
        state = running.life.state_sha256
    with engine(tmp_path) as running:
        woken = running.life
        assert (woken.generation, woken.genome.sha256) == (1, other.sha256)
        assert woken.state_sha256 == state


def test_a_genome_of_another_body_is_refused(tmp_path: Path) -> None:
    """Another shape cannot take over; nothing changes."""
    with engine(tmp_path) as running:
        with pytest.raises(SwapRefused, match="train it from the running genome"):
            running.swap(new_genome(small_config(d_hidden=16))).result(timeout=30)
        assert running.life.generation == 0


def test_one_engine_a_folder(tmp_path: Path) -> None:
    """The folder is held while the engine runs, and free afterwards."""
    with engine(tmp_path):
        second = make_engine(tmp_path)
        with pytest.raises(StateDirError, match="held by another daemon"):
            second.start()
    with engine(tmp_path) as running:
        assert running.ready
        assert running.refusal() is None
