"""The area under the ROC curve."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from organism.auroc import auroc

SCORED = st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30)


@given(SCORED)
def test_auroc_counts_pairs(scored: list[tuple[int, bool]]) -> None:
    """The same as comparing every positive with every negative."""
    positives = [s for s, positive in scored if positive]
    negatives = [s for s, positive in scored if not positive]
    found = auroc([s for s, _ in scored], [p for _, p in scored])
    if not positives or not negatives:
        assert math.isnan(found)
        return
    wins = sum((p > n) + (p == n) / 2 for p in positives for n in negatives)
    assert found == pytest.approx(wins / (len(positives) * len(negatives)))


def test_scores_that_are_not_finite_have_no_auroc() -> None:
    """A genome that diverges must not rank well by accident."""
    assert math.isnan(auroc([0.1, float("nan"), 0.3], [False, True, True]))
