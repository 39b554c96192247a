"""The organism on a terminal, watched: its pulses, drawn as they come. Keeps nothing."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from server.client import Organism, Refused, Unreachable
from server.wire import Pulse

_RECONNECT_EVERY_S = 1.0
_SPARKS = "▁▂▃▄▅▆▇█"
_HISTORY = 240
_NOVEL = 8
_UNAVAILABLE = 503
_CONTROLS = {code: 0x2400 + code for code in range(0x20) if code != 0x09}
_CONTROLS |= {0x7F: 0x2421} | {code: 0xFFFD for code in range(0x80, 0xA0)}


def printable(text: str) -> str:
    """Text with pictures for control characters: none of a stream may steer the terminal."""
    return text.translate(_CONTROLS)


def pulses(organism: Organism, count: int | None) -> Iterator[Pulse | None]:
    """Pulses; None while the daemon is away, which the first time it may not be."""
    seen = 0
    while True:
        try:
            for pulse in organism.events():
                yield pulse
                seen += 1
                if seen == count:
                    return
        except (Unreachable, Refused) as error:
            if not seen or (isinstance(error, Refused) and error.status != _UNAVAILABLE):
                raise
        yield None
        time.sleep(_RECONNECT_EVERY_S)


def line(pulse: Pulse) -> str:
    """Put a pulse on a line."""
    return (
        f"offset {pulse.offset}  chunks/s {_number(pulse.chunks_per_s, 0)}  "
        f"familiarity {_number(pulse.familiarity)}  entropy {_number(pulse.entropy)}  "
        f"β {_number(pulse.beta)}  recall AUROC {_number(pulse.recall.auroc)}"
    )


def watch_live(organism: Organism, count: int | None, console: Console) -> None:
    """Draw the organism on a terminal, pulse by pulse."""
    past: deque[Pulse] = deque(maxlen=_HISTORY)
    with Live(console=console, auto_refresh=False, transient=False) as live:
        for pulse in pulses(organism, count):
            if pulse is not None:
                past.append(pulse)
            live.update(_view([*past], console.width, away=pulse is None), refresh=True)


def _view(past: list[Pulse], width: int, away: bool) -> Group:
    pulse = past[-1]
    state = "learning" if pulse.ready else f"recovering, {pulse.recovery:.0%}"
    state = "away" if away else state
    head = Text(f"{state}   offset {pulse.offset:,}   chunks {pulse.steps:,}", "bold")
    rows = Table(box=None, show_header=False, pad_edge=False)
    for name, now, values in (
        ("chunks a second", _number(pulse.chunks_per_s, 0), [p.chunks_per_s for p in past]),
        ("familiarity", _number(pulse.familiarity), [p.familiarity for p in past]),
        ("entropy std(h)", _number(pulse.entropy), [p.entropy for p in past]),
        ("metabolic β", _number(pulse.beta), [p.beta for p in past]),
    ):
        rows.add_row(Text(name, "dim"), f"{now:>8}", sparkline(values, max(width - 30, 8)))
    found = pulse.recall
    live = Text(
        f"live recall   AUROC {_number(found.auroc)}   top-1 {_number(found.top1)}   "
        f"error {_number(found.error)}"
    )
    novel = Table(box=None, pad_edge=False, header_style="dim")
    novel.add_column("familiarity", justify="right", no_wrap=True, min_width=11)
    novel.add_column("ago", justify="right", no_wrap=True, min_width=5)
    novel.add_column("most novel of the last minutes", overflow="ellipsis", no_wrap=True)
    for item in pulse.novel[:_NOVEL]:
        novel.add_row(f"{item.familiarity:.3f}", f"{item.age_s:.0f} s", Text(printable(item.text)))
    return Group(head, rows, live, novel)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Draw the last values as bars from their least to their greatest; a gap where there is none.

    >>> sparkline([0.0, None, 1.0], 3)
    '▁ █'
    """
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    low, span = min(known, default=0.0), (max(known, default=0.0) - min(known, default=0.0)) or 1
    return "".join(
        " " if value is None else _SPARKS[round((value - low) / span * (len(_SPARKS) - 1))]
        for value in shown
    )


def _number(value: float | None, digits: int = 3) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
