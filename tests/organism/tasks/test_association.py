"""Associative memory: what is stored, and how it is scored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from organism.cortex import CortexState, newborn
from organism.genome import Genome, new_genome
from organism.presets import PRESETS
from organism.tasks import association
from organism.tasks.association import (
    AssociationConfig,
    AssociationTask,
    Pairs,
    answer,
    bit_error,
    cosine,
    draw_pairs,
    store,
)


def delta_rule(rate: float, phases: bool = True) -> Genome:
    """phase·pre·post, or without phases Hebb's rule."""
    config = PRESETS["association"].genome
    rule = config.rule.model_copy(update={"initialisation_noise": 0.0, "phases": phases})
    genome = new_genome(config.model_copy(update={"rule": rule}))
    theta = dict(genome.theta)
    theta["log_alpha"] = torch.tensor(rate).log()
    if phases:
        theta["rule.phase_coefficients"] = theta["rule.coefficients"]
        theta["rule.coefficients"] = torch.zeros_like(theta["rule.coefficients"])
    return replace(genome, theta=theta)


def test_pairs_are_as_described() -> None:
    """Keys have unit norm, targets are ±1, all independent of each other."""
    pairs = draw_pairs(40, 3, PRESETS["association"].genome, np.random.default_rng(0))
    assert len(pairs) == 40
    torch.testing.assert_close(pairs.keys.norm(dim=-1), torch.ones(40, 3))
    assert set(pairs.targets.flatten().tolist()) == {-1.0, 1.0}
    flat = torch.cat([pairs.keys.flatten(0, 1), pairs.targets.flatten(0, 1)], 1)
    correlation = torch.corrcoef(flat.T) - torch.eye(128)
    assert float(correlation.abs().mean()) == pytest.approx(0.073, abs=0.02)  # √(2/π)/√120


def test_hebbs_rule_stores_what_theory_says() -> None:
    """The cosine after one pass is 1/√(1 + (N − 1)/d), while tanh is nearly linear."""
    genome = delta_rule(0.01, phases=False)
    rng = np.random.default_rng(0)
    for count in (8, 32, 64):
        pairs = draw_pairs(count, 20, genome.config, rng)
        start = newborn(genome, 20)
        state = store(genome, replace(start, w=torch.zeros_like(start.w)), pairs)
        near = float(cosine(answer(genome, state, pairs.keys), pairs.targets).mean())
        assert near == pytest.approx(1 / np.sqrt(1 + (count - 1) / 64), abs=0.01)


def test_only_phases_undo_an_error() -> None:
    """Five passes bring the delta rule closer than one; Hebb's rule stays where it was."""
    found = {}
    for phases in (True, False):
        genome = delta_rule(0.5, phases)
        pairs = draw_pairs(48, 8, genome.config, np.random.default_rng(1))
        for passes in (1, 5):
            state = store(genome, newborn(genome, 8), pairs, passes)
            near = cosine(answer(genome, state, pairs.keys), pairs.targets)
            found[phases, passes] = float(near.mean())
    assert found[True, 5] > found[True, 1] + 0.1
    assert found[False, 5] < found[False, 1] + 0.02


def test_what_is_known_by_heart_is_answered() -> None:
    """As strongly as was drawn, whatever the cortex was born with."""
    genome, rng = delta_rule(1.0), np.random.default_rng(0)
    pairs = draw_pairs(40, 3, genome.config, rng)
    state = association._knowing(newborn(genome, 3), pairs, rng)
    drive = torch.atanh(answer(genome, state, pairs.keys)) * pairs.targets
    strength = float(drive.median())
    assert 0.5 < strength < 2
    torch.testing.assert_close(drive, torch.full_like(drive, strength), rtol=0.1, atol=0.1)


def test_answers_are_scored_by_direction_and_by_sign() -> None:
    """Size does not matter; an answer of zero is half wrong and points nowhere."""
    targets = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    for answers, near, wrong in (
        ([[0.1, -0.1, 0.1, -0.1]], 1.0, 0.0),
        ([[-9.0, 9.0, -9.0, 9.0]], -1.0, 1.0),
        ([[1.0, -1.0, 1.0, 1.0]], 0.5, 0.25),
        ([[0.0, 0.0, 0.0, 0.0]], 0.0, 0.5),
    ):
        assert float(cosine(torch.tensor(answers), targets)) == pytest.approx(near)
        assert float(bit_error(torch.tensor(answers), targets)) == pytest.approx(wrong)


@pytest.mark.parametrize("weights", [(0.5, 0.5, 0.5), (-1.0, 1.0, 1.0)])
def test_weights_that_are_none_are_refused(weights: tuple[float, float, float]) -> None:
    """They must sum to one, none below zero."""
    with pytest.raises(ValueError, match="sum to 1"):
        AssociationConfig(weights=weights)


def test_no_lifetime_is_longer_than_it_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Presentations of a lifetime, passes and all, whatever its kind."""
    shown_at_once: list[int] = []

    def counted(genome: Genome, state: CortexState, pairs: Pairs, passes: int = 1) -> CortexState:
        shown_at_once.append(len(pairs) * passes)
        return state

    monkeypatch.setattr(association, "store", counted)
    config = PRESETS["association"].genome
    genome = new_genome(config)
    for longest in (24, 64):
        for weights in ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)):
            settings = AssociationConfig(batch=1, longest=longest, weights=weights)
            task, most = AssociationTask(settings, config, 0), 0
            for index in range(100):
                shown_at_once.clear()
                task.outer_step(genome, task.begin(), index)
                most = max(most, sum(shown_at_once))
            assert longest - 6 < most <= longest
