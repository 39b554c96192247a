"""Synthetic streams: labels that are true, statistics that vary."""

from __future__ import annotations

import random

import pytest

from organism.evaluation import label
from organism.tasks.streams import (
    STATIONARY_LAG,
    Stream,
    StreamConfig,
    damage,
    sample_stream,
    stationary_stream,
)

UNDAMAGED = StreamConfig(damaged_streams=0, stamped_streams=0)


def stream(seed: int, config: StreamConfig = UNDAMAGED, steps: int = 200) -> Stream:
    """The stream of a seed."""
    return sample_stream(config, steps, random.Random(seed))


@pytest.mark.parametrize("seed", range(10))
def test_a_chunk_is_familiar_exactly_when_its_text_was_lived(seed: int) -> None:
    """Without damage, labels are those of an exact-match table."""
    s = stream(seed)
    assert s.familiar == label(s.chunks)
    assert len(s.chunks) == 200
    assert all(s.chunks)


@pytest.mark.parametrize("seed", range(10))
def test_unlived_chunks_were_never_lived(seed: int) -> None:
    """They are probes for novelty of the same world."""
    s = stream(seed)
    assert s.unlived
    assert not set(s.unlived) & set(s.chunks)


def test_damage_changes_bytes_and_no_labels() -> None:
    """A damaged stream has the identities, hence the labels, of its undamaged self."""
    config = StreamConfig(damaged_streams=1.0, damage=(0.1, 0.1), stamped_streams=0)
    s = stream(3, config)
    assert 0.1 < sum(s.familiar) / len(s.familiar) < 0.95
    assert label(s.chunks) != s.familiar


def test_damage_replaces_the_fraction_it_says() -> None:
    """Each byte with its probability, by a printable one, and never the length."""
    chunk = bytes(2000)
    damaged = damage(chunk, 0.25, random.Random(0))
    replaced = [byte for byte in damaged if byte]
    assert len(damaged) == 2000
    assert 400 < len(replaced) < 600
    assert all(0x20 <= byte < 0x7F for byte in replaced)
    assert damage(chunk, 0, random.Random(0)) == chunk


def test_streams_are_repeatable_and_differ() -> None:
    """A seed is a stream."""
    assert stream(1) == stream(1)
    assert stream(1) != stream(2)


def test_streams_vary_in_what_is_familiar() -> None:
    """No one base rate can be learned by heart."""
    shares = [sum(stream(seed).familiar) / 200 for seed in range(30)]
    assert min(shares) < 0.55
    assert max(shares) > 0.8


def test_some_streams_are_binary() -> None:
    """Byte 0 and bytes beyond ASCII are ordinary bytes."""
    binary = stream(0, StreamConfig(damaged_streams=0, stamped_streams=0, binary_streams=1))
    assert any(0 in chunk for chunk in binary.chunks)
    assert any(max(chunk) > 127 for chunk in binary.chunks)


def test_the_world_drifts() -> None:
    """A world that forgets its templates comes back less often to what it said before."""

    def come_back(drift: float) -> float:
        config = StreamConfig(
            damaged_streams=0, binary_streams=0, repeat=(0, 0), drift=(drift, drift)
        )
        streams = [stream(seed, config, 600) for seed in range(12)]
        return sum(sum(s.familiar[300:]) for s in streams) / (12 * 300)

    assert come_back(0.3) < come_back(0.0) - 0.05


@pytest.mark.parametrize("seed", range(8))
def test_stamps_are_no_part_of_identity(seed: int) -> None:
    """A stamped stream has the labels of what comes after the stamp; few of its lines repeat."""
    stamped = stream(seed, StreamConfig(damaged_streams=0, stamped_streams=1, binary_streams=0))
    assert 0.05 < sum(stamped.familiar) / 200 < 0.95
    exact = label(stamped.chunks)
    assert all(told or not same for told, same in zip(stamped.familiar, exact, strict=True))
    assert sum(exact) < sum(stamped.familiar)


@pytest.mark.parametrize("seed", range(4))
def test_variants_are_new(seed: int) -> None:
    """A chunk that differs in one field from one before is never labelled familiar."""
    s = stream(seed, steps=400)
    assert any(s.variant)
    assert not any(a and b for a, b in zip(s.variant, s.familiar, strict=True))


def test_sources_are_interleaved() -> None:
    """With several, neighbours come from different worlds; a single one shares a vocabulary."""
    words = {
        count: len(
            {
                word
                for seed in range(6)
                for chunk in stream(
                    seed, UNDAMAGED.model_copy(update={"sources": count, "binary_streams": 0.0})
                ).chunks
                for word in chunk.split()
            }
        )
        for count in (1, 8)
    }
    assert words[8] > 1.3 * words[1]


def test_a_stationary_stream_keeps_its_law() -> None:
    """Half is new, to the last chunk; repeats come within the longest lag, early and late alike."""
    s = stationary_stream(6000, random.Random(3))
    assert s.familiar == label(s.chunks)
    last: dict[bytes, int] = {}
    lags: list[tuple[int, int]] = []
    for t, chunk in enumerate(s.chunks):
        if s.familiar[t]:
            lags.append((t, t - last[chunk]))
        last[chunk] = t
    assert max(lag for _, lag in lags) <= STATIONARY_LAG
    early = [lag for t, lag in lags if 1000 <= t < 3000]
    late = [lag for t, lag in lags if t >= 4000]
    assert sum(early) / len(early) == pytest.approx(sum(late) / len(late), rel=0.15)
    assert sum(s.familiar[:3000]) == pytest.approx(sum(s.familiar[3000:]), rel=0.1)
