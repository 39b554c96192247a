"""The state folder: what is where in it, and a lock against a second daemon."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from server.storage.disk import Disk

_LOCK = "lock"


class StateDirError(RuntimeError):
    """The state folder cannot be used; the message says why."""


class StateDir:
    """A state folder, held by this process alone until ``close``.

    Attributes:
        path: the folder.
        journal: folder of the journal's segments.
        snapshots: folder of the snapshots.
        rebuilt: where a repair builds the journal that takes the place of a damaged one.
    """

    def __init__(self, path: Path, disk: Disk, repairing: bool = False) -> None:
        """Create the folders where they are missing, durably, and lock them.

        Args:
            path: of the folder.
            disk: that it is on.
            repairing: whether a repair may be under way.

        Raises:
            StateDirError: another daemon holds it, it cannot be made, or a repair was cut short.
        """
        self.path = path.absolute()
        self.journal, self.snapshots = journal_folder(self.path), snapshot_folder(self.path)
        self.rebuilt = self.path / "journal.rebuilt"
        try:
            above = (folder for folder in reversed(self.path.parents) if not _is_others(folder))
            for folder in (*above, self.path, self.journal, self.snapshots):
                disk.make_folder(folder)
                # Not only what was made now: a start before this one may have been cut short here.
                disk.sync_folder(folder.parent)
            self._lock = (self.path / _LOCK).open("w")
        except OSError as error:
            raise StateDirError(f"cannot use state folder {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StateDirError(
                f"state folder {path} is held by another daemon: stop it, "
                "or set another ORGANISM_STATE_DIR"
            ) from error

        if self.rebuilt.exists() and not repairing:
            self._lock.close()
            raise StateDirError(
                f"a repair of state folder {path} was cut short: run "
                "python -m server verify --repair once more"
            )

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()


def journal_folder(state_dir: Path) -> Path:
    """Where a state folder has its journal."""
    return state_dir / "journal"


def snapshot_folder(state_dir: Path) -> Path:
    """Where a state folder has its snapshots."""
    return state_dir / "snapshots"


def legacy_snapshot(state_dir: Path) -> Path:
    """Where versions without a journal kept their one snapshot."""
    return state_dir / "organism.snapshot"


def _is_others(folder: Path) -> bool:
    """Whether a folder is not for this process to make: it is there, in one not written by it."""
    return folder.exists() and not os.access(folder.parent, os.W_OK | os.R_OK)
