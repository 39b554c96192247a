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
from organism.jit import F32, Number, kernel

# Odd 64-bit constants of Steele, Lea & Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014): their finaliser spreads near-equal n-grams over all buckets.
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_NORM_FLOOR = np.float32(1e-12)
_ZERO, _NINE = np.uint8(ord("0")), np.uint8(ord("9"))


@lru_cache(maxsize=8)
def embedding_table(config: EncoderConfig, width: int) -> F32:
    """Draw the frozen table E of the encoder, unit-variance Gaussian rows [D26 §4.1].

    NumPy's legacy ``RandomState`` is used because its stream is frozen for good (NEP 19): the
    same seed gives the same table on every later version.

    Returns:
        ``(buckets, width)``; shared, read-only.
    """
    draws = np.random.RandomState(config.seed).standard_normal((config.buckets, width))
    table = draws.astype(np.float32)
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
        digit_weight: as configured.
        table: ``embedding_table``, ``(buckets, width)``.
    """

    orders: npt.NDArray[np.int64]
    raw: bool
    distinct: bool
    unit_norm: bool
    digit_weight: Number
    table: F32


@lru_cache(maxsize=8)
def compile_encoder(config: EncoderConfig, width: int) -> Encoding:
    """Lay an encoder out for the kernels."""
    return Encoding(
        orders=np.array(config.orders),
        raw=config.orders == (1,),
        distinct=config.distinct,
        unit_norm=config.unit_norm,
        digit_weight=np.float32(config.digit_weight),
        table=embedding_table(config, width),
    )


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
    seen = np.zeros((buckets + 63) // 64 if encoding.distinct else 0, np.uint64)
    rows, weights = np.empty(longest, np.int64), np.empty(longest, np.float32)
    total = np.empty(width, np.float32)
    for c in range(spans.shape[0]):
        start, end = spans[c, 0], spans[c, 1]
        for o in range(encoding.orders.shape[0]):
            order = encoding.orders[o]
            count = _look_up(data, start, end, order, encoding, seen, rows, weights)
            _sum_rows(encoding.table, rows, weights, count, total)
            if encoding.unit_norm:
                square = np.float32(0)
                for j in range(width):
                    square += total[j] * total[j]
                factor = np.float32(1) / max(np.float32(math.sqrt(square)), _NORM_FLOOR)
            else:
                sum_ = np.float32(0)
                for k in range(count):
                    sum_ += weights[k]
                factor = np.float32(1) / sum_
            for j in range(width):
                vectors[c, j] += factor * total[j]
    return -1


@kernel()
def _look_up(
    data: Bytes,
    start: int,
    end: int,
    order: int,
    encoding: Encoding,
    seen: npt.NDArray[np.uint64],
    rows: npt.NDArray[np.int64],
    weights: F32,
) -> Number:
    """Write down rows and weights of a chunk's n-grams of one order; return how many.

    A chunk shorter than the order is its own n-gram. The window's bytes, and how many of them are
    digits, are carried from one n-gram to the next. With room in ``seen``, a bit for each row, all
    of them 0 before and after, a row counts once.
    """
    span, buckets = min(order, end - start), encoding.table.shape[0]
    newest = np.uint64(8 * (span - 1))
    gram, digits, count = np.uint64(0), 0, np.uint64(0)
    for i in range(start, end):
        gram = (gram >> np.uint64(8)) | (np.uint64(data[i]) << newest)
        digits += _is_digit(data[i])
        if i - start < span - 1:
            continue
        bucket = np.uint64(data[i] if encoding.raw else place_of(gram_hash(gram, span), buckets))
        # Written down in any case, and over again unless it counts: whether it does, nobody can
        # foresee, the processor neither.
        rows[count] = np.int64(bucket)
        plain = np.float32(span - digits)
        weights[count] = (digits * encoding.digit_weight + plain) / np.float32(span)
        digits -= _is_digit(data[i - span + 1])
        if not seen.shape[0]:
            count += np.uint64(1)
            continue
        word, bit = bucket >> np.uint64(6), bucket & np.uint64(63)
        count += np.uint64(1) - ((seen[word] >> bit) & np.uint64(1))
        seen[word] |= np.uint64(1) << bit
    if seen.shape[0]:
        for k in range(count):
            seen[np.uint64(rows[k]) >> np.uint64(6)] = np.uint64(0)
    return np.int64(count)


@kernel()
def _sum_rows(
    table: F32, rows: npt.NDArray[np.int64], weights: F32, count: int, total: F32
) -> None:
    """Sum weighted rows of a table, four a loop."""
    for j in range(total.shape[0]):
        total[j] = 0
    blocked = count - count % 4
    for k in range(0, blocked, 4):
        r0, r1, r2, r3 = rows[k], rows[k + 1], rows[k + 2], rows[k + 3]
        w0, w1, w2, w3 = weights[k], weights[k + 1], weights[k + 2], weights[k + 3]
        for j in range(total.shape[0]):
            pair = w0 * table[r0, j] + w1 * table[r1, j]
            total[j] += pair + (w2 * table[r2, j] + w3 * table[r3, j])
    for k in range(blocked, count):
        for j in range(total.shape[0]):
            total[j] += weights[k] * table[rows[k], j]


@kernel()
def place_of(code: np.uint64, places: int) -> np.int64:
    """Bring a hash of 63 bits to one of many places, without a division.

    Lemire, "Fast random integer generation in an interval", ACM TOMACS 2019.
    """
    return np.int64(((code >> np.uint64(31)) * np.uint64(places)) >> np.uint64(32))


@kernel()
def _is_digit(byte: np.uint8) -> int:
    return 1 if _ZERO <= byte <= _NINE else 0


@kernel()
def gram_hash(gram: np.uint64, span: int) -> np.uint64:
    r"""Hash a packed n-gram to 63 bits; how many bytes it has too, so that "a" is not "a\0"."""
    key = gram | (np.uint64(span) << np.uint64(32))
    key = (key ^ (key >> np.uint64(30))) * _MIX_1
    key = (key ^ (key >> np.uint64(27))) * _MIX_2
    return np.uint64((key ^ (key >> np.uint64(31))) >> np.uint64(1))
