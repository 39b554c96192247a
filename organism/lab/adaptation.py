"""Adaptation in five steps [D26 §7.6]: plasticity against gradient descent on the same pairs.

Owns the descent and its tuning; the genome is trained as the tables' mended one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from statistics import fmean, median
from typing import Any

import torch
from torch import Tensor

from organism.cortex import CortexState, newborn, respond
from organism.genome import Genome, new_genome
from organism.lab.report import Table, spread
from organism.lab.tables import changed
from organism.lab.trials import Result, Trial
from organism.meta_train import Run
from organism.presets import MetaTrainConfig
from organism.tasks.projection import ProjectionTask

TUNING_SEEDS = (1000, 1001, 1002)
"""What the rate of gradient descent is tuned on, and nothing is reported from."""

_RATES = tuple(2.0**k for k in range(-4, 5))
_PAIRS = 16
_STEPS = 5
_MOST_STEPS = 1000
_ADAM_RATE = 1e-3


def adapted(settings: Mapping[str, Any], seed: int, rate: float) -> Result:
    """Train a genome, then let it and gradient descent on W learn the same fresh pairs.

    Args:
        settings: of the training.
        seed: of genome and pairs.
        rate: of the descent on half the squared error.

    Returns:
        NMSE after as many steps as a lifetime has, by plasticity, by plain descent and by Adam at
        its default rate, and how many steps of either reach plasticity's error.
    """
    genome, start, pairs, reached = _lived(settings, seed)
    found: dict[str, Any] = {"plasticity": reached}
    optimisers = {
        "descent": partial(torch.optim.SGD, lr=rate),
        "adam": partial(torch.optim.Adam, lr=_ADAM_RATE),
    }
    for name, optimiser in optimisers.items():
        course = _descended(genome, start, pairs, optimiser, _MOST_STEPS)
        found[name] = course[_STEPS - 1]
        found[f"{name}_steps"] = next(
            (k for k, error in enumerate(course, 1) if error <= reached), math.inf
        )
    return found


def tried(settings: Mapping[str, Any], seed: int) -> Result:
    """Train a genome, and descend on W from its newborn at every rate; NMSE after a lifetime."""
    genome, start, pairs, _ = _lived(settings, seed)
    courses = {
        f"{rate:g}": _descended(genome, start, pairs, partial(torch.optim.SGD, lr=rate), _STEPS)
        for rate in _RATES
    }
    return {rate: course[-1] for rate, course in courses.items()}


def _lived(
    settings: Mapping[str, Any], seed: int
) -> tuple[Genome, CortexState, tuple[Tensor, Tensor], float]:
    """A trained genome, newborns with the memories of those that lived, the pairs, and the NMSE."""
    config = MetaTrainConfig.model_validate({**settings, "seed": seed})
    run = Run(config, new_genome(config.genome, seed), "cpu")
    while run.index < config.outer_steps:
        run.outer_step()
    genome, task = run.genome, ProjectionTask(config.projection, config.genome, seed)
    cues, targets = (part[:_PAIRS] for part in task.fresh)
    with torch.no_grad():
        lived = task.learn(genome, cues, targets, {})
        reached = _nmse(lived.answer, targets)
    memories = {"short_term": lived.state.short_term, "long_term": lived.state.long_term}
    start = replace(newborn(genome, len(cues)), **memories)
    return genome, start, (cues, targets), reached


def _descended(
    genome: Genome, start: CortexState, pairs: tuple[Tensor, Tensor], make: Any, steps: int
) -> list[float]:
    """NMSE after each step of descent on W."""
    cues, targets = pairs
    w = start.w.clone().requires_grad_()
    optimiser = make([w])
    course: list[float] = []
    for _ in range(steps):
        optimiser.zero_grad()
        error = respond(genome, replace(start, w=w), cues) - targets
        torch.autograd.backward(error.square().sum() / 2)
        optimiser.step()
        with torch.no_grad():
            course.append(_nmse(respond(genome, replace(start, w=w), cues), targets))
    return course


def _nmse(answers: Tensor, targets: Tensor) -> float:
    return float((answers - targets).square().mean() / targets.square().mean())


def tuning() -> list[Trial]:
    """Descent at every rate, on seeds that are not reported."""
    arguments = {"settings": changed("original", {})}
    return [
        Trial(f"rates of descent, seed {seed}", tried, {**arguments, "seed": seed})
        for seed in TUNING_SEEDS
    ]


def best_rate(results: Mapping[str, Result]) -> float:
    """The rate of descent with the least error after a lifetime's steps."""

    def error(rate: float) -> float:
        values = [float(results[trial.name][f"{rate:g}"]) for trial in tuning()]
        return fmean(values) if all(map(math.isfinite, values)) else math.inf

    return min(_RATES, key=error)


def trials(seeds: int, rate: float) -> list[Trial]:
    """Adaptation on the seeds that are reported."""
    arguments = {"settings": changed("original", {}), "rate": rate}
    return [
        Trial(f"adaptation, seed {seed}", adapted, {**arguments, "seed": seed})
        for seed in range(seeds)
    ]


def table(results: Mapping[str, Result], seeds: int, rate: float) -> Table:
    """Show the adaptation of so many seeds, gradient descent at a rate."""
    found = [results[trial.name] for trial in trials(seeds, rate)]
    column = {name: [float(result[name]) for result in found] for name in found[0]}
    slow = median(column["descent_steps"]) >= 100
    adam = median(column["adam_steps"])
    rows = [
        ["plasticity", spread(column["plasticity"], 4), "5"],
        [
            f"gradient descent, rate {rate:g}",
            spread(column["descent"], 4),
            spread(column["descent_steps"], 1),
        ],
        [
            f"Adam, rate {_ADAM_RATE:g}",
            spread(column["adam"], 4),
            f"{adam:g} (median)" if math.isfinite(adam) else f"over {_MOST_STEPS}",
        ],
    ]
    return Table(
        "Adaptation [D26 §7.6], fresh pairs; claimed: 5 steps against hundreds",
        ("learner", "NMSE after five steps", "steps to plasticity's error"),
        rows,
        f"Verdict: {'holds' if slow else 'fails'}. A pair asks for one linear map, which a step of "
        "descent of the right size nearly is. All learn the same pairs from the same W; "
        "gradient descent sees the target at every step, at a rate tuned on seeds "
        f"{', '.join(map(str, TUNING_SEEDS))}. With "
        "Adam's default rate, which nobody would choose here, it is slow.",
    )
