"""Genomes and states brought to the fused kernels: batches of lifetimes, with gradients.

Owns the threads that lifetimes share, and their place in torch's graph. The mathematics is that of
``organism.cortex``, which stays the reference; see ``organism.kernels`` for what is fused.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from organism import adjoint, kernels
from organism.config import GenomeConfig
from organism.cortex import CortexState
from organism.genome import Genome
from organism.jit import F32, aligned, aligned_copy
from organism.kernels import I64, Lessons, State, Theta
from organism.program import Program, compile_genome, gradients_of
from organism.rules import CLAMPED, FREE

# W is kept at every step up to so many bytes a batch; beyond, segments are lived again.
_KEPT_BYTES = 1 << 28


class _Threads:
    """The threads that lifetimes are lived on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._count = 1

    def set(self, count: int) -> None:
        if count == self._count:
            return
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


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def live(
    genome: Genome,
    inputs: Tensor,
    state: CortexState,
    target: Tensor | None,
    ratios: Sequence[float],
    cues: Tensor | None,
) -> tuple[CortexState, Tensor, Tensor, Tensor]:
    """Live a batch of lifetimes on the kernels; arguments as ``organism.lifetime.live``.

    Returns:
        The last state, H and log-odds of each step, ``(steps, batch)``, and h of the cues; all
        differentiable in θ.
    """
    learning = _learns(genome)
    names, values = tuple(genome.theta), tuple(genome.theta.values())
    phases, which = _phases(genome.config, ratios)
    lessons = Lessons(_targets(target, state), np.array(ratios, np.float32), which)
    asked = np.empty((0, inputs.shape[-1]), np.float32) if cues is None else _array(cues)
    lives = _Lives(genome.config, names, _rows(inputs), lessons, asked, phases, learning)
    w, short_term, long_term, level, entropy, logit, answer, mean, trace, beta, steps = _Live.apply(  # type: ignore[no-untyped-call]
        lives, state, *values
    )
    end = CortexState(w, short_term, long_term, mean, trace, beta, level, steps)
    return end, entropy.T, logit.T, answer


@dataclass(frozen=True)
class _Lives:
    """What a batch of lifetimes meets.

    Attributes:
        config: of the genome.
        names: of the parts of θ, in the order of its values.
        inputs: ``(batch, steps, d_in)``.
        lessons: their targets ``(batch, steps or 1, d_hidden)``.
        cues: what each is asked at its end, ``(batch, d_in)``, or ``(0, d_in)``: nothing.
        phases: those that the lessons name.
        learning: whether θ learns from them.
    """

    config: GenomeConfig
    names: tuple[str, ...]
    inputs: F32
    lessons: Lessons
    cues: F32
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
        """Live; outputs: the last state, H and log-odds ``(batch, steps)``, h of the cues."""
        batch, steps, _ = lives.inputs.shape
        program, before = lives.program(values), state.w.detach().numpy()
        states = _split(state, aligned(before.shape))
        entropy, logit, beta = np.empty((3, batch, steps), np.float32)
        kept = -(-steps // lives.segment) if lives.segment else 0
        rest = (np.empty((batch, kept, *p.shape[1:]), p.dtype) for p in states[1:])
        checkpoints = State(aligned((batch, kept, *before.shape[1:])), *rest)
        lasts = kernels.new_tape((batch, kept + 1), *program.innate.shape)

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
                lives.cues,
                kernels.memory_for(program.theta, *program.innate.shape),
            )

        _threads.share(work, batch)
        ctx.lives, ctx.program, ctx.shapes = lives, program, [value.shape for value in values]
        ctx.checkpoints, ctx.lasts, ctx.end = checkpoints, lasts, states.w
        ctx.set_materialize_grads(False)
        end = join(states)
        learned = (end.w, end.short_term, end.long_term, end.level)
        constant = (end.mean, end.trace, end.beta, end.steps)
        answer = lasts.h[: len(lives.cues), kept].copy()  # going back needs it as it is
        told = [torch.from_numpy(part) for part in (entropy, logit, answer)]
        ctx.mark_non_differentiable(*constant, *(told[-1:] if not len(answer) else ()))
        return (*learned, *told, *constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Go back; each lifetime's gradient is summed in order, whatever the threads."""
        lives, program = ctx.lives, ctx.program
        batch, steps, d_in = lives.inputs.shape
        d_hidden = program.innate.shape[1]
        # What no loss asks for has no cotangent.
        w, short_term, long_term, level, entropy, logit, answer = (
            np.zeros(shape, np.float32) if given is None else _array(given)
            for given, shape in zip(
                cotangents,
                (
                    (batch, 0, d_hidden),
                    (batch, d_in),
                    (batch, d_in),
                    (batch,),
                    (batch, steps),
                    (batch, steps),
                    (batch, 0),
                ),
                strict=False,
            )
        )
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
                answer,
                g,
                gradients,
                _rooms.of_this_thread(program.theta, d_in, d_hidden, lives.segment),
            )

        _threads.share(work, batch)
        theta = dict(zip(lives.names, ctx.shapes, strict=True))
        summed = Theta(*(part.sum(axis=0) for part in gradients))
        return None, None, *gradients_of(lives.config, theta, lives.phases, summed)


def _phases(config: GenomeConfig, ratios: Sequence[float]) -> tuple[tuple[float, ...], I64]:
    """The phases of a lifetime, and which of them each step has; see ``organism.cortex.step``."""
    if not config.rule.phases:
        return (FREE,), np.zeros(len(ratios), np.int64)
    seen, which = np.unique(np.array(ratios), return_inverse=True)
    return tuple(float(FREE + (CLAMPED - FREE) * ratio) for ratio in seen), which


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
