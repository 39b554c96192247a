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
from organism.simd import LANES, choose, lane, larger, load, multiply_add, ramp, spread, store

_0: Number = np.float32(0)
_1: Number = np.float32(1)
_FLOOR = np.float32(DENSITY_FLOOR)
_REACH = np.float32(1 + MARGIN)
_CENTRE = np.float32(LEVEL_CENTRE)
_BLUNT = np.float32(1e-8)


@kernel(reassociate=False)
def drive(z: F32, w: F32, activation: F32) -> None:
    """zW, ``(d_hidden,)``; as many columns at a time as stay in registers."""
    d_hidden = w.shape[1]
    wide = d_hidden - d_hidden % (4 * LANES)
    for j in range(0, wide, 4 * LANES):
        _drive_columns(z, w, j, activation)
    for j in range(wide, d_hidden, LANES):
        lanes, column = min(LANES, d_hidden - j), spread(0)
        for i in range(w.shape[0]):
            column = multiply_add(spread(z[i]), load(w, (i, j), lanes), column)
        store(activation, j, lanes, column)


@kernel(reassociate=False, inline=True)
def _drive_columns(z: F32, w: F32, j: int, activation: F32) -> None:
    """Do ``drive`` for four vectors' worth of columns, from column j on."""
    j1, j2, j3 = j + LANES, j + 2 * LANES, j + 3 * LANES
    a, b, c, d = spread(0), spread(0), spread(0), spread(0)
    for i in range(w.shape[0]):
        x = spread(z[i])
        a = multiply_add(x, load(w, (i, j), LANES), a)
        b = multiply_add(x, load(w, (i, j1), LANES), b)
        c = multiply_add(x, load(w, (i, j2), LANES), c)
        d = multiply_add(x, load(w, (i, j3), LANES), d)
    store(activation, j, LANES, a)
    store(activation, j1, LANES, b)
    store(activation, j2, LANES, c)
    store(activation, j3, LANES, d)


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
        # Less would not move the sum, and its powers would be no normal numbers, which take a
        # processor a hundred times as long.
        sharp = eighth if eighth > _BLUNT else _0
        power = (sharp * sharp) * (sharp * sharp)
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
    """Column with the highest match, the first of equals."""
    return _first_highest(match, _1)


@kernel()
def least_used(trace: F32) -> int:
    """Column with the lowest trace, the first of equals."""
    return _first_highest(trace, -_1)


@kernel(reassociate=False)
def _first_highest(values: F32, sign: Number) -> int:
    """Where the highest of some numbers stands, all of them multiplied by one."""
    size = values.shape[0]
    highest, place, nowhere = spread(-np.inf), spread(0), spread(-np.inf)
    for j in range(0, size, LANES):
        here = ramp() + spread(j)
        value = load(values, j, min(LANES, size - j)) * spread(sign)
        value = choose(spread(size), here, value, nowhere)
        place = choose(value, highest, here, place)
        highest = larger(value, highest)
    best = 0
    for k in range(1, LANES):
        above = lane(highest, k) > lane(highest, best)
        first = lane(place, k) < lane(place, best)
        if above or (first and lane(highest, k) == lane(highest, best)):
            best = k
    return int(lane(place, best))


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
def take_column(w: F32, number: int, column: F32) -> None:
    """Copy a column of W to where its weights lie side by side."""
    for i in range(w.shape[0]):
        column[i] = w[i, number]


@kernel()
def put_column(column: F32, w: F32, number: int) -> None:
    """Write a column of W from where its weights lie side by side."""
    for i in range(w.shape[0]):
        w[i, number] = column[i]


@kernel()
def normalise(column: F32, epsilon: Number) -> None:
    """Divide a column by its norm."""
    square = _0
    for i in range(column.shape[0]):
        square += column[i] * column[i]
    inverse = _1 / (np.float32(math.sqrt(square)) + epsilon)
    for i in range(column.shape[0]):
        column[i] *= inverse


@kernel(reassociate=False)
def move_by_polynomial(
    coefficients: npt.NDArray[Any],
    column: F32,
    pre: F32,
    post: Number,
    alpha: Number,
    scale: Number,
    by_power: F32,
) -> None:
    """Move one column by α·G(pre, post, w), for a polynomial, by Horner's scheme.

    Args:
        coefficients: ``(powers of pre, of post, of w)``.
        column: of W, ``(d_in,)``.
        pre: scaled, ``(d_in,)``.
        post: of the column, scaled.
        alpha: plasticity rate α.
        scale: factor that brings w to unit size.
        by_power: room for powers of pre times powers of w.
    """
    powers_pre, powers_post, powers_w = coefficients.shape
    for a in range(powers_pre):
        for m in range(powers_w):
            sum_ = _0
            for b in range(powers_post - 1, -1, -1):
                sum_ = sum_ * post + coefficients[a, b, m]
            by_power[a * powers_w + m] = sum_
    step = alpha / scale
    for i in range(0, column.shape[0], LANES):
        lanes = min(LANES, column.shape[0] - i)
        w, x = load(column, i, lanes), load(pre, i, lanes)
        scaled, total = spread(scale) * w, spread(0)
        for m in range(powers_w - 1, -1, -1):
            field = spread(0)
            for a in range(powers_pre - 1, -1, -1):
                field = multiply_add(field, x, spread(by_power[a * powers_w + m]))
            total = multiply_add(total, scaled, field)
        store(column, i, lanes, multiply_add(spread(step), total, w))


@kernel()
def move_by_mlp(
    units: npt.NDArray[Any],
    bias: Number,
    column: F32,
    pre: F32,
    post: Number,
    alpha: Number,
    scale: Number,
) -> None:
    """Move one column by α·G(pre, post, w), for the mlp; arguments as above.

    Args:
        units: one row a hidden unit: weights of pre, post and w, bias, outgoing weight.
        bias: b₂.
        column: see above, as what follows.
        pre: see above.
        post: see above.
        alpha: see above.
        scale: see above.
    """
    step = alpha / scale
    for i in range(column.shape[0]):
        total = bias
        for k in range(units.shape[0]):
            inside = units[k, 0] * pre[i] + units[k, 1] * post
            inside += units[k, 2] * (scale * column[i]) + units[k, 3]
            total += units[k, 4] * max(inside, _0)
        column[i] += step * total
