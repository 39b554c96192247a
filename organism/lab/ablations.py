"""Ablations that the original never ran, on its task and on familiarity at ρ = 0.

One mechanism at a time is taken away or put in another's place, and the genome trained anew. Owns
the changes and their verdicts; trained as ``organism.lab.tables`` trains.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from organism.lab.drawing import new_figure
from organism.lab.report import Drawing, Report, Table, spread
from organism.lab.tables import changed, trained
from organism.lab.trials import Result, Trial

FULL = "full model"

_OUTER_STEPS = {"projection": 100, "familiarity": 150}
_POLYNOMIAL = {
    "family": "polynomial",
    "initialisation": "hebb",
    "post_exponent": 3,
    "weight_exponent": 2,
}
_MLP = {"family": "mlp", "initialisation": "torch", "initialisation_noise": 0.0}


def _cortex(**settings: Any) -> dict[str, Any]:
    return {"genome": {"cortex": settings}}


def _rule(**settings: Any) -> dict[str, Any]:
    return {"genome": {"rule": settings}}


# Both start from what works: on the projection task rows are normalised and metabolism is off, on
# familiarity columns are, memories are off and metabolism is on.
_CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "projection": {
        FULL: {},
        "no entropy modulation": _cortex(entropy_modulation=False),
        "metabolic balance on": _cortex(metabolism=True),
        "no memories": _cortex(memory=False),
        "normalised by column": _cortex(normalisation="column"),
        "normalised as a whole": _cortex(normalisation="frobenius"),
        "not normalised": _cortex(normalisation="none"),
        "inputs not scaled": _rule(scaling="none"),
        "inputs scaled by their rms": _rule(scaling="rms"),
        "polynomial, not mlp": _rule(**_POLYNOMIAL),
    },
    "familiarity": {
        FULL: {},
        "no entropy modulation": _cortex(entropy_modulation=False),
        "no metabolic balance": _cortex(metabolism=False),
        "the original's memories": _cortex(memory=True),
        "normalised by row": _cortex(normalisation="row"),
        "normalised as a whole": _cortex(normalisation="frobenius"),
        "not normalised": _cortex(normalisation="none"),
        "inputs not scaled": _rule(scaling="none"),
        "inputs scaled by their rms": _rule(scaling="rms"),
        "mlp, not polynomial": _rule(**_MLP),
    },
}
_PRESETS = {"projection": "original", "familiarity": "dense"}
_FIGURES = {
    "projection": ("bank_nmse", "fresh_nmse"),
    "familiarity": (
        "held_out_auroc",
        "held_out_plain_auroc",
        "held_out_damaged_auroc",
        "held_out_stamped_auroc",
    ),
}
_TITLES = {
    "projection": "The original's task, mended: NMSE, less is better",
    "familiarity": "Familiarity at ρ = 0, all columns learning: held-out AUROC, more is better",
}
_SIGN = {"projection": -1, "familiarity": 1}
_STANDARD_ERRORS = 2.0


def trials(seeds: int) -> list[Trial]:
    """Every change of either task, from so many seeds."""
    found = []
    for task, changes in _CHANGES.items():
        steps = _OUTER_STEPS[task]
        for name, change in changes.items():
            settings = changed(_PRESETS[task], {"outer_steps": steps, **change})
            for seed in range(seeds):
                arguments = {"settings": settings, "seed": seed, "episodes": [steps]}
                found.append(Trial(f"{task}, {name}, seed {seed}", trained, arguments))
    return found


def report(results: Mapping[str, Result], seeds: int) -> Report:
    """Lay the findings out.

    Args:
        results: of all trials, by name.
        seeds: how many, from 0.
    """
    parts: list[Any] = []
    figures: dict[str, Any] = {}
    matters: list[str] = []
    for task in _CHANGES:
        rows = _rows(results, task, seeds)
        parts += [_table(task, rows), _drawing(task, rows)]
        figures[task] = {row.name: fmean(row.values[0]) for row in rows}
        harmful = [row.name for row in rows if row.verdict.startswith("worse")]
        matters.append(f"{task}: {', '.join(harmful) or 'none'}")
    summary = f"Changes that make it worse, beyond two standard errors. {'; '.join(matters)}."
    return Report("Ablations", summary, f"0 to {seeds - 1}", parts, figures)


@dataclass(frozen=True)
class _Row:
    """A change, its figures over the seeds, ``(figures, seeds)``, and what is said of it."""

    name: str
    values: list[list[float]]
    verdict: str


def _rows(results: Mapping[str, Result], task: str, seeds: int) -> list[_Row]:
    steps = str(_OUTER_STEPS[task])

    def values(name: str) -> list[list[float]]:
        courses = [results[f"{task}, {name}, seed {seed}"]["course"] for seed in range(seeds)]
        ends = [course.get(steps, {}) for course in courses]
        return [[_number(end.get(figure)) for end in ends] for figure in _FIGURES[task]]

    full = values(FULL)[0]
    return [
        _Row(name, found, "" if name == FULL else _verdict(task, found[0], full))
        for name in _CHANGES[task]
        for found in [values(name)]
    ]


def _number(value: float | None) -> float:
    """A figure; one that is not there, or is none, is as bad as can be told."""
    return math.nan if value is None else float(value)


def _verdict(task: str, values: Sequence[float], full: Sequence[float]) -> str:
    """The difference over equal seeds, and whether it is more than noise."""
    if not all(map(math.isfinite, values)):
        lost = sum(not math.isfinite(value) for value in values)
        return f"worse: {lost} of {len(values)} runs gave no number"
    differences = [value - whole for value, whole in zip(values, full, strict=True)]
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    if abs(mean) <= _STANDARD_ERRORS * error:
        return f"no measurable difference ({mean:+.4f} ± {error:.4f})"
    better = mean * _SIGN[task] > 0
    return f"{'better' if better else 'worse'}, {mean:+.4f} ± {error:.4f}"


def _table(task: str, rows: Sequence[_Row]) -> Table:
    head = [figure.removeprefix("held_out_").replace("_", " ") for figure in _FIGURES[task]]
    cells = [[row.name, *(spread(values, 4) for values in row.values), row.verdict] for row in rows]
    return Table(
        _TITLES[task],
        ("change", *head, "verdict"),
        cells,
        "Mean ± standard deviation over the seeds. The verdict is of the first figure: the mean "
        "difference from the full model at the same seed, ± its standard error.",
    )


def _drawing(task: str, rows: Sequence[_Row]) -> Drawing:
    figure, panels = new_figure(0.6 + 0.35 * len(rows))
    panel = panels[0][0]
    for place, row in enumerate(rows):
        finite = [value for value in row.values[0] if math.isfinite(value)]
        panel.plot(finite, [place] * len(finite), "o", color="C0", alpha=0.4)
        if finite:
            panel.plot(fmean(finite), place, "|", color="black", markersize=16)
        else:
            middle = panel.get_yaxis_transform()
            panel.text(0.5, place, "no run gave a number", transform=middle, va="center")
    panel.axvline(fmean(rows[0].values[0]), color="0.7", linewidth=0.8, zorder=0)
    panel.set_yticks(range(len(rows)), [row.name for row in rows])
    panel.invert_yaxis()
    if task == "projection":
        panel.set_xscale("log")
    panel.set(xlabel=_TITLES[task])
    caption = "Each seed, and the mean of all; the line is the full model's"
    return Drawing(f"ablations-{task}", caption, figure)
