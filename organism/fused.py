"""Genomes and states brought to the fused kernels: lifetimes with gradients, and a living cortex.

Owns the packing of θ and of its gradient, and the threads that lifetimes share. The mathematics
is that of ``organism.cortex``, which stays the reference; see ``organism.kernels`` for what is
fused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from organism import adjoint, kernels
from organism.config import GenomeConfig
from organism.cortex import CortexState, innate_weights
from organism.genome import Genome
from organism.jit import F32, aligned, aligned_copy
from organism.kernels import Constants, State, Theta
from organism.rules import normalised_length

_AXES = {
    "row": kernels.ROW,
    "column": kernels.COLUMN,
    "frobenius": kernels.FROBENIUS,
    "none": kernels.NONE,
}
_SCALINGS = {"none": kernels.UNSCALED, "sqrt_d": kernels.SQRT_D, "rms": kernels.RMS}


class _Threads:
    """The threads that lifetimes are lived on."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None

    def set(self, count: int) -> None:
        self._pool = ThreadPoolExecutor(count, "lifetime") if count > 1 else None

    def each(self, work: Callable[[int], None], count: int) -> None:
        if self._pool is None or count == 1:
            for i in range(count):
                work(i)
        else:
            list(self._pool.map(work, range(count)))


_threads = _Threads()


def set_threads(count: int) -> None:
    """Live lifetimes on so many threads, and hold torch to one.

    The one place where threads are counted: torch's own threads spin for a while when they have
    nothing to do, and on the same cores they slow the lifetimes many times over. What comes out
    does not depend on the count.
    """
    torch.set_num_threads(1)
    _threads.set(count)


def fusable(theta: Sequence[Tensor], constants: Sequence[Tensor | None]) -> bool:
    """Whether a lifetime can be lived on the kernels: on the CPU, in float32, only θ learning."""
    given = [tensor for tensor in constants if tensor is not None]
    on_cpu = all(tensor.device.type == "cpu" for tensor in (*theta, *given))
    single = all(t.dtype == torch.float32 for t in (*theta, *given) if t.is_floating_point())
    return on_cpu and single and not any(tensor.requires_grad for tensor in given)


@dataclass(frozen=True)
class Program:
    """A genome as the kernels take it."""

    constants: Constants
    theta: Theta
    innate: F32

    def memory(self) -> F32:
        """Make room for what a step computes; one for each thread."""
        return kernels.memory_for(self.theta, *self.innate.shape)


def compile_genome(config: GenomeConfig, theta: Mapping[str, Tensor]) -> Program:
    """Lay a genome out for the kernels."""
    innate = aligned_copy(_array(innate_weights(config.cortex)))
    return Program(_constants(config, theta), _pack(config, theta), innate)


def _constants(config: GenomeConfig, theta: Mapping[str, Tensor]) -> Constants:
    c, f = config.cortex, np.float32
    length = normalised_length(c.normalisation, c.d_in, c.d_hidden)
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
        entropy_gain=f(c.entropy_gain if c.entropy_modulation else 0),
        metabolism=c.metabolism,
        entropy_threshold=f(c.entropy_threshold),
        beta_fall=f(c.beta_fall),
        beta_rise=f(c.beta_rise),
        beta_min=f(c.beta_min),
        beta_max=f(c.beta_max),
        calibration=c.calibration,
        calibration_rate=f(c.calibration_rate),
        kappa=f(theta["log_recovery"].detach().exp() if c.recovery else 0),
        plasticity=c.plasticity,
    )


def _array(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().contiguous().numpy()
    return array


def _blank(config: GenomeConfig, dtype: type[np.floating[Any]]) -> Theta:
    """θ of zeros."""
    rule = config.rule
    shape = (0, 0, 0)
    units = 0
    if rule.family == "mlp":
        units = -(-rule.hidden // kernels.UNIT_BLOCK) * kernels.UNIT_BLOCK
    else:
        shape = (rule.pre_exponent + 1, rule.post_exponent + 1, rule.weight_exponent + 1)
    return Theta(
        np.zeros(kernels.SCALARS, dtype), np.zeros(shape, dtype), np.zeros((units, 5), dtype)
    )


def _views(config: GenomeConfig, theta: Theta) -> dict[str, npt.NDArray[Any]]:
    """Where each tensor of θ lies, as views that can be read and written."""
    k = kernels
    views = {
        "log_alpha": theta.scalars[k.LOG_ALPHA : k.LOG_ALPHA + 1],
        "log_recovery": theta.scalars[k.LOG_RECOVERY : k.LOG_RECOVERY + 1],
        "mixing": theta.scalars[k.C0 : k.C2 + 1],
        "readout": theta.scalars[k.READOUT : k.READOUT + 3],
        "rule.coefficients": theta.coefficients,
        "rule.b2": theta.scalars[k.B2 : k.B2 + 1],
        "rule.w1": theta.units[: config.rule.hidden, : k.BIAS],
        "rule.b1": theta.units[: config.rule.hidden, k.BIAS],
        "rule.w2": theta.units[: config.rule.hidden, k.OUT_WEIGHT],
    }
    return views


def _pack(config: GenomeConfig, theta: Mapping[str, Tensor]) -> Theta:
    packed = _blank(config, np.float32)
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
    learning = torch.is_grad_enabled() and any(t.requires_grad for t in genome.theta.values())
    names, values = tuple(genome.theta), tuple(genome.theta.values())
    lives = _Lives(
        genome.config,
        names,
        _rows(inputs),
        _targets(target, state),
        np.array(ratios, np.float32),
        learning,
    )
    w, short_term, long_term, level, entropy, logit, mean, beta, steps = _Live.apply(  # type: ignore[no-untyped-call]
        lives, state, *values
    )
    end = CortexState(w, short_term, long_term, mean, beta, level, steps)
    return end, entropy.T, logit.T


@dataclass(frozen=True)
class _Lives:
    """What a batch of lifetimes meets.

    Attributes:
        config: of the genome.
        names: of the parts of θ, in the order of its values.
        inputs: ``(batch, steps, d_in)``.
        targets: ``(batch, d_hidden)``.
        ratios: ρ, ``(steps,)``.
        learning: whether θ learns from them.
    """

    config: GenomeConfig
    names: tuple[str, ...]
    inputs: F32
    targets: F32
    ratios: F32
    learning: bool

    @property
    def segment(self) -> int:
        """Steps between two checkpoints: √steps; 0 where nobody learns: none are kept."""
        return math.isqrt(max(self.inputs.shape[1] - 1, 0)) + 1 if self.learning else 0

    def program(self, values: Sequence[Tensor]) -> Program:
        """The genome with these values of θ."""
        return compile_genome(self.config, dict(zip(self.names, values, strict=True)))


class _Live(torch.autograd.Function):
    """``kernels.live`` on a batch, with ``adjoint.pull_back`` as its derivative in θ."""

    @staticmethod
    def forward(ctx: Any, lives: _Lives, state: CortexState, *values: Tensor) -> tuple[Tensor, ...]:
        """Live; outputs are the parts of the last state, H and log-odds, ``(batch, steps)``."""
        batch, steps, _ = lives.inputs.shape
        program, states = lives.program(values), split(state)
        entropy, logit, beta = np.empty((3, batch, steps), np.float32)
        kept = -(-steps // lives.segment) if lives.segment else 0
        checkpoints = [copies(s, kept) for s in states]

        def work(i: int) -> None:
            kernels.live(
                program.constants,
                program.theta,
                program.innate,
                states[i],
                lives.inputs[i],
                lives.targets[i],
                lives.ratios,
                entropy[i],
                logit[i],
                beta[i],
                lives.segment,
                checkpoints[i],
                program.memory(),
            )

        _threads.each(work, batch)
        ctx.lives, ctx.checkpoints = lives, checkpoints
        ctx.save_for_backward(*values)
        end = join(states)
        learned = (end.w, end.short_term, end.long_term, end.level)
        constant = (end.mean, end.beta, end.steps)
        ctx.mark_non_differentiable(*constant)
        return (*learned, torch.from_numpy(entropy), torch.from_numpy(logit), *constant)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        """Go back; each lifetime's gradient is summed in order, whatever the threads."""
        lives, values = ctx.lives, ctx.saved_tensors
        program = lives.program(values)
        w, short_term, long_term, level, entropy, logit = (_array(c) for c in cotangents[:6])
        batch = len(lives.inputs)
        gradients = [_blank(lives.config, np.float64) for _ in range(batch)]

        def work(i: int) -> None:
            gains = np.array([0, level[i]], np.float32)
            nothing, no_steps = np.empty(0, np.float32), np.empty(0, np.int64)
            g = State(
                aligned_copy(w[i]),
                short_term[i].copy(),
                long_term[i].copy(),
                nothing,
                gains,
                no_steps,
            )
            adjoint.pull_back(
                program.constants,
                program.theta,
                program.innate,
                lives.inputs[i],
                lives.targets[i],
                lives.ratios,
                lives.segment,
                ctx.checkpoints[i],
                entropy[i],
                logit[i],
                g,
                gradients[i],
                aligned((lives.segment + 1, *w.shape[1:])),
                kernels.new_tape(lives.segment, *w.shape[1:]),
                program.memory(),
            )

        _threads.each(work, batch)
        total = Theta(*(np.sum(parts, axis=0) for parts in zip(*gradients, strict=True)))
        views = _views(lives.config, total)
        return (
            None,
            None,
            *(
                torch.from_numpy(views[name].astype(np.float32)).reshape(value.shape)
                for name, value in zip(lives.names, values, strict=True)
            ),
        )


def _rows(inputs: Tensor) -> F32:
    """``(steps, batch, d_in)`` as ``(batch, steps, d_in)``, each lifetime's in one piece."""
    return _array(inputs.transpose(0, 1))


def _targets(target: Tensor | None, state: CortexState) -> F32:
    batch, _, d_hidden = state.w.shape
    return np.zeros((batch, d_hidden), np.float32) if target is None else _array(target)


def split(state: CortexState) -> list[State]:
    """Copy a batch apart, for the kernels to write on."""
    gains = np.stack([_array(state.beta), _array(state.level)], axis=1)
    return [
        State(
            aligned_copy(_array(state.w[i])),
            aligned_copy(_array(state.short_term[i])),
            aligned_copy(_array(state.long_term[i])),
            aligned_copy(_array(state.mean[i])),
            gains[i],
            aligned_copy(_array(state.steps[i : i + 1])),
        )
        for i in range(len(gains))
    ]


def join(states: Sequence[State]) -> CortexState:
    """Copy lifetimes into one batch."""
    w, short_term, long_term, mean, gains, steps = (
        torch.from_numpy(np.stack(parts)) for parts in zip(*states, strict=True)
    )
    beta, level = gains.clone().T.contiguous()
    return CortexState(w, short_term, long_term, mean, beta, level, steps[:, 0].clone())


def copies(state: State, count: int) -> State:
    """Room for so many copies of a state."""
    return State(*(aligned((count, *part.shape), part.dtype.type) for part in state))
