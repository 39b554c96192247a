"""Trials: shared between processes, kept, and not done twice."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from organism.lab.trials import Trial, run


def squared(value: float) -> dict[str, float]:
    """Work for a trial: the square, and who found it."""
    return {"square": value * value, "process": os.getpid()}


def failing(value: float) -> dict[str, float]:
    """Work that cannot be done."""
    raise ValueError(f"no square of {value}")


def _trials(*values: float) -> list[Trial]:
    return [Trial(f"square of {value}", squared, {"value": value}) for value in values]


def test_what_is_kept_is_not_done_again(tmp_path: Path) -> None:
    """Another process does the work; a second call does only what is new, or was cut short."""
    kept = tmp_path / "made" / "trials.jsonl"
    first = run(_trials(2, 3), kept, 2)
    assert {name: result["square"] for name, result in first.items()} == {
        "square of 2": 4,
        "square of 3": 9,
    }
    assert os.getpid() not in {result["process"] for result in first.values()}
    lines = kept.read_text().splitlines(keepends=True)
    cut = json.loads(lines[-1])["name"]
    kept.write_text(lines[0] + lines[1][: len(lines[1]) // 2] + "\n")
    second = run(_trials(2, 3, 4), kept, 1)
    assert second["square of 4"]["square"] == 16
    same = {name for name in first if first[name] == second[name]}
    assert same == {"square of 2", "square of 3"} - {cut}
    assert run(_trials(2, 3, 4), kept, 1) == second


def test_other_arguments_are_another_trial() -> None:
    """A name alone does not make a result hold; nor does other work."""
    keys = {
        Trial("a", squared, {"value": 2}).key,
        Trial("a", squared, {"value": 3}).key,
        Trial("a", failing, {"value": 2}).key,
    }
    assert len(keys) == 3
    assert Trial("b", squared, {"value": 2}).key in keys


def test_what_fails_is_told_and_what_was_found_is_kept(tmp_path: Path) -> None:
    """The error of a trial ends the run."""
    kept = tmp_path / "trials.jsonl"
    with pytest.raises(ValueError, match="no square of 5"):
        run([*_trials(2), Trial("bad", failing, {"value": 5})], kept, 1)
    assert json.loads(kept.read_text())["name"] == "square of 2"


def test_equal_names_are_refused(tmp_path: Path) -> None:
    """One would hide the other's result."""
    with pytest.raises(ValueError, match="different names"):
        run(_trials(2, 2), tmp_path / "trials.jsonl", 1)
