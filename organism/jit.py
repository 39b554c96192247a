"""The one way in which kernels are compiled, and the arrays that suit them.

By numba, without the GIL, cached on disk, with vectors as wide as the processor has. LLVM holds
back from 512-bit vectors where they slowed the clock of older processors; here they make a step
faster. ``NUMBA_CPU_NAME``, ``NUMBA_CPU_FEATURES`` and ``NUMBA_CACHE_DIR`` go before.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import shutil
from collections.abc import Callable
from ctypes import addressof, c_char
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeVar

import llvmlite.binding as llvm
import numba
import numpy as np
import numpy.typing as npt
from numba.core import cgutils
from numba.extending import intrinsic

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Reassociation lets sums be vectorised; no kernel may assume that its numbers are finite.
_FAST = {"contract", "reassoc", "nsz"}

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Number = Any
"""A scalar of compiled code, float32 but for sums over many: what it is, numba infers."""

_config: Any = numba.config
_ALIGNMENT_BYTES = 64  # a cache line, and the widest vector


def _cache_dir() -> Path | None:
    """Folder for the machine code of these very sources; None where there is no place for it.

    numba looks only at the file that a kernel stands in. A kernel holds the code of those it
    calls, too, in other files: the folder is named by all of them. Tasks and laboratory, in folders
    of their own, call kernels and are called by none.
    """
    package = Path(__file__).parent
    sources = sorted(package.glob("*.py"))
    digest = hashlib.sha256(b"".join(source.read_bytes() for source in sources)).hexdigest()[:16]
    name = f"kernels-{digest}"
    if _config.CACHE_DIR:
        return Path(_config.CACHE_DIR) / name
    beside = package / "__pycache__"
    if not os.access(beside if beside.exists() else package, os.W_OK):
        users = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        # Never a folder that others may write to: what lies in it is run.
        return users / "organism" / name if users.is_absolute() else None
    for other in beside.glob("kernels-*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return beside / name


_config.CACHE_DIR = str(_cache_dir() or "")
_own_choice = _config.CPU_NAME is None and _config.CPU_FEATURES is None
if _own_choice and platform.machine() in ("x86_64", "AMD64"):
    _config.CPU_NAME = llvm.get_host_cpu_name()
    _config.CPU_FEATURES = llvm.get_host_cpu_features().flatten() + ",-prefer-256-bit"

HAS_512_BITS = "+avx512f" in (_config.CPU_FEATURES or "").split(",")
"""Whether what is compiled here may use vectors of 512 bits."""


def aligned(shape: tuple[int, ...], dtype: type[np.generic] = np.float32) -> npt.NDArray[Any]:
    """Make room for an array that starts on a cache line: no vector of it spans two of them."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _ALIGNMENT_BYTES, np.uint8)
    # The address that numpy itself tells takes four times as long to ask for.
    start = -addressof(c_char.from_buffer(room.data)) % _ALIGNMENT_BYTES
    return np.ndarray(shape, dtype, room, start)


def aligned_parts(*shapes: tuple[int, ...]) -> list[F32]:
    """Make room for several arrays of float32 in one piece, each as ``aligned`` would.

    A line is left free after each: arrays a power of two apart would share sets of the cache.
    """
    sizes = (4 * math.prod(shape) for shape in shapes)
    lines = (-(-size // _ALIGNMENT_BYTES) + 1 for size in sizes)
    *starts, end = accumulate((_ALIGNMENT_BYTES * count for count in lines), initial=0)
    room = aligned((end,), np.uint8)
    pairs = zip(shapes, starts, strict=True)
    return [np.ndarray(shape, np.float32, room, start) for shape, start in pairs]


def aligned_copy(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Copy an array to where it starts on a cache line."""
    copy = aligned(array.shape, array.dtype.type)
    copy[...] = array
    return copy


def _borrowed(typing_context: Any, array: Any) -> Any:
    """Return the same array without its reference count, in compiled code only.

    A count costs an atomic instruction at every use, more than the arithmetic of a small vector.
    What it is borrowed from must outlive the call: a caller's array does, one that compiled code
    has made itself does not.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        view = context.make_array(signature.args[0])(context, builder, arguments[0])
        null: Any = cgutils.get_null_value
        for owner in ("meminfo", "parent"):
            setattr(view, owner, null(getattr(view, owner).type))
        return view._getvalue()

    return array(array), generate


borrowed: Any = intrinsic(_borrowed)


def kernel(
    *, reassociate: bool = True, release: bool = True, inline: bool = False
) -> Callable[[_Function], _Function]:
    """Compile a function on its first call.

    The machine code is cached; where there is no folder to write to, it is compiled anew in each
    process.

    Args:
        reassociate: let sums be reordered; off where the order of operations carries the
            precision. Multiply-adds are contracted in any case.
        release: let other threads run meanwhile; off where it is over sooner than another thread
            would give the interpreter back.
        inline: become part of what calls it, and be compiled for what is constant there.
    """
    options: dict[str, Any] = {
        "nogil": release,
        "forceinline": inline,
        "error_model": "numpy",
        "fastmath": _FAST if reassociate else {"contract"},
    }

    def compiled(function: _Function) -> _Function:
        try:
            typed: _Function = numba.njit(cache=True, **options)(function)
            _cached.append(typed)
        except RuntimeError:  # numba finds no folder for its cache
            typed = numba.njit(**options)(function)
        return typed

    return compiled


_cached: list[Any] = []


def entry_of(compiled: Any, *arguments: Any) -> Callable[..., Any]:
    """Find what a kernel was compiled to for arguments of these types, to be called without asking.

    Each call of a kernel looks at the type of every leaf of its arguments, 10 µs where they are
    many. What is returned does not: others than of these types are read for what they are not.
    """
    typeof: Callable[[Any], Any] = numba.typeof
    types = tuple(typeof(argument) for argument in arguments)
    compiled.compile(types)
    entry: Callable[..., Any] = compiled.get_overload(types)
    return entry


def compiled_for_the_cache() -> bool:
    """Whether this process has compiled a kernel that the next one will load.

    What runs where it was compiled may round otherwise than what was loaded, in the last bits, as
    if the two were linked differently. Whoever needs the bits of another process must load.
    """
    return any(sum(function.stats.cache_misses.values()) for function in _cached)
