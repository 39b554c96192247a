"""Brier score and calibration error, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest

from organism.calibration import brier_score, expected_calibration_error


def test_calibration_error_is_its_definition() -> None:
    """Bins of equal width, gaps weighted by how many fall in."""
    draws = np.random.default_rng(0)
    probability, positive = draws.random(500), draws.random(500) < 0.3
    total = 0.0
    for k in range(15):
        inside = (probability >= k / 15) & (probability < (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(probability[inside].mean() - positive[inside].mean())
    assert expected_calibration_error(probability, positive) == pytest.approx(total)


def test_the_certain_and_right_have_none() -> None:
    """1 belongs to the last bin."""
    assert expected_calibration_error([1.0, 0.0], [True, False]) == 0
    assert brier_score([1.0, 0.0], [True, False]) == 0
    assert expected_calibration_error([1.0], [False]) == 1
