"""Associative memory: which rules are compared, learned, named, and the best there is.

Every rule is run by the cortex's own step. What is learned is trained on lifetimes of at most 64
presentations; what is named has its rate tuned on lifetimes of the same kinds. Owns the rules; how
they are measured stands in ``organism.lab.protocols``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch

from organism.config import GenomeConfig
from organism.genome import Genome, new_genome
from organism.lab.drawing import curves, legend_below, new_figure
from organism.lab.protocols import (
    COUNTS,
    LASTS,
    LENGTHS,
    PASSES,
    SCHEDULES,
    WIDE,
    protocols,
)
from organism.lab.report import Drawing, Report, Table, spread
from organism.lab.trials import Result, Trial
from organism.meta_train import Run
from organism.presets import PRESETS, Preset
from organism.rules import Powers, polynomial_rule
from organism.tasks.association import AssociationTask

CEILING = "pseudo-inverse"

_TUNING_SEED = 1000
_RATES = tuple(round(0.05 * 2 ** (k / 2), 4) for k in range(13))
_DECAYS = (0.001, 0.003, 0.01, 0.03, 0.1)

Coefficients = Mapping[Powers, float]

# As sums over phases, and what changes sign with the phase: a rule is the first plus ± the second.
_NAMED: dict[str, tuple[Coefficients, Coefficients]] = {
    "Hebb": ({(1, 1, 0): 1.0}, {}),
    "gated Hebb": ({(1, 1, 0): 1.0, (2, 0, 1): -1.0}, {}),
    "decay": ({(1, 1, 0): 1.0}, {}),
    "delta": ({}, {(1, 1, 0): 1.0}),
}
_LEARNED: dict[str, tuple[Preset, bool]] = {
    "learned polynomial": ("association", True),
    "learned mlp": ("association-mlp", True),
    "learned polynomial, no phases": ("association", False),
    "learned mlp, no phases": ("association-mlp", False),
}
NAMES = (*_LEARNED, *_NAMED, CEILING)


def named_rule(name: str, rate: float, decay: float = 0.0) -> Genome:
    """A rule of the literature as a genome of the association preset.

    Args:
        name: ``Hebb``, ``gated Hebb`` (pre·post − pre²·w), ``decay`` (pre·post − decay·w) or
            ``delta`` (phase·pre·post).
        rate: α.
        decay: of ``decay``.
    """
    whole, of_phase = _NAMED[name]
    if name == "decay":
        whole = {**whole, (0, 0, 1): -decay}
    base = PRESETS["association"].genome
    changes = {"phases": bool(of_phase), "initialisation_noise": 0.0}
    rule = base.rule.model_copy(update=changes)
    genome = new_genome(base.model_copy(update={"rule": rule}))
    theta = dict(genome.theta)
    polynomial = polynomial_rule(rule)
    theta["rule.coefficients"] = polynomial.coefficients(whole)
    if of_phase:
        theta["rule.phase_coefficients"] = polynomial.coefficients(of_phase)
    return replace(genome, theta=theta | {"log_alpha": torch.tensor(math.log(rate))})


def grown(preset: Preset, phases: bool, seed: int) -> Result:
    """Train a genome on the association task; its configuration and θ."""
    base = PRESETS[preset]
    rule = base.genome.rule.model_copy(update={"phases": phases})
    genome = base.genome.model_copy(update={"rule": rule})
    config = base.model_copy(update={"genome": genome, "seed": seed})
    run = Run(config, new_genome(genome, seed), "cpu")
    while run.index < config.outer_steps:
        run.outer_step()
    return to_plain(run.genome)


def scored(name: str, rate: float, decay: float) -> Result:
    """Mean cosine of a named rule over lifetimes of the kinds that learned rules are trained on."""
    base = PRESETS["association"]
    task = AssociationTask(base.association, base.genome, _TUNING_SEED)
    return {"cosine": task.held_out(named_rule(name, rate, decay))["held_out_cosine"]}


def measured(rule: Mapping[str, Any] | None, seed: int) -> Result:
    """Take a rule through all protocols; None: the pseudo-inverse."""
    if rule is None:
        return protocols(None, PRESETS["association"].genome, seed)
    genome = from_plain(rule)
    return protocols(genome, genome.config, seed)


def to_plain(genome: Genome) -> dict[str, Any]:
    """Configuration and θ as JSON has them."""
    theta = {name: tensor.tolist() for name, tensor in genome.theta.items()}
    return {"config": genome.config.model_dump(mode="json"), "theta": theta}


def from_plain(plain: Mapping[str, Any]) -> Genome:
    """Read what ``to_plain`` wrote."""
    theta = {name: torch.tensor(values) for name, values in plain["theta"].items()}
    return Genome(GenomeConfig.model_validate(plain["config"]), theta)


def growing(seeds: Sequence[int]) -> list[Trial]:
    """Training of each learned rule from each seed."""
    return [
        Trial(f"{name}, seed {s}", grown, {"preset": preset, "phases": phases, "seed": s})
        for name, (preset, phases) in _LEARNED.items()
        for s in seeds
    ]


def tuning() -> list[Trial]:
    """Each named rule at each rate, and decay."""
    return [
        Trial(_tried(name, rate, decay), scored, {"name": name, "rate": rate, "decay": decay})
        for name in _NAMED
        for rate in _RATES
        for decay in (_DECAYS if name == "decay" else (0.0,))
    ]


def _tried(name: str, rate: float, decay: float) -> str:
    return f"{name} at rate {rate:g}" + (f", decay {decay:g}" if decay else "")


def tuned(results: Mapping[str, Result]) -> dict[str, tuple[float, float]]:
    """The best rate, and decay, of each named rule."""

    def merit(name: str) -> Callable[[tuple[float, float]], float]:
        return lambda found: float(results[_tried(name, *found)]["cosine"])

    return {
        name: max(
            ((r, d) for r in _RATES for d in (_DECAYS if name == "decay" else (0.0,))),
            key=merit(name),
        )
        for name in _NAMED
    }


def measuring(results: Mapping[str, Result], seeds: Sequence[int]) -> list[Trial]:
    """Every rule through all protocols: the learned ones once a training seed."""
    found = [
        Trial(
            f"protocols, {name}, seed {s}",
            measured,
            {"rule": results[f"{name}, seed {s}"], "seed": s},
        )
        for name in _LEARNED
        for s in seeds
    ]
    rules: dict[str, Any] = {
        name: to_plain(named_rule(name, rate, decay))
        for name, (rate, decay) in tuned(results).items()
    }
    for name, rule in {**rules, CEILING: None}.items():
        for s in seeds:
            arguments = {"rule": rule, "seed": s}
            found.append(Trial(f"protocols, {name}, seed {s}", measured, arguments))
    return found


def report(results: Mapping[str, Result], seeds: Sequence[int]) -> Report:
    """Lay the findings out.

    Args:
        results: of all trials, by name.
        seeds: of training and of pairs.
    """
    found = {name: [results[f"protocols, {name}, seed {s}"] for s in seeds] for name in NAMES}

    def values(name: str, *path: str) -> list[float]:
        rows: list[Any] = found[name]
        for step in path:
            rows = [row[step] for row in rows]
        return [float(row) for row in rows]

    def mean(*path: str) -> float:
        return fmean(values("learned polynomial", *path))

    figures = {
        "capacity_32x1": mean("capacity", "32x1", "cosine"),
        "capacity_48x5": mean("capacity", "48x5", "cosine"),
        "overwrite_updated": mean("overwrite", "5+1", "updated"),
        "overwrite_untouched": mean("overwrite", "5+1", "untouched"),
        **{
            f"lifetime_{n}_last_{k}": mean("lifetime", str(n), str(k))
            for n in LENGTHS
            for k in LASTS
        },
    }
    bought = mean("capacity", "48x5", "cosine") - fmean(
        values("learned polynomial, no phases", "capacity", "48x5", "cosine")
    )
    summary = (
        f"A learned polynomial with phases, the mean of {len(seeds)} trainings, recalls "
        f"{COUNTS[2]} pairs, shown once, at a cosine of "
        f"{figures['capacity_32x1']:.3f}, and 48, shown five times, at "
        f"{figures['capacity_48x5']:.3f}: {bought:+.3f} against the same family without phases. "
        f"After 10,000 pairs the last 16, 32 and 64 are at "
        f"{', '.join(format(figures[f'lifetime_10000_last_{k}'], '.3f') for k in LASTS)}."
    )
    rates = "; ".join(
        f"{name} {rate:g}" + (f" with decay {decay:g}" if decay else "")
        for name, (rate, decay) in tuned(results).items()
    )
    parts: list[Any] = [
        *_capacity_parts(values, seeds),
        *_protocol_tables(values),
    ]
    used = (
        f"{', '.join(map(str, seeds))}, of training and of pairs; named rules tuned on lifetimes "
        f"of seed {_TUNING_SEED}: {rates}"
    )
    return Report("Associative memory", summary, used, parts, figures)


Values = Callable[..., list[float]]


def _capacity_parts(values: Values, seeds: Sequence[int]) -> list[Table | Drawing]:
    figure, panels = new_figure(4.5, 1, len(PASSES), sharey=True)
    for panel, passes in zip(panels[0], PASSES, strict=True):
        cases = [f"{count}x{passes}" for count in COUNTS]
        courses = {}
        for name in NAMES:
            columns = [values(name, "capacity", case, "cosine") for case in cases]
            courses[name] = [[column[k] for column in columns] for k in range(len(seeds))]
        curves(panel, COUNTS, courses)
        times = "once" if passes == 1 else f"{passes} times"
        panel.set(xlabel="pairs stored in 64 × 64 synapses", title=f"each shown {times}")
        panel.grid(alpha=0.3)
    panels[0][0].set_ylabel("cosine of answer and target")
    legend_below(figure, panels[0][0], 5)
    drawing = Drawing("capacity", "Capacity: what is recalled of N pairs, mean and spread", figure)
    tables = [
        _table(
            f"Capacity: {what.replace('_', ' ')}, {passes} pass{'es' if passes > 1 else ''}",
            {f"N = {count}": ("capacity", f"{count}x{passes}", what) for count in COUNTS},
            values,
        )
        for what in ("cosine", "bit_error")
        for passes in PASSES
    ]
    return [drawing, *tables]


def _protocol_tables(values: Values) -> list[Table]:
    """Overwriting, a long life, transfer and completion."""
    return [
        *(
            _table(
                f"Overwriting: 48 pairs, 24 of the keys then given new targets; {what}",
                {
                    f"{which}, {first}+{then}": ("overwrite", f"{first}+{then}", which + of)
                    for first, then in SCHEDULES
                    for which in ("updated", "untouched")
                },
                values,
                note,
            )
            for what, of, note in (
                (
                    "success",
                    "",
                    "5+1: five passes over all, then one over the updated. Success: of all 72 "
                    "targets ever shown the answer is nearest to the latest of its key.",
                ),
                ("share of right signs", "_bits", ""),
            )
        ),
        _table(
            "A long life: cosine of the last pairs, each shown once",
            {
                f"{n:,} pairs, last {k}": ("lifetime", str(n), str(k))
                for n in LENGTHS
                for k in LASTS
            },
            values,
            "The pseudo-inverse is given the last 64 alone.",
        ),
        _table(
            f"Transfer: the same numbers in a cortex of {WIDE} × {WIDE}, cosine",
            {
                f"{n} pairs in {width}": (protocol, case, "cosine")
                for n, width, protocol, case in (
                    (16, 64, "capacity", "16x1"),
                    (WIDE // 4, WIDE, "transfer", str(WIDE // 4)),
                    (32, 64, "capacity", "32x1"),
                    (WIDE // 2, WIDE, "transfer", str(WIDE // 2)),
                )
            },
            values,
        ),
        _table(
            "Completion: half the entries of the cue erased, cosine",
            {f"{n} pairs": ("completion", str(n), "cosine") for n in COUNTS[:3]},
            values,
        ),
    ]


def _table(
    caption: str, columns: Mapping[str, Sequence[str]], values: Values, note: str = ""
) -> Table:
    rows = [[name, *(spread(values(name, *path)) for path in columns.values())] for name in NAMES]
    return Table(caption, ("rule", *columns), rows, note)
