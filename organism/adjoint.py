"""The vector-Jacobian product of a lifetime of ``organism.kernels``: reverse mode, recomputed.

A lifetime keeps its state once a segment, and what the segment's last step read. Going back, each
segment is lived again, this time with W and a few vectors kept at every step; what a rule computes
within a step is never kept but computed anew. With segments of one step nothing is read or learned
twice. With segments of √steps memory grows with √steps only, and the whole costs one forward pass
more; Griewank & Walther, "Algorithm 799: Revolve" (2000), have better schedules, this one is enough
here.

θ gets the gradient; inputs, targets and the first state are constants of meta-training and get
none. β is a piecewise constant function of θ, so that no gradient passes through it, as in
``organism.cortex``. Sums over synapses are in float32 a row, in float64 over rows; those of a
column in float32.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from organism.jit import F32, F64, Number, aligned, aligned_parts, borrowed, kernel
from organism.kernels import (
    B2,
    BIAS,
    C0,
    C1,
    C2,
    COLUMN,
    FROBENIUS,
    LEVEL,
    LOG_ALPHA,
    LOG_ENTROPY_GAIN,
    LOG_RECOVERY,
    OUT_WEIGHT,
    POST_WEIGHT,
    PRE_WEIGHT,
    READOUT,
    RMS,
    ROW,
    W_WEIGHT,
    Constants,
    Lessons,
    Scratch,
    State,
    Tape,
    Theta,
    activity_of,
    borrowed_state,
    borrowed_tape,
    borrowed_theta,
    clamped,
    column_count,
    copy,
    copy_matrix,
    dot,
    fill,
    is_bilinear,
    laid_out,
    logit_of,
    may_wait,
    mean_of,
    memory_for,
    mlp_columns,
    new_tape,
    polynomial_columns,
    rate_of,
    response_of,
    row_field,
    row_of,
    scales_of,
    settle,
    sigmoid,
    state_of,
    step,
    target_at,
    theta_at,
)
from organism.readout import DEVIATION_FLOOR, LEAST_SHARE
from organism.simd import (
    LANES,
    Vector,
    add_where,
    load,
    multiply_add,
    multiply_add_where,
    spread,
    store,
    total_of,
)

_0: Number = np.float32(0)
_1: Number = np.float32(1)
_2: Number = np.float32(2)
_PANEL = 512
_FLOOR = np.float32(DEVIATION_FLOOR)
_SHARE = np.float32(LEAST_SHARE)
_UNIT_RMS_CEILING = np.float32(1e6)  # 1 / √(floor of the mean square): no gradient beyond it


class Pending(NamedTuple):
    """What is to be done to the rows of g, the cotangent of W, at the next pass over them.

    g_i ← (g_i + z_i·g_a − factor_i·W'_i)·inverse_i: the first is what reading adds, the rest what
    a norm does that is not of columns. Whoever passes over a row does both, in the nearest cache.
    ``(d_in,)`` each; set before each such pass. Without plasticity there is none, and needs none.

    Attributes:
        z: see above.
        factors: see above.
        inverses: see above.
    """

    z: F32
    factors: F32
    inverses: F32


class Buffers(NamedTuple):
    """What the adjoint of one step writes on.

    Attributes:
        g_z: cotangent of z, ``(d_in,)``.
        g_post: of post, ``(d_hidden,)``; so are g_a and g_innate_a, of zW and zW₀.
        g_a: see above.
        g_innate_a: see above.
        g_w: one row of ∂/∂W, ``(d_hidden,)``; so are the row below it and one of zeros, of the mlp,
            and p and field, of a polynomial and of column norms.
        g_w_below: see above.
        nothing: see above.
        p: see above.
        field: see above.
        sums: over rows, what the columns of ``kernels.Scratch`` are to the step.
        over_columns: of each hidden unit of the mlp, a lane each, ``(d_in, units, LANES)``.
        times_w: the same over all synapses, times w, ``(units,)`` float64; by_post, times u.
        by_post: see above.
        pending: what is still to be done to g.
        products: Σ g·W of each row, with what is pending, ``(d_in,)``.
    """

    g_z: F32
    g_post: F32
    g_a: F32
    g_innate_a: F32
    g_w: F32
    g_w_below: F32
    nothing: F32
    p: F32
    field: F32
    sums: F32
    over_columns: F32
    times_w: F64
    by_post: F64
    pending: Pending
    products: F32


class Room(NamedTuple):
    """What one thread goes back on, lifetime after lifetime.

    Attributes:
        ws: W within a segment, after each step but the last, ``(segment − 1, d_in, d_hidden)``.
        tape: of the same steps.
        state: all of a state but W, as a segment is lived again.
        g_w: cotangent of W, ``(d_in, d_hidden)``.
        memory: ``kernels.memory_for`` the genome.
        buffers: of one step.
    """

    ws: F32
    tape: Tape
    state: State
    g_w: F32
    memory: F32
    buffers: Buffers


def new_room(theta: Theta, d_in: int, d_hidden: int, segment: int) -> Room:
    """Make room for one thread."""
    units = theta.units.shape[-2]
    pre, post, columns = (d_in,), (d_hidden,), (column_count(theta) * d_hidden,)
    vectors = aligned_parts(pre, *(8 * [post]), columns, (d_in, units, LANES))
    *pending, products = aligned_parts(*(4 * [pre]))
    rest = aligned_parts((0, d_in, d_hidden), pre, pre, pre, (0,), (2,))
    return Room(
        aligned((segment - 1, d_in, d_hidden)),
        new_tape((segment - 1,), d_in, d_hidden),
        State._make((*rest, np.empty(1, np.int64))),
        aligned((d_in, d_hidden)),
        memory_for(theta, d_in, d_hidden),
        Buffers._make(
            (*vectors, np.empty(units), np.empty(units), Pending._make(pending), products)
        ),
    )


@kernel()
def _with(w: F32, rest: State) -> State:
    """Put a W beside the rest of a state."""
    return State(w, rest.short_term, rest.long_term, rest.mean, rest.trace, rest.gains, rest.steps)


@kernel()
def _borrowed_buffers(buffers: Buffers) -> Buffers:
    """See ``jit.borrowed``."""
    return Buffers(
        borrowed(buffers.g_z),
        borrowed(buffers.g_post),
        borrowed(buffers.g_a),
        borrowed(buffers.g_innate_a),
        borrowed(buffers.g_w),
        borrowed(buffers.g_w_below),
        borrowed(buffers.nothing),
        borrowed(buffers.p),
        borrowed(buffers.field),
        borrowed(buffers.sums),
        borrowed(buffers.over_columns),
        borrowed(buffers.times_w),
        borrowed(buffers.by_post),
        Pending(
            borrowed(buffers.pending.z),
            borrowed(buffers.pending.factors),
            borrowed(buffers.pending.inverses),
        ),
        borrowed(buffers.products),
    )


@kernel()
def _through_deviation(h: F32, entropy: Number, g: Number, total: F32) -> None:
    """Add g·∂std(h)/∂h; 0 where the deviation is 0."""
    if entropy > 0:
        mean = mean_of(h)
        factor = g / (entropy * np.float32(h.shape[0]))
        for j in range(h.shape[0]):
            total[j] += factor * (h[j] - mean)


@kernel()
def _through_normalisation(
    constants: Constants, w_after: F32, norms: F32, g: F32, buffers: Buffers
) -> None:
    """Turn the cotangent of the normalised W into that of what was normalised.

    W' = M/(n + ε), so ∂/∂M = (g − W'·(Σ g·W')·(n + ε)/n)/(n + ε), summed over each norm's own.
    By columns, it is done; else it is left pending.
    """
    products, (_, factors, inverses) = buffers.products, buffers.pending
    if constants.normalisation == COLUMN:
        _through_column_norms(constants, w_after, norms, g, buffers)
        return
    total = 0.0
    for i in range(products.shape[0]):
        total += products[i]
    for i in range(products.shape[0]):
        factors[i], inverses[i] = _0, _1
        if constants.normalisation == ROW:
            factors[i], inverses[i] = _shares_of(products[i], norms[i], constants.epsilon)
        elif constants.normalisation == FROBENIUS:
            factors[i], inverses[i] = _shares_of(np.float32(total), norms[0], constants.epsilon)


@kernel()
def _shares_of(total: Number, norm: Number, epsilon: Number) -> tuple[Number, Number]:
    """What W' is multiplied by before it is taken off g, and what the rest is multiplied by."""
    whole = norm + epsilon
    return total * whole / norm if norm > 0 else _0, _1 / whole


@kernel()
def _through_column_norms(
    constants: Constants, w_after: F32, norms: F32, g: F32, buffers: Buffers
) -> None:
    """Do ``_through_normalisation`` by columns, and what was pending before it."""
    d_in, d_hidden = g.shape
    sums, inverses, g_a = buffers.p, buffers.field, buffers.g_a
    fill(sums, _0)
    for i in range(d_in):
        x = buffers.pending.z[i]
        for j in range(d_hidden):
            g[i, j] += x * g_a[j]
            sums[j] += g[i, j] * w_after[i, j]
    for j in range(d_hidden):
        sums[j], inverses[j] = _shares_of(sums[j], norms[j], constants.epsilon)
    for i in range(d_in):
        for j in range(d_hidden):
            g[i, j] = (g[i, j] - w_after[i, j] * sums[j]) * inverses[j]
    _clear(buffers.pending)


@kernel()
def _clear(pending: Pending) -> None:
    """Note that nothing is pending."""
    fill(pending.z, _0)
    fill(pending.factors, _0)
    fill(pending.inverses, _1)


@kernel()
def _apply_pending(
    x: Number, factor: Number, inverse: Number, w_after: F32, g_a: F32, g: F32
) -> None:
    """Do to a row of g, or to a part of it, what is pending; see ``Pending``."""
    if x == 0 and factor == 0 and inverse == 1:
        return
    for j in range(g.shape[0]):
        g[j] = (g[j] + x * g_a[j] - factor * w_after[j]) * inverse


@kernel()
def _through_polynomial(
    theta: Theta,
    w: F32,
    w_after: F32,
    pre: F32,
    u: F32,
    scale: Number,
    step_size: Number,
    kept: Number,
    g: F32,
    g_pre: F32,
    g_u: F32,
    gradient: Theta,
    scratch: Scratch,
    buffers: Buffers,
) -> tuple[Number, Number]:
    """Go back through M = kept·w + step_size·G(pre, u, scale·w), from g on M to g on w.

    Returns Σ g·G and Σ g·w·∂G/∂w.

    For each power of w and pre, a column's synapses share Σ_i g·preᵃ·wᵐ, from which the
    gradients of the coefficients and of u follow.
    """
    columns = polynomial_columns(theta.coefficients, u, _1, _1, _0, scratch)
    fill(buffers.sums, _0)
    sums = buffers.sums.reshape(columns.shape)
    if is_bilinear(theta):
        through_w = _through_bilinear(
            columns, pre, scale, step_size, kept, w, w_after, g, g_pre, sums, buffers
        )
    else:
        through_w = _through_general(
            columns, pre, scale, step_size, kept, w, w_after, g, g_pre, sums, buffers
        )
    through = _through_columns(theta.coefficients, sums, u, step_size, g_u, buffers.p, gradient)
    return through, through_w


@kernel()
def _through_bilinear(
    columns: F32,
    pre: F32,
    scale: Number,
    step_size: Number,
    kept: Number,
    w: F32,
    w_after: F32,
    g: F32,
    g_pre: F32,
    sums: F32,
    buffers: Buffers,
) -> Number:
    """Go back through the rows of a polynomial up to pre¹·w²; return Σ g·w·∂G/∂w."""
    pending_z, factors, inverses = buffers.pending
    g_a, products, through_w = buffers.g_a, buffers.products, 0.0
    for i in range(w.shape[0]):
        _apply_pending(pending_z[i], factors[i], inverses[i], w_after[i], g_a, g[i])
        x, g_x, along, product = pre[i], _0, _0, _0
        for j in range(w.shape[1]):
            f1 = columns[1, 0, j] + x * columns[1, 1, j]
            f2 = columns[2, 0, j] + x * columns[2, 1, j]
            scaled = scale * w[i, j]
            slope = f1 + _2 * f2 * scaled
            p0 = g[i, j]
            p1 = p0 * scaled
            p2 = p1 * scaled
            sums[0, 0, j] += p0
            sums[0, 1, j] += x * p0
            sums[1, 0, j] += p1
            sums[1, 1, j] += x * p1
            sums[2, 0, j] += p2
            sums[2, 1, j] += x * p2
            g_x += p0 * columns[0, 1, j] + p1 * columns[1, 1, j] + p2 * columns[2, 1, j]
            along += p1 * slope
            g[i, j] = p0 * (kept + step_size * scale * slope)
            product += g[i, j] * w[i, j]
        products[i] = product
        g_pre[i] = step_size * g_x
        through_w += along
    return through_w


@kernel()
def _through_general(
    columns: F32,
    pre: F32,
    scale: Number,
    step_size: Number,
    kept: Number,
    w: F32,
    w_after: F32,
    g: F32,
    g_pre: F32,
    sums: F32,
    buffers: Buffers,
) -> Number:
    """As ``_through_bilinear``, for any exponents."""
    powers_w, powers_pre, d_hidden = columns.shape
    p, field, slope = buffers.p, buffers.field, buffers.g_w
    pending_z, factors, inverses = buffers.pending
    g_a, products, through_w = buffers.g_a, buffers.products, 0.0
    for i in range(w.shape[0]):
        _apply_pending(pending_z[i], factors[i], inverses[i], w_after[i], g_a, g[i])
        x, g_x, along = pre[i], _0, _0
        fill(slope, _0)
        for m in range(powers_w - 1, 0, -1):
            row_field(columns, m, x, field)
            for j in range(d_hidden):
                slope[j] = slope[j] * scale * w[i, j] + np.float32(m) * field[j]
        copy(g[i], p)
        for m in range(powers_w):
            power, below = _1, _0
            for a in range(powers_pre):
                part = _0
                for j in range(d_hidden):
                    sums[m, a, j] += power * p[j]
                    part += columns[m, a, j] * p[j]
                g_x += np.float32(a) * below * part
                below = power
                power *= x
            for j in range(d_hidden):
                p[j] *= scale * w[i, j]
        for j in range(d_hidden):
            along += g[i, j] * slope[j] * scale * w[i, j]
            g[i, j] *= kept + step_size * scale * slope[j]
        products[i] = dot(g[i], w[i])
        g_pre[i] = step_size * g_x
        through_w += along
    return through_w


@kernel()
def _through_columns(
    coefficients: F32,
    sums: F32,
    u: F32,
    step_size: Number,
    g_u: F32,
    power: F32,
    gradient: Theta,
) -> Number:
    """From the sums over rows to the gradients of c and u; return Σ g·G, G being linear in c."""
    powers_pre, powers_post, powers_w = coefficients.shape
    fill(g_u, _0)
    through = 0.0
    for m in range(powers_w):
        for a in range(powers_pre):
            column = sums[m, a]
            fill(power, _1)
            for b in range(powers_post):
                total = dot(column, power)
                gradient.coefficients[a, b, m] += step_size * total
                through += total * coefficients[a, b, m]
                if b + 1 < powers_post:
                    c = step_size * np.float32(b + 1) * coefficients[a, b + 1, m]
                    for j in range(u.shape[0]):
                        g_u[j] += c * column[j] * power[j]
                        power[j] *= u[j]
    return through


@kernel()
def _through_mlp(
    theta: Theta,
    w: F32,
    w_after: F32,
    pre: F32,
    u: F32,
    scale: Number,
    step_size: Number,
    kept: Number,
    g: F32,
    g_pre: F32,
    g_u: F32,
    gradient: Theta,
    scratch: Scratch,
    buffers: Buffers,
) -> tuple[Number, Number]:
    """Go back through M = kept·w + step_size·G(pre, u, scale·w), from g on M to g on w.

    Returns Σ g·G and Σ g·w·∂G/∂w.

    Where a unit is on, its share of g is summed over rows, over columns, and times w; since the
    unit is linear there, every gradient follows from the three sums.
    """
    d_in, d_hidden = w.shape
    over_columns, times_w = buffers.over_columns, buffers.times_w
    for k in range(theta.units.shape[0]):
        times_w[k] = 0.0
        buffers.by_post[k] = 0.0
        for i in range(d_in):
            store(over_columns, (i, k, 0), LANES, spread(0))
    fill(g_u, _0)
    fill(g_pre, _0)
    fill(buffers.products, _0)
    g_b2, through_w = 0.0, 0.0
    for first in range(0, d_hidden, _PANEL):
        last = min(first + _PANEL, d_hidden)
        total, along = _through_panel(
            theta,
            first,
            last,
            w,
            w_after,
            pre,
            u,
            scale,
            step_size,
            kept,
            g,
            g_u,
            gradient,
            scratch,
            buffers,
        )
        g_b2 += total
        through_w += along
    through = _through_units(theta, pre, step_size, g_pre, gradient, buffers)
    gradient.scalars[B2] += step_size * g_b2
    return through + g_b2 * theta.scalars[B2], through_w


@kernel()
def _through_panel(
    theta: Theta,
    first: int,
    last: int,
    w: F32,
    w_after: F32,
    pre: F32,
    u: F32,
    scale: Number,
    step_size: Number,
    kept: Number,
    g: F32,
    g_u: F32,
    gradient: Theta,
    scratch: Scratch,
    buffers: Buffers,
) -> tuple[Number, Number]:
    """Go back through the columns from first to before last; return Σ g and Σ g·w·∂G/∂w.

    What is kept of each column is read and written once every two rows: a panel of it stays in the
    nearest caches. An odd last row has a row of no cotangent below it.
    """
    units, width, count = theta.units, last - first, theta.units.shape[0]
    u, g_u = u[first:last], g_u[first:last]
    g_w, g_w_below = buffers.g_w[:width], buffers.g_w_below[:width]
    columns = mlp_columns(units, u, width, scratch)[0]
    sums = buffers.sums[: count * width]
    fill(sums, _0)
    over_rows, over_columns = sums.reshape((count, width)), buffers.over_columns
    pending_z, factors, inverses = buffers.pending
    g_a, products = buffers.g_a[first:last], buffers.products
    g_b2, through_w = 0.0, 0.0
    for i in range(0, w.shape[0], 2):
        below = min(i + 1, w.shape[0] - 1)
        x, wi, gi = pre[i], w[i, first:last], g[i, first:last]
        y, wb, gb = pre[below], w[below, first:last], g[below, first:last]
        if below == i:
            gb = buffers.nothing[:width]
            fill(gb, _0)
        _apply_pending(pending_z[i], factors[i], inverses[i], w_after[i, first:last], g_a, gi)
        if below > i:
            _apply_pending(
                pending_z[below],
                factors[below],
                inverses[below],
                w_after[below, first:last],
                g_a,
                gb,
            )
        _through_two_rows(
            units,
            x,
            y,
            scale,
            wi,
            wb,
            gi,
            gb,
            g_w,
            g_w_below,
            columns,
            over_rows,
            over_columns[i],
            over_columns[below],
            buffers.times_w,
        )
        total, along, product, product_below = _0, _0, _0, _0
        for j in range(width):
            total += gi[j] + gb[j]
            along += g_w[j] * wi[j] + g_w_below[j] * wb[j]
            gi[j] = kept * gi[j] + step_size * g_w[j]
            gb[j] = kept * gb[j] + step_size * g_w_below[j]
            product += gi[j] * wi[j]
            product_below += gb[j] * wb[j]
        g_b2 += total
        through_w += along
        products[i] += product
        products[below] += product_below
    for k in range(count):
        c, by_post = step_size * units[k, OUT_WEIGHT], dot(over_rows[k], u)
        gradient.units[k, POST_WEIGHT] += c * by_post
        gradient.units[k, OUT_WEIGHT] += step_size * units[k, POST_WEIGHT] * by_post
        for j in range(width):
            g_u[j] += c * units[k, POST_WEIGHT] * over_rows[k, j]
        buffers.by_post[k] += by_post
    return g_b2, through_w


@kernel(reassociate=False)
def _through_two_rows(
    units: F32,
    x: Number,
    y: Number,
    scale: Number,
    wi: F32,
    wb: F32,
    gi: F32,
    gb: F32,
    g_w: F32,
    g_w_below: F32,
    columns: F32,
    over_rows: F32,
    over_columns: F32,
    over_columns_below: F32,
    times_w: F64,
) -> None:
    """Go back through all units in two rows of a panel."""
    width = wi.shape[0]
    wide = width - width % LANES
    fill(g_w, _0)
    fill(g_w_below, _0)
    if wide:
        _through_lanes(
            units,
            x,
            y,
            scale,
            wi,
            wb,
            gi,
            gb,
            g_w,
            g_w_below,
            columns,
            over_rows,
            over_columns,
            over_columns_below,
            times_w,
            0,
            wide,
            LANES,
        )
    if wide < width:
        _through_lanes(
            units,
            x,
            y,
            scale,
            wi,
            wb,
            gi,
            gb,
            g_w,
            g_w_below,
            columns,
            over_rows,
            over_columns,
            over_columns_below,
            times_w,
            wide,
            width,
            width - wide,
        )


@kernel(reassociate=False, inline=True)
def _through_lanes(
    units: F32,
    x: Number,
    y: Number,
    scale: Number,
    wi: F32,
    wb: F32,
    gi: F32,
    gb: F32,
    g_w: F32,
    g_w_below: F32,
    columns: F32,
    over_rows: F32,
    over_columns: F32,
    over_columns_below: F32,
    times_w: F64,
    start: int,
    stop: int,
    lanes: int,
) -> None:
    """Do ``_through_two_rows`` from column start to before stop, two units a loop.

    Row by row, and each loop with sums of its own: that takes the fewest registers.
    """
    for k in range(0, units.shape[0], 2):
        a, slope_a, onset_a, onset_a_below = _unit_of(units, k, x, y, scale)
        b, slope_b, onset_b, onset_b_below = _unit_of(units, k + 1, x, y, scale)
        sum_a = sum_b = sum_a_below = sum_b_below = times_a = times_b = spread(0)
        for j in range(start, stop, lanes):
            column_a, column_b = load(columns, (k, j), lanes), load(columns, (k + 1, j), lanes)
            over_a, over_b = load(over_rows, (k, j), lanes), load(over_rows, (k + 1, j), lanes)
            w, g, total = load(wi, j, lanes), load(gi, j, lanes), load(g_w, j, lanes)
            over_a, sum_a, times_a, total = _through_unit(
                a, slope_a, onset_a, column_a, w, g, over_a, sum_a, times_a, total
            )
            over_b, sum_b, times_b, total = _through_unit(
                b, slope_b, onset_b, column_b, w, g, over_b, sum_b, times_b, total
            )
            store(g_w, j, lanes, total)
            w, g, total = load(wb, j, lanes), load(gb, j, lanes), load(g_w_below, j, lanes)
            over_a, sum_a_below, times_a, total = _through_unit(
                a, slope_a, onset_a_below, column_a, w, g, over_a, sum_a_below, times_a, total
            )
            over_b, sum_b_below, times_b, total = _through_unit(
                b, slope_b, onset_b_below, column_b, w, g, over_b, sum_b_below, times_b, total
            )
            store(g_w_below, j, lanes, total)
            store(over_rows, (k, j), lanes, over_a)
            store(over_rows, (k + 1, j), lanes, over_b)
        _add(sum_a, over_columns, k)
        _add(sum_b, over_columns, k + 1)
        _add(sum_a_below, over_columns_below, k)
        _add(sum_b_below, over_columns_below, k + 1)
        times_w[k] += scale * total_of(times_a)
        times_w[k + 1] += scale * total_of(times_b)


@kernel(reassociate=False, inline=True)
def _unit_of(
    units: F32, k: int, x: Number, y: Number, scale: Number
) -> tuple[Vector, Vector, Vector, Vector]:
    """What a unit multiplies w by, its slope in w, and where it sets in, row by row."""
    a, weight = spread(units[k, W_WEIGHT] * scale), -units[k, PRE_WEIGHT]
    return a, a * spread(units[k, OUT_WEIGHT]), spread(weight * x), spread(weight * y)


@kernel(reassociate=False, inline=True)
def _add(vector: Vector, to: F32, k: int) -> None:
    """Add to what a unit has come to, lane by lane."""
    store(to, (k, 0), LANES, load(to, (k, 0), LANES) + vector)


@kernel(reassociate=False, inline=True)
def _through_unit(
    a: Vector,
    slope: Vector,
    onset: Vector,
    column: Vector,
    w: Vector,
    g: Vector,
    over: Vector,
    along: Vector,
    times: Vector,
    g_w: Vector,
) -> tuple[Vector, Vector, Vector, Vector]:
    """Where a unit is on, sum g up: over rows, along the row, times w, and times its slope."""
    t = multiply_add(a, w, column)
    return (
        add_where(t, onset, over, g),
        add_where(t, onset, along, g),
        multiply_add_where(t, onset, g, w, times),
        multiply_add_where(t, onset, g, slope, g_w),
    )


@kernel()
def _through_units(
    theta: Theta, pre: F32, step_size: Number, g_pre: F32, gradient: Theta, buffers: Buffers
) -> Number:
    """From the sums over all synapses to the gradients of the units and of pre; return Σ g·G."""
    units, through = theta.units, 0.0
    for k in range(units.shape[0]):
        c, total, by_pre = step_size * units[k, OUT_WEIGHT], 0.0, 0.0
        for i in range(pre.shape[0]):
            row = total_of(load(buffers.over_columns, (i, k, 0), LANES))
            total += row
            by_pre += row * pre[i]
            g_pre[i] += c * units[k, PRE_WEIGHT] * row
        out = (
            units[k, PRE_WEIGHT] * by_pre
            + units[k, W_WEIGHT] * buffers.times_w[k]
            + units[k, BIAS] * total
        )
        gradient.units[k, PRE_WEIGHT] += c * by_pre
        gradient.units[k, W_WEIGHT] += c * buffers.times_w[k]
        gradient.units[k, BIAS] += c * total
        gradient.units[k, OUT_WEIGHT] += step_size * out
        through += units[k, OUT_WEIGHT] * (out + units[k, POST_WEIGHT] * buffers.by_post[k])
    return through


@kernel()
def _through_rms(values: F32, scale: Number, g: F32) -> None:
    """From the cotangent of scale·values to that of values, scale = 1/rms(values), in place."""
    if scale >= _UNIT_RMS_CEILING:
        share = _0
    else:
        share = dot(g, values) * scale * scale / np.float32(values.shape[0])
    for j in range(values.shape[0]):
        g[j] = scale * (g[j] - share * values[j])


@kernel()
def _through_scale_of_w(w: F32, scale: Number, g_scale: Number, g: F32, products: F32) -> None:
    """Add g_scale·∂(1/rms(W))/∂W to g, and to its products with W."""
    if scale < _UNIT_RMS_CEILING:
        factor = np.float32(-g_scale * scale * scale * scale / w.size)
        for i in range(w.shape[0]):
            for j in range(w.shape[1]):
                g[i, j] += factor * w[i, j]
            products[i] += factor * dot(w[i], w[i])


@kernel()
def _through_recovery(w: F32, innate: F32, g: F32) -> Number:
    """Σ g·(W₀ − W)."""
    total = 0.0
    for i in range(w.shape[0]):
        along = _0
        for j in range(w.shape[1]):
            along += g[i, j] * (innate[i, j] - w[i, j])
        total += along
    return total


@kernel()
def _through_learning(
    constants: Constants,
    theta: Theta,
    innate: F32,
    w: F32,
    w_after: F32,
    target: F32,
    ratio: Number,
    row: Tape,
    g: F32,
    gradient: Theta,
    scratch: Scratch,
    buffers: Buffers,
) -> Number:
    """Go back through ``kernels.learn``: g from the cotangent of W after to that of W before.

    Returns:
        The cotangent of H, through α.
    """
    entropy, beta, z = row.readings[0], row.readings[2], row.z
    g_z, g_post = buffers.g_z, buffers.g_post
    d_hidden = w.shape[1]
    post, u = scratch.post, scratch.u
    activity_of(row.h, target, ratio, post)
    pre_scale, post_scale, scale = scales_of(constants, w, z, post, beta)
    pre = scratch.pre
    for i in range(z.shape[0]):
        pre[i] = pre_scale * z[i]
    clamped(constants, post, post_scale, u)
    alpha, kappa = rate_of(constants, entropy), constants.kappa
    _through_normalisation(constants, w_after, row.norms, g, buffers)
    if kappa:
        (pending_z, factors, inverses), g_a = buffers.pending, buffers.g_a
        for i in range(w.shape[0]):
            _apply_pending(pending_z[i], factors[i], inverses[i], w_after[i], g_a, g[i])
        _clear(buffers.pending)
        gradient.scalars[LOG_RECOVERY] += kappa * _through_recovery(w, innate, g)
    step_size, kept = alpha / scale, _1 - kappa
    if theta.units.shape[0]:
        through, through_w = _through_mlp(
            theta,
            w,
            w_after,
            pre,
            u,
            scale,
            step_size,
            kept,
            g,
            g_z,
            g_post,
            gradient,
            scratch,
            buffers,
        )
    else:
        through, through_w = _through_polynomial(
            theta,
            w,
            w_after,
            pre,
            u,
            scale,
            step_size,
            kept,
            g,
            g_z,
            g_post,
            gradient,
            scratch,
            buffers,
        )
    for j in range(d_hidden):
        if abs(post[j] * post_scale) > constants.post_clamp:
            g_post[j] = _0
    if constants.scaling == RMS:
        _through_scale_of_w(
            w, scale, step_size / scale * (through_w - through), g, buffers.products
        )
        _through_rms(z, pre_scale, g_z)
        _through_rms(post, post_scale, g_post)
    else:
        for i in range(g_z.shape[0]):
            g_z[i] *= pre_scale
        for j in range(d_hidden):
            g_post[j] *= post_scale
    gradient.scalars[LOG_ALPHA] += step_size * through
    through_entropy = constants.alpha * constants.entropy_gain * through / scale
    gradient.scalars[LOG_ENTROPY_GAIN] += entropy * through_entropy
    return through_entropy


@kernel()
def _through_readout(
    constants: Constants,
    theta: Theta,
    row: Tape,
    g_logit: Number,
    g: State,
    gradient: Theta,
) -> tuple[Number, Number]:
    """Go back through calibration and readout; return the cotangents of H and H₀."""
    entropy, innate_entropy, level = row.readings[0], row.readings[1], row.readings[3]
    outright, suppressed = theta.scalars[READOUT], theta.scalars[READOUT + 1]
    response = response_of(entropy, innate_entropy)
    g_level, g_response = g.gains[LEVEL], 0.0
    if constants.calibration:
        familiarity = sigmoid(logit_of(theta, response, level))
        share = max(_1 - familiarity, _SHARE)
        moved = constants.calibration_rate * g_level
        if _1 - familiarity >= _SHARE:
            g_logit -= moved * (response - level) * familiarity * (_1 - familiarity)
        g_response = moved * share
        g_level -= moved * share
    gradient.scalars[READOUT] += g_logit * response
    gradient.scalars[READOUT + 1] += g_logit * (level - response)
    gradient.scalars[READOUT + 2] += g_logit
    g_response += g_logit * (outright - suppressed)
    g.gains[LEVEL] = g_level + g_logit * suppressed
    return g_response / (entropy + _FLOOR), -g_response / (innate_entropy + _FLOOR)


@kernel()
def _through_reading(
    innate: F32, w: F32, z: F32, g_a: F32, g_innate_a: F32, g_z: F32, buffers: Buffers
) -> None:
    """Go back through a = zW and a₀ = zW₀; z·g_a, that of W, is left pending."""
    pending, products = buffers.pending, buffers.products
    for i in range(w.shape[0]):
        along = dot(g_a, w[i])
        g_z[i] += along
        pending.z[i] = z[i]
        products[i] += z[i] * along
    # Few losses ask what the innate weights answered: a pass less over them.
    if dot(g_innate_a, g_innate_a) != 0:
        for i in range(w.shape[0]):
            g_z[i] += dot(g_innate_a, innate[i])


@kernel()
def _through_memory(
    theta: Theta, row: Tape, short: Number, long: Number, g_z: F32, g: State, gradient: Theta
) -> None:
    """Go back through mixing, and through memories of these decays; 1: nothing moves them."""
    beta = row.readings[2]
    c1, c2 = theta.scalars[C1], theta.scalars[C2]
    x, short_term, long_term = row.x, row.short_term, row.long_term
    for i in range(g_z.shape[0]):
        g_mixed = beta * g_z[i] + (_1 - short) * g.short_term[i] + (_1 - long) * g.long_term[i]
        gradient.scalars[C0] += g_mixed * x[i]
        gradient.scalars[C1] += g_mixed * short_term[i]
        gradient.scalars[C2] += g_mixed * long_term[i]
        g.short_term[i] = short * g.short_term[i] + c1 * g_mixed
        g.long_term[i] = long * g.long_term[i] + c2 * g_mixed


@kernel()
def _through_step(
    constants: Constants,
    theta: Theta,
    innate: F32,
    w: F32,
    w_after: F32,
    target: F32,
    ratio: Number,
    row: Tape,
    g_entropy: Number,
    g_logit: Number,
    g: State,
    gradient: Theta,
    scratch: Scratch,
    buffers: Buffers,
) -> None:
    """Go back through ``kernels.step``: g from the cotangent of the state after to that before."""
    g_z, g_post, g_a, g_innate_a = buffers.g_z, buffers.g_post, buffers.g_a, buffers.g_innate_a
    fill(g_z, _0)
    fill(g_post, _0)
    fill(g_innate_a, _0)
    g_h, g_innate_h = _through_readout(constants, theta, row, g_logit, g, gradient)
    g_h += g_entropy
    if constants.plasticity:
        g_h += _through_learning(
            constants,
            theta,
            innate,
            w,
            w_after,
            target,
            ratio,
            row,
            g.w,
            gradient,
            scratch,
            buffers,
        )
    h, innate_h = row.h, row.innate_h
    for j in range(h.shape[0]):
        g_a[j] = (_1 - ratio) * g_post[j]
    _through_deviation(h, row.readings[0], np.float32(g_h), g_a)
    _through_deviation(innate_h, row.readings[1], np.float32(g_innate_h), g_innate_a)
    for j in range(h.shape[0]):
        g_a[j] *= _1 - h[j] * h[j]
        g_innate_a[j] *= _1 - innate_h[j] * innate_h[j]
    _through_reading(innate, w, row.z, g_a, g_innate_a, g_z, buffers)
    if constants.memory:
        short, long = constants.short_term_decay, constants.long_term_decay
        _through_memory(theta, row, short, long, g_z, g, gradient)


@kernel()
def _through_answer(
    constants: Constants,
    theta: Theta,
    innate: F32,
    end: F32,
    row: Tape,
    g_answer: F32,
    g: State,
    gradient: Theta,
    buffers: Buffers,
) -> None:
    """Go back through ``kernels.respond``, as through a step that reads and no more."""
    g_z, g_a, g_innate_a, h = buffers.g_z, buffers.g_a, buffers.g_innate_a, row.h
    fill(g_z, _0)
    fill(g_innate_a, _0)
    for j in range(h.shape[0]):
        g_a[j] = g_answer[j] * (_1 - h[j] * h[j])
    _through_reading(innate, end, row.z, g_a, g_innate_a, g_z, buffers)
    if constants.memory:
        _through_memory(theta, row, _1, _1, g_z, g, gradient)


@kernel()
def _live_again(
    constants: Constants,
    theta: Theta,
    innate: F32,
    inputs: F32,
    lessons: Lessons,
    first: int,
    count: int,
    checkpoint: State,
    room: Room,
    scratch: Scratch,
) -> None:
    """Live a segment from its checkpoint, and keep W and what the adjoints need at every step.

    What its last step read, and where it leads, was kept: it is not lived again.
    """
    ws, rest, w = room.ws, room.state, checkpoint.w
    copy(checkpoint.short_term, rest.short_term)
    copy(checkpoint.long_term, rest.long_term)
    copy(checkpoint.mean, rest.mean)
    copy(checkpoint.gains, rest.gains)
    rest.steps[0] = checkpoint.steps[0]
    for s in range(count - 1):
        copy_matrix(w, ws[s])
        w = ws[s]
        state = _with(w, rest)
        row, t = row_of(room.tape, s), first + s
        step(
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
        if may_wait(constants, theta_at(theta, 0)):
            settle(w, scratch)


@kernel()
def pull_back(
    constants: Constants,
    theta: Theta,
    innate: F32,
    inputs: F32,
    lessons: Lessons,
    segment: int,
    checkpoints: State,
    lasts: Tape,
    end: F32,
    g_entropy: F32,
    g_logit: F32,
    g_answer: F32,
    g: State,
    gradient: Theta,
    room: Room,
) -> None:
    """Add the vector-Jacobian product of ``kernels.live`` to a gradient of θ.

    Args:
        constants: as lived with; so are theta, innate, inputs, lessons and segment.
        theta: see above.
        innate: see above.
        inputs: see above.
        lessons: see above.
        segment: at least 1.
        checkpoints: as ``live`` left them; so are lasts, and ``respond`` the last of these.
        lasts: see above.
        end: W after the last step.
        g_entropy: cotangent of each step's H, ``(steps,)``.
        g_logit: cotangent of each step's log-odds, ``(steps,)``.
        g_answer: cotangent of the answer, ``(d_hidden,)``, or ``(0,)``: none was asked for.
        g: cotangent of the last state; its vectors are written on. Mean, β and steps take no part;
            nor does W where it has no rows.
        gradient: float64, as θ; added to.
        room: for a segment of this genome.
    """
    steps = inputs.shape[0]
    scratch, _ = laid_out(room.memory, innate.shape[0], innate.shape[1])
    last = _with(room.g_w, g)
    for i in range(end.shape[0]):
        if g.w.shape[0]:
            copy(g.w[i], last.w[i])
        else:
            fill(last.w[i], _0)
        room.buffers.products[i] = dot(last.w[i], end[i]) if g.w.shape[0] else _0
    g = last
    _clear(room.buffers.pending)
    fill(room.buffers.g_a, _0)
    if g_answer.shape[0]:
        _through_answer(
            constants,
            theta_at(theta, 0),
            innate,
            end,
            row_of(lasts, lasts.z.shape[0] - 1),
            g_answer,
            g,
            theta_at(gradient, 0),
            room.buffers,
        )
    for k in range((steps - 1) // segment, -1, -1):
        first, count = k * segment, min(segment, steps - k * segment)
        _live_again(
            constants,
            theta,
            innate,
            inputs,
            lessons,
            first,
            count,
            state_of(checkpoints, k),
            room,
            scratch,
        )
        w_after = end if first + count == steps else checkpoints.w[k + 1]
        for s in range(count - 1, -1, -1):
            t = first + s
            w = checkpoints.w[k] if s == 0 else room.ws[s - 1]
            row = row_of(lasts, k) if s == count - 1 else row_of(room.tape, s)
            _through_step(
                constants,
                theta_at(theta, lessons.phases[t]),
                innate,
                w,
                w_after,
                target_at(lessons, t),
                lessons.ratios[t],
                row,
                g_entropy[t],
                g_logit[t],
                g,
                theta_at(gradient, lessons.phases[t]),
                scratch,
                room.buffers,
            )
            w_after = w


@kernel()
def pull_all_back(
    first: int,
    last: int,
    constants: Constants,
    theta: Theta,
    innate: F32,
    inputs: F32,
    lessons: Lessons,
    segment: int,
    checkpoints: State,
    lasts: Tape,
    end: F32,
    g_entropy: F32,
    g_logit: F32,
    g_answer: F32,
    g: State,
    gradients: Theta,
    room: Room,
) -> None:
    """Do ``pull_back`` for some lifetimes of a batch, from first to before last.

    Arguments are those of ``pull_back``, with the lifetimes of the batch on a leading axis where
    they differ; gradients too, one a lifetime.
    """
    theta, innate, checkpoints = (
        borrowed_theta(theta),
        borrowed(innate),
        borrowed_state(checkpoints),
    )
    inputs, targets = borrowed(inputs), borrowed(lessons.targets)
    g_entropy, g_logit, g = borrowed(g_entropy), borrowed(g_logit), borrowed_state(g)
    gradients, lasts, end = borrowed_theta(gradients), borrowed_tape(lasts), borrowed(end)
    g_answer = borrowed(g_answer)
    room = Room(
        borrowed(room.ws),
        borrowed_tape(room.tape),
        borrowed_state(room.state),
        borrowed(room.g_w),
        borrowed(room.memory),
        _borrowed_buffers(room.buffers),
    )
    # What was lived last is still in the cache.
    for i in range(last - 1, first - 1, -1):
        gradient = theta_at(gradients, i)
        pull_back(
            constants,
            theta,
            innate,
            inputs[i],
            Lessons(targets[i], lessons.ratios, lessons.phases),
            segment,
            state_of(checkpoints, i),
            row_of(lasts, i),
            end[i],
            g_entropy[i],
            g_logit[i],
            g_answer[i],
            state_of(g, i),
            gradient,
            room,
        )
