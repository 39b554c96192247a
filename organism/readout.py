"""Familiarity: a logistic readout of how far plasticity has suppressed the response to a chunk.

A cortex that has learned nothing about a chunk answers it as its innate weights would. The
readout compares the response h with that innate response h₀ = tanh(zW₀): what it sees is what
learning has changed, and nothing of the accidents of W₀, of β or of the cortex's size. With
frozen weights the two are equal to the last bit, and familiarity is the same for every chunk.

Calibration without labels. How strongly a cortex answers what it does not know differs from
stream to stream, and falls as more is learned. A running level follows the response to chunks
held to be novel, each weighted by 1 − familiarity, and a response is also read by how far it lies
below that level.

Owns that statistic and its calibration. Never reads episode memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Deviations this small are silence: their ratio is 1, not noise over noise.
DEVIATION_FLOOR = 1e-4
LEAST_SHARE = 0.05


def deviation(h: Tensor) -> Tensor:
    """H = std(h), the original's proxy for entropy [D26 §4.2]; population, so one column gives 0.

    Args:
        h: ``(..., d_hidden)``.

    Returns:
        ``(...,)``, at least 0; its gradient at 0 is taken as 0.
    """
    variance = (h - h.mean(-1, keepdim=True)).square().mean(-1)
    positive = variance > 0
    root = torch.where(positive, variance, torch.ones_like(variance)).sqrt()
    return torch.where(positive, root, torch.zeros_like(root))


def log_response(entropy: Tensor, innate_entropy: Tensor) -> Tensor:
    """log(std(h) / std(h₀)): how far learning has changed the response; 0 before any learning.

    Args:
        entropy: std(h), ``(batch,)``.
        innate_entropy: std(h₀), ``(batch,)``.
    """
    return torch.log((entropy + DEVIATION_FLOOR) / (innate_entropy + DEVIATION_FLOOR))


def logit(weights: Tensor, response: Tensor, level: Tensor) -> Tensor:
    """Log-odds that the chunk was lived through, linear in the response and in its suppression.

    Args:
        weights: of the response, of the suppression below the novel, and the bias, ``(3,)``.
        response: ``log_response`` of the chunk, ``(batch,)``.
        level: running ``log_response`` of the novel, ``(batch,)``.

    Returns:
        ``(batch,)``; familiarity is its sigmoid.
    """
    outright, suppressed, bias = weights.unbind()
    return outright * response + suppressed * (level - response) + bias


def next_level(level: Tensor, response: Tensor, familiarity: Tensor, rate: float) -> Tensor:
    """Move the level of the novel towards the response just seen, by the share that was novel.

    A least share is moved in any case: a level that called everything familiar could not recover.

    Args:
        level: ``(batch,)``.
        response: ``(batch,)``.
        familiarity: ``(batch,)``, in (0, 1).
        rate: of a chunk that is certainly novel.
    """
    share = (1 - familiarity).clamp_min(LEAST_SHARE)
    return level + rate * share * (response - level)
