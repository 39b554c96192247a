"""Genomes and states brought to the fused kernels: batches of lifetimes, with gradients.

Owns the packing of θ and of its gradient, and the threads that lifetimes share. The mathematics
is that of ``organism.cortex``, which stays the reference; see ``organism.kernels`` for what is
fused.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from organism import adjoint, kernels
from organism.config import CortexConfig, GenomeConfig
from organism.cortex import CortexState, innate_weights
from organism.genome import Genome
from organism.jit import F32, aligned, aligned_copy
from organism.kernels import I64, Constants, Lessons, State, Theta
from organism.recruitment import FEATURES, LEVEL_POWERS
from organism.rules import CLAMPED, FREE, PHASED, at_phase, weight_length

# W is kept at every step up to so many bytes a batch; beyond, segments are lived again.
_KEPT_BYTES = 1 << 28

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


class _Threads:
    """The threads that lifetimes are lived on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._count = 1

    def set(self, count: int) -> None:
        if self._pool:
            self._pool.shutdown()
        self._pool = ThreadPoolExecutor(count - 1, "lifetime") if count > 1 else None
        self._count = count

    def share(self, work: Callable[[int, int], None], total: int) -> None:
        """Do work on a number of lifetimes, from one to before another.

        There is a piece of four fifths of an equal share for each thread, and the rest are one
        lifetime each; whoever is free takes the next: cores are shared with others, and seldom
        equally quick.
        """
        share = total * 4 // (5 * self._count) if self._count > 1 else total
        bounds = [
            *range(0, share * self._count, share or 1),
            *range(share * self._count, total + 1),
        ]
        left = deque(pairwise(bounds))

        def take() -> None:
            while some := _next_of(left):
                work(*some)

        others = range(min(self._count, len(left)) - 1)
        waiting = [self._pool.submit(take) for _ in others] if self._pool else []
        take()
        for future in waiting:
            future.result()


def _next_of(left: deque[tuple[int, int]]) -> tuple[int, int] | None:
    """Take what is next, if another thread has not been quicker."""
    try:
        return left.popleft()
    except IndexError:
        return None


class _Rooms(threading.local):
    """The room that each thread goes back on, made anew only for lifetimes of another size."""

    def __init__(self) -> None:
        super().__init__()
        self._sizes: tuple[object, ...] = ()
        self._room: adjoint.Room | None = None

    def of_this_thread(self, theta: Theta, d_in: int, d_hidden: int, segment: int) -> adjoint.Room:
        """See ``adjoint.new_room``; good until this thread asks again."""
        sizes = (*(part.shape for part in theta), d_in, d_hidden, segment)
        if self._room is None or sizes != self._sizes:
            self._room, self._sizes = adjoint.new_room(theta, d_in, d_hidden, segment), sizes
        return self._room


_threads = _Threads()
_rooms = _Rooms()


def set_threads(count: int) -> None:
    """Live lifetimes on so many threads, and hold torch to one.

    The one place where threads are counted: torch's own threads spin for a while when they have
    nothing to do, and on the same cores they slow the lifetimes many times over. What comes out
    does not depend on the count.
    """
    torch.set_num_threads(1)
    _threads.set(count)


def fusable(genome: Genome, constants: Sequence[Tensor | None]) -> bool:
    """Whether a lifetime can be lived on the kernels: on the CPU, in float32, only θ learning.

    Recruitment has no adjoint there: it learns θ on the reference.
    """
    theta = tuple(genome.theta.values())
    if genome.config.cortex.recruitment and _learns(genome):
        return False
    given = [tensor for tensor in constants if tensor is not None]
    if any(tensor.requires_grad for tensor in given):
        return False
    return all(
        tensor.is_cpu and (tensor.dtype == torch.float32 or not tensor.is_floating_point())
        for tensor in (*theta, *given)
    )


def _learns(genome: Genome) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in genome.theta.values())


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
    packed = [_pack(config, at_phase(theta, phase)) for phase in phases]
    stacked = Theta(*(np.stack(parts) for parts in zip(*packed, strict=True)))
    return Program(_constants(config, theta), stacked, _innate(config.cortex))


@lru_cache(maxsize=8)
def _innate(config: CortexConfig) -> F32:
    """W₀ as the kernels take it; shared, never written to."""
    return aligned_copy(_array(innate_weights(config)))


def _constants(config: GenomeConfig, theta: Mapping[str, Tensor]) -> Constants:
    c, f = config.cortex, np.float32
    length = weight_length(config.rule.scaling, c)
    return Constants(
        normalisation=_AXES[c.normalisation],
        epsilon=f(c.normalisation_epsilon),
        scaling=_SCALINGS[config.rule.scaling],
        activity_scale=f(math.sqrt(c.d_in)),
        weight_scale=f(math.sqrt(length)),
        post_clamp=f(config.rule.post_clamp or math.inf),
        centring=c.centring,
        mean_rate=f(c.mean_rate),
        memory=c.memory,
        short_term_decay=f(c.short_term_decay),
        long_term_decay=f(c.long_term_decay),
        alpha=f(theta["log_alpha"].detach().exp()),
        entropy_gain=f(theta["log_entropy_gain"].detach().exp() if c.modulated else 0),
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
        kappa=f(theta["log_recovery"].detach().exp() if c.recovery else 0),
        plasticity=c.plasticity,
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def _blank(config: GenomeConfig) -> Theta:
    """θ of zeros."""
    rule = config.rule
    shape = (0, 0, 0)
    units = 0
    if rule.family == "mlp":
        units = -(-rule.hidden // kernels.UNIT_BLOCK) * kernels.UNIT_BLOCK
    else:
        shape = (rule.pre_exponent + 1, rule.post_exponent + 1, rule.weight_exponent + 1)
        assert rule.post_exponent < kernels.POST_POWERS
    f = np.float32
    return Theta(np.zeros(kernels.SCALARS, f), np.zeros(shape, f), np.zeros((units, 5), f))


def _views(config: GenomeConfig, theta: Theta) -> dict[str, npt.NDArray[Any]]:
    """Where each tensor of θ lies, as views that can be read and written."""
    k, recruits = kernels, config.cortex.recruitment
    views = {
        "log_alpha": theta.scalars[k.LOG_ALPHA : k.LOG_ALPHA + 1],
        "log_recovery": theta.scalars[k.LOG_RECOVERY : k.LOG_RECOVERY + 1],
        "log_entropy_gain": theta.scalars[k.LOG_ENTROPY_GAIN : k.LOG_ENTROPY_GAIN + 1],
        "mixing": theta.scalars[k.C0 : k.C2 + 1],
        "readout": theta.scalars[k.READOUT : k.READOUT + (FEATURES if recruits else 3)],
        "calibration": theta.scalars[k.CALIBRATION :].reshape(-1, LEVEL_POWERS),
        "rule.coefficients": theta.coefficients,
        "rule.b2": theta.scalars[k.B2 : k.B2 + 1],
        "rule.w1": theta.units[: config.rule.hidden, : k.BIAS],
        "rule.b1": theta.units[: config.rule.hidden, k.BIAS],
        "rule.w2": theta.units[: config.rule.hidden, k.OUT_WEIGHT],
    }
    return views


def _pack(config: GenomeConfig, theta: Mapping[str, Tensor]) -> Theta:
    packed = _blank(config)
    views = _views(config, packed)
    for name, tensor in theta.items():
        views[name][...] = tensor.detach().numpy()
    return packed


def live(
    genome: Genome,
    inputs: Tensor,
    state: CortexState,
    target: Tensor | None,
    ratios: Sequence[float],
) -> tuple[CortexState, Tensor, Tensor]:
    """Live a batch of lifetimes on the kernels; arguments as ``organism.lifetime.live``.

    Returns:
        The last state, and H and log-odds of each step, ``(steps, batch)``; differentiable in θ.
    """
    learning = _learns(genome)
    names, values = tuple(genome.theta), tuple(genome.theta.values())
    phases, which = _phases(genome.config, ratios)
    lessons = Lessons(_targets(target, state), np.array(ratios, np.float32), which)
    lives = _Lives(genome.config, names, _rows(inputs), lessons, phases, learning)
    w, short_term, long_term, level, entropy, logit, mean, trace, beta, steps = _Live.apply(  # type: ignore[no-untyped-call]
        lives, state, *values
    )
    end = CortexState(w, short_term, long_term, mean, trace, beta, level, steps)
    return end, entropy.T, logit.T


@dataclass(frozen=True)
class _Lives:
    """What a batch of lifetimes meets.

    Attributes:
        config: of the genome.
        names: of the parts of θ, in the order of its values.
        inputs: ``(batch, steps, d_in)``.
        lessons: their targets ``(batch, steps or 1, d_hidden)``.
        phases: those that the lessons name.
        learning: whether θ learns from them.
    """

    config: GenomeConfig
    names: tuple[str, ...]
    inputs: F32
    lessons: Lessons
    phases: tuple[float, ...]
    learning: bool

    @property
    def segment(self) -> int:
        """Steps between two checkpoints: 1 while that is little, then √steps; 0: none are kept."""
        batch, steps, d_in = self.inputs.shape
        whole = 4 * batch * steps * d_in * self.config.cortex.d_hidden
        if not self.learning:
            return 0
        return 1 if whole <= _KEPT_BYTES else math.isqrt(steps - 1) + 1

    def program(self, values: Sequence[Tensor]) -> Program:
        """The genome with these values of θ."""
        theta = dict(zip(self.names, values, strict=True))
        return compile_genome(self.config, theta, self.phases)


class _Live(torch.autograd.Function):
    """``kernels.live`` on a batch, with ``adjoint.pull_back`` as its derivative in θ."""

    @staticmethod
    def forward(ctx: Any, lives: _Lives, state: CortexState, *values: Tensor) -> tuple[Tensor, ...]:
        """Live; outputs are the parts of the last state, H and log-odds, ``(batch, steps)``."""
        batch, steps, _ = lives.inputs.shape
        program, before = lives.program(values), state.w.detach().numpy()
        states = _split(state, aligned(before.shape))
        entropy, logit, beta = np.empty((3, batch, steps), np.float32)
        kept = -(-steps // lives.segment) if lives.segment else 0
        rest = (np.empty((batch, kept, *p.shape[1:]), p.dtype) for p in states[1:])
        checkpoints = State(aligned((batch, kept, *before.shape[1:])), *rest)
        lasts = kernels.new_tape((batch, kept), *program.innate.shape)

        def work(first: int, last: int) -> None:
            states.w[first:last] = before[first:last]  # where it is lived it is in the cache
            kernels.live_all(
                first,
                last,
                program.constants,
                program.theta,
                program.innate,
                states,
                lives.inputs,
                lives.lessons,
                entropy,
                logit,
                beta,
                lives.segment,
                checkpoints,
                lasts,
                kernels.memory_for(program.theta, *program.innate.shape),
            )

        _threads.share(work, batch)
        ctx.lives, ctx.program, ctx.shapes = lives, program, [value.shape for value in values]
        ctx.checkpoints, ctx.lasts, ctx.end = checkpoints, lasts, states.w
        end = join(states)
        learned = (end.w, end.short_term, end.long_term, end.level)
        constant = (end.mean, end.trace, end.beta, end.steps)
        ctx.mark_non_differentiable(*constant)
        return (*learned, torch.from_numpy(entropy), torch.from_numpy(logit), *constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Go back; each lifetime's gradient is summed in order, whatever the threads."""
        lives, program = ctx.lives, ctx.program
        w, short_term, long_term, level, entropy, logit = (_array(c) for c in cotangents[:6])
        batch, d_in, d_hidden = w.shape
        gains = np.stack([np.zeros_like(level), level], axis=1)
        g = State(
            w,
            short_term.copy(),
            long_term.copy(),
            np.empty((batch, 0), np.float32),
            np.empty((batch, 0), np.float32),
            gains,
            np.empty((batch, 0), np.int64),
        )
        gradients = Theta(*(np.zeros((batch, *part.shape)) for part in program.theta))

        def work(first: int, last: int) -> None:
            adjoint.pull_all_back(
                first,
                last,
                program.constants,
                program.theta,
                program.innate,
                lives.inputs,
                lives.lessons,
                lives.segment,
                ctx.checkpoints,
                ctx.lasts,
                ctx.end,
                entropy,
                logit,
                g,
                gradients,
                _rooms.of_this_thread(program.theta, d_in, d_hidden, lives.segment),
            )

        _threads.share(work, batch)
        found = _unfolded(lives, Theta(*(part.sum(axis=0) for part in gradients)))
        return (
            None,
            None,
            *(
                torch.from_numpy(found[name]).reshape(shape)
                for name, shape in zip(lives.names, ctx.shapes, strict=True)
            ),
        )


def _phases(config: GenomeConfig, ratios: Sequence[float]) -> tuple[tuple[float, ...], I64]:
    """The phases of a lifetime, and which of them each step has; see ``organism.cortex.step``."""
    if not config.rule.phases:
        return (FREE,), np.zeros(len(ratios), np.int64)
    seen, which = np.unique(np.array(ratios), return_inverse=True)
    return tuple(float(FREE + (CLAMPED - FREE) * ratio) for ratio in seen), which


def _unfolded(lives: _Lives, gradients: Theta) -> dict[str, F32]:
    """Gradients of θ by name, from those at each phase: ``organism.rules.at_phase`` backwards."""
    found = _views(lives.config, _single(part.sum(axis=0) for part in gradients))
    if not PHASED.keys() & set(lives.names):
        return found
    by_phase = _single(np.tensordot(lives.phases, part, 1) for part in gradients)
    weighted = _views(lives.config, by_phase)
    return found | {name: weighted[into] for name, into in PHASED.items()}


def _single(parts: Iterable[npt.NDArray[Any]]) -> Theta:
    """θ in float32."""
    return Theta(*(part.astype(np.float32) for part in parts))


def _rows(inputs: Tensor) -> F32:
    """``(steps, batch, d_in)`` as ``(batch, steps, d_in)``, each lifetime's in one piece."""
    return _array(inputs.transpose(0, 1))


def _targets(target: Tensor | None, state: CortexState) -> F32:
    batch, _, d_hidden = state.w.shape
    if target is None:
        return np.zeros((batch, 1, d_hidden), np.float32)
    return _rows(target if target.dim() == 3 else target[None])


def split(state: CortexState) -> State:
    """Copy a batch, for the kernels to write on."""
    # A newborn's W are one matrix, seen many times.
    return _split(state, aligned_copy(state.w.detach().numpy()))


def _split(state: CortexState, w: F32) -> State:
    """Copy all of a batch but W, and put that beside it."""
    return State(
        w,
        _array(state.short_term).copy(),
        _array(state.long_term).copy(),
        _array(state.mean).copy(),
        _array(state.trace).copy(),
        np.stack([_array(state.beta), _array(state.level)], axis=1),
        _array(state.steps)[:, None].copy(),
    )


def join(states: State) -> CortexState:
    """Make a batch of what the kernels wrote on, without a copy of W."""
    w, short_term, long_term, mean, trace, _, steps = map(torch.from_numpy, states)
    beta, level = (
        torch.from_numpy(states.gains[:, k].copy()) for k in (kernels.BETA, kernels.LEVEL)
    )
    return CortexState(w, short_term, long_term, mean, trace, beta, level, steps[:, 0].clone())
