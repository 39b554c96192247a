"""Plasticity rules: G(pre, post, w) -> Δw at every synapse, from local information only [D26 §2.3].

Two learned families behind one protocol, and the named rules of the literature as coefficient
vectors of the polynomial family. Knows nothing of time, memories or normalisation.

Scaled inputs (``RuleConfig.scaling``). Unscaled, pre, post and w are of order 0.05 to 0.3 and a
ReLU network cannot form their product. ``rms`` divides each by its own root mean square.
``sqrt_d`` multiplies w by the √ of the length it is normalised over, and pre and post by √d_in/β:
for unit inputs and unit columns that is the same thing in expectation (each of d entries of a
unit vector has a mean square of 1/d, and so has its dot product with another), with no division
by data. ``fan_in`` does so for pre, multiplies w by √d_in, and leaves post as it is: for activities
of order one themselves, such as clamped ±1 targets. All keep the layer's signals near unit size in
the sense of He et al., "Delving deep into rectifiers" (ICCV 2015). The output is divided by the
factor of w, so that Δw is in units of w.

Phases (``RuleConfig.phases``). A rule that sees one post cannot compare what is with what should
be. In a clamped phase post is the target, in a free phase the cortex's own answer, and the rule
sees which: a scalar, +1 or −1, that folds into its parameters (``at_phase``). Then
phase·pre·post, over the two phases of one pair, is the delta rule pre·(y − h) (Widrow & Hoff 1960;
as contrastive Hebbian learning: Movellan, "Contrastive Hebbian learning in the continuous Hopfield
model", 1991).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from organism.config import CortexConfig, InputScaling, RuleConfig

Theta = Mapping[str, Tensor]
"""Named parameters. A rule reads only its own names."""

CLAMPED, FREE = 1.0, -1.0
"""What a rule with phases sees where post is the target, and where it is the cortex's own."""

PHASED = {"rule.phase_w1": "rule.b1", "rule.phase_coefficients": "rule.coefficients"}
"""Parameters of a phase, and those to which they add, times the phase."""

_RMS_FLOOR = 1e-12

Powers = tuple[int, int, int]
"""Powers of pre, post and w: one product of a polynomial."""

NAMED_RULES: dict[str, dict[Powers, float]] = {
    "hebb": {(1, 1, 0): 1.0},  # Hebb 1949: pre·post
    "anti_hebb": {(1, 1, 0): -1.0},  # Földiák 1990: −pre·post
    # Only what drives a column strongly is unlearned, so that few columns hold each memory:
    # −pre·post³
    "selective_anti_hebb": {(1, 3, 0): -0.3},
    "oja": {(1, 1, 0): 1.0, (0, 2, 1): -1.0},  # Oja 1982: post·(pre − post·w)
    "bcm": {
        (1, 2, 0): 1.0,
        (1, 1, 0): -1.0,
    },  # Bienenstock et al. 1982, fixed threshold 1: pre·post·(post − 1)
    "decay": {(0, 0, 1): -1.0},  # weight decay: −w
    "contrastive": {(1, 1, 0): 1.0, (1, 1, 1): -1.0},  # [D26 §7.3]: pre·(post − w·post)
}
"""Named rules as {(power of pre, of post, of w): coefficient}."""


class Rule(Protocol):
    """A family of local rules: it draws parameters, and applies them at every synapse."""

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw the family's parameters, float32, by name."""
        ...

    def __call__(self, theta: Theta, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
        """Return G(pre, post, w).

        Args:
            theta: parameters by name, of any floating type.
            pre: ``(batch, d_in)``.
            post: ``(batch, d_hidden)``.
            w: ``(batch, d_in, d_hidden)``.

        Returns:
            ``(batch, d_in, d_hidden)``.
        """
        ...


@dataclass(frozen=True)
class MLPRule:
    """The original's PlasticityNetwork, 3 -> hidden -> 1 with ReLU [D26 §3.1]; 81 parameters at 16.

    The stacked features of [D26 §3.2] are never formed: W₁·[pre, post, w] is an outer sum of one
    term a row, one a column, and one a synapse.
    """

    hidden: int
    initialisation: str
    phases: bool = False

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Draw by [D26 App. C], W₁ ~ N(0, 0.1²·2/(3+h)), or by torch's Linear, U(±1/√fan_in).

        The appendix names W₁ alone; W₂ is drawn by the same formula with its own fans and the
        biases are zero. The weights of a phase are normal, of the size of the others.
        """
        theta = self._unphased(generator)
        if self.phases:
            scale = theta["rule.w1"].square().mean().sqrt()
            theta["rule.phase_w1"] = torch.randn(self.hidden, generator=generator) * scale
        return theta

    def _unphased(self, generator: torch.Generator) -> dict[str, Tensor]:
        hidden = self.hidden
        if self.initialisation == "appendix_c":
            return {
                "rule.w1": torch.randn(hidden, 3, generator=generator)
                * 0.1
                * math.sqrt(2 / (3 + hidden)),
                "rule.b1": torch.zeros(hidden),
                "rule.w2": torch.randn(hidden, generator=generator)
                * 0.1
                * math.sqrt(2 / (hidden + 1)),
                "rule.b2": torch.zeros(()),
            }

        def uniform(shape: tuple[int, ...], fan_in: int) -> Tensor:
            return (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(fan_in)

        return {
            "rule.w1": uniform((hidden, 3), 3),
            "rule.b1": uniform((hidden,), 3),
            "rule.w2": uniform((hidden,), hidden),
            "rule.b2": uniform((), hidden),
        }

    def __call__(self, theta: Theta, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
        """Apply the network at every synapse, one hidden unit at a time to stay in cache."""
        w1, b1, w2 = theta["rule.w1"], theta["rule.b1"], theta["rule.w2"]
        total = theta["rule.b2"].expand_as(w)
        for k in range(self.hidden):
            rows = (w1[k, 0] * pre).unsqueeze(2)
            columns = (w1[k, 1] * post + b1[k]).unsqueeze(1)
            total = total + w2[k] * torch.relu(rows + columns + w1[k, 2] * w)
        return total


@dataclass(frozen=True)
class PolynomialRule:
    """Σ c_abm · pre^a · post^b · w^m, with one exponent bound a factor.

    For each power of w the coefficients form a small (a, b) matrix, so its field over all
    synapses is a product of a (d_in × a), an (a × b) and a (b × d_hidden) matrix; the powers of w
    are then summed by Horner's scheme.
    """

    pre_exponent: int
    post_exponent: int
    weight_exponent: int
    start: str
    noise: float = 0.0
    phases: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of the coefficients, ``(powers of pre, powers of post, powers of w)``."""
        return self.pre_exponent + 1, self.post_exponent + 1, self.weight_exponent + 1

    def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Start from the named rule's coefficients, plus Gaussian noise; of the phase, from it."""
        coefficients = self.named(self.start)
        noise = torch.randn(self.shape, generator=generator) * self.noise
        theta = {"rule.coefficients": coefficients + noise}
        if self.phases:
            of_phase = torch.randn(self.shape, generator=generator) * self.noise
            theta["rule.phase_coefficients"] = of_phase
        return theta

    def named(self, name: str) -> Tensor:
        """Coefficients of a named rule.

        Raises:
            ValueError: no such rule, or one that needs a power this family does not have.
        """
        if name not in NAMED_RULES:
            raise ValueError(f"no rule named {name!r}; known: {', '.join(NAMED_RULES)}")
        try:
            return self.coefficients(NAMED_RULES[name])
        except ValueError as error:
            raise ValueError(f"rule {name!r}: {error}") from error

    def coefficients(self, terms: Mapping[Powers, float]) -> Tensor:
        """Lay terms out as this family's coefficients; a product that is not named has 0.

        Raises:
            ValueError: a term of a power that this family does not have.
        """
        coefficients = torch.zeros(self.shape)
        for (a, b, m), value in terms.items():
            if a > self.pre_exponent or b > self.post_exponent or m > self.weight_exponent:
                raise ValueError(
                    f"pre^{a}·post^{b}·w^{m} is above the exponents {self.pre_exponent}, "
                    f"{self.post_exponent}, {self.weight_exponent}: raise them"
                )
            coefficients[a, b, m] = value
        return coefficients

    def __call__(self, theta: Theta, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
        """Apply the polynomial at every synapse."""
        coefficients = theta["rule.coefficients"]
        left = _powers(pre, self.pre_exponent)
        right = _powers(post, self.post_exponent).transpose(1, 2)
        fields = [left @ coefficients[:, :, m] @ right for m in range(self.weight_exponent + 1)]
        total = fields.pop()
        while fields:
            total = fields.pop() + total * w
        return total


def _powers(x: Tensor, highest: int) -> Tensor:
    """Powers 0 to ``highest`` of ``(batch, d)`` as ``(batch, d, highest + 1)``."""
    powers = [torch.ones_like(x)]
    for _ in range(highest):
        powers.append(powers[-1] * x)
    return torch.stack(powers, dim=2)


def at_phase(theta: Theta, phase: float) -> Theta:
    """Fold a phase into a rule's parameters: what is left is a rule without phases.

    Args:
        theta: parameters by name; without any of a phase they come back as they are.
        phase: ``CLAMPED``, ``FREE``, or between them.
    """
    folded = {name: value for name, value in theta.items() if name not in PHASED}
    for name, into in PHASED.items():
        if name in theta:
            folded[into] = theta[into] + phase * theta[name]
    return folded


def make_rule(config: RuleConfig) -> Rule:
    """Return the rule family that a configuration names."""
    if config.family == "mlp":
        return MLPRule(config.hidden, config.initialisation, config.phases)
    return polynomial_rule(config)


def polynomial_rule(config: RuleConfig) -> PolynomialRule:
    """Return the polynomial of a configuration's exponents, whichever family it names."""
    return PolynomialRule(
        config.pre_exponent,
        config.post_exponent,
        config.weight_exponent,
        config.initialisation,
        config.initialisation_noise,
        config.phases,
    )


def scaled_delta(
    rule: Rule,
    theta: Theta,
    rule_config: RuleConfig,
    cortex: CortexConfig,
    pre: Tensor,
    post: Tensor,
    w: Tensor,
    beta: Tensor,
    phase: float = FREE,
) -> Tensor:
    """Apply a rule to scaled inputs and return Δw in units of w; see this module's head.

    Shapes as in ``Rule.__call__``; ``beta`` is ``(batch,)``, the gain that pre was scaled by;
    ``phase`` is what a rule with phases sees.
    """
    if rule_config.scaling in ("sqrt_d", "fan_in"):
        w_factor: float | Tensor = math.sqrt(weight_length(rule_config.scaling, cortex))
        activity_factor = math.sqrt(cortex.d_in) / beta.unsqueeze(1)
        pre, w = pre * activity_factor, w * w_factor
        post = post if rule_config.scaling == "fan_in" else post * activity_factor
    elif rule_config.scaling == "rms":
        w_factor = 1 / _rms(w, (1, 2))
        pre, post, w = pre / _rms(pre, (1,)), post / _rms(post, (1,)), w * w_factor
    else:
        w_factor = 1.0
    if rule_config.post_clamp:
        post = post.clamp(-rule_config.post_clamp, rule_config.post_clamp)
    return rule(at_phase(theta, phase), pre, post, w) / w_factor


def _rms(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    return x.square().mean(dims, keepdim=True).clamp_min(_RMS_FLOOR).sqrt()


def weight_length(scaling: InputScaling, cortex: CortexConfig) -> int:
    """Count of the weights that share one unit norm, or a column's fan-in; √ of it scales w."""
    if scaling == "fan_in" or cortex.normalisation in ("column", "none"):
        return cortex.d_in
    return cortex.d_hidden if cortex.normalisation == "row" else cortex.d_in * cortex.d_hidden
