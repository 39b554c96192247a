"""Bytes to vectors: the frozen, mean-pooled n-gram embedding.

Owns the embedding table and the n-gram hash. Knows nothing of lines, streams or the cortex. A
chunk's vector depends on the chunk alone: encoding it beside others gives the same bits as
encoding it by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from organism.config import EncoderConfig

# Odd 64-bit constants of Steele, Lea & Flood, "Fast splittable pseudorandom number generators"
# (OOPSLA 2014): their finaliser spreads near-equal n-grams over all buckets.
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


@lru_cache(maxsize=8)
@torch.inference_mode(False)  # shared with training too
def embedding_table(config: EncoderConfig, width: int) -> Tensor:
    """Draw the frozen table E of the encoder, unit-variance Gaussian rows [D26 §4.1].

    NumPy's legacy ``RandomState`` is used because its stream is frozen for good (NEP 19): the
    same seed gives the same table on every later version.

    Returns:
        float32 of shape ``(buckets, width)``; shared, never to be written to.
    """
    draws = np.random.RandomState(config.seed).standard_normal((config.buckets, width))
    return torch.from_numpy(draws.astype(np.float32))


def encode(chunks: Sequence[bytes], config: EncoderConfig, width: int) -> Tensor:
    """Encode chunks as the sum over orders of the mean of their n-grams' rows, e_t of [D26 §4.1].

    With ``distinct`` a chunk's repeated n-grams count once; with ``unit_norm`` each order's mean
    is scaled to length 1 before the sum. A chunk shorter than an order contributes itself, whole,
    as its only n-gram of that order.

    Args:
        chunks: non-empty byte strings of any length.
        config: n-gram orders, bucket count and seed.
        width: d_in, the length of a vector.

    Returns:
        float32 of shape ``(len(chunks), width)``.

    Raises:
        ValueError: a chunk is empty.
    """
    lengths = np.fromiter((len(chunk) for chunk in chunks), np.int64, len(chunks))
    if not lengths.all():
        position = int(np.flatnonzero(lengths == 0)[0])
        raise ValueError(f"chunk {position} is empty: a chunk needs at least one byte")
    table = embedding_table(config, width)
    if not len(lengths):
        return torch.zeros(0, width)
    data = np.frombuffer(b"".join(chunks), np.uint8)
    pooled = torch.stack([_pool(data, lengths, n, config, table) for n in config.orders])
    if config.unit_norm:
        pooled = torch.nn.functional.normalize(pooled, dim=2)
    return pooled.sum(0)


def _pool(
    data: npt.NDArray[np.uint8],
    lengths: npt.NDArray[np.int64],
    order: int,
    config: EncoderConfig,
    table: Tensor,
) -> Tensor:
    grams = np.maximum(lengths - order + 1, 1)
    chunk = np.repeat(np.arange(len(lengths)), grams)
    chunk_starts = np.cumsum(lengths) - lengths
    starts = np.arange(grams.sum()) + (chunk_starts - np.cumsum(grams) + grams)[chunk]
    if config.orders == (1,):
        buckets = data.astype(np.int64)
    else:
        buckets = _hash(data, starts, np.minimum(lengths, order)[chunk], order) % config.buckets
    if config.distinct:
        chunk, buckets = np.divmod(np.unique(chunk * config.buckets + buckets), config.buckets)
    bags = np.searchsorted(chunk, np.arange(len(lengths)))
    return torch.nn.functional.embedding_bag(
        torch.from_numpy(buckets), table, torch.from_numpy(bags), mode="mean"
    )


def _hash(
    data: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    span: npt.NDArray[np.int64],
    order: int,
) -> npt.NDArray[np.int64]:
    r"""Hash the ``span`` bytes from each start; the span is hashed too, so "a" is not "a\0"."""
    padded = np.concatenate([data, np.zeros(order, np.uint8)]).astype(np.uint64)
    key = span.astype(np.uint64) << np.uint64(32)
    for i in range(order):
        byte = np.where(i < span, padded[starts + i], np.uint64(0))
        key |= byte << np.uint64(8 * i)
    key = (key ^ (key >> np.uint64(30))) * _MIX_1
    key = (key ^ (key >> np.uint64(27))) * _MIX_2
    return ((key ^ (key >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)
