"""The field's protocol of continual familiarity."""

from __future__ import annotations

import numpy as np
import pytest

from organism.genome import new_genome
from organism.tasks.continual import best_threshold, measure, sample_sequence
from tests.conftest import recruiting_config


def test_a_sequence_keeps_the_protocol() -> None:
    """Repetitions are of vectors new ``lag`` steps ago; two thirds are new; entries are ±1."""
    shown = sample_sequence(20, 6000, 7, np.random.default_rng(0))
    assert set(np.unique(shown.inputs)) == {-1.0, 1.0}
    for t, familiar in enumerate(shown.familiar):
        if familiar:
            assert not shown.familiar[t - 7]
            assert np.array_equal(shown.inputs[t], shown.inputs[t - 7])
    assert np.mean(shown.familiar) == pytest.approx(1 / 3, abs=0.02)
    new = shown.inputs[~np.array(shown.familiar)]
    assert len(np.unique(new, axis=0)) > 0.95 * len(new)


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best(seed: int) -> None:
    """No other has more right answers."""
    draws = np.random.default_rng(seed)
    logit = draws.standard_normal(60).astype(np.float32)
    familiar = draws.random(60) < 0.5
    found = best_threshold(logit, familiar)
    right = ((logit > found) == familiar).sum()
    assert right == max(((logit > x) == familiar).sum() for x in np.linspace(-4, 4, 4001))


def test_rates_add_up() -> None:
    """Accuracy is the mixture of hits and right rejections; lags set the lengths."""
    genome = new_genome(recruiting_config(d_in=16, reuse=-1.0, trace_decay=0.98))
    _, scores = measure(genome, [3], [200])
    assert [(s.lag, s.steps) for s in scores] == [(3, 5000), (3, 200)]
    for s in scores:
        assert s.accuracy > 0.95
        assert 0 <= s.false_alarm_rate <= 0.1 < s.hit_rate
