"""A living cortex: one lifetime on the fused kernels, learned in place, for the daemon.

The same step as ``organism.lifetime.live`` without gradients, to the last bit, but without a copy
of the state for every step. Not safe to share between threads: its owner calls it from one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from organism import kernels
from organism.chunking import Bytes, Spans
from organism.cortex import CortexState, newborn
from organism.encoder import Encoding, compile_encoder, empty_chunk, pool
from organism.fused import compile_genome, join, split
from organism.genome import Genome
from organism.jit import F32, aligned_copy, kernel
from organism.kernels import Lessons, State


@dataclass(frozen=True)
class Trace:
    """What each step of a stretch of life gave, ``(steps,)`` each.

    Attributes:
        entropy: H, before the learning.
        familiarity: probability that the chunk was lived through, before the learning.
        beta: β, after the learning.
    """

    entropy: F32
    familiarity: F32
    beta: F32

    @classmethod
    def joined(cls, traces: Sequence[Trace]) -> Trace:
        """Join stretches of life, one after the other."""
        if len(traces) == 1:
            return traces[0]
        none = np.empty(0, np.float32)
        return cls(
            np.concatenate([none, *(t.entropy for t in traces)]),
            np.concatenate([none, *(t.familiarity for t in traces)]),
            np.concatenate([none, *(t.beta for t in traces)]),
        )


class LivingCortex:
    """A genome's cortex, moved on by ``learn`` and by nothing else."""

    def __init__(self, genome: Genome, state: State | None = None) -> None:
        """Wake a state, or a newborn."""
        self.follow(genome)
        self.restore(as_state(newborn(genome)) if state is None else state)

    def follow(self, genome: Genome) -> None:
        """Learn by a genome from now on, of the same shape as the one before."""
        config = genome.config
        self._program = compile_genome(config, genome.theta)
        self._encoding = compile_encoder(config.encoder, config.cortex.d_in)
        self._memory = kernels.memory_for(self._program.theta, *self._program.innate.shape)
        self._no_target = np.zeros((1, config.cortex.d_hidden), np.float32)

    def learn(self, inputs: F32) -> Trace:
        """Live through encoded chunks, ``(steps, d_in)``, at ρ = 0; releases the GIL."""
        steps = len(inputs)
        entropy, logit, beta = np.empty((3, steps), np.float32)
        kernels.live(*self._life(inputs, entropy, logit, beta))
        return Trace(entropy, _sigmoid(logit), beta)

    def live(self, data: bytes, spans: Spans) -> Trace:
        """Encode chunks of a message and live through them; releases the GIL once for both.

        Args:
            data: the message.
            spans: where each chunk starts and ends in it, ``(chunks, 2)``.

        Raises:
            ValueError: a chunk is empty; none was lived through.
        """
        inputs = np.zeros((len(spans), self._encoding.table.shape[1]), np.float32)
        entropy, logit, beta = np.empty((3, len(spans)), np.float32)
        life = self._life(inputs, entropy, logit, beta)
        empty = _encode_and_live(np.frombuffer(data, np.uint8), spans, self._encoding, inputs, life)
        if empty >= 0:
            raise empty_chunk(empty)
        return Trace(entropy, _sigmoid(logit), beta)

    def _life(self, inputs: F32, entropy: F32, logit: F32, beta: F32) -> tuple[Any, ...]:
        """Arguments of ``kernels.live``."""
        program, steps = self._program, len(inputs)
        return (
            program.constants,
            program.theta,
            program.innate,
            self._state,
            inputs,
            Lessons(self._no_target, np.zeros(steps, np.float32), np.zeros(steps, np.int64)),
            entropy,
            logit,
            beta,
            0,
            self._no_checkpoints,
            self._no_tape,
            self._memory,
        )

    def recall(self, cue: F32) -> tuple[float, float]:
        """Familiarity and entropy of one encoded cue, ``(d_in,)``; changes nothing."""
        program = self._program
        entropy, logit = kernels.recall(
            program.constants, program.theta, program.innate, self._state, cue, self._memory
        )
        return float(kernels.sigmoid(logit)), float(entropy)

    def copy(self) -> State:
        """Copy the state in microseconds; ``as_cortex`` makes of it what others read."""
        return copied(self._state)

    def restore(self, state: State) -> None:
        """Go back, or forth, to a state."""
        self._state = copied(state)
        nothing: Any = (part[None][:0] for part in self._state)
        self._no_tape = kernels.new_tape((0,), *self._state.w.shape)
        self._no_checkpoints = State(*nothing)


def as_cortex(state: State) -> CortexState:
    """Make a batch of one of a lifetime's state, without a copy of W."""
    parts: Any = (part[None] for part in state)
    return join(State(*parts))


def as_state(cortex: CortexState) -> State:
    """Copy a batch of one."""
    parts: Any = (part[0] for part in split(cortex))
    return State(*parts)


def copied(state: State) -> State:
    """Copy a lifetime's state."""
    w, short_term, long_term, mean, trace, gains, steps = state
    return State(
        aligned_copy(w),
        short_term.copy(),
        long_term.copy(),
        mean.copy(),
        trace.copy(),
        gains.copy(),
        steps.copy(),
    )


@kernel()
def _encode_and_live(
    data: Bytes, spans: Spans, encoding: Encoding, inputs: F32, life: tuple[Any, ...]
) -> int:
    """``pool`` into inputs that are zeros, then ``kernels.live``: two calls in one.

    Giving the GIL back costs little, getting it again a wait for whoever took it meanwhile.
    """
    empty = pool(data, spans, encoding, inputs)
    if empty < 0:
        kernels.live(*life)
    return empty


def _sigmoid(logit: F32) -> F32:
    return np.float32(1) / (np.float32(1) + np.exp(-logit))
