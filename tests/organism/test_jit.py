"""What kernels stand on."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numba
import numpy as np
import pytest

from organism import jit
from organism.jit import aligned, aligned_copy, aligned_parts, borrowed, kernel


@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 0, 4), (7, 16)])
def test_arrays_start_on_a_cache_line(shape: tuple[int, ...]) -> None:
    """Whatever their shape and type."""
    for dtype in (np.float32, np.int64):
        array = aligned(shape, dtype)
        assert not array.size or array.ctypes.data % 64 == 0
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype))
        assert array.flags.c_contiguous


def test_parts_of_one_piece_do_not_touch() -> None:
    """Each starts on a cache line of its own, with a line between, and is written to alone."""
    shapes = [(3, 5), (0,), (16,), (1,), (2, 1, 8)]
    parts = aligned_parts(*shapes)
    assert [part.shape for part in parts] == shapes
    for number, part in enumerate(parts):
        assert part.dtype == np.float32
        assert part.ctypes.data % 64 == 0 or not part.size
        part[...] = number
    assert all((part == number).all() for number, part in enumerate(parts))
    full = [part for part in parts if part.size]
    for before, after in pairwise(full):
        assert after.ctypes.data - (before.ctypes.data + before.nbytes) >= 64


def test_an_aligned_copy_is_a_copy() -> None:
    """Of the same numbers, in memory of its own."""
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    copy = aligned_copy(array.T)
    assert np.array_equal(copy, array.T)
    assert not np.shares_memory(copy, array)


def test_a_borrowed_array_is_the_array() -> None:
    """Read and written through, and still its owner's afterwards."""

    @kernel()
    def double(values: jit.F32) -> jit.Number:
        view = borrowed(values)
        for i in range(view.shape[0]):
            view[i] *= 2
        return view.sum()

    values = np.ones(4, np.float32)
    assert double(values) == 8
    assert values.tolist() == [2, 2, 2, 2]


def test_machine_code_is_kept_by_all_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel holds the code of those it calls in other files: a change to any starts anew."""
    monkeypatch.setattr(jit, "__file__", str(tmp_path / "package" / "jit.py"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    (tmp_path / "package").mkdir()
    source = tmp_path / "package" / "other.py"
    source.write_text("x = 1")
    before = jit._cache_dir()
    assert before == jit._cache_dir()
    source.write_text("x = 2")
    assert jit._cache_dir() != before


def test_a_read_only_installation_keeps_it_with_the_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere, rather than where others may write: what lies there is run."""
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setattr("os.access", lambda *_: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = jit._cache_dir()
    assert found is not None
    assert found.parent == tmp_path / "organism"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    assert jit._cache_dir() is None
