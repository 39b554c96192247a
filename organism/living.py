"""A living cortex: one lifetime on the fused kernels, learned in place, for the daemon.

The same step as ``organism.lifetime.live`` without gradients, to the last bit, but without a copy
of the state for every step. Not safe to share between threads: its owner calls it from one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from organism import kernels
from organism.chunking import Bytes, Spans
from organism.cortex import CortexState, newborn
from organism.encoder import Encoding, compile_encoder, empty_chunk, pool
from organism.fused import join, split
from organism.genome import Genome
from organism.jit import F32, aligned_copy, entry_of, kernel
from organism.kernels import Constants, Lessons, State, Theta
from organism.program import compile_genome

_READINGS = 3


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
        # Found at the first call; no genome to follow and no state to go back to has other types.
        self._encode_and_live: Callable[..., int] | None = None

    def learn(self, inputs: F32) -> Trace:
        """Live through encoded chunks, ``(steps, d_in)``, at ρ = 0; releases the GIL."""
        readings = np.empty((_READINGS, len(inputs)), np.float32)
        _live(inputs, readings, *self._life)
        return Trace(*readings)

    def live(self, data: bytes, spans: Spans) -> Trace:
        """Encode chunks of a message and live through them; releases the GIL once for both.

        Args:
            data: the message.
            spans: where each chunk starts and ends in it, ``(chunks, 2)``.

        Raises:
            ValueError: a chunk is empty; none was lived through.
        """
        readings = np.empty((_READINGS, len(spans)), np.float32)
        message = np.frombuffer(data, np.uint8)
        where = np.ascontiguousarray(spans, np.int64)
        arguments = (message, where, self._encoding, readings, *self._life)
        if self._encode_and_live is None:
            self._encode_and_live = entry_of(_encode_and_live, *arguments)
        empty = self._encode_and_live(*arguments)
        if empty >= 0:
            raise empty_chunk(empty)
        return Trace(*readings)

    @property
    def _life(self) -> tuple[Any, ...]:
        """What the kernels need of it, in the order in which they take it."""
        program = self._program
        return program.constants, program.theta, program.innate, self._state, self._memory

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


# Their arguments are as few as can be: each costs a call a fraction of a microsecond.


@kernel()
def _live(
    inputs: F32,
    readings: F32,
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    memory: F32,
) -> None:
    """Do ``kernels.live`` without a teacher, keep nothing; H, familiarity and β of each step."""
    steps = inputs.shape[0]
    entropy, familiarity, beta = readings[0], readings[1], readings[2]
    no_target = np.zeros((1, innate.shape[1]), np.float32)
    lessons = Lessons(no_target, np.zeros(steps, np.float32), np.zeros(steps, np.int64))
    kernels.live(
        constants,
        theta,
        innate,
        state,
        inputs,
        lessons,
        entropy,
        familiarity,
        beta,
        0,
        kernels.no_states(state),
        kernels.no_tape(memory),
        memory,
    )
    for t in range(steps):
        familiarity[t] = kernels.sigmoid(familiarity[t])


@kernel()
def _encode_and_live(
    data: Bytes,
    spans: Spans,
    encoding: Encoding,
    readings: F32,
    constants: Constants,
    theta: Theta,
    innate: F32,
    state: State,
    memory: F32,
) -> int:
    """Do ``pool``, then ``_live``: two calls in one.

    Giving the GIL back costs little, getting it again a wait for whoever took it meanwhile.

    Returns:
        As ``pool``.
    """
    inputs = np.zeros((spans.shape[0], innate.shape[0]), np.float32)
    empty = pool(data, spans, encoding, inputs)
    if empty < 0:
        _live(inputs, readings, constants, theta, innate, state, memory)
    return empty
