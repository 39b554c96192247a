"""Bytes to vectors: the frozen, mean-pooled n-gram embedding.

Owns the embedding table and the n-gram hash. Knows nothing of lines, streams or the cortex. A
chunk's vector depends on the chunk alone: encoding it beside others gives the same bits as
encoding it by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from organism.chunking import Bytes, Spans
from organism.config import EncoderConfig
from organism.jit import F32, aligned_copy, kernel
from organism.simd import LANES, load, multiply_add, spread, store

# Odd 64-bit constants of Steele, Lea & Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014): their finaliser spreads near-equal n-grams over all buckets.
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NORM_FLOOR = np.float32(1e-12)
_ZERO, _NINE = np.uint8(ord("0")), np.uint8(ord("9"))
_LONGEST_GRAM = 4
_STRIDE = 64  # bytes of the widest vector


@lru_cache(maxsize=8)
def embedding_table(config: EncoderConfig, width: int) -> F32:
    """Draw the frozen table E of the encoder, unit-variance Gaussian rows [D26 §4.1].

    NumPy's legacy ``RandomState`` is used because its stream is frozen for good (NEP 19): the
    same seed gives the same table on every later version.

    Returns:
        ``(buckets, width)``; shared, read-only.
    """
    draws = np.random.RandomState(config.seed).standard_normal((config.buckets, width))
    table = aligned_copy(draws.astype(np.float32))
    table.flags.writeable = False
    return table


def encode(chunks: Sequence[bytes], config: EncoderConfig, width: int) -> Tensor:
    """Encode chunks; see ``encode_spans``.

    Args:
        chunks: non-empty byte strings of any length.
        config: n-gram orders, bucket count and seed.
        width: d_in, the length of a vector.

    Returns:
        float32 of shape ``(len(chunks), width)``.

    Raises:
        ValueError: a chunk is empty.
    """
    ends = np.cumsum([len(chunk) for chunk in chunks], dtype=np.int64)
    spans = np.stack([np.concatenate([[0], ends])[:-1], ends], axis=1)
    return torch.from_numpy(encode_spans(b"".join(chunks), spans, config, width))


def encode_spans(data: bytes, spans: Spans, config: EncoderConfig, width: int) -> F32:
    """Encode chunks of a message as the sum over orders of their n-grams' mean row [D26 §4.1].

    With ``distinct`` a chunk's repeated n-grams count once; with ``unit_norm`` each order's mean
    is scaled to length 1 before the sum. An n-gram weighs as much as its bytes do on average:
    digits ``digit_weight``, others 1. A chunk shorter than an order contributes itself, whole, as
    its only n-gram of that order.

    Args:
        data: the message.
        spans: where each chunk starts and ends in it, ``(chunks, 2)``.
        config: n-gram orders, bucket count and seed.
        width: d_in, the length of a vector.

    Returns:
        ``(chunks, width)``.

    Raises:
        ValueError: a chunk is empty.
    """
    vectors = np.zeros((len(spans), width), np.float32)
    empty = pool(np.frombuffer(data, np.uint8), spans, compile_encoder(config, width), vectors)
    if empty >= 0:
        raise empty_chunk(empty)
    return vectors


def empty_chunk(number: int) -> ValueError:
    """Say which chunk of many has no bytes."""
    return ValueError(f"chunk {number} is empty: a chunk needs at least one byte")


class Encoding(NamedTuple):
    """An encoder as the kernels take it: the fields of ``EncoderConfig``, and its table.

    Attributes:
        orders: int64.
        raw: whether a byte is its own row.
        distinct: as configured.
        unit_norm: as configured.
        weights: what an n-gram of so many bytes weighs, so many of them digits, ``(5, 5)``.
        table: ``embedding_table``, ``(buckets, width)``.
    """

    orders: npt.NDArray[np.int64]
    raw: bool
    distinct: bool
    unit_norm: bool
    weights: F32
    table: F32


@lru_cache(maxsize=8)
def compile_encoder(config: EncoderConfig, width: int) -> Encoding:
    """Lay an encoder out for the kernels."""
    return Encoding(
        orders=np.array(config.orders),
        raw=config.orders == (1,),
        distinct=config.distinct,
        unit_norm=config.unit_norm,
        weights=_gram_weights(config.digit_weight),
        table=embedding_table(config, width),
    )


def _gram_weights(digit_weight: float) -> F32:
    """Mean weight of n-grams' bytes, by how many they are, and how many of them are digits."""
    length, digits = np.indices((_LONGEST_GRAM + 1, _LONGEST_GRAM + 1))
    weights = np.float64(np.float32(digit_weight)) * digits + (length - digits)
    return (weights / np.maximum(length, 1)).astype(np.float32)


@kernel()
def pool(data: Bytes, spans: Spans, encoding: Encoding, vectors: F32) -> int:
    """Add the mean row of each chunk's n-grams of each order to its vector, which is zeros.

    Returns:
        Number of the first chunk that is empty, where there is one; else −1.
    """
    buckets, width = encoding.table.shape
    longest = 0
    for c in range(spans.shape[0]):
        if spans[c, 1] <= spans[c, 0]:
            return c
        longest = max(longest, spans[c, 1] - spans[c, 0])
    chunk, grams = _chunk_of(longest), _grams_of(longest)
    seen = np.zeros(buckets if encoding.distinct else 0, np.uint8)
    total = np.empty(width, np.float32)
    for c in range(spans.shape[0]):
        start, end = spans[c, 0], spans[c, 1]
        _take(data, start, end, chunk)
        for o in range(encoding.orders.shape[0]):
            span = min(encoding.orders[o], end - start)
            count = _look_up(chunk, end - start, span, encoding, seen, grams)
            _sum_rows(encoding.table, grams, count, total)
            if encoding.unit_norm:
                square = np.float32(0)
                for j in range(width):
                    square += total[j] * total[j]
                factor = np.float32(1) / max(np.float32(math.sqrt(square)), _NORM_FLOOR)
            else:
                sum_ = np.float32(0)
                for k in range(count):
                    sum_ += grams.weights[k]
                factor = np.float32(1) / sum_
            for j in range(width):
                vectors[c, j] += factor * total[j]
    return -1


class _Chunk(NamedTuple):
    """Bytes of a chunk, then zeros; and which of them are digits, 1 or 0."""

    text: Bytes
    is_digit: Bytes


class _Grams(NamedTuple):
    """Rows of n-grams in the table, how many of their bytes are digits, and their weights."""

    rows: npt.NDArray[np.uint32]
    digits: Bytes
    weights: F32


@kernel()
def _chunk_of(longest: int) -> _Chunk:
    """Make room for chunks of up to so many bytes."""
    room = _rounded(longest) + _STRIDE
    return _Chunk(np.empty(room, np.uint8), np.empty(room, np.uint8))


@kernel()
def _grams_of(most: int) -> _Grams:
    """Make room for up to so many n-grams."""
    room = _rounded(most)
    rows, digits = np.empty(room, np.uint32), np.empty(room, np.uint8)
    return _Grams(rows, digits, np.empty(room, np.float32))


@kernel(inline=True)
def _rounded(count: int) -> int:
    """Next multiple of ``_STRIDE``: loops over so many leave nothing to be done one by one."""
    return (count + _STRIDE - 1) // _STRIDE * _STRIDE


@kernel()
def _take(data: Bytes, start: int, end: int, chunk: _Chunk) -> None:
    """Copy a chunk to where its n-grams may be read beyond its end."""
    room = _rounded(end - start) + _STRIDE
    for i in range(start, end):
        chunk.text[i - start] = data[i]
    for i in range(end - start, room):
        chunk.text[i] = 0
    for i in range(room):
        digit = _ZERO <= chunk.text[i] <= _NINE
        chunk.is_digit[i] = np.uint8(1) if digit else np.uint8(0)


@kernel()
def _look_up(
    chunk: _Chunk,
    length: int,
    span: int,
    encoding: Encoding,
    seen: npt.NDArray[np.uint8],
    grams: _Grams,
) -> int:
    """Write down rows and weights of a chunk's n-grams of one order; return how many.

    With room in ``seen``, a byte for each row, all of them 0 before and after, a row counts once.
    """
    count, weights = length - span + 1, encoding.weights[span]
    _hash_grams(chunk, count, span, encoding, grams)
    # Unsigned numbers as indices: a signed one might count from the end, and is looked at.
    if not seen.shape[0]:
        for k in range(count):
            grams.weights[k] = weights[np.uint64(grams.digits[k])]
        return count
    kept = np.uint64(0)
    for k in range(count):
        row = np.uint64(grams.rows[k])
        # Written down in any case, and over again unless it counts: whether it does, nobody can
        # foresee, the processor neither.
        grams.rows[kept] = row
        grams.weights[kept] = weights[np.uint64(grams.digits[k])]
        kept += np.uint64(1) - np.uint64(seen[row])
        seen[row] = 1
    for k in range(kept):
        seen[np.uint64(grams.rows[k])] = 0
    return int(kept)


@kernel()
def _hash_grams(chunk: _Chunk, count: int, span: int, encoding: Encoding, grams: _Grams) -> None:
    """Write down rows and digits of n-grams, repeated ones too; eight or more at once."""
    text, is_digit, buckets = chunk.text, chunk.is_digit, encoding.table.shape[0]
    for i in range(_rounded(count)):
        gram = np.uint64(text[i])
        if encoding.raw:
            grams.rows[i] = gram
            continue
        gram |= np.uint64(text[i + 1]) << np.uint64(8)
        gram |= np.uint64(text[i + 2]) << np.uint64(16)
        gram |= np.uint64(text[i + 3]) << np.uint64(24)
        gram &= (np.uint64(1) << np.uint64(8 * span)) - np.uint64(1)
        grams.rows[i] = place_of(gram_hash(gram, span), buckets)
    second, third, fourth = np.uint8(span > 1), np.uint8(span > 2), np.uint8(span > 3)
    for i in range(_rounded(count)):
        first = is_digit[i] + is_digit[i + 1] * second
        grams.digits[i] = first + is_digit[i + 2] * third + is_digit[i + 3] * fourth


@kernel(reassociate=False)
def _sum_rows(table: F32, grams: _Grams, count: int, total: F32) -> None:
    """Sum weighted rows of a table, as many columns at a time as stay in registers."""
    width = total.shape[0]
    wide = width - width % (4 * LANES)
    for j in range(0, wide, 4 * LANES):
        _sum_columns(table, grams, count, j, total)
    for j in range(wide, width, LANES):
        lanes, column = min(LANES, width - j), spread(0)
        for k in range(count):
            row = load(table, (grams.rows[k], j), lanes)
            column = multiply_add(spread(grams.weights[k]), row, column)
        store(total, j, lanes, column)


@kernel(reassociate=False, inline=True)
def _sum_columns(table: F32, grams: _Grams, count: int, j: int, total: F32) -> None:
    """Sum four vectors' worth of columns, from column j on."""
    j1, j2, j3 = j + LANES, j + 2 * LANES, j + 3 * LANES
    a, b, c, d = spread(0), spread(0), spread(0), spread(0)
    for k in range(count):
        row, weight = grams.rows[k], spread(grams.weights[k])
        a = multiply_add(weight, load(table, (row, j), LANES), a)
        b = multiply_add(weight, load(table, (row, j1), LANES), b)
        c = multiply_add(weight, load(table, (row, j2), LANES), c)
        d = multiply_add(weight, load(table, (row, j3), LANES), d)
    store(total, j, LANES, a)
    store(total, j1, LANES, b)
    store(total, j2, LANES, c)
    store(total, j3, LANES, d)


@kernel()
def place_of(code: np.uint64, places: int) -> np.int64:
    """Bring a hash of 63 bits to one of many places, without a division.

    Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019.
    """
    return np.int64(((code >> np.uint64(31)) * np.uint64(places)) >> np.uint64(32))


@kernel()
def gram_hash(gram: np.uint64, span: int) -> np.uint64:
    r"""Hash a packed n-gram to 63 bits; how many bytes it has too, so that "a" is not "a\0"."""
    key = gram | (np.uint64(span) << np.uint64(32))
    key = (key ^ (key >> np.uint64(30))) * _MIX_1
    key = (key ^ (key >> np.uint64(27))) * _MIX_2
    return np.uint64((key ^ (key >> np.uint64(31))) >> np.uint64(1))
