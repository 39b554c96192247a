"""Trials: independent pieces of work, shared between processes, kept as they end, not done twice.

Owns how long work is run, shown and gone on with; knows nothing of what a trial measures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from organism.fused import set_threads

_SHOWING = {"report.py", "drawing.py", "atlas.py", "__main__.py"}

Result = Mapping[str, Any]
"""What a trial found: plain values, as JSON has them."""


@dataclass(frozen=True)
class Trial:
    """One piece of work.

    Attributes:
        name: of it, unlike any other's; what its result is found by.
        work: a function of a module's top level.
        arguments: its keywords: plain values, as JSON has them.
    """

    name: str
    work: Callable[..., Result]
    arguments: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Digest of all that its result depends on: work, arguments and this package's sources."""
        asked = [self.work.__module__, self.work.__qualname__, self.arguments, _sources()]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def run(trials: Sequence[Trial], kept: Path, processes: int) -> dict[str, Result]:
    """Do what is not done yet, and return the results of all by name.

    Args:
        trials: any number, of different names.
        kept: file of results, one JSON object a line; those in it that still hold are not found
            again, and each new one is added as it comes.
        processes: how many work side by side, each on one thread.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was found by then is kept.
    """
    if len({trial.name for trial in trials}) < len(trials):
        raise ValueError("trials need different names")
    known = _read(kept)
    done = {trial.name: known[trial.key] for trial in trials if trial.key in known}
    waiting = [trial for trial in trials if trial.name not in done]
    kept.parent.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with (
        kept.open("a") as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
        ProcessPoolExecutor(processes, get_context("spawn"), set_threads, (1,)) as pool,
    ):
        bar = progress.add_task("trials", total=len(trials), completed=len(done))
        futures: dict[Future[Result], Trial] = {
            pool.submit(trial.work, **trial.arguments): trial for trial in waiting
        }
        try:
            for future in as_completed(futures):
                trial = futures[future]
                done[trial.name] = future.result()
                line = {"key": trial.key, "name": trial.name, "result": done[trial.name]}
                print(json.dumps(line), file=file, flush=True)
                progress.update(bar, advance=1, description=trial.name)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return done


def _read(kept: Path) -> dict[str, Result]:
    """Results by key; a last line that was cut short is none."""
    known: dict[str, Result] = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            try:
                entry = json.loads(line)
            except json.JSONDecodeError:
                continue
            known[entry["key"]] = entry["result"]
    return known


@lru_cache(maxsize=1)
def _sources() -> str:
    """Digest of the science: a result of other code does not hold. How it is shown may change."""
    package = Path(__file__).resolve().parents[1]
    whole = hashlib.sha256()
    for source in sorted(package.rglob("*.py")):
        if source.name not in _SHOWING:
            whole.update(source.read_bytes())
    return whole.hexdigest()
