"""A genome as the kernels take it: its configuration as constants, its θ as rows of numbers.

Owns where each number of θ lies among those of the kernels, both ways: θ to the kernels, and what
they find of its gradient back. At a phase, θ is that of ``organism.rules.at_phase``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from organism import kernels
from organism.config import CortexConfig, GenomeConfig
from organism.cortex import innate_weights
from organism.jit import F32, F64, aligned_copy
from organism.kernels import I64, Constants, Theta
from organism.recruitment import FEATURES, LEVEL_POWERS
from organism.rules import FREE, PHASED, weight_length

_AXES = {
    "row": kernels.ROW,
    "column": kernels.COLUMN,
    "frobenius": kernels.FROBENIUS,
    "none": kernels.NONE,
}
_SCALINGS = {
    "none": kernels.UNSCALED,
    "sqrt_d": kernels.SQRT_D,
    "rms": kernels.RMS,
    "fan_in": kernels.FAN_IN,
}


@dataclass(frozen=True)
class Program:
    """A genome as the kernels take it, its θ at each of some phases."""

    constants: Constants
    theta: Theta
    innate: F32


def compile_genome(
    config: GenomeConfig, theta: Mapping[str, Tensor], phases: Sequence[float] = (FREE,)
) -> Program:
    """Lay a genome out for the kernels, at the phases that it learns in; at ρ = 0, the free one."""
    numbers = torch.cat([part.detach().reshape(-1) for part in theta.values()])
    both = np.zeros((2, sum(_sizes(config))), np.float32)
    both.reshape(-1)[_places(config, tuple(theta))] = numbers.numpy()
    plain, phased = both
    rows = plain + np.array(phases, np.float32)[:, None] * phased
    return Program(_constants(config, rows[0]), _cut(config, rows), _innate(config.cortex))


def gradients_of(
    config: GenomeConfig, theta: Mapping[str, torch.Size], phases: Sequence[float], found: Theta
) -> Iterator[Tensor]:
    """Bring the gradient of each phase's numbers, float64, back to the parts of θ, in their order.

    Args:
        config: of the genome.
        theta: names and shapes.
        phases: those that it was compiled at.
        found: one a phase, as a ``Program``'s θ.
    """
    rows = np.concatenate([part.reshape(len(phases), -1) for part in found], axis=1)
    both: F64 = np.stack([rows.sum(axis=0), (np.array(phases)[:, None] * rows).sum(axis=0)])
    numbers = torch.from_numpy(both.reshape(-1)[_places(config, tuple(theta))].astype(np.float32))
    parts = torch.split(numbers, [shape.numel() for shape in theta.values()])
    return (part.view(shape) for part, shape in zip(parts, theta.values(), strict=True))


@lru_cache(maxsize=8)
def _places(config: GenomeConfig, names: tuple[str, ...]) -> I64:
    """Where each number of θ lies, among the plain ones and then those that a phase multiplies."""
    numbers = np.arange(2 * sum(_sizes(config))).reshape(2, -1)
    plain, phased = (_parts(config, _cut(config, row[None])) for row in numbers)
    parts = (phased[PHASED[name]] if name in PHASED else plain[name] for name in names)
    return np.concatenate([part.reshape(-1) for part in parts])


def _parts(config: GenomeConfig, theta: Theta) -> dict[str, npt.NDArray[Any]]:
    """The parts of θ by name, from its numbers at one phase."""
    k = kernels
    (scalars,), (coefficients,), (units,) = theta
    units = units[: config.rule.hidden]
    return {
        "log_alpha": scalars[k.LOG_ALPHA],
        "log_recovery": scalars[k.LOG_RECOVERY],
        "log_entropy_gain": scalars[k.LOG_ENTROPY_GAIN],
        "mixing": scalars[k.C0 : k.C2 + 1],
        "readout": scalars[k.READOUT :][: FEATURES if config.cortex.recruitment else 3],
        "calibration": scalars[k.CALIBRATION :].reshape(-1, LEVEL_POWERS),
        "rule.coefficients": coefficients,
        "rule.b2": scalars[k.B2],
        "rule.w1": units[:, : k.BIAS],
        "rule.b1": units[:, k.BIAS],
        "rule.w2": units[:, k.OUT_WEIGHT],
    }


def _cut(config: GenomeConfig, rows: npt.NDArray[Any]) -> Theta:
    """Cut rows of numbers, one a phase, into scalars, coefficients and hidden units."""
    scalars, coefficients, _ = _sizes(config)
    parts = np.split(rows, [scalars, scalars + coefficients], axis=1)
    shapes = (-1,), _powers(config), (-1, kernels.UNIT_NUMBERS)
    return Theta(
        *(
            np.ascontiguousarray(part).reshape(len(rows), *shape)
            for part, shape in zip(parts, shapes, strict=True)
        )
    )


def _sizes(config: GenomeConfig) -> tuple[int, int, int]:
    """How many scalars, coefficients, and numbers of hidden units there are."""
    units = 0
    if config.rule.family == "mlp":
        units = -(-config.rule.hidden // kernels.UNIT_BLOCK) * kernels.UNIT_BLOCK
    return kernels.SCALARS, math.prod(_powers(config)), units * kernels.UNIT_NUMBERS


def _powers(config: GenomeConfig) -> tuple[int, int, int]:
    """How many powers of pre, post and w a rule's coefficients have; the mlp's none."""
    rule = config.rule
    if rule.family == "mlp":
        return 0, 0, 0
    assert rule.post_exponent < kernels.POST_POWERS
    return rule.pre_exponent + 1, rule.post_exponent + 1, rule.weight_exponent + 1


@lru_cache(maxsize=8)
def _innate(config: CortexConfig) -> F32:
    """W₀ as the kernels take it; shared, never written to."""
    return aligned_copy(innate_weights(config).numpy())


def _constants(config: GenomeConfig, numbers: F32) -> Constants:
    """The configuration, and what of θ is the same for all of a life."""
    c, k, f = config.cortex, kernels, np.float32
    gains = torch.from_numpy(numbers[: k.LOG_ENTROPY_GAIN + 1]).exp().numpy()
    return _settings(config)._replace(
        alpha=gains[k.LOG_ALPHA],
        entropy_gain=gains[k.LOG_ENTROPY_GAIN] if c.modulated else f(0),
        kappa=gains[k.LOG_RECOVERY] if c.recovery else f(0),
    )


@lru_cache(maxsize=8)
def _settings(config: GenomeConfig) -> Constants:
    """The configuration; what is θ's, 0."""
    c, f = config.cortex, np.float32
    return Constants(
        normalisation=_AXES[c.normalisation],
        epsilon=f(c.normalisation_epsilon),
        scaling=_SCALINGS[config.rule.scaling],
        activity_scale=f(math.sqrt(c.d_in)),
        weight_scale=f(math.sqrt(weight_length(config.rule.scaling, c))),
        post_clamp=f(config.rule.post_clamp or math.inf),
        centring=c.centring,
        mean_rate=f(c.mean_rate),
        memory=c.memory,
        short_term_decay=f(c.short_term_decay),
        long_term_decay=f(c.long_term_decay),
        alpha=f(0),
        entropy_gain=f(0),
        metabolism=c.metabolism,
        entropy_threshold=f(c.entropy_threshold),
        beta_fall=f(c.beta_fall),
        beta_rise=f(c.beta_rise),
        beta_min=f(c.beta_min),
        beta_max=f(c.beta_max),
        recruitment=c.recruitment,
        vigilance=f(c.vigilance),
        reuse=f(c.reuse),
        protection=f(c.protection or math.inf),
        trace_decay=f(c.trace_decay),
        calibration=c.calibration,
        calibration_rate=f(c.calibration_rate),
        kappa=f(0),
        plasticity=c.plasticity,
    )
