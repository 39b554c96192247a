"""Recovery of planted rules."""

from __future__ import annotations

import pytest

from organism.lab.recovery import TEACHERS, _faults, recovered, report, trials


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["oja", "bcm", "sparse"])
def test_a_planted_rule_is_found(teacher: str) -> None:
    """Weights and activity of lifetimes not seen, the planted terms, and no others."""
    found = recovered(teacher, "polynomial", 100)
    assert found["weights_r2"] > 0.98
    assert found["activity_r2"] > 0.98
    other, missed = _faults(found)
    assert other < 0.05
    assert missed < 0.05


def test_a_wrong_rule_is_not_called_found() -> None:
    """The measures tell a spurious term and a missed one."""
    planted = {"pre·post": 1.0, "post²·w": -0.5, "w": 0.0}
    assert _faults({"planted": planted, "found": planted}) == (0, 0)
    spurious = {**planted, "w": 0.2}
    assert _faults({"planted": planted, "found": spurious}) == pytest.approx((0.2, 0))
    missed = {**planted, "post²·w": 0.0}
    assert _faults({"planted": planted, "found": missed}) == pytest.approx((0, 0.5))


def test_the_report_tells_the_worst() -> None:
    """Every teacher and family has a row; the worst seed is not averaged away."""
    results = {
        trial.name: {
            "weights_r2": 0.99 if trial.arguments["seed"] else 0.5,
            "activity_r2": 1.0,
            "planted": {"pre·post": 1.0, "w": 0.0},
            "found": {"pre·post": 1.0, "w": 0.3 if trial.arguments["seed"] else 0.0},
        }
        for trial in trials(3)
    }
    told = report(results, 3)
    rows = told.parts[0].rows  # type: ignore[union-attr]
    assert [row[:2] for row in rows] == [
        [teacher, family] for teacher in TEACHERS for family in ("polynomial", "mlp")
    ]
    assert {row[3] for row in rows} == {"0.5000"}
    assert told.figures["oja_largest_spurious"] == pytest.approx(0.3)
    assert "beyond" in told.summary
