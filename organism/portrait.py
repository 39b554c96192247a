"""A portrait of a learned rule: Δw drawn over its three inputs, and the terms that make it up.

Owns how a rule is shown to people; changes nothing and trains nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from organism.config import RuleConfig
from organism.genome import Genome
from organism.rules import Powers, make_rule

# Inputs that are scaled are of order one; those that are not, of this order (see organism.rules).
_UNSCALED = 0.3
_REACH = 2.0
_POINTS = 25
_W_LEVELS = (-1.0, 0.0, 1.0)
_HIGHEST_DEGREE = 3
_SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹"


@dataclass(frozen=True)
class Term:
    """One product of powers, and how much of the rule it is.

    Attributes:
        name: such as ``pre·post³``.
        coefficient: its factor, in the rule's scaled units.
        share: its root mean square over the portrait, of the sum of all terms', 0 to 1.
    """

    name: str
    coefficient: float
    share: float


@dataclass(frozen=True)
class Portrait:
    """A rule G(pre, post, w) on a grid, in the scaled units that it sees.

    Attributes:
        family: of the rule.
        pre: values of pre, ``(points,)``.
        post: values of post, ``(points,)``.
        w: values of w, ``(levels,)``.
        delta: G, float32 ``(levels, points, points)`` over w, pre and post.
        terms: those that matter most first.
        r_squared: how much of the rule's variance the terms explain; 1 for a polynomial, whose
            terms are exact, and a fit by least squares otherwise.
    """

    family: Literal["polynomial", "mlp"]
    pre: Tensor
    post: Tensor
    w: Tensor
    delta: Tensor
    terms: tuple[Term, ...]
    r_squared: float

    def plain(self) -> dict[str, Any]:
        """The same in lists and numbers, by the names of the fields."""
        fields = {name: getattr(self, name).tolist() for name in ("pre", "post", "w", "delta")}
        terms = [asdict(term) for term in self.terms]
        return fields | {"family": self.family, "terms": terms, "r_squared": self.r_squared}


def portrait(genome: Genome) -> Portrait:
    """Draw a genome's rule."""
    config = genome.config.rule
    unit = _UNSCALED if config.scaling == "none" else 1.0
    pre = torch.linspace(-_REACH, _REACH, _POINTS) * unit
    post = pre.clone()
    w = torch.tensor(_W_LEVELS) * unit
    grid = w[:, None, None].expand(-1, _POINTS, _POINTS)
    levels = len(w)
    delta = make_rule(config)(
        genome.theta, pre.expand(levels, -1), post.expand(levels, -1), grid
    ).detach()
    monomials = _monomials(config)
    columns = torch.stack([_monomial(powers, pre, post, w).flatten() for powers in monomials], 1)
    coefficients, r_squared = _coefficients(genome, columns.double(), delta.flatten().double())
    sizes = coefficients.abs() * columns.double().square().mean(0).sqrt()
    total = float(sizes.sum()) or 1.0
    terms = [
        Term(name_of(powers), float(c), float(size) / total)
        for powers, c, size in zip(monomials, coefficients, sizes, strict=True)
        if c
    ]
    ranked = tuple(sorted(terms, key=lambda term: -term.share))
    return Portrait(config.family, pre, post, w, delta, ranked, r_squared)


def name_of(powers: Powers) -> str:
    """Write a product of powers of pre, post and w."""
    factors = [
        name + (_SUPERSCRIPTS[power] if power > 1 else "")
        for name, power in zip(("pre", "post", "w"), powers, strict=True)
        if power
    ]
    return "·".join(factors) or "1"


def _monomials(config: RuleConfig) -> Sequence[Powers]:
    if config.family == "polynomial":
        bounds = config.pre_exponent, config.post_exponent, config.weight_exponent
        return [(a, b, m) for a, b, m in product(*(range(bound + 1) for bound in bounds))]
    # So many values of w tell that many of its powers apart.
    of_pre = of_post = range(_HIGHEST_DEGREE + 1)
    of_w = range(len(_W_LEVELS))
    return [p for p in product(of_pre, of_post, of_w) if sum(p) <= _HIGHEST_DEGREE]


def _monomial(powers: Powers, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
    a, b, m = powers
    return w[:, None, None] ** m * pre[None, :, None] ** a * post[None, None, :] ** b


def _coefficients(genome: Genome, columns: Tensor, delta: Tensor) -> tuple[Tensor, float]:
    """Coefficients of the monomials, and the share of the variance that they explain."""
    if genome.config.rule.family == "polynomial":
        return genome.theta["rule.coefficients"].detach().flatten().double(), 1.0
    found = torch.linalg.lstsq(columns, delta).solution
    residual = (delta - columns @ found).square().sum()
    spread = (delta - delta.mean()).square().sum()
    return found, float(1 - residual / spread) if spread else 1.0
