"""The inner loop: whole batches of lifetimes, lived chunk by chunk [D26 §5.2].

Owns the passing of time; knows nothing of losses or of where the chunks come from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from organism import fused
from organism.cortex import CortexState, check_teacher, newborn, respond, step
from organism.genome import Genome


@dataclass(frozen=True)
class Lifetime:
    """What a batch of lifetimes left behind.

    Attributes:
        state: the cortices at the end.
        entropy: H at each step, before learning it, ``(steps, batch)``.
        logit: log-odds of familiarity at each step, before learning it, ``(steps, batch)``.
        answer: h of what each was asked at its end, ``(batch, d_hidden)``; ``(0, d_hidden)``:
            nothing was.
    """

    state: CortexState
    entropy: Tensor
    logit: Tensor
    answer: Tensor


def live(
    genome: Genome,
    inputs: Tensor,
    state: CortexState | None = None,
    target: Tensor | None = None,
    teacher_ratios: Sequence[float] | None = None,
    cues: Tensor | None = None,
) -> Lifetime:
    """Live through a sequence of chunks, from birth or from a given state.

    Args:
        genome: the rule and its configuration.
        inputs: encoded chunks, ``(steps, batch, d_in)``.
        state: where to go on from; None: a newborn.
        target: y of teacher forcing, ``(batch, d_hidden)``, the same at every step [D26 §5.2], or
            one a step, ``(steps, batch, d_hidden)``.
        teacher_ratios: ρ of each step; None: 0 throughout, as in the daemon.
        cues: what each is asked at its end, ``(batch, d_in)``: ``respond`` of the last state; on
            the kernels the cotangent of W in between is never formed.

    Raises:
        ValueError: as many ratios as steps are needed, a target with any ratio above 0, and no
            ratio above 0 with recruitment; or there is not one cue a lifetime.
    """
    steps, batch, _ = inputs.shape
    ratios = [0.0] * steps if teacher_ratios is None else list(teacher_ratios)
    if len(ratios) != steps:
        raise ValueError(f"{len(ratios)} teacher ratios for {steps} steps: give one a step")
    if any(ratios):
        check_teacher(genome, target, max(ratios))
    if cues is not None and cues.shape != inputs.shape[1:]:
        raise ValueError(f"cues of {tuple(cues.shape)} for {tuple(inputs.shape[1:])}: one each")
    state = newborn(genome, batch) if state is None else state
    constants = (inputs, target, cues, *(getattr(state, f.name) for f in fields(CortexState)))
    if fused.fusable(genome, constants):
        return Lifetime(*fused.live(genome, inputs, state, target, ratios, cues))
    entropy, logit = [], []
    for t, (e, ratio) in enumerate(zip(inputs, ratios, strict=True)):
        y = target[t] if target is not None and target.dim() == 3 else target
        state, reading = step(genome, state, e, y, ratio)
        entropy.append(reading.entropy)
        logit.append(reading.logit)
    answer = state.w.new_empty(0, state.w.shape[2])
    if cues is not None:
        answer = respond(genome, state, cues)
    return Lifetime(state, torch.stack(entropy), torch.stack(logit), answer)
