"""The engine against a model: a list of messages, and nothing else.

Whatever is sent, claimed, repeated, swapped, kept, stopped or killed, in whatever order: the
engine's life is the fold over the model's list, and its answers are those that the list gives.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from organism.genome import Genome, new_genome, to_bytes
from server.episodes import Episodes
from server.errors import Problem
from server.learner import Learner
from server.storage.segment import MESSAGES, Kind, Record
from tests.conftest import small_config
from tests.server.conftest import make_engine, small_genome

EPISODES = 12
PIECES = st.lists(
    st.sampled_from(
        [b"a line\n", b"another\n", b"\n", b"\r\n", b"no end", b"\x00\xff\n", b"x" * 40]
    ),
    min_size=1,
    max_size=6,
).map(b"".join)


class Organism(RuleBasedStateMachine):
    """Rules are what users do; the model is a list of records."""

    @initialize()
    def is_born(self) -> None:
        """An empty folder."""
        self.root = Path(tempfile.mkdtemp(prefix="organism-model-"))
        self.folder = self.root / "0"
        self.model: list[tuple[Kind, bytes]] = [(Kind.GENOME, to_bytes(small_genome()))]
        self._start()

    def _start(self) -> None:
        self.engine = make_engine(self.folder, episode_chunks=EPISODES, fsync="no")
        self.engine.start().result(timeout=60)

    @property
    def stream(self) -> bytes:
        """All bytes learned."""
        return b"".join(payload for kind, payload in self.model if kind in MESSAGES)

    def _learned(self, message: bytes, claimed: int | None) -> None:
        receipt = self.engine.submit(message, claimed).result(timeout=60)
        self.model.append((Kind.LINES, message))
        assert not receipt.duplicate
        assert receipt.offset == len(self.stream)

    @rule(message=PIECES)
    def sends(self, message: bytes) -> None:
        """Without an offset: always learned."""
        self._learned(message, None)

    @rule(message=PIECES)
    def sends_at_the_offset(self, message: bytes) -> None:
        """With the right one: learned."""
        self._learned(message, len(self.stream))

    @precondition(lambda self: self.stream)
    @rule(data=st.data())
    def repeats(self, data: st.DataObject) -> None:
        """Any range that was learned: a duplicate."""
        start = data.draw(st.integers(0, len(self.stream) - 1))
        end = data.draw(st.integers(start + 1, len(self.stream)))
        receipt = self.engine.submit(self.stream[start:end], start).result(timeout=60)
        assert (receipt.duplicate, receipt.chunks) == (True, 0)
        assert receipt.offset == end

    @rule(message=PIECES, claimed=st.integers(0, 400))
    def claims_wrongly(self, message: bytes, claimed: int) -> None:
        """A gap, other bytes, or a range that straddles the end: told the right offset."""
        if claimed == len(self.stream):
            return
        if self.stream[claimed : claimed + len(message)] == message:
            return
        with pytest.raises(Problem) as caught:
            self.engine.submit(message, claimed).result(timeout=60)
        assert caught.value.status == 409
        assert caught.value.members["offset"] == len(self.stream)

    @rule(messages=st.lists(PIECES, min_size=2, max_size=5))
    def sends_many_at_once(self, messages: list[bytes]) -> None:
        """They may wait together."""
        start = len(self.stream)
        promises = []
        for message in messages:
            promises.append(self.engine.submit(message, start))
            start += len(message)
        for message, promise in zip(messages, promises, strict=True):
            self.model.append((Kind.LINES, message))
            assert promise.result(timeout=60).offset == len(self.stream)

    @rule(seed=st.integers(1, 3))
    def swaps(self, seed: int) -> None:
        """Another genome takes over."""
        genome: Genome = new_genome(small_config(calibration=True, alpha=0.01 * seed), seed)
        self.engine.swap(genome).result(timeout=60)
        self.model.append((Kind.GENOME, to_bytes(genome)))

    @rule()
    def keeps(self) -> None:
        """A snapshot."""
        kept = self.engine.snapshot()
        assert (kept.sequence, kept.offset) == (len(self.model), len(self.stream))

    @rule()
    def sleeps(self) -> None:
        """A clean stop, and a start."""
        self.engine.stop()
        self._start()

    @rule()
    def is_killed(self) -> None:
        """What a killed process leaves, and a start."""
        copy = self.root / str(int(self.folder.name) + 1)
        shutil.copytree(self.folder, copy)
        self.engine.stop()
        shutil.rmtree(self.folder)
        self.folder = copy
        self._start()

    @invariant()
    def is_the_fold_over_the_model(self) -> None:
        """State, offset, generation, entropy and memory."""
        learner, offset = Learner(Episodes(EPISODES, 1 << 20)), 0
        for sequence, (kind, payload) in enumerate(self.model, start=1):
            width = 4096 if kind in MESSAGES else 0
            record = Record(kind, width, sequence, offset, payload)
            learner.fold([record])
            offset = record.end
        expected, found = learner.life, self.engine.life
        for name in ("state_sha256", "offset", "sequence", "generation", "entropy"):
            assert getattr(found, name) == getattr(expected, name), name
        assert self.engine.offset == offset
        assert self.engine.episodes.all() == learner.episodes.all()

    def teardown(self) -> None:
        """Leave nothing behind."""
        if hasattr(self, "engine"):
            self.engine.stop()
            shutil.rmtree(self.root)


TestOrganism = pytest.mark.slow(Organism.TestCase)
TestOrganism.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
