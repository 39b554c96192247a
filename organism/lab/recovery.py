"""Recovery: a known rule is planted as teacher, and a genome learns to imitate what it does to W.

If the machinery could not find a rule that is known to be there, nothing it says of unknown ones
would be worth much. Owns the teachers, the imitation, and how well it went.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from statistics import fmean
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from organism.config import CortexConfig, GenomeConfig, RuleConfig
from organism.cortex import newborn, step
from organism.genome import Genome, new_genome
from organism.lab.drawing import new_figure
from organism.lab.report import Drawing, Report, Table, spread
from organism.lab.trials import Result, Trial
from organism.portrait import name_of
from organism.rules import NAMED_RULES, Powers, polynomial_rule

TEACHERS = ("oja", "bcm", "sparse")
Family = Literal["polynomial", "mlp"]
FAMILIES: tuple[Family, ...] = ("polynomial", "mlp")

_EXPONENTS = (2, 2, 2)
_CORTEX = CortexConfig(
    d_in=16,
    d_hidden=16,
    innate_std=0.25,  # 1/√d_in: scaled weights of unit size
    memory=False,
    alpha=0.02,
    entropy_modulation=False,
    metabolism=False,
    normalisation="none",  # a norm would hide what a rule does along W
)
_STEPS = 20
_LIFETIMES = 4
_PLANTED = 4
_LARGEST_COEFFICIENTS = (0.3, 1.0)
# A teacher under which the scaled weights outgrow this in a lifetime is drawn again.
_BOUND = 5.0
_TRAINING, _HELD_OUT, _PLANT = range(3)
# Of Adam, which an mlp's many flat regions need, and then of L-BFGS.
_ITERATIONS = {"polynomial": (0, 400), "mlp": (150, 150)}
_ADAM_RATE = 1e-2
_SPURIOUS = 0.05


def recovered(teacher: str, family: Family, seed: int) -> Result:
    """Plant a rule, train a genome to imitate it, and measure on lifetimes it has not seen.

    Args:
        teacher: ``oja``, ``bcm`` or ``sparse``, a polynomial of four random terms.
        family: of the imitator.
        seed: of the plant, the lifetimes and the imitator's start.

    Returns:
        ``weights_r2`` and ``activity_r2``, what of the change of W, and of the variance of h, is
        reproduced on held-out lifetimes; for a polynomial, coefficients by name, ``planted`` and
        ``found``.
    """
    planted = _plant(teacher, seed)
    imitator = _imitator(family, seed)
    train, held_out = (_inputs(seed, part) for part in (_TRAINING, _HELD_OUT))
    imitator = _imitated(imitator, planted, train)
    with torch.no_grad():
        true_w, true_h = _trajectory(planted, held_out)
        w, h = _trajectory(imitator, held_out)
    start = newborn(planted).w
    found: dict[str, Any] = {
        "weights_r2": _r2(w, true_w, start.expand_as(true_w)),
        "activity_r2": _r2(h, true_h, true_h.mean().expand_as(true_h)),
    }
    if family == "polynomial":
        found |= {"planted": _terms(planted), "found": _terms(imitator)}
    return found


def _plant(teacher: str, seed: int) -> Genome:
    """The teacher as a genome; the sparse one is drawn, and again until it is tame."""
    base = _imitator("polynomial", seed)
    if teacher != "sparse":
        return _with_rule(base, NAMED_RULES[teacher])
    rng = np.random.default_rng([seed, _PLANT])
    every = [*product(*(range(exponent + 1) for exponent in _EXPONENTS))]
    while True:
        places = rng.choice(len(every), _PLANTED, replace=False)
        sizes = [rng.uniform(*_LARGEST_COEFFICIENTS) * rng.choice((-1, 1)) for _ in places]
        terms = {every[place]: size for place, size in zip(places, sizes, strict=True)}
        planted = _with_rule(base, terms)
        with torch.no_grad():
            w, _ = _trajectory(planted, _inputs(seed, _TRAINING))
        if float(w.abs().max()) * _CORTEX.d_in**0.5 < _BOUND:
            return planted


def _imitator(family: Family, seed: int) -> Genome:
    """An untrained genome in double precision; a polynomial starts at zero."""
    if family == "mlp":
        rule = RuleConfig(scaling="sqrt_d", initialisation="torch")
    else:
        a, b, m = _EXPONENTS
        rule = RuleConfig(
            family="polynomial",
            pre_exponent=a,
            post_exponent=b,
            weight_exponent=m,
            scaling="sqrt_d",
            initialisation="hebb",
        )
    genome = new_genome(GenomeConfig(rule=rule, cortex=_CORTEX), seed)
    theta = {name: tensor.double() for name, tensor in genome.theta.items()}
    if family == "polynomial":
        theta["rule.coefficients"] = torch.zeros_like(theta["rule.coefficients"])
    return replace(genome, theta=theta)


def _with_rule(genome: Genome, terms: Mapping[Powers, float]) -> Genome:
    coefficients = polynomial_rule(genome.config.rule).coefficients(terms).double()
    return replace(genome, theta={**genome.theta, "rule.coefficients": coefficients})


def _inputs(seed: int, part: int) -> Tensor:
    """Random unit inputs, ``(steps, lifetimes, d_in)``."""
    rng = np.random.default_rng([seed, part])
    drawn = torch.from_numpy(rng.standard_normal((_STEPS, _LIFETIMES, _CORTEX.d_in)))
    return torch.nn.functional.normalize(drawn, dim=-1)


def _trajectory(genome: Genome, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """W after each step, and h before it: ``(steps, lifetimes, ...)``."""
    state = newborn(genome, inputs.shape[1])
    weights, activity = [], []
    for e in inputs:
        state, reading = step(genome, state, e)
        weights.append(state.w)
        activity.append(reading.h)
    return torch.stack(weights), torch.stack(activity)


def _imitated(genome: Genome, teacher: Genome, inputs: Tensor) -> Genome:
    """Fit the rule's parameters to the teacher's trajectories: L-BFGS, after Adam for an mlp."""
    first, then = _ITERATIONS[genome.config.rule.family]
    with torch.no_grad():
        target, _ = _trajectory(teacher, inputs)
    movement = (target - newborn(teacher).w).square().mean()
    theta = dict(genome.theta)
    learned = {n: t.clone().requires_grad_() for n, t in theta.items() if n.startswith("rule.")}
    imitator = replace(genome, theta=theta | learned)

    def loss() -> Tensor:
        for tensor in learned.values():
            tensor.grad = None
        w, _ = _trajectory(imitator, inputs)
        error: Tensor = (w - target).square().mean() / movement
        torch.autograd.backward(error)
        return error

    adam = torch.optim.Adam(learned.values(), lr=_ADAM_RATE)
    for _ in range(first):
        loss()
        adam.step()
    lbfgs = torch.optim.LBFGS(
        learned.values(),
        max_iter=then,
        tolerance_grad=1e-10,
        tolerance_change=1e-14,
        history_size=30,
        line_search_fn="strong_wolfe",
    )
    lbfgs.step(loss)  # type: ignore[no-untyped-call]
    return replace(genome, theta=theta | {n: t.detach() for n, t in learned.items()})


def _r2(found: Tensor, true: Tensor, naive: Tensor) -> float:
    """One minus the squared error, of that of a naive guess."""
    return float(1 - (found - true).square().sum() / (naive - true).square().sum())


def _terms(genome: Genome) -> dict[str, float]:
    coefficients = genome.theta["rule.coefficients"]
    powers = product(*(range(size) for size in coefficients.shape))
    return {name_of(p): float(coefficients[p]) for p in powers}  # type: ignore[arg-type]


def trials(seeds: int) -> list[Trial]:
    """Every teacher, imitated by each family from so many seeds."""
    return [
        Trial(
            f"{teacher} by {family}, seed {seed}",
            recovered,
            {"teacher": teacher, "family": family, "seed": seed},
        )
        for teacher in TEACHERS
        for family in FAMILIES
        for seed in range(seeds)
    ]


def report(results: Mapping[str, Result], seeds: int) -> Report:
    """Lay the findings out.

    Args:
        results: of all trials, by name.
        seeds: how many, from 0.
    """
    figures: dict[str, float] = {}
    rows = []
    for teacher, family in product(TEACHERS, FAMILIES):
        found = [results[f"{teacher} by {family}, seed {seed}"] for seed in range(seeds)]
        weights = [float(result["weights_r2"]) for result in found]
        activity = [float(result["activity_r2"]) for result in found]
        figures[f"{teacher}_{family}_weights_r2"] = fmean(weights)
        figures[f"{teacher}_{family}_activity_r2"] = fmean(activity)
        cells = [spread(weights, 4), f"{min(weights):.4f}", spread(activity, 4)]
        if family == "polynomial":
            spurious, missed = zip(*(_faults(result) for result in found), strict=True)
            figures[f"{teacher}_largest_spurious"] = max(spurious)
            cells += [f"{max(missed):.1e}", f"{max(spurious):.1e}"]
        else:
            cells += ["", ""]
        rows.append([teacher, family, *cells])
    table = Table(
        f"Imitation, on held-out lifetimes of {_STEPS} steps",
        (
            "planted",
            "imitator",
            "R² of W",
            "the worst",
            "R² of h",
            "largest error of a planted term",
            "largest other term",
        ),
        rows,
        "R² of W: one minus the squared error, of that of a W that stays as it was born; of h: of "
        "the variance. Errors of terms are shares of the largest planted one; the worst seed.",
    )
    worst = max(figures[f"{teacher}_largest_spurious"] for teacher in TEACHERS)
    summary = (
        f"A polynomial finds the planted rules: the worst R² of W is "
        f"{min(figures[f'{t}_polynomial_weights_r2'] for t in TEACHERS):.4f} in the mean, and no "
        f"term that was not planted exceeds {worst:.1e} of the largest, "
        f"{'within' if worst < _SPURIOUS else 'beyond'} the {_SPURIOUS:.0%} that were allowed. An "
        "mlp imitates what they do without being told their form."
    )
    parts: list[Any] = [table, _drawing(results), _example(results)]
    return Report("Recovery of planted rules", summary, f"0 to {seeds - 1}", parts, figures)


def _faults(result: Result) -> tuple[float, float]:
    """Largest term that was not planted, and largest error of one that was, of the largest."""
    planted, found = result["planted"], result["found"]
    largest = max(abs(value) for value in planted.values())
    other = max(abs(found[name]) for name, value in planted.items() if not value)
    missed = max(abs(found[name] - value) for name, value in planted.items() if value)
    return other / largest, missed / largest


def _drawing(results: Mapping[str, Result]) -> Drawing:
    figure, panels = new_figure(4.0, 1, len(TEACHERS))
    for panel, teacher in zip(panels[0], TEACHERS, strict=True):
        result = results[f"{teacher} by polynomial, seed 0"]
        names = sorted(result["planted"], key=lambda n: -abs(result["planted"][n]))[:8]
        places = range(len(names))
        panel.barh(places, [result["planted"][n] for n in names], color="0.8", label="planted")
        panel.plot([result["found"][n] for n in names], places, "o", color="C3", label="found")
        panel.set_yticks(places, names)
        panel.invert_yaxis()
        panel.axvline(0, color="0.5", linewidth=0.8)
        panel.set(title=teacher, xlabel="coefficient")
    panels[0][0].legend(fontsize=8)
    caption = "Coefficients planted, and found by imitation (seed 0; the eight largest)"
    return Drawing("coefficients", caption, figure)


def _example(results: Mapping[str, Result]) -> Table:
    result = results["sparse by polynomial, seed 0"]
    rows: Sequence[Sequence[str]] = [
        [name, f"{value:+.4f}", f"{result['found'][name]:+.4f}"]
        for name, value in result["planted"].items()
        if value
    ]
    return Table("The sparse rule of seed 0", ("term", "planted", "found"), rows)
