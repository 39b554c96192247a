"""The original's tables, measured: convergence, ablations, leaking memories.

Each claim is run as the original writes it (preset ``original-literal``) and mended (preset
``original``: the row norm, scaled inputs, the whole bank in each episode, a faster Adam). Owns the
claims and their verdicts; knows nothing of how trials are shared out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from organism.genome import new_genome
from organism.lab.report import Report, Table, spread
from organism.lab.trials import Result, Trial
from organism.meta_train import Run, TrainingError
from organism.presets import PRESETS, MetaTrainConfig

Way = Literal["original-literal", "original"]

WAYS: dict[Way, str] = {"original-literal": "as written", "original": "mended"}
EPISODES = (10, 30, 50, 100)

_CLAIMED_CONVERGENCE = {
    10: (0.8523, 0.9124),
    30: (0.4231, 0.5012),
    50: (0.1782, 0.2456),
    100: (0.0342, 0.0891),
}
# Train and validation loss; None: diverged.
_CLAIMED_ABLATIONS: dict[str, tuple[float, float] | None] = {
    "full model": (0.0342, 0.0891),
    "no weight normalisation": None,
    "no teacher forcing": (0.2134, 0.3521),
    "random genome, frozen": (0.7892, 0.8124),
    "hidden 64": (0.0298, 0.0923),
}
_CHANGES: dict[str, dict[str, Any]] = {
    "full model": {},
    "no weight normalisation": {"genome": {"cortex": {"normalisation": "none"}}},
    "no teacher forcing": {"projection": {"teacher_forcing": False}},
    "random genome, frozen": {"outer_steps": 0},
    "hidden 64": {"genome": {"rule": {"hidden": 64}}},
}
# Why a claim fails, where it does.
_REASONS = {
    "no weight normalisation": "five steps are too few for W to run away",
    "no teacher forcing": "the full model itself hardly recalls",
    "random genome, frozen": "the full model itself hardly recalls",
    "hidden 64": "after 100 episodes neither has converged, and the larger one learns faster",
    "memories leak": "to the rule, what leaks is one more random input",
}
_LEAK: dict[str, dict[str, Any]] = {
    "memories reset": {"projection": {"whole_bank": False}},
    "memories leak": {"projection": {"whole_bank": False, "leaking": True}},
}
# An answer this much worse than zero has blown up, finite or not.
_BLOWN_UP = 10.0
_MARGINAL = 0.25
# A claim of a large difference stands where at least half of it, in log, is there.
_LARGE = 2.0


def changed(way: str, change: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a preset with some of them changed, groups and all."""

    def merged(base: dict[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
        both = dict(base)
        for name, value in over.items():
            inner = isinstance(value, Mapping)
            both[name] = merged(both[name], value) if inner else value
        return both

    settings: dict[str, dict[str, Any]] = {n: p.model_dump(mode="json") for n, p in PRESETS.items()}
    return merged(settings[way], change)


def trained(settings: Mapping[str, Any], seed: int, episodes: Sequence[int]) -> Result:
    """Train from a seed, and measure after some of the episodes.

    Returns:
        ``course``: held-out figures by episode, as far as it came; ``failed``: why it ended before.
    """
    config = MetaTrainConfig.model_validate({**settings, "seed": seed})
    run = Run(config, new_genome(config.genome, seed), "cpu")
    course: dict[str, Any] = {}
    failed = None
    try:
        for episode in range(config.outer_steps + 1):
            if episode in episodes or episode == config.outer_steps:
                course[str(episode)] = run.task.held_out(run.genome)
            if episode < config.outer_steps:
                run.outer_step()
    except TrainingError as error:
        failed = str(error)
    return {"course": course, "failed": failed, "skipped": run.skipped}


def trials(seeds: int) -> list[Trial]:
    """Every row from so many seeds."""
    found = []
    for seed in range(seeds):
        for way in WAYS:
            for name, change in {**_CHANGES, **_LEAK}.items():
                arguments = {"settings": changed(way, change), "seed": seed, "episodes": EPISODES}
                found.append(Trial(f"{way}, {name}, seed {seed}", trained, arguments))
    return found


@dataclass(frozen=True)
class _Figures:
    """One row of one way, over the seeds."""

    bank_mse: list[float]
    fresh_mse: list[float]
    bank_nmse: list[float]
    fresh_nmse: list[float]
    zero_mse: float
    failures: int

    @property
    def cells(self) -> list[str]:
        mse = [f"{spread(self.bank_mse, 4)} / {spread(self.fresh_mse, 4)}"]
        return [*mse, f"{spread(self.bank_nmse)} / {spread(self.fresh_nmse)}"]

    @property
    def nmse(self) -> float:
        finite = [value for value in self.bank_nmse if math.isfinite(value)]
        return fmean(finite) if finite else math.inf


def _figures(
    results: Mapping[str, Result], way: str, name: str, seeds: int, episode: int
) -> _Figures:
    columns: dict[str, list[float]] = {
        key: [] for key in ("bank_mse", "fresh_mse", "bank_nmse", "fresh_nmse", "zero_mse")
    }
    failures = 0
    for seed in range(seeds):
        result = results[f"{way}, {name}, seed {seed}"]
        found = result["course"].get(str(episode), {})
        for key, values in columns.items():
            values.append(float(found.get(key, math.inf)))
        failures += not columns["bank_nmse"][-1] < _BLOWN_UP or bool(result["skipped"])
    zero = columns.pop("zero_mse")
    return _Figures(**columns, zero_mse=fmean(z for z in zero if z < math.inf), failures=failures)


def report(
    results: Mapping[str, Result], seeds: int, others: Sequence[Table], tuned_on: Sequence[int]
) -> Report:
    """Lay the findings out.

    Args:
        results: of all trials, by name.
        seeds: how many, from 0.
        others: tables of what is measured elsewhere, to come after these.
        tuned_on: seeds that something in those was tuned on.
    """
    full = _figures(results, "original", "full model", seeds, EPISODES[-1])
    literal = _figures(results, "original-literal", "full model", seeds, EPISODES[-1])
    summary = (
        f"The original's losses cannot be those of its task: answering zero scores "
        f"{literal.zero_mse:.4f} there, and the table starts at .85. As written, the model ends at "
        f"NMSE {spread(literal.bank_nmse)} on the bank; mended, at {spread(full.bank_nmse)}, and "
        f"{spread(full.fresh_nmse)} on fresh pairs."
    )
    parts: list[Any] = [
        _convergence(results, seeds),
        _ablations(results, seeds),
        _leak(results, seeds),
        *others,
    ]
    figures = {
        f"{where}_nmse": fmean(values)
        for where, values in (("bank", full.bank_nmse), ("fresh", full.fresh_nmse))
    }
    used = f"0 to {seeds - 1}; gradient descent tuned on {', '.join(map(str, tuned_on))}"
    return Report("The original's tables, measured", summary, used, parts, figures)


_HEAD = (
    "row",
    "claimed MSE, bank / fresh",
    "as written: MSE",
    "as written: NMSE",
    "mended: MSE",
    "mended: NMSE",
    "verdict",
)


def _convergence(results: Mapping[str, Result], seeds: int) -> Table:
    rows = []
    for episode, (train, validation) in _CLAIMED_CONVERGENCE.items():
        both = [_figures(results, way, "full model", seeds, episode) for way in WAYS]
        zero = both[0].zero_mse
        if train > _LARGE * zero:
            verdict = f"fails: {train / zero:.0f} times what answering zero scores ({zero:.4f})"
        else:
            verdict = f"is what answering zero scores ({zero:.4f}), not near-perfect recall"
        cells = [cell for figures in both for cell in figures.cells]
        rows.append([str(episode), f"{train:.4f} / {validation:.4f}", *cells, verdict])
    return Table(
        "Convergence [D26 §8.2]: loss after so many episodes",
        ("episodes", *_HEAD[1:]),
        rows,
        "Bank / fresh; mean ± standard deviation over the seeds. NMSE = MSE / mean(target²): 1 is "
        "what answering zero scores.",
    )


def _ablations(results: Mapping[str, Result], seeds: int) -> Table:
    full = {way: _figures(results, way, "full model", seeds, EPISODES[-1]) for way in WAYS}
    rows = []
    for name, claim in _CLAIMED_ABLATIONS.items():
        episode = 0 if "frozen" in name else EPISODES[-1]
        both = {way: _figures(results, way, name, seeds, episode) for way in WAYS}
        claimed = f"{claim[0]:.4f} / {claim[1]:.4f}" if claim else "diverged"
        cells = [cell for way in WAYS for cell in both[way].cells]
        verdict = "; ".join(
            f"{words}: {_ablation_verdict(name, both[way], full[way], seeds)}"
            for way, words in WAYS.items()
        )
        rows.append([name, claimed, *cells, verdict])
    return Table("Ablations [D26 §8.3]: loss after 100 episodes", _HEAD, rows)


def _ablation_verdict(name: str, found: _Figures, full: _Figures, seeds: int) -> str:
    """Whether the direction that is claimed is there, in NMSE on the bank."""
    if name == "full model":
        return f"NMSE {full.nmse:.3f}, {'recalls' if full.nmse < 0.1 else 'hardly recalls'}"
    if _CLAIMED_ABLATIONS[name] is None:
        told = f"{found.failures} of {seeds} blew up"
        if 0 < found.failures < seeds:
            return f"holds in part, {told}"
        return _judged(found.failures == seeds, told, name)
    ratio = found.nmse / full.nmse
    marginal = abs(math.log(ratio)) < math.log1p(_MARGINAL)
    holds = marginal if name == "hidden 64" else ratio > _LARGE
    return _judged(holds, f"{ratio:.2f} times the full model's error", name)


def _judged(holds: bool, told: str, name: str) -> str:
    return f"holds, {told}" if holds else f"fails, {told}: {_REASONS[name]}"


def _leak(results: Mapping[str, Result], seeds: int) -> Table:
    rows = []
    for way, words in WAYS.items():
        both = {name: _figures(results, way, name, seeds, EPISODES[-1]) for name in _LEAK}
        ratio = both["memories leak"].nmse / both["memories reset"].nmse
        told = f"{ratio:.2f} times the error without a leak"
        verdict = _judged(ratio > 1 + _MARGINAL, told, "memories leak")
        for name, figures in both.items():
            rows.append([f"{words}, {name}", *figures.cells, verdict if "leak" in name else ""])
    return Table(
        "Leaking memories [D26 §6.3]: one pair an episode, measured on newborns",
        ("row", "MSE, bank / fresh", "NMSE, bank / fresh", "verdict: leaking harms"),
        rows,
        "Memories either start at zero with each episode, or go on from the one before.",
    )
