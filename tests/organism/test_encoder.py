"""The encoder: bytes to vectors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from organism.config import EncoderConfig
from organism.encoder import embedding_table, encode

BYTES = EncoderConfig()
TRIGRAMS = EncoderConfig(orders=(3,), buckets=257)
DISTINCT = EncoderConfig(orders=(2,), buckets=4096, distinct=True)
UNIT = EncoderConfig(orders=(3,), buckets=4096, distinct=True, unit_norm=True)
SUMMED = EncoderConfig(orders=(1, 2, 3, 4), buckets=64, seed=3)
CHUNKS = st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=12)


@given(CHUNKS, st.sampled_from([BYTES, TRIGRAMS, DISTINCT, UNIT, SUMMED]))
def test_a_chunk_is_encoded_alone_as_beside_others(
    chunks: list[bytes], config: EncoderConfig
) -> None:
    """A vector depends on its chunk alone, to the last bit."""
    together = encode(chunks, config, 16)
    alone = torch.cat([encode([chunk], config, 16) for chunk in chunks])
    assert torch.equal(together, alone)


def test_bytes_are_the_mean_of_their_rows() -> None:
    """Order 1 is the original's mean-pooled embedding of byte ids."""
    chunk = b"\x00hello\xff"
    rows = embedding_table(BYTES, 16)[list(chunk)]
    found = encode([chunk], BYTES, 16)[0].numpy()
    np.testing.assert_allclose(found, rows.mean(0), rtol=1e-5, atol=1e-6)


def test_every_order_is_pooled_apart() -> None:
    """Several orders give the sum of what each gives."""
    chunk = b"some line of a log"
    parts = [encode([chunk], EncoderConfig(orders=(n,), buckets=64, seed=3), 16) for n in (2, 3, 4)]
    whole = encode([chunk], EncoderConfig(orders=(2, 3, 4), buckets=64, seed=3), 16)
    torch.testing.assert_close(whole, torch.stack(parts).sum(0))


def test_trigrams_are_found_wherever_they_stand() -> None:
    """The trigrams of "abcd" are those of "abc" and of "bcd"."""
    abc, bcd, abcd = encode([b"abc", b"bcd", b"abcd"], TRIGRAMS, 16)
    torch.testing.assert_close(abcd, (abc + bcd) / 2)


def test_distinct_ngrams_count_once() -> None:
    """A run of spaces weighs no more than one; without ``distinct`` it outweighs the words."""
    once, often = encode([b"a b", b"a      b"], DISTINCT, 16)
    parts = encode([b"a ", b"  ", b" b"], DISTINCT, 16)
    torch.testing.assert_close(once, parts[[0, 2]].mean(0))
    torch.testing.assert_close(often, parts.mean(0))
    counted = EncoderConfig(orders=(2,), buckets=4096)
    assert not torch.allclose(encode([b"a      b"], counted, 16)[0], often)


def test_unit_norm_makes_long_chunks_as_large_as_short_ones() -> None:
    """A mean over many random rows is short; scaled, its direction alone counts."""
    chunks = [b"abc", b"a much longer chunk of many different n-grams"]
    torch.testing.assert_close(encode(chunks, UNIT, 16).norm(dim=1), torch.ones(2))
    plain = encode(chunks, UNIT.model_copy(update={"unit_norm": False}), 16)
    assert plain[1].norm() < 0.5 * plain[0].norm()
    torch.testing.assert_close(torch.nn.functional.normalize(plain), encode(chunks, UNIT, 16))


@pytest.mark.parametrize("config", [TRIGRAMS, SUMMED])
def test_chunks_shorter_than_an_order_differ(config: EncoderConfig) -> None:
    """Short chunks are n-grams of their own: a missing byte is not a zero byte."""
    vectors = encode([b"a", b"a\0", b"a\0\0", b"b"], config, 16)
    for i in range(4):
        for j in range(i):
            assert not torch.equal(vectors[i], vectors[j])


def test_an_empty_chunk_is_refused() -> None:
    """The message names the chunk."""
    with pytest.raises(ValueError, match="chunk 1 is empty"):
        encode([b"a", b"", b"c"], BYTES, 16)


def test_no_chunks_give_no_vectors() -> None:
    """A message of blank lines alone encodes to nothing."""
    assert encode([], TRIGRAMS, 16).shape == (0, 16)


def test_the_table_is_drawn_from_the_seed() -> None:
    """Equal seeds give equal tables, other seeds others."""
    again = EncoderConfig(orders=(3,), buckets=257)
    assert np.array_equal(embedding_table(TRIGRAMS, 16), embedding_table(again, 16))
    other = EncoderConfig(orders=(3,), buckets=257, seed=1)
    assert not np.array_equal(embedding_table(TRIGRAMS, 16), embedding_table(other, 16))


@pytest.mark.parametrize(
    "settings",
    [
        {"orders": ()},
        {"orders": (0,)},
        {"orders": (5,)},
        {"orders": (3, 3)},
        {"orders": (1,), "buckets": 100},
        {"seed": -1},
        {"colour": "red"},
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, object]) -> None:
    """Orders are distinct lengths from 1 to 4; bytes have 256 rows; unknown keys are errors."""
    with pytest.raises(ValueError, match=r"orders|buckets|seed|colour"):
        EncoderConfig.model_validate(settings)
