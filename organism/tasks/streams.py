"""Synthetic byte streams with known identities: what a genome is trained and selected on.

A stream imitates what is common to logs, packets and events: a heavy-tailed set of templates with
filled-in fields, bursts, exact repeats at power-law lags, variants that differ in one field,
damaged bytes, and a world that drifts. Each stream draws its own statistics, so that no one
setting can be learned by heart. Owns the generator and the labels; knows nothing of vectors.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import Field, model_validator

from organism.config import Settings


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


@dataclass(frozen=True)
class Stream:
    """A labelled stream.

    Attributes:
        chunks: the bytes as observed, damage included.
        familiar: whether the identity behind each chunk was lived through earlier in this stream.
        unlived: chunks of the same world, damaged alike, that the stream never lived through.
    """

    chunks: list[bytes]
    familiar: list[bool]
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
    world = _World(config, rng)
    lived: list[bytes] = []
    known: set[bytes] = set()
    chunks: list[bytes] = []
    familiar: list[bool] = []
    for _ in range(steps):
        world.drift()
        if lived and rng.random() < repeat:
            if rng.random() < burst:
                identity = lived[-rng.randint(1, min(config.burst_span, len(lived)))]
            else:
                identity = lived[-_power_law(len(lived), lag_exponent, rng)]
        else:
            identity = world.chunk()
        familiar.append(identity in known)
        chunks.append(damage(identity, damaged, rng))
        lived.append(identity)
        known.add(identity)
    unlived: list[bytes] = []
    while len(unlived) < _UNLIVED:
        identity = world.chunk()
        if identity in known:
            identity = world.new_template().fill(0)
        if identity not in known:
            unlived.append(damage(identity, damaged, rng))
    return Stream(chunks, familiar, unlived)


def _power_law(highest: int, exponent: float, rng: random.Random) -> int:
    """Draw from {1, …, highest} with P(k) ∝ k^(−exponent), by inverting the continuous law."""
    u = rng.random()
    if abs(exponent - 1) < 1e-6:
        value = (highest + 1) ** u
    else:
        p = 1 - exponent
        value = (1 + u * ((highest + 1) ** p - 1)) ** (1 / p)
    return min(highest, int(value))


class _World:
    """Templates in use, chosen by a Pitman-Yor process [Pitman & Yor, Ann. Probab. 1997]."""

    def __init__(self, config: StreamConfig, rng: random.Random) -> None:
        self._rng = rng
        self._discount = rng.uniform(*config.discount)
        self._concentration = rng.uniform(*config.concentration)
        self._drift = rng.uniform(*config.drift)
        self._one_field = config.variant_fields
        self._binary = rng.random() < config.binary_streams
        self._vocabulary = _vocabulary(rng)
        self._prefix = self._draw_prefix()
        self._templates: list[_Template] = []
        self._counts: list[int] = []

    def drift(self) -> None:
        if self._templates and self._rng.random() < self._drift:
            gone = self._rng.randrange(len(self._templates))
            del self._templates[gone], self._counts[gone]

    def chunk(self) -> bytes:
        """Fill a template in: mostly an old one, by its popularity, sometimes a new one."""
        template = self._choose()
        return template.fill(self._one_field)

    def _choose(self) -> _Template:
        rng, used = self._rng, len(self._templates)
        total = sum(self._counts) + self._concentration
        place = rng.random() * total
        for i, count in enumerate(self._counts):
            place -= count - self._discount
            if place < 0:
                self._counts[i] += 1
                return self._templates[i]
        self._templates.append(self.new_template())
        self._counts.append(1)
        return self._templates[used]

    def new_template(self) -> _Template:
        """Draw a template in the style of this world, without taking it into use."""
        maker = _binary_template if self._binary else _text_template
        return maker(self._vocabulary, self._prefix, self._rng)

    def _draw_prefix(self) -> list[_Part]:
        """Parts that open every line of a world: none, a level, or a source and its number."""
        rng = self._rng
        style = rng.random()
        if style < 0.6:
            return []
        source = rng.choice(self._vocabulary)
        level = _pooled(lambda: rng.choice(["INFO", "WARN", "ERROR", "DEBUG"]).encode(), 4, rng)
        if style < 0.8:
            return [b"[", level, b"] "]
        return [source, b"[", _Field(_number, rng), b"]: "]


_Maker = Callable[[random.Random], bytes]


class _Field:
    """A slot of a template: values from a growing pool, or always fresh."""

    def __init__(self, maker: _Maker, rng: random.Random) -> None:
        self._maker = maker
        self._rng = rng
        self._fresh = rng.choice([0.05, 0.2, 0.5, 1.0])
        self._pool: list[bytes] = []

    def draw(self) -> bytes:
        if self._pool and self._rng.random() >= self._fresh:
            return self._rng.choice(self._pool)
        value = self._maker(self._rng)
        self._pool.append(value)
        return value


_Part = bytes | _Field


class _Template:
    """Fixed parts and fields; it keeps its last filling, to make variants of one field only."""

    def __init__(self, parts: list[_Part], rng: random.Random) -> None:
        self._parts = parts
        self._rng = rng
        self._fields = [i for i, part in enumerate(parts) if isinstance(part, _Field)]
        self._last: list[bytes] = []

    def fill(self, one_field: float) -> bytes:
        if self._last and self._fields and self._rng.random() < one_field:
            redrawn = {self._rng.choice(self._fields)}
        else:
            redrawn = set(self._fields)
        self._last = [
            part
            if isinstance(part, bytes)
            else part.draw()
            if i in redrawn or not self._last
            else self._last[i]
            for i, part in enumerate(self._parts)
        ]
        return b"".join(self._last)


def _pooled(maker: Callable[[], bytes], size: int, rng: random.Random) -> _Field:
    values = [maker() for _ in range(size)]
    return _Field(lambda r: r.choice(values), rng)


def _word(rng: random.Random) -> bytes:
    letters = "etaoinshrdlucmfwypvbgkqjxz"
    weights = [1 / (i + 2) for i in range(26)]
    word = "".join(rng.choices(letters, weights, k=rng.randint(2, 10)))
    style = rng.random()
    if style < 0.1:
        word = word.upper()
    elif style < 0.3:
        word = word.capitalize()
    return word.encode()


def _vocabulary(rng: random.Random) -> list[bytes]:
    """Words of one world; simple, compound (snake_case, dotted) and camel."""
    words = [_word(rng) for _ in range(rng.randint(40, 200))]
    for _ in range(len(words) // 4):
        glue = rng.choice([b"_", b".", b"-", b"::", b""])
        words.append(glue.join([rng.choice(words), rng.choice(words).capitalize()]))
    return words


def _number(rng: random.Random) -> bytes:
    return str(rng.randrange(10 ** rng.randint(1, 6))).encode()


def _hexadecimal(rng: random.Random) -> bytes:
    digits = rng.choice([2, 4, 8, 16])
    return b"%0*x" % (digits, rng.getrandbits(4 * digits))


def _address(rng: random.Random) -> bytes:
    return b"%d.%d.%d.%d" % tuple(rng.randrange(256) for _ in range(4))


def _path(rng: random.Random) -> bytes:
    parts = [_word(rng).lower() for _ in range(rng.randint(1, 4))]
    return b"/" + b"/".join(parts) + rng.choice([b"", b".log", b".conf", b".py", b"/"])


def _identifier(rng: random.Random) -> bytes:
    alphabet = string.ascii_lowercase + string.digits
    return "".join(rng.choices(alphabet, k=rng.randint(4, 16))).encode()


def _host(rng: random.Random) -> bytes:
    return b".".join(
        [_identifier(rng), _word(rng).lower(), rng.choice([b"com", b"net", b"org", b"local"])]
    )


def _clock(rng: random.Random) -> bytes:
    return b"%02d:%02d:%02d" % (rng.randrange(24), rng.randrange(60), rng.randrange(60))


def _decimal(rng: random.Random) -> bytes:
    return b"%.*f" % (rng.randint(1, 4), rng.uniform(0, 10 ** rng.randint(0, 4)))


_MAKERS: tuple[_Maker, ...] = (
    *(_number, _number, _number, _hexadecimal, _address, _path),
    *(_identifier, _host, _clock, _decimal, _word),
)


def _text_template(vocabulary: list[bytes], prefix: list[_Part], rng: random.Random) -> _Template:
    parts = list(prefix)
    field_share = rng.choice([0.0, 0.15, 0.3, 0.5])
    style = rng.random()
    for i in range(rng.randint(2, 14)):
        if i:
            parts.append(rng.choice([b" ", b" ", b" ", b": ", b", ", b" - "]))
        part: _Part = rng.choice(vocabulary)
        if rng.random() < field_share:
            part = _Field(rng.choice(_MAKERS), rng)
            if style < 0.4:
                parts += [rng.choice(vocabulary), rng.choice([b"=", b":", b'="', b"("])]
        parts.append(part)
    return _Template(parts, rng)


def _binary_template(vocabulary: list[bytes], prefix: list[_Part], rng: random.Random) -> _Template:
    """A record: a fixed header, then fixed and variable byte fields of any value, zero included."""
    del vocabulary, prefix

    def raw(length: int) -> _Maker:
        return lambda r: r.randbytes(length)

    parts: list[_Part] = [rng.randbytes(rng.randint(2, 8))]
    for _ in range(rng.randint(2, 8)):
        length = rng.choice([1, 2, 4, 8, 16])
        parts.append(_Field(raw(length), rng) if rng.random() < 0.4 else rng.randbytes(length))
    return _Template(parts, rng)
