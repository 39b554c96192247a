"""Area under the ROC curve, the one definition used by training, evaluation and tests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Chance that a random positive outscores a random negative, a tie counting one half.

    Args:
        scores: ``(n,)`` finite numbers.
        positive: ``(n,)`` booleans.

    Returns:
        In [0, 1]; NaN where one class is missing or a score is not finite.

    >>> auroc([0.1, 0.4, 0.4, 0.9], [False, False, True, True])
    0.875
    """
    values = np.asarray(scores, np.float64)
    is_positive = np.asarray(positive, bool)
    negatives = np.sort(values[~is_positive])
    positives = values[is_positive]
    if not len(negatives) or not len(positives) or not np.isfinite(values).all():
        return float("nan")
    below = np.searchsorted(negatives, positives, "left")
    up_to = np.searchsorted(negatives, positives, "right")
    return float((below + up_to).mean() / (2 * len(negatives)))
