"""The report of a rule's anatomy: ``python -m organism.lab anatomy GENOME``.

Owns its figures and words, and the symbolic form's trial in the genome's place; what is measured of
a rule stands in ``organism.lab.anatomy``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from organism.config import RuleConfig
from organism.genome import Genome
from organism.lab.anatomy import (
    REACH,
    FixedPoint,
    Sample,
    World,
    answers,
    box,
    decay,
    distilled,
    faces,
    fixed_points,
    form,
    hebbian,
    projections,
    r_squared,
    visited,
)
from organism.lab.drawing import legend_below, new_figure
from organism.lab.report import Drawing, Report, Table
from organism.portrait import name_of
from organism.presets import PRESETS
from organism.rules import Powers, Theta, polynomial_rule
from organism.tasks.association import AssociationTask
from organism.tasks.familiarity import FamiliarityTask
from organism.tasks.projection import ProjectionTask
from organism.tasks.protocol import Task

_LEVELS_W = (-2.0, -1.0, 0.0, 1.0, 2.0)
_LEVELS_POST = (-2.0, -1.0, 0.0, 1.0, 2.0)
_ACTIVITIES = ((0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0), (1.0, -1.0), (2.0, 2.0))
_POINTS = 61
_SHOWN_POINTS = 3000
_FITTED, _CHECKED = range(2)
_CLAIMED_HEBBIAN, _CLAIMED_DECAY = 0.3, -0.1
_SCORES: Mapping[World, str] = {
    "familiarity": "held_out_auroc",
    "projection": "fresh_nmse",
    "association": "held_out_cosine",
}


def report(genome: Genome, path: Path, world: World) -> Report:
    """Take a rule apart.

    Args:
        genome: whose rule.
        path: of its file, as it is named.
        world: what it lives through; also the task that the symbolic form is tried on.
    """
    samples, checks = visited(genome, world, _FITTED), visited(genome, world, _CHECKED)
    terms = {face: distilled(sample) for face, sample in samples.items()}
    fidelity = {
        face: r_squared(form(terms[face], check), check.delta) for face, check in checks.items()
    }
    score = _SCORES[world]
    task = _task(genome, world)
    own, symbolic = (task.held_out(g)[score] for g in (genome, symbolic_genome(genome, terms)))
    figures = {
        "score": score,
        "genome": own,
        "symbolic": symbolic,
        "difference": symbolic - own,
        "fidelity": fidelity,
        "terms": {f: {name_of(p): c for p, c in found.items()} for f, found in terms.items()},
    }
    written = "; ".join(
        f"{face + ': ' if face else ''}Δw ≈ {written_form(found)}" for face, found in terms.items()
    )
    summary = (
        f"Within six terms, where it lives ({world}): {written}. That explains "
        f"{', '.join(format(value, '.3f') for value in fidelity.values())} of its answers; in the "
        f"genome's place it scores {score.replace('_', ' ')} {symbolic:.4f}, the genome {own:.4f}."
    )
    parts: list[Any] = [
        _over_pre_and_post(genome),
        _over_pre_and_w(genome),
        _regimes(genome, samples),
        _named(genome, samples),
        _form_table(terms, samples),
        _form_drawing(terms, checks),
        *_one_synapse(genome),
        "All in scaled units, in which pre, post and w are of unit size; before the rate α.",
    ]
    seeds = f"{_FITTED} for what is fitted, {_CHECKED} for the form's fidelity; points of the box 0"
    title = f"Anatomy of {path.name} ({genome.config.rule.family}, {genome.sha256[:12]})"
    return Report(title, summary, seeds, parts, figures)


def symbolic_genome(genome: Genome, terms: Mapping[str, Mapping[Powers, float]]) -> Genome:
    """The genome with a sum of terms for a rule; all else stays, readout included."""
    config: RuleConfig = genome.config.rule
    highest = [max(p[k] for found in terms.values() for p in found) for k in range(3)]
    changes = {
        "family": "polynomial",
        "initialisation": "hebb",
        "pre_exponent": max(highest[0], 1),
        "post_exponent": max(highest[1], 1),
        "weight_exponent": highest[2],
    }
    rule = config.model_copy(update=changes)
    polynomial = polynomial_rule(rule)
    faced = {face: polynomial.coefficients(found) for face, found in terms.items()}
    theta = {n: t for n, t in genome.theta.items() if not n.startswith("rule.")}
    if config.phases:
        clamped, free = faced["clamped"], faced["free"]
        theta["rule.coefficients"] = (clamped + free) / 2
        theta["rule.phase_coefficients"] = (clamped - free) / 2
    else:
        (theta["rule.coefficients"],) = faced.values()
    return Genome(genome.config.model_copy(update={"rule": rule}), theta)


def written_form(terms: Mapping[Powers, float]) -> str:
    """Write a sum of terms, the largest first.

    >>> written_form({(1, 1, 0): -2.0, (0, 0, 1): 0.5})
    '−2.000·pre·post + 0.500·w'
    """
    ordered = sorted(terms.items(), key=lambda item: -abs(item[1]))
    text = "".join(
        f" {'−' if value < 0 else '+'} {abs(value):.3f}"
        + (f"·{name_of(powers)}" if any(powers) else "")
        for powers, value in ordered
    )
    return text.removeprefix(" + ") if text.startswith(" + ") else "−" + text.removeprefix(" − ")


def _task(genome: Genome, world: World) -> Task:
    if world == "familiarity":
        return FamiliarityTask(PRESETS["dense"].familiarity, genome.config, 0)
    if world == "projection":
        return ProjectionTask(PRESETS["original"].projection, genome.config, 0)
    return AssociationTask(PRESETS["association"].association, genome.config, 0)


def _grid(genome: Genome, theta: Theta, held: str, level: float) -> np.ndarray[Any, Any]:
    """G on a grid: pre down, and across it post, or w where post is held at a level."""
    axis = torch.linspace(-REACH, REACH, _POINTS, dtype=torch.float64)
    down, across = (part.flatten() for part in torch.meshgrid(axis, axis, indexing="ij"))
    same = torch.full_like(down, level)
    post, w = (across, same) if held == "w" else (same, across)
    grid: np.ndarray[Any, Any] = answers(genome, theta, down, post, w).view(_POINTS, -1).numpy()
    return grid


def _maps(genome: Genome, held: str, levels: tuple[float, ...], across: str) -> Any:
    rows = faces(genome)
    grids = {
        (face, level): _grid(genome, theta, held, level)
        for face, theta in rows.items()
        for level in levels
    }
    bound = max(float(np.abs(grid).max()) for grid in grids.values()) or 1.0
    figure, panels = new_figure(0.6 + 2.4 * len(rows), len(rows), len(levels), sharey=True)
    for row, face in zip(panels, rows, strict=True):
        for panel, level in zip(row, levels, strict=True):
            image = panel.imshow(
                grids[face, level],
                origin="lower",
                extent=(-REACH, REACH, -REACH, REACH),
                cmap="RdBu_r",
                vmin=-bound,
                vmax=bound,
            )
            panel.contour(
                grids[face, level],
                levels=[0],
                extent=(-REACH, REACH, -REACH, REACH),
                colors="black",
                linewidths=0.8,
            )
            panel.set(title=f"{held} = {level:g}", xlabel=across)
        row[0].set_ylabel(f"pre{', ' + face if face else ''}")
    figure.colorbar(image, ax=panels, label="Δw: red up, blue down", shrink=0.8)
    return figure


def _over_pre_and_post(genome: Genome) -> Drawing:
    figure = _maps(genome, "w", _LEVELS_W, "post")
    caption = "Δw over pre and post, at five weights; the line is where nothing changes"
    return Drawing("over-pre-and-post", caption, figure)


def _over_pre_and_w(genome: Genome) -> Drawing:
    figure = _maps(genome, "post", _LEVELS_POST, "w")
    return Drawing("over-pre-and-w", "Δw over pre and w, at five values of post", figure)


def _regimes(genome: Genome, samples: Mapping[str, Sample]) -> Table:
    rows = []
    for face, theta in faces(genome).items():
        places = {"in the box": box(genome, theta)}
        if face in samples:
            places["where it lives"] = samples[face]
        for place, sample in places.items():
            found = hebbian(sample), decay(sample)
            verdicts = [
                "holds" if fit.low <= claim <= fit.high else "fails"
                for fit, claim in zip(found, (_CLAIMED_HEBBIAN, _CLAIMED_DECAY), strict=True)
            ]
            name = f"{face}, {place}" if face else place
            rows.append([name, str(found[0]), verdicts[0], str(found[1]), verdicts[1]])
    return Table(
        "Regimes [D26 §8.4]: pre·post near w = 0, and w where it is large",
        (
            "sample",
            "coefficient of pre·post, |w| < 0.25",
            f"claimed {_CLAIMED_HEBBIAN:+g}",
            "coefficient of w, |w| > 1",
            f"claimed {_CLAIMED_DECAY:+g}",
        ),
        rows,
        "Least squares of pre·post, w and 1 together; in brackets 95% of bootstrap samples. The "
        "original gives no way in which it found its coefficients. The claims are in "
        "units that the original does not give; the sign does not depend on them.",
    )


def _named(genome: Genome, samples: Mapping[str, Sample]) -> Table:
    columns: dict[str, dict[str, tuple[float, float]]] = {}
    for face, theta in faces(genome).items():
        prefix = f"{face}, " if face else ""
        if face in samples:
            columns[f"{prefix}where it lives"] = projections(samples[face])
        columns[f"{prefix}in the box"] = projections(box(genome, theta))
    names = list(next(iter(columns.values())))
    rows = [
        [
            name.replace("_", " "),
            *(f"{c[name][1]:.3f} (× {c[name][0]:+.3f})" for c in columns.values()),
        ]
        for name in names
    ]
    return Table(
        "Named rules: R² of each alone, and its factor",
        ("rule", *columns),
        rows,
        "A negative factor means the opposite of the rule.",
    )


def _form_table(
    terms: Mapping[str, Mapping[Powers, float]], samples: Mapping[str, Sample]
) -> Table:
    rows = []
    for face, found in terms.items():
        for powers, value in sorted(found.items(), key=lambda item: -abs(item[1])):
            size = float(samples[face].term(powers).square().mean().sqrt()) * abs(value)
            rows.append([face or "rule", name_of(powers), f"{value:+.4f}", f"{size:.4f}"])
    head = ("of", "term", "coefficient", "root mean square where it lives")
    return Table("Symbolic form: at most six terms", head, rows)


def _form_drawing(
    terms: Mapping[str, Mapping[Powers, float]], checks: Mapping[str, Sample]
) -> Drawing:
    figure, panels = new_figure(4.0, 1, len(checks))
    for panel, (face, check) in zip(panels[0], checks.items(), strict=True):
        few = check.where(torch.arange(0, len(check), max(len(check) // _SHOWN_POINTS, 1)))
        told = form(terms[face], few)
        panel.scatter(few.delta, told, s=3, alpha=0.3)
        bound = float(few.delta.abs().max())
        panel.plot([-bound, bound], [-bound, bound], color="0.5", linewidth=0.8)
        panel.set(xlabel=f"what the rule answers{', ' + face if face else ''}")
        panel.set_ylabel("what its six terms answer")
    return Drawing(
        "symbolic-form", "The rule and its symbolic form, on lives not fitted to", figure
    )


def _one_synapse(genome: Genome) -> list[Table | Drawing]:
    rows = faces(genome)
    figure, panels = new_figure(4.0, 1, len(rows), sharey=True)
    table = []
    w = torch.linspace(-2 * REACH, 2 * REACH, 4 * _POINTS, dtype=torch.float64)
    for panel, (face, theta) in zip(panels[0], rows.items(), strict=True):
        for k, (pre, post) in enumerate(_ACTIVITIES):
            g = answers(genome, theta, torch.full_like(w, pre), torch.full_like(w, post), w)
            panel.plot(w, g, color=f"C{k}", label=f"pre {pre:g}, post {post:g}")
            points = fixed_points(genome, theta, pre, post)
            for point in points:
                fill = f"C{k}" if point.stable else "white"
                panel.plot(point.w, 0, "o", color=f"C{k}", markerfacecolor=fill)
            table.append([face or "rule", f"{pre:g}", f"{post:g}", _told(points)])
        panel.axhline(0, color="0.5", linewidth=0.8)
        panel.set(xlabel=f"w{', ' + face if face else ''}", ylabel="Δw")
    legend_below(figure, panels[0][0], len(_ACTIVITIES))
    drawing = Drawing(
        "one-synapse",
        "One synapse whose activities stay: filled where its weight comes to rest, open where it "
        "leaves",
        figure,
    )
    head = ("of", "pre", "post", f"fixed points, |w| ≤ {2 * REACH:g}")
    return [drawing, Table("Fixed points of one synapse", head, table)]


def _told(points: list[FixedPoint]) -> str:
    if not points:
        return "none: the weight runs to where the norm holds it"
    return ", ".join(f"{p.w:+.2f} {'stable' if p.stable else 'unstable'}" for p in points)
