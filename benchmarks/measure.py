"""Timing side by side, and the report that every benchmark ends with.

Machines are shared and noisy, so that a bare time says little. Contestants take turns, round by
round; a ratio is taken within each round, and its median and range over rounds are reported.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from organism.figures import to_json

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Figure:
    """A figure that a promise is about.

    Attributes:
        name: its key in the JSON.
        rounds: its value in each round.
        bound: what is promised, in words.
    """

    name: str
    rounds: Sequence[float]
    bound: str = ""

    @property
    def median(self) -> float:
        """Median over rounds."""
        return statistics.median(self.rounds)


def take_turns(
    contestants: Mapping[str, Callable[[], float]], rounds: int
) -> dict[str, list[float]]:
    """Let each contestant measure itself once a round, in turn, after one round of warming up."""
    for contestant in contestants.values():
        contestant()
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            found[name].append(contestant())
    return found


def seconds_a_call(function: Callable[[], object], at_least_s: float = 0.1) -> Callable[[], float]:
    """Return what times a function: calls it for a while and gives the mean seconds of a call."""

    def measure() -> float:
        calls, start = 0, time.perf_counter()
        while True:
            function()
            calls += 1
            elapsed = time.perf_counter() - start
            if elapsed >= at_least_s:
                return elapsed / calls

    return measure


def quotients(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Ratio of two contestants in each round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def parser(description: str | None, rounds: int = 7) -> argparse.ArgumentParser:
    """Options that every benchmark has."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--json", action="store_true", help="print one JSON object")
    made.add_argument("--rounds", type=int, default=rounds, help="turns that each contestant takes")
    return made


def report(
    title: str, figures: Sequence[Figure], details: Mapping[str, Any], as_json: bool
) -> None:
    """Print the figures, their range over rounds, and what they were measured on."""
    setting = {"commit": _commit(), "machine": _machine(), **details}
    if as_json:
        medians = {figure.name: figure.median for figure in figures}
        ranges = {f.name: [min(f.rounds), max(f.rounds)] for f in figures}
        print(to_json({**medians, "range": ranges, "rounds": len(figures[0].rounds), **setting}))
        return
    table = Table(title=title)
    for column in ("figure", "median", "range", "promise"):
        table.add_column(column, justify="left" if column in ("figure", "promise") else "right")
    for f in figures:
        spread = f"{min(f.rounds):.4g} to {max(f.rounds):.4g}"
        table.add_row(f.name, f"{f.median:.4g}", spread, f.bound)
    console = Console()
    console.print(table)
    for name, value in setting.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        console.print(f"{name}: {shown}", highlight=False, markup=False)


def _commit() -> str:
    """Commit that was measured; a star where the tree has changed since."""
    git = ["git", "-C", str(ROOT)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("*" if changed.stdout.strip() else "")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [x for x in cpuinfo.read_text().splitlines() if x.startswith("model name")]
        model = names[0].split(":", 1)[1].strip() if names else model
    return f"{os.cpu_count()} × {model}, Python {platform.python_version()}"
