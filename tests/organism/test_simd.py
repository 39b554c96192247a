"""Vectors in registers: each operation against numpy, and what is built of them at any width."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from organism import recruiting, simd
from organism.jit import F32, kernel
from organism.simd import LANES, load, store

_A = np.linspace(-7.5, 8, LANES).astype(np.float32)
_B = np.resize(np.array([2, -3, 0.5], np.float32), LANES)


@kernel()
def _add(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, load(a, 0, LANES) + load(b, 0, LANES))


@kernel()
def _subtract(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, load(a, 0, LANES) - load(b, 0, LANES))


@kernel()
def _multiply(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, load(a, 0, LANES) * load(b, 0, LANES))


@kernel()
def _divide(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, load(a, 0, LANES) / load(b, 0, LANES))


@kernel()
def _larger(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, simd.larger(load(a, 0, LANES), load(b, 0, LANES)))


@kernel()
def _smaller(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, simd.smaller(load(a, 0, LANES), load(b, 0, LANES)))


@kernel()
def _with_sign(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, simd.with_sign(load(a, 0, LANES), load(b, 0, LANES)))


@kernel()
def _choose(a: F32, b: F32, out: F32, lanes: int) -> None:
    x = load(a, 0, LANES)
    store(out, 0, lanes, simd.choose(x, load(b, 0, LANES), simd.spread(3), x))


@kernel()
def _multiply_add(a: F32, b: F32, out: F32, lanes: int) -> None:
    y = load(b, 0, LANES)
    store(out, 0, lanes, simd.multiply_add(load(a, 0, LANES), y, y))


@kernel()
def _add_where(a: F32, b: F32, out: F32, lanes: int) -> None:
    x, y = load(a, 0, LANES), load(b, 0, LANES)
    store(out, 0, lanes, simd.add_where(x, y, y, x))


@kernel()
def _multiply_add_where(a: F32, b: F32, out: F32, lanes: int) -> None:
    x, y = load(a, 0, LANES), load(b, 0, LANES)
    store(out, 0, lanes, simd.multiply_add_where(x, y, x, y, y))


@kernel()
def _total(a: F32, b: F32, out: F32, lanes: int) -> None:
    store(out, 0, lanes, simd.spread(simd.total_of(load(a, 0, LANES))))


@kernel()
def _unary(a: F32, b: F32, out: F32, lanes: int) -> None:
    n = simd.whole(simd.magnitude(load(a, 0, LANES)))
    store(out, 0, lanes, simd.power_of_two(n))


@kernel()
def _constants(a: F32, b: F32, out: F32, lanes: int) -> None:
    last = simd.lane(load(b, 0, LANES), LANES - 1)
    store(out, 0, lanes, simd.ramp() + simd.spread(last))


OPERATIONS: list[tuple[Any, Callable[[F32, F32], F32]]] = [
    (_add, np.add),
    (_subtract, np.subtract),
    (_multiply, np.multiply),
    (_divide, np.divide),
    (_larger, np.maximum),
    (_smaller, np.minimum),
    (_with_sign, np.copysign),
    (_choose, lambda a, b: np.where(a > b, np.float32(3), a)),
    (_multiply_add, lambda a, b: a * b + b),  # exact for these
    (_add_where, lambda a, b: np.where(a > b, b + a, b)),
    (_multiply_add_where, lambda a, b: np.where(a > b, a * b + b, b)),
    (_total, lambda a, b: np.full(LANES, a.sum())),
    (_unary, lambda a, b: np.exp2(np.trunc(np.abs(a)))),
    (_constants, lambda a, b: np.arange(LANES) + b[-1]),
]


@pytest.mark.parametrize("lanes", [1, LANES - 1, LANES])
@pytest.mark.parametrize(("operation", "expected"), OPERATIONS)
def test_operations(operation: Any, expected: Callable[[F32, F32], F32], lanes: int) -> None:
    """Lane by lane what numpy says; what is beyond the real lanes is left alone."""
    out = np.full(LANES + 1, 99, np.float32)
    operation(_A, _B, out, lanes)
    np.testing.assert_allclose(out[:lanes], expected(_A, _B)[:lanes], rtol=1e-6)
    assert (out[lanes:] == 99).all()


@pytest.mark.parametrize("compare", [_larger, _smaller])
def test_what_is_no_number_gives_way_to_the_second(compare: Any) -> None:
    """As the comparison says, whichever of the two it is."""
    nothing, out = np.full(LANES, np.nan, np.float32), np.empty(LANES, np.float32)
    compare(nothing, _B, out, LANES)
    assert np.array_equal(out, _B)
    compare(_B, nothing, out, LANES)
    assert np.isnan(out).all()


@kernel()
def _rows(values: F32, row: int, out: F32) -> None:
    columns = values.shape[1]
    for j in range(0, columns, LANES):
        lanes = min(LANES, columns - j)
        store(out, j, lanes, load(values, (row, j), lanes))


@pytest.mark.parametrize("columns", [1, LANES - 1, LANES, LANES + 1, 3 * LANES + 5])
def test_rows_of_any_width(columns: int) -> None:
    """Read whole, and nothing beyond, of arrays that start and step anywhere."""
    values = np.random.default_rng(0).standard_normal((4, 2 * columns + 3)).astype(np.float32)
    some = values[::2, 1 : columns + 1]
    out = np.zeros(columns, np.float32)
    _rows(some, 1, out)
    assert np.array_equal(out, values[2, 1 : columns + 1])


@given(st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0]), min_size=1, max_size=3 * LANES + 2))
def test_the_highest_and_the_lowest(values: list[float]) -> None:
    """The first of equals, as in numpy, at every length."""
    array = np.array(values, np.float32)
    assert recruiting.winner(array) == array.argmax()
    assert recruiting.least_used(array) == array.argmin()


@pytest.mark.parametrize("columns", [1, LANES, 4 * LANES, 4 * LANES + 1, 9 * LANES + 3])
def test_a_product_with_w(columns: int) -> None:
    """As numpy's, at any number of columns."""
    draws = np.random.default_rng(columns)
    z = draws.standard_normal(7).astype(np.float32)
    w = draws.standard_normal((7, columns)).astype(np.float32)
    activation = np.empty(columns, np.float32)
    recruiting.drive(z, w, activation)
    np.testing.assert_allclose(activation, z @ w, rtol=1e-5, atol=1e-6)


_FINGERPRINT = """
import hashlib
import numpy as np
from organism import recruiting, simd
from organism.config import EncoderConfig
from organism.encoder import encode
vectors = encode([b"GET /a/12", b"x", b"0123456789" * 9], EncoderConfig(
    orders=(1, 2, 3), buckets=512, distinct=True, unit_norm=False, digit_weight=1.0), 77).numpy()
draws = np.random.default_rng(0)
z, w = draws.standard_normal(9, np.float32), draws.standard_normal((9, 77), np.float32)
activation = np.empty(77, np.float32)
recruiting.drive(z, w, activation)
print(simd.LANES, hashlib.sha256(vectors.tobytes() + activation.tobytes()).hexdigest())
"""


@pytest.mark.skipif(LANES != 16, reason="this processor has no vectors of 512 bits to leave out")
def test_shorter_vectors_give_the_same_bits() -> None:
    """No lane adds to another: sums of rows are the same without vectors of 512 bits."""
    shorter = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma,+bmi2"}
    prints = [
        subprocess.run(
            [sys.executable, "-c", _FINGERPRINT],
            env=os.environ | choice,
            capture_output=True,
            check=True,
            text=True,
        ).stdout.split()
        for choice in ({}, shorter)
    ]
    (wide, wide_print), (short, short_print) = prints
    assert (wide, short) == ("16", "8")
    assert wide_print == short_print
