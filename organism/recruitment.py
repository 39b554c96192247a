"""Recruitment: one column learns at a time, and what is new takes the column used least.

A cortex in which every column learns from every chunk keeps what chunks have in common; which
one of them it has met, it soon forgets. With recruitment, columns compete. Each is a unit vector,
and its match with a chunk is their cosine. The nearest column wins and alone is changed by the
rule, so that it moves towards what it answers to (competitive learning: Rumelhart & Zipser,
Cognitive Science 1985). Where even the winner's match lies below the vigilance, the chunk is new
(adaptive resonance: Carpenter & Grossberg, Computer Vision, Graphics and Image Processing 1987),
and the column with the least trace of use is silenced and recruited for it (least used access:
Santoro et al., "Meta-learning with memory-augmented neural networks", ICML 2016). A column's
trace counts its uses and decays, so that what recurs outlives what came once; where things recur
once at most, a use may free the column instead. Columns may be protected for a while after their
use; when all are, what is new is not learned.

The readout weighs two hypotheses about a chunk. Under "lived", it is a damaged copy of what some
column holds, the more likely the more often that column was used: log Σ trace·match³² is a kernel
density estimate with a narrow kernel, since sᵖ ≈ exp(−p(1 − s)). Under "new", it is a relative of
what is held: the same with wide kernels, powers 2 and 8. With the closeness of the winner they
are the evidence, a weighted sum. What it is worth depends on how noisy the stream is: a match of
0.95 means "lived" where bytes are damaged and "another one" where they are not. A running level
follows how well familiar chunks match, from the stream alone; its powers bring the evidence to
log-odds, by a line that may bend once.

Owns these equations, as pure functions; ``organism.cortex`` applies them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

POWERS = (2, 8, 32)
"""Powers of the match in the evidence; each is a few squarings of the one before."""
FEATURES = len(POWERS) + 1
LEVEL_POWERS = 3
LEVEL_CENTRE = 2.0
"""Closeness that the powers of the level are taken around: of a match of about 0.9."""
DENSITY_FLOOR = 1e-3
MARGIN = 0.02
# A smaller trace is none: it would not move the evidence, and what is left after some 90,000 steps
# would be no normal number, which takes a processor a hundred times as long.
LEAST_TRACE = 1e-30
"""Matches nearer to 1 than this are alike."""
LEVEL_AT_BIRTH = 0.8
LEVEL_SHARPNESS = 16
"""Power of the match that a chunk moves the level by: only near ones do."""


def closeness(match: Tensor) -> Tensor:
    """−log(1 + margin − match): the log of an inverse squared distance, for unit vectors.

    Args:
        match: cosines, any shape.
    """
    return -torch.log(1 + MARGIN - match.clamp_max(1))


def features(match: Tensor, trace: Tensor) -> Tensor:
    """What speaks for and against a chunk; see the module's head.

    Args:
        match: of each column, ``(..., batch, d_hidden)``.
        trace: of each column, ``(batch, d_hidden)``.

    Returns:
        Closeness of the winner and log-densities by rising power, ``(..., batch, FEATURES)``.
    """
    power = match.clamp_min(0).square()
    densities = [(trace * power).sum(-1)]
    for _ in POWERS[1:]:
        power = power.square().square()
        densities.append((trace * power).sum(-1))
    logs = [torch.log(density + DENSITY_FLOOR) for density in densities]
    return torch.stack([closeness(match.amax(-1)), *logs], dim=-1)


def evidence(weights: Tensor, features: Tensor) -> Tensor:
    """Weigh the features, ``(..., FEATURES)``, by as many weights; ``(...)``."""
    found: Tensor = features @ weights
    return found


def log_odds(calibration: Tensor, evidence: Tensor, level: Tensor) -> Tensor:
    """Log-odds that a chunk was lived through: slope·x + bend·log(1 + eˣ) + shift, x the evidence.

    Args:
        calibration: coefficients of 1, l and l² in slope, bend and shift, l the closeness of the
            level less ``LEVEL_CENTRE``, ``(3, LEVEL_POWERS)``.
        evidence: ``(..., batch)``.
        level: ``(batch,)``, or as the evidence.

    Returns:
        ``(..., batch)``; familiarity is its sigmoid.
    """
    near = closeness(level) - LEVEL_CENTRE
    powers = torch.stack([torch.ones_like(near), near, near.square()], dim=-1)
    slope, bend, shift = (powers @ calibration.T).unbind(-1)
    odds: Tensor = slope * evidence + bend * softplus(evidence) + shift
    return odds


@dataclass(frozen=True)
class Choice:
    """Who learns, ``(batch,)`` each.

    Attributes:
        column: index of the column.
        recruited: whether it begins anew.
        learns: whether it does at all: nobody does where a chunk is new and every column protected.
    """

    column: Tensor
    recruited: Tensor
    learns: Tensor


def choose(match: Tensor, trace: Tensor, vigilance: float, protection: float) -> Choice:
    """Choose the column that learns: the winner, or the least used one where nothing is near.

    Args:
        match: ``(batch, d_hidden)``.
        trace: ``(batch, d_hidden)``.
        vigilance: least match of a chunk that is not new.
        protection: trace from which a column is not recruited; 0: all are.
    """
    best, winner = match.max(-1)
    least, least_used = trace.min(-1)
    recruited = best < vigilance
    free = least < (protection or math.inf)
    return Choice(torch.where(recruited, least_used, winner), recruited, ~recruited | free)


def next_trace(trace: Tensor, choice: Choice, decay: float, reuse: float) -> Tensor:
    """Let all traces decay, and note the use of the column that learns.

    Args:
        trace: ``(batch, d_hidden)``.
        choice: of the column; a recruited one's trace begins anew, at 1.
        decay: of a step.
        reuse: what is added otherwise; a trace stays at least 0.
    """
    place = choice.column.unsqueeze(-1)
    decayed = decay * trace
    decayed = torch.where(decayed > LEAST_TRACE, decayed, torch.zeros_like(decayed))
    before = decayed.gather(-1, place)
    again = (before + reuse).clamp_min(0)
    used = torch.where(choice.recruited.unsqueeze(-1), torch.ones_like(again), again)
    return decayed.scatter(-1, place, torch.where(choice.learns.unsqueeze(-1), used, before))


def next_level(level: Tensor, best: Tensor, rate: float) -> Tensor:
    """Move the level of the familiar towards a winner's match, the more the nearer it is.

    Args:
        level: ``(batch,)``.
        best: the winner's match, ``(batch,)``.
        rate: of a perfect match.
    """
    share = best.clamp(0, 1) ** LEVEL_SHARPNESS
    return level + rate * share * (best - level)
