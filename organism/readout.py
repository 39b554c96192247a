"""Familiarity: a logistic readout of statistics of h, calibrated by the stream itself.

Owns the statistics, their order and the calibration. They do not depend on the cortex's size, so
that one genome reads cortices of several sizes, and never on episode memory.

Calibration without labels. How strongly a cortex answers what it does not know differs from
stream to stream: lines that all resemble each other evoke little even when new. A running level
follows the response to chunks held to be novel, each weighted by 1 − familiarity, and a response
is also read by how far it lies below that level.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

STATISTICS = ("log_deviation", "log_flatness", "log_kurtosis", "log_suppression")
"""Names of the statistics, in the order of the readout's weights; the bias comes last."""

_DEVIATION_FLOOR = 1e-3
_SILENT_VARIANCE = 1e-20


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


def statistics(h: Tensor, beta: Tensor, level: Tensor, d_in: int) -> Tensor:
    """Describe the distribution of h over columns, free of its length and of the metabolic gain.

    ``log_deviation`` is log(√d_in·std(h)/β): for unit inputs on random unit columns it is near 0,
    whatever the size. ``log_flatness`` is log(mean|h−h̄| / std(h)) and ``log_kurtosis`` the log
    of the standardised fourth moment, both shifted to be 0 for a Gaussian. ``log_suppression``
    is log_deviation less the level of the novel. Silent activity gives the floor of the
    first, and 0 for both shapes.

    Args:
        h: ``(batch, d_hidden)``, in (−1, 1).
        beta: ``(batch,)``, the gain that z was scaled by.
        level: ``(batch,)``, the running log_deviation of novel chunks.
        d_in: width of the input.

    Returns:
        ``(batch, 4)``, in the order of ``STATISTICS``.
    """
    centred = h - h.mean(1, keepdim=True)
    variance = centred.square().mean(1)
    silent = variance <= _SILENT_VARIANCE
    safe = torch.where(silent, torch.ones_like(variance), variance)
    std = safe.sqrt()
    scaled = torch.where(silent, torch.zeros_like(std), math.sqrt(d_in) * std / beta)
    log_deviation = torch.log(scaled + _DEVIATION_FLOOR)
    gaussian_flatness = math.sqrt(2 / math.pi)
    flatness = torch.where(silent, gaussian_flatness, centred.abs().mean(1) / std)
    kurtosis = torch.where(silent, 3.0, centred.pow(4).mean(1) / safe.square())
    return torch.stack(
        [
            log_deviation,
            torch.log(flatness / gaussian_flatness),
            torch.log(kurtosis / 3.0),
            log_deviation - level,
        ],
        dim=1,
    )


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
