"""A disk that remembers every operation, and what a crash may leave of any prefix of them.

The model is the one that POSIX promises and no more: data is on the disk once its file is synced,
a name once its folder is. What was not synced may be there whole, in part, or not at all.
"""

from __future__ import annotations

import errno
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

from server.storage.disk import Disk

Tree = dict[str, bytes | None]
"""Files by path, and folders as None."""


@dataclass(frozen=True)
class Operation:
    """One thing that was done: a method of ``Disk``, or a mark of the test's own.

    Attributes:
        name: the method, or the mark.
        arguments: file numbers and names, in terms of the recorder.
        site: where in the code a sync was asked for.
    """

    name: str
    arguments: tuple[Any, ...]
    site: str = ""


class Recorder(Disk):
    """Does everything for real below a folder, and remembers it.

    Attributes:
        operations: what was done, in order.
        dead: a killed process; nothing more is done.
    """

    def __init__(self, root: Path, operations: list[Operation]) -> None:
        self._root = root
        self.operations = operations
        self._files: dict[int, int] = {}
        self._write: Callable[[Sequence[bytes]], Sequence[bytes] | None] = lambda parts: parts
        self.kill_at: Callable[[Operation], bool] = lambda _: False
        self.dead = False

    def mark(self, name: str, *arguments: object) -> None:
        """Write a mark of the test's own between the operations."""
        self.operations.append(Operation(name, arguments))

    def fill_up_after(self, size: int) -> None:
        """Let the next write find the disk full, when so many bytes of it are written."""

        def short(parts: Sequence[bytes]) -> None:
            self._write = lambda parts: parts
            data = b"".join(parts)[:size]
            Disk.write(self, self._file, [data])
            self.operations.append(Operation("write", (self._files[self._file], data)))
            raise OSError(errno.ENOSPC, "full")

        self._write = short

    def make_folder(self, path: Path) -> None:
        """Remember and do."""
        if not path.exists():
            self._note("make_folder", self._name(path))
        super().make_folder(path)

    def create(self, path: Path) -> int:
        """Remember and do."""
        inode = len(self.operations)
        self._note("create", self._name(path), inode)
        return self._opened(super().create(path), path, inode)

    def open(self, path: Path) -> int:
        """Do; the file is the one that had the name."""
        self._live()
        return self._opened(super().open(path), path, self._inode(path))

    def write(self, file: int, parts: Sequence[bytes]) -> None:
        """Remember and do."""
        self._file = file
        if self._write(parts) is not None:
            self._note("write", self._files[file], b"".join(parts))
            super().write(file, parts)

    def truncate(self, file: int, size: int) -> None:
        """Remember and do."""
        self._note("truncate", self._files[file], size)
        super().truncate(file, size)

    def sync(self, file: int) -> None:
        """Remember, and where it was asked for; nothing crashes here, so nothing waits."""
        self._note("sync", self._files[file], site=_site())

    def sync_folder(self, path: Path) -> None:
        """Remember, and where it was asked for."""
        if path.is_relative_to(self._root):
            self._note("sync_folder", self._name(path), site=_site())

    def rename(self, path: Path, target: Path) -> None:
        """Remember and do."""
        self._note("rename", self._name(path), self._name(target))
        super().rename(path, target)

    def remove(self, path: Path) -> None:
        """Remember and do."""
        if path.exists():
            self._note("remove", self._name(path))
        super().remove(path)

    def _note(self, name: str, *arguments: object, site: str = "") -> None:
        self._live()
        operation = Operation(name, arguments, site)
        if self.kill_at(operation):
            self.dead = True
            self._live()
        self.operations.append(operation)

    def _live(self) -> None:
        if self.dead:
            raise OSError(errno.EIO, "killed")

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._root))

    def _opened(self, file: int, path: Path, inode: int) -> int:
        self._files[file] = inode
        return file

    def _inode(self, path: Path) -> int:
        names = _Disk()
        for operation in self.operations:
            names.do(operation)
        return names.names[self._name(path)]


def _site() -> str:
    """The line that asked for a sync, below the recorder."""
    frame = sys._getframe(2)
    return f"{frame.f_code.co_qualname}:{frame.f_lineno}"


@dataclass
class _File:
    durable: bytes = b""
    unsynced: list[Operation] = field(default_factory=list)

    def now(self, but_last: int = 0) -> bytes:
        data = self.durable
        for operation in self.unsynced[: len(self.unsynced) - but_last]:
            what = operation.arguments[1]
            data = data + what if operation.name == "write" else data[:what]
        return data

    def after(self, fate: str) -> bytes:
        """What a crash leaves of what was not synced."""
        whole = self.now()
        kept = min(len(self.durable), len(whole))
        middle = (kept + len(whole) + 1) // 2
        return {
            "lost": self.durable,
            "kept": whole,
            "early": self.now(but_last=1) if self.unsynced else whole,
            "cut": whole[:middle],
            "hole": whole[:kept] + bytes(middle - kept) + whole[middle:],
        }[fate]


class _Disk:
    """Names and files, those on the disk and those in memory."""

    def __init__(self) -> None:
        self.files: dict[int, _File] = {}
        self.names: dict[str, int] = {}
        self.folders: set[str] = set()
        self._durable_names: dict[str, int] = {}
        self._durable_folders: set[str] = set()

    def do(self, operation: Operation) -> None:
        """Go through one operation."""
        name, arguments = operation.name, operation.arguments
        if name == "make_folder":
            self.folders.add(arguments[0])
        elif name == "create":
            path, inode = arguments
            self.files[inode], self.names[path] = _File(), inode
        elif name in ("write", "truncate"):
            self.files[arguments[0]].unsynced.append(operation)
        elif name == "sync":
            file = self.files[arguments[0]]
            file.durable, file.unsynced = file.now(), []
        elif name == "rename":
            self.names[arguments[1]] = self.names.pop(arguments[0])
        elif name == "remove":
            self.names.pop(arguments[0])
        elif name == "sync_folder":
            folder = arguments[0]
            self._durable_names = {
                **{p: i for p, i in self._durable_names.items() if _parent(p) != folder},
                **{p: i for p, i in self.names.items() if _parent(p) == folder},
            }
            self._durable_folders |= {p for p in self.folders if _parent(p) == folder}

    def crashes(self) -> Iterator[Tree]:
        """Trees that a crash at this moment may leave."""
        changed = sorted(
            (self.folders ^ self._durable_folders)
            | {
                p
                for p in self.names.keys() | self._durable_names.keys()
                if self.names.get(p) != self._durable_names.get(p)
            }
        )
        fates = ["lost", "kept", "early", "cut", "hole"]
        if not any(file.unsynced for file in self.files.values()):
            fates = ["kept"]
        # Each name by itself, its change there or not.
        for fate, there in product(fates, [*product((False, True), repeat=len(changed))]):
            kept = {path for path, stays in zip(changed, there, strict=True) if stays}
            yield self._tree(fate, kept)

    def _tree(self, fate: str, kept: set[str]) -> Tree:
        tree: Tree = {}
        for path in sorted(self._durable_folders | self.folders):
            if path in (self.folders if path in kept else self._durable_folders) and (
                _parent(path) in tree or _parent(path) == "."
            ):
                tree[path] = None
        for names, wanted in ((self.names, True), (self._durable_names, False)):
            for path, inode in names.items():
                if (path in kept) == wanted and (_parent(path) in tree or _parent(path) == "."):
                    tree[path] = self.files[inode].after(fate)
        return tree


def crash_points(
    operations: Sequence[Operation], without: str | None = None
) -> Iterator[tuple[int, Tree]]:
    """Every tree that a crash may leave, and how many operations had been done.

    Args:
        operations: of a recorder.
        without: a site whose syncs are taken out of the code.
    """
    disk = _Disk()
    for done, operation in enumerate(operations, start=1):
        if operation.site != without or not operation.site:
            disk.do(operation)
        for tree in disk.crashes():
            yield done, tree


def lay_out(tree: Tree, root: Path) -> None:
    """Put a tree's files into a folder."""
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)


def digest(tree: Tree) -> bytes:
    """Tell trees apart."""
    whole = hashlib.sha256()
    for path in sorted(tree):
        content = tree[path]
        whole.update(f"{path}\0{'-' if content is None else len(content)}\0".encode())
        whole.update(content or b"")
    return whole.digest()


def _parent(path: str) -> str:
    return str(Path(path).parent)
