"""The reference that steps are measured against: the original's inner loop, written plainly.

[D26 App. D] in eager torch: for each synapse the features (pre, post, w) are stacked, broadcast to
``(d_in, d_hidden, 3)``, and go through the network's two matrix products. Nothing here is tuned,
and nothing that the original does not do is done.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from organism.config import GenomeConfig
from organism.rules import Theta, weight_length


class Brain(NamedTuple):
    """What one lifetime carries: W, ``(d_in, d_hidden)``, and both memories, ``(d_in,)``."""

    w: Tensor
    short_term: Tensor
    long_term: Tensor


def activation(
    config: GenomeConfig, theta: Theta, brain: Brain, e: Tensor
) -> tuple[Tensor, Tensor]:
    """Mix a cue with the memories and read it: pre, ``(d_in,)``, and h, ``(d_hidden,)``."""
    c0, c1, c2 = theta["mixing"]
    pre = c0 * e + c1 * brain.short_term + c2 * brain.long_term if config.cortex.memory else e
    return pre, torch.tanh(pre @ brain.w)


def eager_step(
    config: GenomeConfig,
    theta: Theta,
    brain: Brain,
    e: Tensor,
    target: Tensor | None = None,
    ratio: float = 0.0,
) -> Brain:
    """Take one inner step.

    Args:
        config: of an mlp genome scaled by ``sqrt_d``, without metabolism, as the preset
            ``original``.
        theta: its numbers.
        brain: before the step.
        e: encoded cue, ``(d_in,)``.
        target: y of teacher forcing, ``(d_hidden,)``.
        ratio: ρ.
    """
    cortex, (w, short_term, long_term) = config.cortex, brain
    pre, h = activation(config, theta, brain, e)
    post = h if target is None else ratio * target + (1 - ratio) * h
    gain = theta["log_entropy_gain"].exp()
    alpha = theta["log_alpha"].exp() * (1 + gain * h.std(correction=0))
    activity = math.sqrt(cortex.d_in)
    weight = math.sqrt(weight_length(config.rule.scaling, cortex))
    features = torch.stack(
        [
            (pre * activity).unsqueeze(1).expand_as(w),
            (post * activity).unsqueeze(0).expand_as(w),
            w * weight,
        ],
        dim=-1,
    )
    hidden = torch.relu(features @ theta["rule.w1"].T + theta["rule.b1"])
    delta = (hidden @ theta["rule.w2"].unsqueeze(1)).squeeze(-1) + theta["rule.b2"]
    moved = w + alpha * delta / weight
    dims = {"row": (1,), "column": (0,), "frobenius": (0, 1), "none": ()}[cortex.normalisation]
    if dims:
        norm = torch.linalg.vector_norm(moved, dim=dims, keepdim=True)
        moved = moved / (norm + cortex.normalisation_epsilon)
    short, long = cortex.short_term_decay, cortex.long_term_decay
    return Brain(moved, short * short_term + (1 - short) * pre, long * long_term + (1 - long) * pre)
