"""The state folder: one snapshot file, replaced whole, and a lock against a second daemon."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

_SNAPSHOT = "organism.snapshot"
_LOCK = "lock"


class StateDirError(RuntimeError):
    """The state folder cannot be used; the message says why."""


class StateDir:
    """A state folder, held by this process alone until ``close``."""

    def __init__(self, path: Path) -> None:
        """Create the folder where it is missing, and lock it.

        Raises:
            StateDirError: another daemon holds it, or it cannot be made.
        """
        self._path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = (path / _LOCK).open("w")
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

    @property
    def snapshot_path(self) -> Path:
        """Where the snapshot stands."""
        return self._path / _SNAPSHOT

    def read(self) -> bytes | None:
        """Bytes of the last snapshot; None before the first.

        Raises:
            StateDirError: it is there and cannot be read.
        """
        try:
            return self.snapshot_path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateDirError(f"cannot read {self.snapshot_path}: {error.strerror}") from error

    def write(self, blob: bytes) -> None:
        """Replace the snapshot: after a crash at any moment the old or the new one is whole."""
        temporary = self.snapshot_path.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.snapshot_path)
        folder = os.open(self._path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def close(self) -> None:
        """Release the folder."""
        self._lock.close()
