"""Snapshots: whole states, each in a file of its own, the last two kept."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from server.storage.disk import Disk

_SUFFIX = ".snapshot"

_KEPT = 2
_TEMPORARY = "new"
_BAD = ".bad"


class Snapshots:
    """The snapshots of a folder; not safe to share between threads."""

    def __init__(self, folder: Path, disk: Disk) -> None:
        self._folder = folder
        self._disk = disk

    def write(self, sequence: int, blob: bytes) -> None:
        """Keep a snapshot: after a crash at any moment it is there whole, or not at all.

        Args:
            sequence: of the last record that it has seen.
            blob: its bytes.

        Raises:
            OSError: it cannot be written; those before stand.
        """
        temporary = self._folder / _TEMPORARY
        file = self._disk.create(temporary)
        try:
            self._disk.write(file, [blob])
            self._disk.sync(file)
        except OSError:
            self._disk.remove(temporary)  # on a full disk, it would take the journal's room
            raise
        finally:
            self._disk.close(file)
        self._disk.rename(temporary, self._folder / f"{sequence:020d}{_SUFFIX}")
        self._disk.sync_folder(self._folder)
        for _, path in snapshots(self._folder)[_KEPT:]:
            self._disk.remove(path)

    def set_aside(self, path: Path) -> None:
        """Let a bad one count no more; its file stays for inspection."""
        names = (path.with_suffix(f".{number}{_BAD}") for number in count(1))
        self._disk.rename(path, next(name for name in names if not name.exists()))

    def covered(self) -> int:
        """Sequence up to which each kept snapshot stands for the journal."""
        kept = snapshots(self._folder)
        return kept[-1][0] if len(kept) >= _KEPT else 0


def snapshots(folder: Path) -> list[tuple[int, Path]]:
    """The snapshots of a folder, newest first: the sequence each has seen, and its file."""
    found = (path for path in folder.glob(f"*{_SUFFIX}") if path.stem.isdigit())
    return sorted(((int(path.stem), path) for path in found), reverse=True)
