"""What an organism wakes as: the newest good snapshot, and what the journal has beyond it.

One choice for the daemon's start and for ``verify``, so that both come to the same verdict.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from organism.genome import GenomeError
from organism.tensorfile import TensorFileError
from server.life import LegacySnapshot, Life
from server.storage.journal import Journal
from server.storage.segment import Kind, Record
from server.storage.snapshot import snapshots
from server.storage.statedir import StateDirError, legacy_snapshot, snapshot_folder

# What a snapshot that is not good raises when it is read.
_UNREADABLE = (TensorFileError, GenomeError, KeyError, OSError)


@dataclass
class Waking:
    """What there is to wake as.

    Attributes:
        life: of the newest good snapshot; None where there is none.
        legacy: the snapshot of a version without a journal, where that is what ``life`` is of.
        good: each good snapshot, newest first: the file, and the stream's offset.
        bad: each that is not, and what is wrong with it.
        seen: sequence that any snapshot has seen, good or bad.
    """

    life: Life | None = None
    legacy: LegacySnapshot | None = None
    good: list[tuple[Path, int]] = field(default_factory=list)
    bad: list[tuple[Path, str]] = field(default_factory=list)
    seen: int = 0

    @property
    def covered(self) -> int:
        """Sequence up to which the life stands for the journal."""
        return 0 if self.life is None else self.life.sequence

    def records(
        self, journal: Journal, progress: Callable[[float], None] = lambda _: None
    ) -> Iterator[Record]:
        """Recover a journal beside this.

        Raises:
            JournalDamaged: as ``Journal.recover``.
            StateDirError: nothing is there to begin with: no good snapshot, and no birth.
        """
        offset = 0 if self.life is None else self.life.offset
        begun = self.life is not None
        for record in journal.recover(self.covered, offset, self.seen, progress):
            if not begun and record.kind is not Kind.GENOME:
                raise StateDirError(f"no snapshot is good, and no birth is recorded{self._why()}")
            begun = True
            yield record
        if not begun and self.bad:
            raise StateDirError(f"no snapshot is good, and there is no journal{self._why()}")

    def _why(self) -> str:
        return "".join(f"; {path}: {fault}" for path, fault in self.bad)


def choose(state_dir: Path) -> Waking:
    """Read the snapshots of a state folder; nothing is changed."""
    waking = Waking()
    for sequence, path in snapshots(snapshot_folder(state_dir)):
        waking.seen = max(waking.seen, sequence)
        try:
            life = Life.from_snapshot(path.read_bytes())
        except _UNREADABLE as error:
            waking.bad.append((path, str(error)))
        else:
            waking.good.append((path, life.offset))
            waking.life = waking.life or life
    path = legacy_snapshot(state_dir)
    if waking.life is None and path.exists():
        try:
            waking.legacy = LegacySnapshot.from_bytes(path.read_bytes())
        except _UNREADABLE as error:
            waking.bad.append((path, str(error)))
        else:
            waking.life = waking.legacy.life
            waking.good.append((path, waking.life.offset))
    return waking
