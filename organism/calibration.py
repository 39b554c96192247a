"""How far probabilities can be trusted: Brier score and expected calibration error."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

BINS = 15


def brier_score(probability: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Mean squared difference between probability and truth [Brier, Monthly Weather Review 1950].

    Args:
        probability: ``(n,)`` in [0, 1].
        positive: ``(n,)`` booleans.

    >>> brier_score([1.0, 0.5], [True, False])
    0.125
    """
    given, true = np.asarray(probability, np.float64), np.asarray(positive, np.float64)
    return float(np.square(given - true).mean())


def expected_calibration_error(
    probability: npt.ArrayLike, positive: npt.ArrayLike, bins: int = BINS
) -> float:
    """Mean gap between confidence and frequency over equal bins, each weighted by its share.

    Naeini, Cooper & Hauskrecht, "Obtaining well calibrated probabilities using Bayesian binning",
    AAAI 2015.

    Args:
        probability: ``(n,)`` in [0, 1].
        positive: ``(n,)`` booleans.
        bins: of equal width.

    >>> expected_calibration_error([0.9, 0.9, 0.1, 0.1], [True, True, False, False])
    0.1
    """
    given, true = np.asarray(probability, np.float64), np.asarray(positive, np.float64)
    index = np.minimum((given * bins).astype(np.int64), bins - 1)
    gaps = np.bincount(index, given - true, minlength=bins)
    return float(np.round(np.abs(gaps).sum() / len(given), 12))
