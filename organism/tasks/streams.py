"""Synthetic byte streams with known identities: what a genome is trained and selected on.

A stream imitates what is common to logs, packets and events: interleaved sources, each with a
heavy-tailed set of templates that drifts, bursts, repeats at power-law lags, variants that differ
in one field, damaged bytes, and time stamps that are no part of what a line says. Each stream
draws its own statistics, so that no one setting can be learned by heart. Owns statistics and
labels; knows nothing of vectors.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from pydantic import Field, model_validator

from organism.config import Settings
from organism.tasks.grammar import Stamps, World


class StreamConfig(Settings):
    """Ranges that each stream draws its own statistics from, uniformly unless said otherwise."""

    repeat: tuple[float, float] = Field(
        (0.1, 0.85), description="share of chunks that repeat a lived one"
    )
    burst: tuple[float, float] = Field(
        (0.1, 0.6), description="share of repeats drawn from the last few chunks"
    )
    burst_span: int = Field(8, ge=1, description="how many chunks back a burst reaches")
    lag_exponent: tuple[float, float] = Field(
        (0.0, 1.5), description="other repeats: lag ~ lag^(−exponent), long lags at 0"
    )
    discount: tuple[float, float] = Field(
        (0.1, 0.7), description="Pitman-Yor discount over templates"
    )
    concentration: tuple[float, float] = Field((1.0, 12.0), description="Pitman-Yor concentration")
    variant_fields: float = Field(
        0.5, ge=0, le=1, description="chance that a variant redraws one field only"
    )
    damaged_streams: float = Field(
        0.5, ge=0, le=1, description="share of streams whose bytes are damaged"
    )
    damage: tuple[float, float] = Field(
        (0.01, 0.1), description="chance of a byte's damage in such a stream"
    )
    drift: tuple[float, float] = Field(
        (0.0, 0.02), description="chance a step that the world forgets a template for good"
    )
    binary_streams: float = Field(0.1, ge=0, le=1, description="share of streams of binary records")
    sources: int = Field(3, ge=1, le=64, description="most sources that a stream interleaves")
    stamped_streams: float = Field(
        0.35, ge=0, le=1, description="share of streams whose chunks open with a time stamp"
    )

    @model_validator(mode="after")
    def _consistent(self) -> StreamConfig:
        for name, value in self:
            if isinstance(value, tuple) and not 0 <= value[0] <= value[1]:
                raise ValueError(f"{name} is a range from low to high, from 0 on, got {value}")
            if name in _SHARES and value[1] > 1:
                raise ValueError(f"{name} is a range of shares, up to 1, got {value}")
        return self


_SHARES = ("repeat", "burst", "discount", "damage", "drift")
_UNLIVED = 32
STATIONARY_LAG = 300
"""Longest lag of a stationary stream."""


@dataclass(frozen=True)
class Stream:
    """A labelled stream.

    Attributes:
        chunks: the bytes as observed, damage included.
        familiar: whether the identity behind each chunk was lived through earlier in this stream:
            its bytes without damage and time stamp.
        variant: whether each is new and differs from an earlier one in a single field.
        unlived: chunks of the same world, damaged and stamped alike, that were never lived through.
    """

    chunks: list[bytes]
    familiar: list[bool]
    variant: list[bool]
    unlived: list[bytes]


def damage(chunk: bytes, fraction: float, rng: random.Random) -> bytes:
    """Replace each byte, with probability ``fraction``, by a random printable one."""
    if not fraction:
        return chunk
    return bytes(rng.randrange(0x20, 0x7F) if rng.random() < fraction else byte for byte in chunk)


def sample_stream(config: StreamConfig, steps: int, rng: random.Random) -> Stream:
    """Draw one stream: its statistics first, then its chunks.

    Args:
        config: ranges of the statistics.
        steps: number of chunks.
        rng: source of all randomness; an equal state gives an equal stream.
    """
    repeat = rng.uniform(*config.repeat)
    burst = rng.uniform(*config.burst)
    lag_exponent = rng.uniform(*config.lag_exponent)
    damaged = rng.uniform(*config.damage) if rng.random() < config.damaged_streams else 0.0
    stamps = Stamps(rng) if rng.random() < config.stamped_streams else None
    worlds = [_world(config, rng) for _ in range(rng.randint(1, config.sources))]

    def observed(identity: bytes) -> bytes:
        return damage((stamps.next() if stamps else b"") + identity, damaged, rng)

    lived: list[bytes] = []
    known: set[bytes] = set()
    chunks: list[bytes] = []
    familiar: list[bool] = []
    variant: list[bool] = []
    for _ in range(steps):
        world = rng.choice(worlds)
        world.drift()
        one_field = False
        if lived and rng.random() < repeat:
            if rng.random() < burst:
                identity = lived[-rng.randint(1, min(config.burst_span, len(lived)))]
            else:
                identity = lived[-_power_law(len(lived), lag_exponent, rng)]
        else:
            identity, one_field = world.chunk()
        familiar.append(identity in known)
        variant.append(one_field and not familiar[-1])
        chunks.append(observed(identity))
        lived.append(identity)
        known.add(identity)
    unlived: list[bytes] = []
    while len(unlived) < _UNLIVED:
        world = rng.choice(worlds)
        identity, _ = world.chunk()
        if identity in known:
            identity, _ = world.new_template().fill(0)
        if identity not in known:
            unlived.append(observed(identity))
    return Stream(chunks, familiar, variant, unlived)


def stationary_stream(steps: int, rng: random.Random) -> Stream:
    """Draw a stream whose law does not change: half of its chunks are new, the others repeat one.

    Lags follow lag^(−1) up to ``STATIONARY_LAG``, however long the stream; what is new was never
    there before. One source, no drift, no damage, no time stamps.

    Args:
        steps: number of chunks.
        rng: source of all randomness.
    """
    world = World(discount=0, concentration=8, drift=0, one_field=0.5, binary=False, rng=rng)
    lived: list[bytes] = []
    known: set[bytes] = set()
    familiar: list[bool] = []
    variant: list[bool] = []
    for _ in range(steps):
        again, one_field = bool(lived) and rng.random() < 0.5, False
        if again:
            identity = lived[-_power_law(min(len(lived), STATIONARY_LAG), 1.0, rng)]
        else:
            identity, one_field = world.chunk()
            while identity in known:
                identity, one_field = world.chunk()
        familiar.append(again)
        variant.append(one_field)
        lived.append(identity)
        known.add(identity)
    return Stream(lived, familiar, variant, [])


def _world(config: StreamConfig, rng: random.Random) -> World:
    return World(
        discount=rng.uniform(*config.discount),
        concentration=rng.uniform(*config.concentration),
        drift=rng.uniform(*config.drift),
        one_field=config.variant_fields,
        binary=rng.random() < config.binary_streams,
        rng=rng,
    )


def _power_law(highest: int, exponent: float, rng: random.Random) -> int:
    """Draw from {1, …, highest} with P(k) ∝ k^(−exponent), by inverting the continuous law."""
    u = rng.random()
    if abs(exponent - 1) < 1e-6:
        value = (highest + 1) ** u
    else:
        p = 1 - exponent
        value = (1 + u * ((highest + 1) ** p - 1)) ** (1 / p)
    return min(highest, int(value))
