"""Grammars of synthetic byte streams: templates, their fields, and the stamps that open lines.

A world is a heavy-tailed set of templates in one style, as the messages of one program are. Owns
how bytes are made up; knows nothing of what is lived, repeated or damaged.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable


class World:
    """Templates in use, chosen by a Pitman-Yor process [Pitman & Yor, Ann. Probab. 1997]."""

    def __init__(
        self,
        discount: float,
        concentration: float,
        drift: float,
        one_field: float,
        binary: bool,
        rng: random.Random,
    ) -> None:
        """Draw a vocabulary and a style.

        Args:
            discount: of the process.
            concentration: of the process.
            drift: chance a step that a template is forgotten for good.
            one_field: chance that a filling redraws one field only.
            binary: whether chunks are binary records, not lines.
            rng: source of all that is drawn.
        """
        self._rng = rng
        self._discount = discount
        self._concentration = concentration
        self._drift = drift
        self._one_field = one_field
        self._binary = binary
        self._vocabulary = _vocabulary(rng)
        self._prefix = self._draw_prefix()
        self._templates: list[Template] = []
        self._counts: list[int] = []

    def drift(self) -> None:
        """Forget a template, by chance."""
        if self._templates and self._rng.random() < self._drift:
            gone = self._rng.randrange(len(self._templates))
            del self._templates[gone], self._counts[gone]

    def chunk(self) -> tuple[bytes, bool]:
        """Fill a template in: mostly an old one, by its popularity, sometimes a new one.

        Returns:
            The chunk, and whether it differs from its template's last in one field only.
        """
        template = self._choose()
        return template.fill(self._one_field)

    def _choose(self) -> Template:
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

    def new_template(self) -> Template:
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


class Template:
    """Fixed parts and fields; it keeps its last filling, to make variants of one field only."""

    def __init__(self, parts: list[_Part], rng: random.Random) -> None:
        self._parts = parts
        self._rng = rng
        self._fields = [i for i, part in enumerate(parts) if isinstance(part, _Field)]
        self._last: list[bytes] = []

    def fill(self, one_field: float) -> tuple[bytes, bool]:
        """Fill the fields in, by chance one of them only; say whether it was one."""
        one = bool(self._last and self._fields) and self._rng.random() < one_field
        redrawn = {self._rng.choice(self._fields)} if one else set(self._fields)
        self._last = [
            part
            if isinstance(part, bytes)
            else part.draw()
            if i in redrawn or not self._last
            else self._last[i]
            for i, part in enumerate(self._parts)
        ]
        return b"".join(self._last), one


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


def _text_template(vocabulary: list[bytes], prefix: list[_Part], rng: random.Random) -> Template:
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
    return Template(parts, rng)


def _binary_template(vocabulary: list[bytes], prefix: list[_Part], rng: random.Random) -> Template:
    """A record: a fixed header, then fixed and variable byte fields of any value, zero included."""
    del vocabulary, prefix

    def raw(length: int) -> _Maker:
        return lambda r: r.randbytes(length)

    parts: list[_Part] = [rng.randbytes(rng.randint(2, 8))]
    for _ in range(rng.randint(2, 8)):
        length = rng.choice([1, 2, 4, 8, 16])
        parts.append(_Field(raw(length), rng) if rng.random() < 0.4 else rng.randbytes(length))
    return Template(parts, rng)


class Stamps:
    """What a logger puts before lines: time stamps in one format, as time goes on."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._style = rng.choice(["syslog", "iso", "bracketed", "epoch", "counter"])
        self._time = rng.randrange(2**30)
        self._mean_gap = 10 ** rng.uniform(-1.5, 2)
        self._host = _identifier(rng) if rng.random() < 0.7 else _word(rng).lower()
        self._year = 2000 + rng.randrange(30)
        self._level = [b"INFO", b"WARN", b"ERROR"] if rng.random() < 0.3 else []

    def next(self) -> bytes:
        """Stamp the next line, separator included."""
        rng = self._rng
        self._time += int(rng.expovariate(1 / self._mean_gap))
        t = self._time
        clock = b"%02d:%02d:%02d" % (t // 3600 % 24, t // 60 % 60, t % 60)
        month, day = t // (28 * 86400) % 12, t // 86400 % 28 + 1
        if self._style == "syslog":
            return b"%s %2d %s %s " % (_MONTHS[month], day, clock, self._host)
        if self._style == "iso":
            stamp = b"%d-%02d-%02d %s,%03d " % (
                self._year,
                month + 1,
                day,
                clock,
                rng.randrange(1000),
            )
            return stamp + (rng.choice(self._level) + b" " if self._level else b"")
        if self._style == "bracketed":
            weekday = _WEEKDAYS[t // 86400 % 7]
            return b"[%s %s %02d %s %d] " % (weekday, _MONTHS[month], day, clock, self._year)
        if self._style == "epoch":
            return b"%d.%03d " % (10**9 + t, rng.randrange(1000))
        return b"%08d %s " % (t % 10**8, clock)


_MONTHS = (
    *(b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun"),
    *(b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"),
)
_WEEKDAYS = (b"Thu", b"Fri", b"Sat", b"Sun", b"Mon", b"Tue", b"Wed")
