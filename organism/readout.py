"""Familiarity: a logistic readout of how far plasticity has suppressed the response to a chunk.

A cortex that has learned nothing about a chunk answers it as its innate weights would. The
readout compares the response h with that innate response h₀ = tanh(zW₀): what it sees is what
learning has changed, and nothing of the accidents of W₀, of β or of the cortex's size. With
frozen weights the two are equal to the last bit, and familiarity is the same for every chunk.

Calibration without labels. How strongly a cortex answers what it does not know differs from
stream to stream: lines that all resemble each other evoke little even when new. A running level
follows the response to chunks held to be novel, each weighted by 1 − familiarity, and a response
is also read by how far it lies below that level.

Owns the statistics, their order and the calibration. Never reads episode memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("log_response", "log_suppression")
"""Names of the statistics, in the order of the readout's weights; the bias comes last."""

# Deviations this small are silence: their ratio is 1, not noise over noise.
_DEVIATION_FLOOR = 1e-4


def deviation(h: Tensor) -> Tensor:
    """H = std(h), the original's proxy for entropy [D26 §4.2]; population, so one column gives 0.

    Args:
        h: ``(batch, d_hidden)``.

    Returns:
        ``(batch,)``, at least 0; its gradient at 0 is taken as 0.
    """
    variance = (h - h.mean(1, keepdim=True)).square().mean(1)
    positive = variance > 0
    root = torch.where(positive, variance, torch.ones_like(variance)).sqrt()
    return torch.where(positive, root, torch.zeros_like(root))


def statistics(entropy: Tensor, innate_entropy: Tensor, level: Tensor) -> Tensor:
    """Compare the deviation of h with that of the innate response to the same z.

    ``log_response`` is log(std(h) / std(h₀)), 0 before any learning; ``log_suppression`` is
    log_response less the level of the novel.

    Args:
        entropy: std(h), ``(batch,)``.
        innate_entropy: std(h₀), ``(batch,)``.
        level: the running log_response of novel chunks, ``(batch,)``.

    Returns:
        ``(batch, 2)``, in the order of ``STATISTICS``.
    """
    response = torch.log((entropy + _DEVIATION_FLOOR) / (innate_entropy + _DEVIATION_FLOOR))
    return torch.stack([response, response - level], dim=1)


def logit(weights: Tensor, stats: Tensor) -> Tensor:
    """Log-odds that the chunk was lived through.

    Args:
        weights: ``(len(STATISTICS) + 1,)``, the bias last.
        stats: ``(batch, len(STATISTICS))``.

    Returns:
        ``(batch,)``; familiarity is its sigmoid.
    """
    return stats @ weights[:-1] + weights[-1]


def next_level(level: Tensor, stats: Tensor, familiarity: Tensor, rate: float) -> Tensor:
    """Move the level of the novel towards the response just seen, by the share that was novel.

    Args:
        level: ``(batch,)``.
        stats: ``(batch, len(STATISTICS))``.
        familiarity: ``(batch,)``, in (0, 1).
        rate: of a chunk that is certainly novel.
    """
    return level + rate * (1 - familiarity) * (stats[:, 0] - level)
