"""Kernels of recruitment, for one lifetime: see ``organism.recruitment`` for what they compute.

A step reads all of W and writes one column of it. Owns that arithmetic, on plain arrays;
``organism.kernels`` puts it to use.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from organism.jit import F32, Number, kernel
from organism.recruitment import DENSITY_FLOOR, LEVEL_CENTRE, LEVEL_SHARPNESS, MARGIN

_0: Number = np.float32(0)
_1: Number = np.float32(1)
_FLOOR = np.float32(DENSITY_FLOOR)
_REACH = np.float32(1 + MARGIN)
_CENTRE = np.float32(LEVEL_CENTRE)


@kernel()
def drive(z: F32, w: F32, activation: F32) -> None:
    """zW, ``(d_hidden,)``; four rows a loop."""
    d_in, d_hidden = w.shape
    blocked = d_in - d_in % 4
    for j in range(d_hidden):
        activation[j] = _0
    for i in range(0, blocked, 4):
        z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
        for j in range(d_hidden):
            a = activation[j] + z0 * w[i, j] + z1 * w[i + 1, j]
            activation[j] = a + z2 * w[i + 2, j] + z3 * w[i + 3, j]
    for i in range(blocked, d_in):
        for j in range(d_hidden):
            activation[j] += z[i] * w[i, j]


@kernel()
def closeness(match: Number) -> Number:
    """``organism.recruitment.closeness``."""
    return np.float32(-math.log(_REACH - min(match, _1)))


@kernel()
def evidence(weights: F32, match: F32, best: Number, trace: F32) -> Number:
    """``organism.recruitment.evidence`` of its features; the powers of the match: 2, 8 and 32.

    The best match comes with it: a maximum in the same loop would keep it from being vectorised.
    """
    wide, middle, narrow = _0, _0, _0
    for j in range(match.shape[0]):
        near = match[j] if match[j] > _0 else _0
        square = near * near
        eighth = (square * square) * (square * square)
        power = (eighth * eighth) * (eighth * eighth)
        wide += trace[j] * square
        middle += trace[j] * eighth
        narrow += trace[j] * power
    densities = math.log(wide + _FLOOR) * weights[1] + math.log(middle + _FLOOR) * weights[2]
    densities += math.log(narrow + _FLOOR) * weights[3]
    return np.float32(closeness(best) * weights[0] + densities)


@kernel()
def log_odds(calibration: F32, found: Number, level: Number) -> Number:
    """``organism.recruitment.log_odds``."""
    near, slope, bend, shift = closeness(level) - _CENTRE, _0, _0, _0
    for k in range(calibration.shape[1] - 1, -1, -1):
        slope = slope * near + calibration[0, k]
        bend = bend * near + calibration[1, k]
        shift = shift * near + calibration[2, k]
    softplus = max(found, _0) + math.log1p(math.exp(-abs(found)))
    return np.float32(slope * found + bend * softplus + shift)


@kernel()
def winner(match: F32) -> int:
    """Column with the highest match."""
    best = 0
    for j in range(match.shape[0]):
        if match[j] > match[best]:
            best = j
    return best


@kernel()
def least_used(trace: F32) -> int:
    """Column with the lowest trace."""
    least = 0
    for j in range(trace.shape[0]):
        if trace[j] < trace[least]:
            least = j
    return least


@kernel()
def use(trace: F32, column: int, recruited: bool, reuse: Number) -> None:
    """Note the use of a column, ``organism.recruitment.next_trace``; traces have decayed before."""
    trace[column] = _1 if recruited else max(trace[column] + reuse, _0)


@kernel()
def next_level(level: Number, best: Number, rate: Number) -> Number:
    """``organism.recruitment.next_level``."""
    share = min(max(best, _0), _1) ** LEVEL_SHARPNESS
    return np.float32(level + rate * share * (best - level))


@kernel()
def silence(w: F32, column: int) -> None:
    """Empty a column."""
    for i in range(w.shape[0]):
        w[i, column] = _0


@kernel()
def normalise_column(w: F32, column: int, epsilon: Number) -> None:
    """Divide a column by its norm."""
    square = _0
    for i in range(w.shape[0]):
        square += w[i, column] * w[i, column]
    inverse = _1 / (np.float32(math.sqrt(square)) + epsilon)
    for i in range(w.shape[0]):
        w[i, column] *= inverse


@kernel()
def move_by_polynomial(
    coefficients: npt.NDArray[Any],
    w: F32,
    column: int,
    pre: F32,
    post: Number,
    alpha: Number,
    scale: Number,
    by_power: F32,
) -> None:
    """Move one column by α·G(pre, post, w), for a polynomial, by Horner's scheme.

    Args:
        coefficients: ``(powers of pre, of post, of w)``.
        w: ``(d_in, d_hidden)``.
        column: the one that moves.
        pre: scaled, ``(d_in,)``.
        post: of the column, scaled.
        alpha: plasticity rate α.
        scale: factor that brings w to unit size.
        by_power: room for powers of pre times powers of w.
    """
    powers_pre, powers_post, powers_w = coefficients.shape
    for a in range(powers_pre):
        for m in range(powers_w):
            total = _0
            for b in range(powers_post - 1, -1, -1):
                total = total * post + coefficients[a, b, m]
            by_power[a * powers_w + m] = total
    step = alpha / scale
    for i in range(w.shape[0]):
        scaled, total = scale * w[i, column], _0
        for m in range(powers_w - 1, -1, -1):
            field = _0
            for a in range(powers_pre - 1, -1, -1):
                field = field * pre[i] + by_power[a * powers_w + m]
            total = total * scaled + field
        w[i, column] += step * total


@kernel()
def move_by_mlp(
    units: npt.NDArray[Any],
    bias: Number,
    w: F32,
    column: int,
    pre: F32,
    post: Number,
    alpha: Number,
    scale: Number,
) -> None:
    """Move one column by α·G(pre, post, w), for the mlp; arguments as above.

    Args:
        units: one row a hidden unit: weights of pre, post and w, bias, outgoing weight.
        bias: b₂.
        w: see above, as what follows.
        column: see above.
        pre: see above.
        post: see above.
        alpha: see above.
        scale: see above.
    """
    step = alpha / scale
    for i in range(w.shape[0]):
        total = bias
        for k in range(units.shape[0]):
            inside = units[k, 0] * pre[i] + units[k, 1] * post
            inside += units[k, 2] * (scale * w[i, column]) + units[k, 3]
            total += units[k, 4] * max(inside, _0)
        w[i, column] += step * total
