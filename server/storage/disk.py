"""The few file operations that durability is made of.

When a machine crashes, what was written to a file and not synced since may be lost, whole or in
part, in any order; a name made, changed or removed in a folder may be lost until that folder is
synced. Everything that must survive goes through here, so that a test can crash it anywhere.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path

# At most so many parts in one call, by POSIX; more are written in turn.
_PARTS_AT_ONCE = 1024
# On macOS, fsync leaves the bytes in the drive's own cache.
_FULL_SYNC = getattr(fcntl, "F_FULLFSYNC", None)


class Disk:
    """Files and folders of the machine; every method raises ``OSError`` where it fails."""

    def make_folder(self, path: Path) -> None:
        """Make a folder where there is none."""
        path.mkdir(mode=0o700, exist_ok=True)

    def create(self, path: Path) -> int:
        """Open an empty file to be appended to."""
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)

    def open(self, path: Path) -> int:
        """Open a file that is there, to be appended to."""
        return os.open(path, os.O_WRONLY | os.O_APPEND)

    def write(self, file: int, parts: Sequence[bytes]) -> None:
        """Append all of these bytes; where it fails, some of them may have been."""
        for first in range(0, len(parts), _PARTS_AT_ONCE):
            some: list[bytes | memoryview] = [*parts[first : first + _PARTS_AT_ONCE]]
            left = sum(map(len, some))
            while left:
                written = os.writev(file, some)
                left -= written
                while some and written >= len(some[0]):
                    written -= len(some.pop(0))
                if written:
                    some[0] = memoryview(some[0])[written:]

    def truncate(self, file: int, size: int) -> None:
        """Cut a file back to a size."""
        os.ftruncate(file, size)

    def sync(self, file: int) -> None:
        """Wait until the file's bytes are on the disk."""
        if _FULL_SYNC is not None:
            fcntl.fcntl(file, _FULL_SYNC)
        else:
            os.fdatasync(file)

    def sync_folder(self, path: Path) -> None:
        """Wait until the names in a folder are on the disk."""
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def rename(self, path: Path, target: Path) -> None:
        """Give a file another name; whatever had it is gone."""
        path.replace(target)

    def remove(self, path: Path) -> None:
        """Remove a file, if it is there."""
        path.unlink(missing_ok=True)

    def close(self, file: int) -> None:
        """Close a file."""
        os.close(file)
