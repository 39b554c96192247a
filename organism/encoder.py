"""Bytes to vectors: the frozen, mean-pooled n-gram embedding.

Owns the embedding table and the n-gram hash. Knows nothing of lines, streams or the cortex. A
chunk's vector depends on the chunk alone: encoding it beside others gives the same bits as
encoding it by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
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
    empty = np.flatnonzero(spans[:, 0] >= spans[:, 1])
    if len(empty):
        raise ValueError(f"chunk {empty[0]} is empty: a chunk needs at least one byte")
    table, raw = embedding_table(config, width), config.orders == (1,)
    vectors = np.zeros((len(spans), width), np.float32)
    message = np.frombuffer(data, np.uint8)
    weight, distinct, unit = np.float32(config.digit_weight), config.distinct, config.unit_norm
    for order in config.orders:
        _pool(message, spans, order, raw, distinct, unit, weight, table, vectors)
    return vectors


@kernel()
def _pool(
    data: Bytes,
    spans: Spans,
    order: int,
    raw: bool,
    distinct: bool,
    unit_norm: bool,
    digit_weight: Number,
    table: F32,
    vectors: F32,
) -> None:
    """Add the mean row of each chunk's n-grams of one order to its vector."""
    buckets, width = table.shape
    seen_in = np.full(buckets if distinct else 0, -1, np.int32)
    total = np.empty(width, np.float32)
    for c in range(spans.shape[0]):
        start, end = spans[c, 0], spans[c, 1]
        weights = np.float32(0)
        for j in range(width):
            total[j] = 0
        for i in range(start, max(end - order, start) + 1):
            bucket = np.int64(data[i])
            if not raw:
                bucket = np.int64(gram_hash(data, i, min(order, end - i)) % np.uint64(buckets))
            if distinct:
                if seen_in[bucket] == c:
                    continue
                seen_in[bucket] = c
            weight = _weight(data, i, min(order, end - i), digit_weight)
            weights += weight
            for j in range(width):
                total[j] += weight * table[bucket, j]
        factor = np.float32(1) / weights
        if unit_norm:
            square = np.float32(0)
            for j in range(width):
                square += total[j] * total[j]
            factor = np.float32(1) / max(np.float32(math.sqrt(square)), _NORM_FLOOR)
        for j in range(width):
            vectors[c, j] += factor * total[j]


@kernel()
def _weight(data: Bytes, start: int, span: int, digit_weight: Number) -> Number:
    """Mean weight of an n-gram's bytes."""
    weight = np.float32(0)
    for i in range(start, start + span):
        digit = _ZERO <= data[i] <= _NINE
        weight += digit_weight if digit else np.float32(1)
    return weight / np.float32(span)


@kernel()
def gram_hash(data: Bytes, start: int, span: int) -> np.uint64:
    r"""Hash ``span`` bytes, at most 4, to 63 bits; the span too, so "a" is not "a\0"."""
    key = np.uint64(span) << np.uint64(32)
    for i in range(span):
        key |= np.uint64(data[start + i]) << np.uint64(8 * i)
    key = (key ^ (key >> np.uint64(30))) * _MIX_1
    key = (key ^ (key >> np.uint64(27))) * _MIX_2
    return np.uint64((key ^ (key >> np.uint64(31))) >> np.uint64(1))
