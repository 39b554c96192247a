"""Fused CPU kernels: whole lifetimes of the step of ``organism.cortex``, in float32, without torch.

A step passes over W twice: once to read it, once to move and normalise it in place; with
recruitment it reads W once and writes one column (``organism.recruiting``). What the rule needs of
a row is a few scalars and of a column a few vectors, so that no array larger than W is ever
formed. A polynomial rule up to pre¹·w² costs nine multiply-adds a synapse, its reading and its
norm included; a hidden unit of the mlp costs one multiply-add, one maximum and another
multiply-add.

Owns the arithmetic of a step for one lifetime; ``organism.adjoint`` differentiates it and
``organism.fused`` brings genomes and states to it. The equations and their sources are those of
``organism.cortex``, which it is tested against.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from organism import recruiting
from organism.jit import F32, Number, aligned, aligned_parts, borrowed, kernel
from organism.readout import DEVIATION_FLOOR, LEAST_SHARE
from organism.recruitment import FEATURES, LEAST_TRACE, LEVEL_POWERS
from organism.simd import (
    LANES,
    Vector,
    larger,
    load,
    magnitude,
    multiply_add,
    power_of_two,
    smaller,
    spread,
    store,
    whole,
    with_sign,
)

I64 = npt.NDArray[np.int64]

ROW, COLUMN, FROBENIUS, NONE = range(4)
UNSCALED, SQRT_D, RMS, FAN_IN = range(4)
LOG_ALPHA, LOG_RECOVERY, LOG_ENTROPY_GAIN, C0, C1, C2, B2 = range(7)
READOUT, CALIBRATION, SCALARS = 7, 11, 20
BETA, LEVEL = 0, 1
PRE_WEIGHT, POST_WEIGHT, W_WEIGHT, BIAS, OUT_WEIGHT = range(5)
UNIT_NUMBERS = 5
UNIT_BLOCK = 2
"""Hidden units of the mlp are gone back through two at a time."""

_0: Number = np.float32(0)
_1: Number = np.float32(1)
_2: Number = np.float32(2)
_HALF: Number = np.float32(0.5)
_FLOOR = np.float32(DEVIATION_FLOOR)
_SHARE = np.float32(LEAST_SHARE)
_UNIT_NORM_FLOOR = np.float32(1e-6)
_RMS_FLOOR = np.float32(1e-12)
_LEAST_TRACE = np.float32(LEAST_TRACE)


@kernel()
def fill(values: F32, value: Number) -> None:
    """Write one value everywhere. numba's own assignment to a slice is ten times slower."""
    for i in range(values.shape[0]):
        values[i] = value


@kernel()
def copy(source: F32, to: F32) -> None:
    """Copy a vector."""
    for i in range(source.shape[0]):
        to[i] = source[i]


@kernel()
def copy_matrix(source: F32, to: F32) -> None:
    """Copy a matrix."""
    for i in range(source.shape[0]):
        for j in range(source.shape[1]):
            to[i, j] = source[i, j]


class Constants(NamedTuple):
    """A genome's configuration as numbers, and what is the same for all of a life.

    Fields as in ``organism.config``; what is switched off has a gain of 0 or a bound of infinity;
    α₀ and κ are read from θ once.
    """

    normalisation: int
    epsilon: Number
    scaling: int
    activity_scale: Number
    weight_scale: Number
    post_clamp: Number
    centring: bool
    mean_rate: Number
    memory: bool
    short_term_decay: Number
    long_term_decay: Number
    alpha: Number
    entropy_gain: Number
    metabolism: bool
    entropy_threshold: Number
    beta_fall: Number
    beta_rise: Number
    beta_min: Number
    beta_max: Number
    recruitment: bool
    vigilance: Number
    reuse: Number
    protection: Number
    trace_decay: Number
    calibration: bool
    calibration_rate: Number
    kappa: Number
    plasticity: bool


class Theta(NamedTuple):
    """θ of one phase, or its gradient in float64; or of many, one a leading index.

    Attributes:
        scalars: log α₀, log κ, log of the entropy's gain, c₀, c₁, c₂, b₂ of the mlp, the readout's
            four, or three without recruitment, and the nine of its calibration.
        coefficients: of the polynomial, ``(powers of pre, of post, of w)``; empty for the mlp.
        units: of the mlp, one row a hidden unit: weights of pre, post and w, bias, outgoing
            weight; padded with zeros to a multiple of ``UNIT_BLOCK``; empty for the polynomial.
    """

    scalars: npt.NDArray[Any]
    coefficients: npt.NDArray[Any]
    units: npt.NDArray[Any]


class Lessons(NamedTuple):
    """What each step of a lifetime is taught; or of many, one a leading index of the targets.

    Attributes:
        targets: y of teacher forcing, ``(steps, d_hidden)``, or one for all, ``(1, d_hidden)``;
            unread where a ratio is 0.
        ratios: ρ, ``(steps,)``.
        phases: which of the genome's phases, ``(steps,)``.
    """

    targets: F32
    ratios: F32
    phases: I64


class State(NamedTuple):
    """One lifetime's ``CortexState``, written to in place; or many, one a leading index.

    Attributes:
        w: ``(d_in, d_hidden)``.
        short_term: ``(d_in,)``.
        long_term: ``(d_in,)``.
        mean: ``(d_in,)``.
        trace: ``(d_hidden,)``; without recruitment ``(0,)``.
        gains: β and the level of the readout, ``(2,)``.
        steps: ``(1,)``.
    """

    w: F32
    short_term: F32
    long_term: F32
    mean: F32
    trace: F32
    gains: F32
    steps: I64


class Tape(NamedTuple):
    """What a step leaves behind that its adjoint needs; or many steps, one a leading index.

    Attributes:
        x: centred input, ``(d_in,)``.
        short_term: before the step, ``(d_in,)``; so is ``long_term``; unwritten without memory.
        long_term: see above.
        z: pre-synaptic activity, ``(d_in,)``.
        h: response, ``(d_hidden,)``.
        innate_h: response of the innate weights, ``(d_hidden,)``; with recruitment the matches.
        norms: l2 norms before normalisation, as many as the axis has.
        readings: H, H₀ (with recruitment the best match), β and the level, all before the step,
            ``(4,)``.
    """

    x: F32
    short_term: F32
    long_term: F32
    z: F32
    h: F32
    innate_h: F32
    norms: F32
    readings: F32


class Scratch(NamedTuple):
    """What one step writes on: no kernel of a step asks for memory.

    Attributes:
        post: ``(d_hidden,)``; so are u (post as the rule sees it), field and total.
        u: see above.
        field: see above.
        total: see above.
        inverses: what W's columns are still to be multiplied by, ``(d_hidden,)``.
        pre: z as the rule sees it, ``(d_in,)``.
        column: one of W, ``(d_in,)``.
        columns: what a rule needs of each column; then, of the mlp, what two rows need of each
            hidden unit.
    """

    post: F32
    u: F32
    field: F32
    total: F32
    inverses: F32
    pre: F32
    column: F32
    columns: F32


_SCRATCH_ROWS, _TAPE_ROWS = 7, 8
_LINE = 16  # floats of a cache line
# The mlp moves so many columns of two rows at once: what they add up to stays in registers.
_BLOCK = 2 * LANES
_ROW_NUMBERS = 4  # what two rows need of a hidden unit


def memory_for(theta: Theta, d_in: int, d_hidden: int) -> F32:
    """Make room for what a lifetime writes on from step to step; see ``laid_out``."""
    width = -(-max(d_in, d_hidden) // _LINE) * _LINE
    columns = column_count(theta) * -(-d_hidden // _BLOCK) * _BLOCK
    units = _ROW_NUMBERS * theta.units.shape[-2]
    return aligned(((_SCRATCH_ROWS + _TAPE_ROWS) * width + columns + units,))


def column_count(theta: Theta) -> int:
    """How many numbers a rule needs of each column."""
    *_, powers_pre, _, powers_w = theta.coefficients.shape
    units: int = theta.units.shape[-2]
    return units or max(powers_w, 3) * max(powers_pre, 2)


@kernel()
def laid_out(memory: F32, d_in: int, d_hidden: int) -> tuple[Scratch, Tape]:
    """Lay a scratch and one row of a tape out on their memory; nothing is left to be settled."""
    width = -(-max(d_in, d_hidden) // _LINE) * _LINE
    rows = memory[: (_SCRATCH_ROWS + _TAPE_ROWS) * width].reshape((-1, width))
    fill(rows[4], _1)
    scratch = Scratch(
        rows[0, :d_hidden],
        rows[1, :d_hidden],
        rows[2, :d_hidden],
        rows[3, :d_hidden],
        rows[4, :d_hidden],
        rows[5, :d_in],
        rows[6, :d_in],
        memory[(_SCRATCH_ROWS + _TAPE_ROWS) * width :],
    )
    row = Tape(
        rows[7, :d_in],
        rows[8, :d_in],
        rows[9, :d_in],
        rows[10, :d_in],
        rows[11, :d_hidden],
        rows[12, :d_hidden],
        rows[13, : max(d_in, d_hidden)],
        rows[14, :4],
    )
    return scratch, row


def new_tape(steps: tuple[int, ...], d_in: int, d_hidden: int) -> Tape:
    """Make room for many steps, on as many leading axes as given."""
    inputs, responses = (*steps, d_in), (*steps, d_hidden)
    norms, readings = (*steps, max(d_in, d_hidden)), (*steps, 4)
    parts = (inputs, inputs, inputs, inputs, responses, responses, norms, readings)
    return Tape(*aligned_parts(*parts))


@kernel()
def no_states(state: State) -> State:
    """No state of many, for where none is kept."""
    d_in, d_hidden = state.w.shape
    return State(
        state.w.reshape((1, d_in, d_hidden))[:0],
        state.short_term.reshape((1, -1))[:0],
        state.long_term.reshape((1, -1))[:0],
        state.mean.reshape((1, -1))[:0],
        state.trace.reshape((1, -1))[:0],
        state.gains.reshape((1, -1))[:0],
        state.steps.reshape((1, -1))[:0],
    )


@kernel()
def no_tape(memory: F32) -> Tape:
    """No step of many, for where none is kept."""
    nothing = memory[:0].reshape((0, 1))
    return Tape(nothing, nothing, nothing, nothing, nothing, nothing, nothing, nothing)


@kernel()
def borrowed_state(state: State) -> State:
    """See ``jit.borrowed``."""
    return State(
        borrowed(state.w),
        borrowed(state.short_term),
        borrowed(state.long_term),
        borrowed(state.mean),
        borrowed(state.trace),
        borrowed(state.gains),
        borrowed(state.steps),
    )


@kernel()
def borrowed_theta(theta: Theta) -> Theta:
    """See ``jit.borrowed``."""
    return Theta(borrowed(theta.scalars), borrowed(theta.coefficients), borrowed(theta.units))


@kernel()
def theta_at(thetas: Theta, phase: int) -> Theta:
    """θ of one phase of many."""
    return Theta(thetas.scalars[phase], thetas.coefficients[phase], thetas.units[phase])


@kernel()
def target_at(lessons: Lessons, t: int) -> Any:
    """What one step is taught, ``(d_hidden,)``."""
    return lessons.targets[t if lessons.targets.shape[0] > 1 else 0]


@kernel()
def borrowed_tape(tape: Tape) -> Tape:
    """See ``jit.borrowed``."""
    return Tape(
        borrowed(tape.x),
        borrowed(tape.short_term),
        borrowed(tape.long_term),
        borrowed(tape.z),
        borrowed(tape.h),
        borrowed(tape.innate_h),
        borrowed(tape.norms),
        borrowed(tape.readings),
    )


@kernel()
def row_of(tape: Tape, t: int) -> Tape:
    """One of a tape's leading axis: a step, or all steps of one lifetime."""
    return Tape(
        tape.x[t],
        tape.short_term[t],
        tape.long_term[t],
        tape.z[t],
        tape.h[t],
        tape.innate_h[t],
        tape.norms[t],
        tape.readings[t],
    )


# Reading. Busy loops over rows stay in one function: a call would cost the proof, row by row, that
# no two arrays overlap.


@kernel(reassociate=False)
def _products(
    z: F32, w: F32, inverses: F32, innate: F32, activation: F32, innate_activation: F32
) -> None:
    """Multiply z by W, of which every column is first multiplied, and by W₀, row after row.

    Each sum is a chain of multiply-adds in one order: equal weights give equal bits, whether they
    have been settled or not.
    """
    d_in, d_hidden = w.shape
    blocked = d_in - d_in % 4
    fill(activation, _0)
    fill(innate_activation, _0)
    for i in range(0, blocked, 4):
        z0, z1, z2, z3 = z[i], z[i + 1], z[i + 2], z[i + 3]
        for j in range(d_hidden):
            s = inverses[j]
            a = activation[j] + z0 * (w[i, j] * s)
            a = a + z1 * (w[i + 1, j] * s)
            a = a + z2 * (w[i + 2, j] * s)
            activation[j] = a + z3 * (w[i + 3, j] * s)
            b = innate_activation[j] + z0 * innate[i, j]
            b = b + z1 * innate[i + 1, j]
            b = b + z2 * innate[i + 2, j]
            innate_activation[j] = b + z3 * innate[i + 3, j]
    for i in range(blocked, d_in):
        for j in range(d_hidden):
            activation[j] = activation[j] + z[i] * (w[i, j] * inverses[j])
            innate_activation[j] = innate_activation[j] + z[i] * innate[i, j]


_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: the first has so few bits that its multiples up to 30 are exact.
_LN2_HIGH = np.float32(0.693359375)
_LN2_LOW = np.float32(math.log(2) - 0.693359375)
_SATURATED = np.float32(10)  # tanh of more is 1 in float32
_INVERSE_FACTORIALS = tuple(np.float32(1 / math.factorial(n)) for n in range(8))


@kernel(reassociate=False)
def _tanh(a: F32, h: F32) -> None:
    """H = tanh(a) = m / (m + 2) with m = exp(2a) − 1, to two units in the last place.

    exp(2|a|) = 2ⁿ·exp(r) with |r| ≤ ln(2)/2, and exp(r) − 1 by its Taylor series, so that small
    arguments lose nothing.
    """
    wide = a.shape[0] - a.shape[0] % LANES
    for j in range(0, wide, LANES):
        _tanh_lanes(a, h, j, LANES)
    if wide < a.shape[0]:
        _tanh_lanes(a, h, wide, a.shape[0] - wide)


@kernel(reassociate=False, inline=True)
def _tanh_lanes(a: F32, h: F32, j: int, lanes: int) -> None:
    """Do ``_tanh`` for a vector's worth, from j on."""
    _, _, i2, i3, i4, i5, i6, i7 = _INVERSE_FACTORIALS
    x = load(a, j, lanes)
    y = spread(2) * smaller(spread(_SATURATED), magnitude(x))
    n = whole(multiply_add(y, spread(_LOG2_E), spread(_HALF)))
    r = multiply_add(n, spread(-_LN2_HIGH), y)
    r = multiply_add(n, spread(-_LN2_LOW), r)
    series = multiply_add(r, spread(i7), spread(i6))
    series = multiply_add(r, series, spread(i5))
    series = multiply_add(r, series, spread(i4))
    series = multiply_add(r, series, spread(i3))
    series = multiply_add(r, series, spread(i2))
    power = power_of_two(n)
    m = multiply_add(power, multiply_add(r * r, series, r), power - spread(1))
    store(h, j, lanes, with_sign(m / (m + spread(2)), x))


@kernel()
def mean_of(h: F32) -> Number:
    """Mean of a vector."""
    total = _0
    for j in range(h.shape[0]):
        total += h[j]
    return np.float32(total / np.float32(h.shape[0]))


@kernel()
def _deviation(h: F32) -> Number:
    """Population standard deviation, ``organism.readout.deviation``."""
    mean = mean_of(h)
    total = _0
    for j in range(h.shape[0]):
        total += (h[j] - mean) * (h[j] - mean)
    return np.float32(math.sqrt(total / np.float32(h.shape[0])))


@kernel()
def dot(a: F32, b: F32) -> Number:
    """Σ a·b."""
    total = _0
    for i in range(a.shape[0]):
        total += a[i] * b[i]
    return np.float32(total)


@kernel()
def response_of(entropy: Number, innate_entropy: Number) -> Number:
    """``organism.readout.log_response``."""
    return np.float32(math.log((entropy + _FLOOR) / (innate_entropy + _FLOOR)))


@kernel()
def logit_of(theta: Theta, response: Number, level: Number) -> Number:
    """``organism.readout.logit``."""
    outright, suppressed = theta.scalars[READOUT], theta.scalars[READOUT + 1]
    bias = theta.scalars[READOUT + 2]
    return np.float32(outright * response + suppressed * (level - response) + bias)


@kernel()
def sigmoid(x: Number) -> Number:
    """Probability of a log-odds."""
    return np.float32(_1 / (_1 + math.exp(-x)))


# What takes tuples of arrays at every step becomes part of the loop over steps: numba counts each
# array of a tuple that it hands to a function, there and back, by a call.


@kernel(inline=True)
def read(
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    e: F32,
    row: Tape,
    scratch: Scratch,
) -> tuple[Number, Number]:
    """Read a chunk, ``organism.cortex.recall``, onto a row of a tape; H and the log-odds."""
    z, readings = row.z, row.readings
    _mix(constants, theta, state, e, row)
    beta, level = state.gains[BETA], state.gains[LEVEL]
    # field and total are free until the learning.
    _products(z, state.w, scratch.inverses, innate, scratch.field, scratch.total)
    _tanh(scratch.field, row.h)
    _tanh(scratch.total, row.innate_h)
    entropy, innate_entropy = _deviation(row.h), _deviation(row.innate_h)
    readings[0], readings[1], readings[2], readings[3] = entropy, innate_entropy, beta, level
    return entropy, logit_of(theta, response_of(entropy, innate_entropy), level)


@kernel(inline=True)
def _mix(constants: Constants, theta: Theta, state: State, e: F32, row: Tape) -> None:
    """Centre a chunk and mix the memories in: x and z of a row of a tape."""
    x, z, beta = row.x, row.z, state.gains[BETA]
    _centre(constants, state.mean, e, x)
    if constants.memory:
        c0, c1, c2 = theta.scalars[C0], theta.scalars[C1], theta.scalars[C2]
        for i in range(z.shape[0]):
            row.short_term[i], row.long_term[i] = state.short_term[i], state.long_term[i]
            z[i] = beta * (c0 * x[i] + c1 * state.short_term[i] + c2 * state.long_term[i])
    else:
        for i in range(z.shape[0]):
            z[i] = beta * x[i]


@kernel(inline=True)
def _read_matches(
    constants: Constants, theta: Theta, state: State, e: F32, row: Tape, scratch: Scratch
) -> tuple[Number, Number]:
    """Read with recruitment: how z matches each column, H, and the log-odds of the evidence."""
    _mix(constants, theta, state, e, row)
    beta, level, match = state.gains[BETA], state.gains[LEVEL], row.innate_h
    recruiting.drive(row.z, state.w, match)
    _tanh(match, row.h)
    inverse = _1 / beta
    for j in range(match.shape[0]):
        match[j] *= inverse
    entropy, best = _deviation(row.h), match[recruiting.winner(match)]
    row.readings[0], row.readings[1], row.readings[2], row.readings[3] = entropy, best, beta, level
    weights = theta.scalars[READOUT : READOUT + FEATURES]
    calibration = theta.scalars[CALIBRATION:].reshape((-1, LEVEL_POWERS))
    found = recruiting.evidence(weights, match, best, state.trace)
    return entropy, recruiting.log_odds(calibration, found, level)


@kernel()
def _centre(constants: Constants, mean: F32, e: F32, x: F32) -> None:
    """Centre an input by the running mean and scale it to unit norm, where that is on."""
    if not constants.centring:
        copy(e, x)
        return
    for i in range(x.shape[0]):
        x[i] = e[i] - mean[i]
    inverse = _1 / max(np.float32(math.sqrt(dot(x, x))), _UNIT_NORM_FLOOR)
    for i in range(x.shape[0]):
        x[i] *= inverse


# Moving the synapses


@kernel()
def rate_of(constants: Constants, entropy: Number) -> Number:
    """α = α₀·(1 + gain·H), ``organism.cortex.plasticity_rate``."""
    return np.float32(constants.alpha * (_1 + constants.entropy_gain * entropy))


@kernel()
def mean_square(values: F32) -> Number:
    """Mean square of a vector."""
    return np.float32(dot(values, values) / np.float32(values.shape[0]))


@kernel()
def matrix_mean_square(w: F32) -> Number:
    """Mean square of a matrix."""
    total = 0.0
    for i in range(w.shape[0]):
        total += _row_square(i, w)
    return np.float32(total / w.size)


@kernel()
def scales_of(
    constants: Constants, w: F32, z: F32, post: F32, beta: Number
) -> tuple[np.float32, np.float32, np.float32]:
    """Factors on pre, post and w that bring them to unit size, ``organism.rules.scaled_delta``."""
    if constants.scaling == RMS:
        return (
            np.float32(_1 / math.sqrt(max(mean_square(z), _RMS_FLOOR))),
            np.float32(_1 / math.sqrt(max(mean_square(post), _RMS_FLOOR))),
            np.float32(_1 / math.sqrt(max(matrix_mean_square(w), _RMS_FLOOR))),
        )
    if constants.scaling == SQRT_D or constants.scaling == FAN_IN:
        activity = np.float32(constants.activity_scale / beta)
        return activity, activity if constants.scaling == SQRT_D else _1, constants.weight_scale
    return _1, _1, _1


@kernel()
def activity_of(h: F32, target: F32, ratio: Number, post: F32) -> None:
    """Teacher-forced activity post = ρ·y + (1 − ρ)·h [D26 §5.2]."""
    copy(h, post)
    if ratio:
        for j in range(h.shape[0]):
            post[j] = ratio * target[j] + (_1 - ratio) * h[j]


@kernel()
def clamped(constants: Constants, values: F32, scale: Number, out: F32) -> None:
    """Scale, then clamp to ± ``post_clamp``."""
    for j in range(values.shape[0]):
        value = values[j] * scale
        value = constants.post_clamp if value > constants.post_clamp else value
        out[j] = -constants.post_clamp if value < -constants.post_clamp else value


POST_POWERS = 4
"""Powers of post, 0 among them, that a polynomial may have here."""


@kernel()
def polynomial_columns(
    coefficients: F32,
    u: F32,
    step: Number,
    scale: Number,
    kept: Number,
    scratch: Scratch,
) -> F32:
    """Write kept·w + step·G(pre, u, scale·w) as Σ columns[m, a]·preᵃ·wᵐ.

    ``(powers of w, of pre, d_hidden)``, at least three and two of them: what the synapses of a
    column share, Σ_b c_abm·u^b, with everything that is the same for all synapses folded in.
    """
    powers_pre, _, powers_w = coefficients.shape
    rows, powers, d_hidden = max(powers_w, 3), max(powers_pre, 2), u.shape[0]
    wide = d_hidden - d_hidden % LANES
    flat = scratch.columns[: rows * powers * d_hidden]
    if (rows, powers) != (powers_w, powers_pre):
        fill(flat, _0)
    columns = flat.reshape((rows, powers, d_hidden))
    factor = step
    for m in range(powers_w):
        for a in range(powers_pre):
            c, column = _scaled(coefficients[a, :, m], factor), columns[m, a]
            for j in range(0, wide, LANES):
                _sum_powers(c, u, column, j, LANES)
            if wide < d_hidden:
                _sum_powers(c, u, column, wide, d_hidden - wide)
        factor *= scale
    for j in range(d_hidden):
        columns[1, 0, j] += kept
    return columns


@kernel(reassociate=False, inline=True)
def _scaled(coefficients: F32, factor: Number) -> tuple[Vector, ...]:
    """Coefficients of ``POST_POWERS`` powers, each in all lanes; 0 where there is none."""
    count = coefficients.shape[0]
    return (
        spread(factor * coefficients[0]),
        spread(factor * coefficients[1] if count > 1 else _0),
        spread(factor * coefficients[2] if count > 2 else _0),
        spread(factor * coefficients[3] if count > 3 else _0),
    )


@kernel(reassociate=False, inline=True)
def _sum_powers(c: tuple[Vector, ...], u: F32, column: F32, j: int, lanes: int) -> None:
    """Write Σ c_b·u^b of some columns from j on, by Horner's scheme."""
    c0, c1, c2, c3 = c
    x = load(u, j, lanes)
    total = multiply_add(multiply_add(multiply_add(c3, x, c2), x, c1), x, c0)
    store(column, j, lanes, total)


@kernel(inline=True)
def _move_by_polynomial(
    constants: Constants,
    theta: Theta,
    innate: F32,
    w: F32,
    pre: F32,
    alpha: Number,
    scale: Number,
    norms: F32,
    scratch: Scratch,
) -> None:
    """W ← W + α·G(pre, u, W) + κ(W₀ − W), and what its normalisation needs."""
    kappa = constants.kappa
    columns = polynomial_columns(
        theta.coefficients, scratch.u, alpha / scale, scale, _1 - kappa, scratch
    )
    if may_wait(constants, theta):
        _bilinear_rows(columns, pre, kappa, innate, w, scratch.inverses, norms)
        return
    for i in range(w.shape[0]):
        if is_bilinear(theta):
            _bilinear_row(columns, i, pre[i], kappa, innate, w)
        else:
            _general_row(columns, i, pre[i], kappa, innate, scratch, w)
        _after_row(constants, i, w, norms)


@kernel()
def is_bilinear(theta: Theta) -> bool:
    """Whether the rule is a polynomial up to pre¹·w²: those are done in one loop."""
    powers_pre, _, powers_w = theta.coefficients.shape
    return bool(powers_pre <= 2 and powers_w <= 3 and theta.units.shape[0] == 0)


@kernel()
def may_wait(constants: Constants, theta: Theta) -> bool:
    """Whether W may stay undivided by its columns' norms until it is read: a pass less.

    Each weight is divided and rounded before it is used, so that it makes no difference, to the
    last bit, when that is done.
    """
    scaled = constants.normalisation == COLUMN and constants.scaling != RMS
    return scaled and is_bilinear(theta)


@kernel()
def _bilinear_row(columns: F32, i: int, x: Number, kappa: Number, innate: F32, w: F32) -> None:
    """Move row i by a polynomial up to pre¹·w²: five multiply-adds, and one of recovery."""
    for j in range(w.shape[1]):
        f0 = columns[0, 0, j] + x * columns[0, 1, j]
        f1 = columns[1, 0, j] + x * columns[1, 1, j]
        f2 = columns[2, 0, j] + x * columns[2, 1, j]
        w[i, j] = (f2 * w[i, j] + f1) * w[i, j] + (f0 + kappa * innate[i, j])


@kernel(reassociate=False)
def _bilinear_rows(
    columns: F32, pre: F32, kappa: Number, innate: F32, w: F32, inverses: F32, norms: F32
) -> None:
    """Divide all rows by the last norms, move them, and sum up the next; four a loop."""
    d_in, d_hidden = w.shape
    blocked, wide = d_in - d_in % 4, d_hidden - d_hidden % LANES
    for i in range(0, blocked, 4):
        for j in range(0, wide, LANES):
            _move_four(columns, pre, kappa, innate, w, inverses, norms, i, j, LANES)
        if wide < d_hidden:
            lanes = d_hidden - wide
            _move_four(columns, pre, kappa, innate, w, inverses, norms, i, wide, lanes)
    for i in range(blocked, d_in):
        for j in range(0, d_hidden, LANES):
            lanes = min(LANES, d_hidden - j)
            shared = _shared_of(columns, inverses, j, lanes)
            a = _moved(shared, pre[i], kappa, innate, w, i, j, lanes)
            store(norms, j, lanes, multiply_add(a, a, load(norms, j, lanes)))


@kernel(reassociate=False, inline=True)
def _move_four(
    columns: F32,
    pre: F32,
    kappa: Number,
    innate: F32,
    w: F32,
    inverses: F32,
    norms: F32,
    i: int,
    j: int,
    lanes: int,
) -> None:
    """Do ``_bilinear_rows`` for four rows from i, and some columns from j on."""
    shared = _shared_of(columns, inverses, j, lanes)
    a = _moved(shared, pre[i], kappa, innate, w, i, j, lanes)
    b = _moved(shared, pre[i + 1], kappa, innate, w, i + 1, j, lanes)
    c = _moved(shared, pre[i + 2], kappa, innate, w, i + 2, j, lanes)
    d = _moved(shared, pre[i + 3], kappa, innate, w, i + 3, j, lanes)
    squares = multiply_add(b, b, multiply_add(a, a, load(norms, j, lanes)))
    store(norms, j, lanes, multiply_add(d, d, multiply_add(c, c, squares)))


@kernel(reassociate=False, inline=True)
def _shared_of(columns: F32, inverses: F32, j: int, lanes: int) -> tuple[Vector, ...]:
    """What the synapses of some columns share: six coefficients, and what they are divided by."""
    return (
        load(columns, (0, 0, j), lanes),
        load(columns, (0, 1, j), lanes),
        load(columns, (1, 0, j), lanes),
        load(columns, (1, 1, j), lanes),
        load(columns, (2, 0, j), lanes),
        load(columns, (2, 1, j), lanes),
        load(inverses, j, lanes),
    )


@kernel(reassociate=False, inline=True)
def _moved(
    shared: tuple[Vector, ...],
    pre: Number,
    kappa: Number,
    innate: F32,
    w: F32,
    i: int,
    j: int,
    lanes: int,
) -> Vector:
    """Divide, move and write some synapses of row i: six multiply-adds, and one of recovery."""
    p0, q0, p1, q1, p2, q2, inverse = shared
    x, before = spread(pre), load(w, (i, j), lanes) * inverse
    after = multiply_add(multiply_add(x, q2, p2), before, multiply_add(x, q1, p1))
    after = multiply_add(after, before, multiply_add(x, q0, p0))
    after = multiply_add(spread(kappa), load(innate, (i, j), lanes), after)
    store(w, (i, j), lanes, after)
    return after


@kernel()
def _general_row(
    columns: F32,
    i: int,
    x: Number,
    kappa: Number,
    innate: F32,
    scratch: Scratch,
    w: F32,
) -> None:
    """Move row i by a polynomial of any exponents, by Horner's scheme in pre and in w."""
    powers_w, _, d_hidden = columns.shape
    field, total = scratch.field, scratch.total
    fill(total, _0)
    for m in range(powers_w - 1, -1, -1):
        row_field(columns, m, x, field)
        for j in range(d_hidden):
            total[j] = total[j] * w[i, j] + field[j]
    for j in range(d_hidden):
        w[i, j] = total[j] + kappa * innate[i, j]


@kernel()
def row_field(columns: F32, m: int, x: Number, field: F32) -> None:
    """F_m = Σ_a xᵃ·columns[m, a]."""
    fill(field, _0)
    for a in range(columns.shape[1] - 1, -1, -1):
        for j in range(field.shape[0]):
            field[j] = field[j] * x + columns[m, a, j]


@kernel()
def mlp_columns(units: F32, u: F32, width: int, scratch: Scratch) -> F32:
    """w₁ₖ·u + bₖ, ``(blocks, units, width)``: what a column's synapses share in each hidden unit.

    Block by block of so many columns; of the last, those that are not there are left unwritten.
    """
    count, d_hidden = units.shape[0], u.shape[0]
    blocks, wide = -(-d_hidden // width), d_hidden - d_hidden % LANES
    columns = scratch.columns[: blocks * count * width].reshape((blocks, count, width))
    for j in range(0, wide, LANES):
        _write_columns(units, u, columns, j, LANES)
    if wide < d_hidden:
        _write_columns(units, u, columns, wide, d_hidden - wide)
    return columns


@kernel(reassociate=False, inline=True)
def _write_columns(units: F32, u: F32, columns: F32, j: int, lanes: int) -> None:
    """Do ``mlp_columns`` for a vector's worth, from j on."""
    block, x = j // columns.shape[2], load(u, j, lanes)
    for k in range(units.shape[0]):
        shared = multiply_add(spread(units[k, POST_WEIGHT]), x, spread(units[k, BIAS]))
        store(columns, (block, k, j % columns.shape[2]), lanes, shared)


@kernel()
def _move_by_mlp(
    constants: Constants,
    theta: Theta,
    innate: F32,
    w: F32,
    pre: F32,
    alpha: Number,
    scale: Number,
    norms: F32,
    scratch: Scratch,
) -> None:
    """W ← W + α·G(pre, u, W) + κ(W₀ − W), and what its normalisation needs; two rows a loop."""
    units = theta.units
    columns = mlp_columns(units, scratch.u, _BLOCK, scratch)
    numbers = scratch.columns[-_ROW_NUMBERS * units.shape[0] :].reshape((-1, _ROW_NUMBERS))
    step, kappa, d_in = alpha / scale, constants.kappa, w.shape[0]
    for i in range(0, d_in, 2):
        below = min(i + 1, d_in - 1)
        starts = _starts_of(units, theta.scalars[B2], scale, pre[i], pre[below], numbers)
        _move_two_rows(numbers, columns, w, i, below, starts, step, _1 - kappa)
        _finish_row(constants, kappa, innate, i, w, norms)
        if below > i:
            _finish_row(constants, kappa, innate, below, w, norms)


@kernel()
def _finish_row(
    constants: Constants, kappa: Number, innate: F32, i: int, w: F32, norms: F32
) -> None:
    """Draw a moved row back towards W₀, and take it into the norms."""
    if kappa:
        for j in range(w.shape[1]):
            w[i, j] += kappa * innate[i, j]
    _after_row(constants, i, w, norms)


@kernel(reassociate=False)
def _move_two_rows(
    numbers: F32,
    columns: F32,
    w: F32,
    i: int,
    below: int,
    starts: tuple[Number, Number],
    step: Number,
    kept: Number,
) -> None:
    """W ← kept·W + step·G in row i and the one below, or, of the last row, in itself twice."""
    d_hidden = w.shape[1]
    rows = (i, below)
    blocks = d_hidden // _BLOCK
    for b in range(blocks):
        _move_block(numbers, columns, w, rows, starts, step, kept, b, LANES, LANES)
    if d_hidden % _BLOCK:
        first = min(LANES, d_hidden % _BLOCK)
        second = d_hidden % _BLOCK - first
        _move_block(numbers, columns, w, rows, starts, step, kept, blocks, first, second)


@kernel()
def _starts_of(
    units: F32, base: Number, scale: Number, pre: Number, pre_below: Number, numbers: F32
) -> tuple[Number, Number]:
    """Write down what two rows need of each unit; return what G starts from in each.

    relu(s + t) = max(t, −s) + s, with s of the row and t = w₁·w + column: the sum over units of
    the second s is one number a row, so that a unit costs a synapse no addition. Of a unit, the
    numbers are what it multiplies w and its own answer by, and where it sets in, row by row.
    """
    start, start_below = base, base
    for k in range(units.shape[0]):
        weight, out = units[k, PRE_WEIGHT], units[k, OUT_WEIGHT]
        start += out * weight * pre
        start_below += out * weight * pre_below
        numbers[k, 0] = units[k, W_WEIGHT] * scale
        numbers[k, 1] = out
        numbers[k, 2] = -weight * pre
        numbers[k, 3] = -weight * pre_below
    return start, start_below


@kernel(reassociate=False, inline=True)
def _move_block(
    numbers: F32,
    columns: F32,
    w: F32,
    rows: tuple[int, int],
    starts: tuple[Number, Number],
    step: Number,
    kept: Number,
    block: int,
    first: int,
    second: int,
) -> None:
    """Do ``_move_two_rows`` for a block of columns, of so many real lanes in each of two vectors.

    What is not a number stays so.
    """
    (i, below), (start, start_below), j = rows, starts, block * _BLOCK
    w0, w1 = load(w, (i, j), first), load(w, (i, j + LANES), second)
    v0, v1 = load(w, (below, j), first), load(w, (below, j + LANES), second)
    g0 = g1 = spread(start)
    f0 = f1 = spread(start_below)
    for k in range(numbers.shape[0]):
        a, c = spread(numbers[k, 0]), spread(numbers[k, 1])
        onset, onset_below = spread(numbers[k, 2]), spread(numbers[k, 3])
        column, next_column = (
            load(columns, (block, k, 0), LANES),
            load(columns, (block, k, LANES), LANES),
        )
        g0 = multiply_add(c, larger(onset, multiply_add(a, w0, column)), g0)
        g1 = multiply_add(c, larger(onset, multiply_add(a, w1, next_column)), g1)
        f0 = multiply_add(c, larger(onset_below, multiply_add(a, v0, column)), f0)
        f1 = multiply_add(c, larger(onset_below, multiply_add(a, v1, next_column)), f1)
    size, rest = spread(step), spread(kept)
    store(w, (i, j), first, multiply_add(size, g0, rest * w0))
    store(w, (i, j + LANES), second, multiply_add(size, g1, rest * w1))
    store(w, (below, j), first, multiply_add(size, f0, rest * v0))
    store(w, (below, j + LANES), second, multiply_add(size, f1, rest * v1))


@kernel()
def _after_row(constants: Constants, i: int, w: F32, norms: F32) -> None:
    """Take a moved row into the norms; where the norm is the row's own, divide by it at once."""
    if constants.normalisation == COLUMN:
        for j in range(w.shape[1]):
            norms[j] += w[i, j] * w[i, j]
    elif constants.normalisation == FROBENIUS:
        norms[0] += _row_square(i, w)
    elif constants.normalisation == ROW:
        norms[i] = math.sqrt(_row_square(i, w))
        _scale_row(i, w, _1 / (norms[i] + constants.epsilon))


@kernel()
def _row_square(i: int, w: F32) -> Number:
    total = _0
    for j in range(w.shape[1]):
        total += w[i, j] * w[i, j]
    return np.float32(total)


@kernel()
def _scale_row(i: int, w: F32, factor: Number) -> None:
    for j in range(w.shape[1]):
        w[i, j] *= factor


@kernel(inline=True)
def _after_rows(constants: Constants, theta: Theta, w: F32, norms: F32, scratch: Scratch) -> None:
    """Divide by the norms that are known only now, or note that it is to be done."""
    if constants.normalisation == COLUMN:
        for j in range(w.shape[1]):
            norms[j] = math.sqrt(norms[j])
            scratch.inverses[j] = _1 / (norms[j] + constants.epsilon)
        if not may_wait(constants, theta):
            settle(w, scratch)
    elif constants.normalisation == FROBENIUS:
        norms[0] = math.sqrt(norms[0])
        inverse = _1 / (norms[0] + constants.epsilon)
        for i in range(w.shape[0]):
            _scale_row(i, w, inverse)


@kernel()
def settle(w: F32, scratch: Scratch) -> None:
    """Do what was noted: W is W again."""
    for i in range(w.shape[0]):
        for j in range(w.shape[1]):
            w[i, j] *= scratch.inverses[j]
    fill(scratch.inverses, _1)


@kernel(inline=True)
def learn(
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    target: F32,
    ratio: Number,
    row: Tape,
    scratch: Scratch,
) -> None:
    """Move W by the rule, the learning half of ``organism.cortex.step``, from what was read."""
    z, norms, post = row.z, row.norms, scratch.post
    entropy, beta = row.readings[0], row.readings[2]
    activity_of(row.h, target, ratio, post)
    pre_scale, post_scale, scale = scales_of(constants, state.w, z, post, beta)
    pre = scratch.pre
    for i in range(z.shape[0]):
        pre[i] = pre_scale * z[i]
    clamped(constants, post, post_scale, scratch.u)
    fill(norms, _0)
    alpha = rate_of(constants, entropy)
    if theta.units.shape[0]:
        _move_by_mlp(constants, theta, innate, state.w, pre, alpha, scale, norms, scratch)
    else:
        _move_by_polynomial(constants, theta, innate, state.w, pre, alpha, scale, norms, scratch)
    _after_rows(constants, theta, state.w, norms, scratch)


@kernel(inline=True)
def _recruit(constants: Constants, theta: Theta, state: State, row: Tape, scratch: Scratch) -> None:
    """Move one column by the rule, from what was read: ``organism.cortex`` with recruitment."""
    entropy, best, beta = row.readings[0], row.readings[1], row.readings[2]
    w, match = state.w, row.innate_h
    recruited = best < constants.vigilance
    number = recruiting.least_used(state.trace) if recruited else recruiting.winner(match)
    shut = recruited and state.trace[number] >= constants.protection
    for j in range(state.trace.shape[0]):
        trace = state.trace[j] * constants.trace_decay
        state.trace[j] = trace if trace > _LEAST_TRACE else _0
    if shut:
        return
    pre, column, post = scratch.pre, scratch.column, row.h[number]
    if recruited:
        fill(column, _0)
        post = np.float32(math.tanh(beta))
    else:
        recruiting.take_column(w, number, column)
    factor = np.float32(constants.activity_scale / beta) if constants.scaling != UNSCALED else _1
    scale = constants.weight_scale if constants.scaling != UNSCALED else _1
    for i in range(row.z.shape[0]):
        pre[i] = factor * row.z[i]
    post = post * factor if constants.scaling == SQRT_D else post
    post = min(max(post, -constants.post_clamp), constants.post_clamp)
    alpha = rate_of(constants, entropy)
    if theta.units.shape[0]:
        recruiting.move_by_mlp(theta.units, theta.scalars[B2], column, pre, post, alpha, scale)
    else:
        recruiting.move_by_polynomial(
            theta.coefficients, column, pre, post, alpha, scale, scratch.columns
        )
    recruiting.normalise(column, constants.epsilon)
    recruiting.put_column(column, w, number)
    recruiting.use(state.trace, number, recruited, constants.reuse)


@kernel()
def next_level(constants: Constants, level: Number, response: Number, logit: Number) -> Number:
    """``organism.readout.next_level``."""
    share = max(_1 - sigmoid(logit), _SHARE)
    return np.float32(level + constants.calibration_rate * share * (response - level))


@kernel(inline=True)
def _age(constants: Constants, state: State, e: F32, row: Tape, logit: Number) -> None:
    """Move everything but W: memories, mean, β, the level of the readout and the step count."""
    entropy, innate_entropy = row.readings[0], row.readings[1]
    beta, level = row.readings[2], row.readings[3]
    if constants.memory:
        short, long = constants.short_term_decay, constants.long_term_decay
        for i in range(e.shape[0]):
            mixed = row.z[i] / beta
            state.short_term[i] = short * state.short_term[i] + (_1 - short) * mixed
            state.long_term[i] = long * state.long_term[i] + (_1 - long) * mixed
    if constants.centring:
        rate = max(_1 / np.float32(state.steps[0] + 1), constants.mean_rate)
        for i in range(e.shape[0]):
            state.mean[i] += rate * (e[i] - state.mean[i])
    if constants.metabolism:
        moved = beta * (
            constants.beta_fall if entropy > constants.entropy_threshold else constants.beta_rise
        )
        state.gains[BETA] = min(max(moved, constants.beta_min), constants.beta_max)
    if constants.calibration and constants.recruitment:
        rate, best = constants.calibration_rate, row.readings[1]
        state.gains[LEVEL] = recruiting.next_level(level, best, rate)
    elif constants.calibration:
        response = response_of(entropy, innate_entropy)
        state.gains[LEVEL] = next_level(constants, level, response, logit)
    state.steps[0] += 1


@kernel(inline=True)
def step(
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    e: F32,
    target: F32,
    ratio: Number,
    row: Tape,
    scratch: Scratch,
) -> tuple[Number, Number]:
    """Read a chunk, then learn from it, in place; H and the log-odds from before the learning.

    W may be left to be settled.
    """
    if constants.recruitment:
        entropy, logit = _read_matches(constants, theta, state, e, row, scratch)
        if constants.plasticity:
            _recruit(constants, theta, state, row, scratch)
        _age(constants, state, e, row, logit)
        return entropy, logit
    entropy, logit = read(constants, theta, innate, state, e, row, scratch)
    if constants.plasticity:
        learn(constants, theta, innate, state, target, ratio, row, scratch)
    _age(constants, state, e, row, logit)
    return entropy, logit


@kernel()
def respond(constants: Constants, theta: Theta, state: State, cue: F32, row: Tape) -> None:
    """Read a cue for h alone, ``organism.cortex.respond``, onto a row of a tape; W is settled."""
    _mix(constants, theta, state, cue, row)
    recruiting.drive(row.z, state.w, row.h)
    _tanh(row.h, row.h)
    row.readings[2] = state.gains[BETA]


@kernel()
def state_of(states: State, i: int) -> State:
    """One state of many."""
    return State(
        states.w[i],
        states.short_term[i],
        states.long_term[i],
        states.mean[i],
        states.trace[i],
        states.gains[i],
        states.steps[i],
    )


@kernel()
def keep(state: State, kept: State, k: int) -> None:
    """Copy a state to index k of many."""
    copy_matrix(state.w, kept.w[k])
    copy(state.short_term, kept.short_term[k])
    copy(state.long_term, kept.long_term[k])
    copy(state.mean, kept.mean[k])
    copy(state.trace, kept.trace[k])
    copy(state.gains, kept.gains[k])
    kept.steps[k, 0] = state.steps[0]


@kernel()
def live(
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    inputs: F32,
    lessons: Lessons,
    entropy: F32,
    logit: F32,
    beta: F32,
    segment: int,
    checkpoints: State,
    lasts: Tape,
    memory: F32,
) -> None:
    """Live one lifetime on, in place, ``organism.lifetime.live``.

    Args:
        constants: the configuration.
        theta: the genome's numbers, of each phase.
        innate: W₀, ``(d_in, d_hidden)``.
        state: where to go on from; where it ends.
        inputs: ``(steps, d_in)``.
        lessons: one lifetime's.
        entropy: takes H of each step, ``(steps,)``.
        logit: takes the log-odds of familiarity of each step, ``(steps,)``.
        beta: takes β after each step, ``(steps,)``.
        segment: steps between two checkpoints; 0: none.
        checkpoints: takes the state before each segment, ``(segments, ...)``.
        lasts: takes what the last step of each leaves behind, ``(segments, ...)`` or more.
        memory: ``memory_for`` the genome.
    """
    state, theta, innate = borrowed_state(state), borrowed_theta(theta), borrowed(innate)
    inputs, memory = borrowed(inputs), borrowed(memory)
    lessons = Lessons(borrowed(lessons.targets), lessons.ratios, lessons.phases)
    lasts, waits = borrowed_tape(lasts), may_wait(constants, theta_at(theta, 0))
    scratch, spare = laid_out(memory, state.w.shape[0], state.w.shape[1])
    for t in range(inputs.shape[0]):
        row = spare
        if segment and ((t + 1) % segment == 0 or t + 1 == inputs.shape[0]):
            row = row_of(lasts, t // segment)
        if segment and t % segment == 0:
            if waits:
                settle(state.w, scratch)
            keep(state, checkpoints, t // segment)
        entropy[t], logit[t] = step(
            constants,
            theta_at(theta, lessons.phases[t]),
            innate,
            state,
            inputs[t],
            target_at(lessons, t),
            lessons.ratios[t],
            row,
            scratch,
        )
        beta[t] = state.gains[BETA]
    if waits:
        settle(state.w, scratch)


@kernel()
def live_all(
    first: int,
    last: int,
    constants: Constants,
    theta: Theta,
    innate: F32,
    states: State,
    inputs: F32,
    lessons: Lessons,
    entropy: F32,
    logit: F32,
    beta: F32,
    segment: int,
    checkpoints: State,
    lasts: Tape,
    cues: F32,
    memory: F32,
) -> None:
    """Do ``live`` for some lifetimes of a batch, from first to before last.

    Arguments are those of ``live``, with the lifetimes of the batch on a leading axis where they
    differ, and what each is asked at its end, ``(batch, d_in)``, or ``(0, d_in)``: nothing. What
    that leaves behind is the last of lasts, which are one more than the segments.
    """
    states, checkpoints = borrowed_state(states), borrowed_state(checkpoints)
    inputs, targets, lasts = borrowed(inputs), borrowed(lessons.targets), borrowed_tape(lasts)
    for i in range(first, last):
        live(
            constants,
            theta,
            innate,
            state_of(states, i),
            inputs[i],
            Lessons(targets[i], lessons.ratios, lessons.phases),
            entropy[i],
            logit[i],
            beta[i],
            segment,
            state_of(checkpoints, i),
            row_of(lasts, i),
            memory,
        )
        if cues.shape[0]:
            answer = row_of(row_of(lasts, i), lasts.z.shape[1] - 1)
            respond(constants, theta_at(theta, 0), state_of(states, i), cues[i], answer)


@kernel()
def recall(
    constants: Constants, theta: Theta, innate: F32, state: State, e: F32, memory: F32
) -> tuple[Number, Number]:
    """Read one cue, ``(d_in,)``, and change nothing; H and the log-odds of familiarity."""
    scratch, row = laid_out(memory, state.w.shape[0], state.w.shape[1])
    theta = theta_at(theta, 0)
    if constants.recruitment:
        return _read_matches(constants, theta, state, e, row, scratch)
    return read(constants, theta, innate, state, e, row, scratch)
