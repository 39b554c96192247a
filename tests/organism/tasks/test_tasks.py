"""The two tasks of meta-training, as the outer loop sees them."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from organism.config import GenomeConfig
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.presets import PRESETS
from organism.recruitment import evidence, log_odds
from organism.tasks.association import AssociationConfig, AssociationTask
from organism.tasks.continual import ContinualConfig, ContinualTask
from organism.tasks.familiarity import FamiliarityConfig, FamiliarityTask, ranking_loss
from organism.tasks.projection import ProjectionConfig, ProjectionTask
from organism.tasks.protocol import Task
from organism.tasks.streams import sample_stream
from tests.conftest import recruiting_config, small_config

PROJECTION = GenomeConfig.model_validate({"cortex": {"d_hidden": 16, "normalisation": "row"}})
FAMILIARITY = FamiliarityConfig(
    batch=3, segment_steps=6, longest_life=40, probes=2, held_out_streams=2, held_out_steps=20
)


def projection(whole_bank: bool = True, seed: int = 0) -> tuple[Task, Genome]:
    """A small projection task and an untrained genome for it."""
    config = ProjectionConfig(bank=4, fresh=5, whole_bank=whole_bank)
    return ProjectionTask(config, PROJECTION, seed), new_genome(PROJECTION, seed)


def familiarity(seed: int = 0) -> tuple[Task, Genome]:
    """A small familiarity task and an untrained genome for it."""
    config = small_config(calibration=True)
    return FamiliarityTask(FAMILIARITY, config, seed), new_genome(config, seed)


def recruiting(seed: int = 0) -> tuple[Task, Genome]:
    """The same with recruitment, two widths and the ranking loss."""
    config = recruiting_config()
    settings = FAMILIARITY.model_copy(
        update={"widths": (24, 12), "ranking_weight": 1.0, "fitted_streams": 3, "fitted_steps": 40}
    )
    return FamiliarityTask(settings, config, seed), new_genome(config, seed)


def continual(seed: int = 0) -> tuple[Task, Genome]:
    """A small continual task and an untrained genome for it."""
    config = recruiting_config()
    settings = ContinualConfig(batch=3, steps=30, longest_lag=5, held_out_sequences=2)
    return ContinualTask(settings, config, seed), new_genome(config, seed)


def association(seed: int = 0) -> tuple[Task, Genome]:
    """A small association task and an untrained genome with phases for it."""
    config = PRESETS["association"].genome
    cortex = config.cortex.model_copy(update={"d_in": 8, "d_hidden": 6})
    config = config.model_copy(update={"cortex": cortex})
    settings = AssociationConfig(batch=2, longest=24, held_out_lifetimes=3)
    return AssociationTask(settings, config, seed), new_genome(config, seed)


TASKS = pytest.mark.parametrize(
    "make", [projection, familiarity, recruiting, continual, association]
)


@TASKS
def test_outer_steps_are_repeatable(make: object) -> None:
    """Equal seeds and indices give equal losses; another seed another."""

    def losses(seed: int) -> list[float]:
        task, genome = make(seed=seed)  # type: ignore[operator]
        carry, found = task.begin(), []
        for index in range(5):
            outcome = task.outer_step(genome, carry, index)
            carry = outcome.carry
            found.append(float(outcome.loss))
        return found

    assert losses(0) == losses(0)
    assert losses(0) != losses(1)


@TASKS
def test_the_loss_reaches_theta(make: object) -> None:
    """The gradient of one outer step is not zero."""
    task, genome = make()  # type: ignore[operator]
    theta = {name: tensor.clone().requires_grad_() for name, tensor in genome.theta.items()}
    outcome = task.outer_step(Genome(genome.config, theta), task.begin(), 0)
    outcome.loss.backward()
    rule = [tensor for name, tensor in theta.items() if name.startswith("rule.")]
    assert all(tensor.grad is not None for tensor in rule)
    assert sum(float(tensor.grad.abs().sum()) for tensor in rule if tensor.grad is not None) > 0


@TASKS
def test_held_out_scores_are_repeatable(make: object) -> None:
    """The same each time, and numbers."""
    task, genome = make()  # type: ignore[operator]
    scores = task.held_out(genome)
    assert all(isinstance(value, float) for value in scores.values())
    assert repr(scores) == repr(task.held_out(genome))  # not ==: a NaN is where a class is missing


def test_one_pair_of_the_bank_in_turn() -> None:
    """[D26 App. D]: episode k trains on pair k mod K."""
    task, genome = projection(whole_bank=False)
    losses = [float(task.outer_step(genome, {}, index).loss) for index in range(8)]
    assert losses[:4] == losses[4:]
    assert len(set(losses[:4])) == 4
    whole, _ = projection(whole_bank=True)
    mean = float(whole.outer_step(genome, {}, 0).loss)
    assert mean == pytest.approx(sum(losses[:4]) / 4, rel=1e-4)


def test_answering_zero_has_nmse_one() -> None:
    """A silent cortex scores 1, and its MSE is zero_mse."""
    task, genome = projection()
    silent = Genome(genome.config, {**genome.theta, "mixing": torch.zeros(3)})
    scores = task.held_out(silent)
    assert scores["bank_nmse"] == pytest.approx(1)
    assert scores["fresh_nmse"] == pytest.approx(1)
    assert scores["bank_mse"] == pytest.approx(scores["zero_mse"])


def test_targets_have_the_originals_size() -> None:
    """The mean square near 0.03 that makes a loss of 0.0342 no achievement."""
    task = ProjectionTask(ProjectionConfig(), GenomeConfig(), 0)
    zero_mse = task.held_out(new_genome(GenomeConfig()))["zero_mse"]
    assert 0.02 < zero_mse < 0.05


def test_lifetimes_run_on_and_end() -> None:
    """A segment goes on where the last one ended; a life that is over gives way to a newborn."""
    task, genome = familiarity()
    carry, births = task.begin(), []
    for index in range(8):
        carry = task.outer_step(genome, carry, index).carry
        births.append(carry["0.births"].tolist())
        # A life is as old as the segments since its birth.
        for slot in range(3):
            segments = index - births[-1][slot] + 1
            assert int(carry["0.state.steps"][slot]) == 6 * segments
            assert int(carry["0.positions"][slot]) == 6 * segments
    assert births[0] == [0, 0, 0]
    for earlier, later in pairwise(births):
        assert all(a <= b for a, b in zip(earlier, later, strict=True))
    assert max(births[-1]) > 0


def test_segments_join_to_one_life() -> None:
    """Two outer steps of a life equal one lifetime of their length."""
    task, genome = familiarity()
    assert isinstance(task, FamiliarityTask)
    carry = task.outer_step(genome, task.begin(), 0).carry
    slot = next(s for s in range(3) if len(task._stream(0, s).chunks) >= 12)
    carry = task.outer_step(genome, carry, 1).carry
    whole = live(genome, task._encode([task._stream(0, slot).chunks[:12]]))
    torch.testing.assert_close(carry["0.state.w"][slot], whole.state.w[0])


def test_held_out_streams_are_not_training_streams() -> None:
    """Selection never sees what was trained on."""
    task, genome = familiarity()
    assert isinstance(task, FamiliarityTask)
    trained = {chunk for s in range(3) for chunk in task._stream(0, s).chunks}
    seen: list[list[bytes]] = []
    original = task._encode

    def spy(chunks: list[list[bytes]]) -> torch.Tensor:
        seen.extend(chunks)
        return original(chunks)

    task._encode = spy  # type: ignore[method-assign]
    task.held_out(genome)
    assert seen
    assert not trained & {chunk for chunks in seen for chunk in chunks}


def test_a_batch_is_shared_between_widths() -> None:
    """Each width lives its share of the slots, in cortices of its own size."""
    task, genome = recruiting()
    carry = task.outer_step(genome, task.begin(), 0).carry
    assert carry["0.state.w"].shape == (1, 8, 24)
    assert carry["1.state.w"].shape == (2, 8, 12)


def test_finishing_fits_the_readout_and_nothing_else() -> None:
    """The loss on the lifetimes it is fitted on falls; the rule is left as it is."""
    task, genome = recruiting()
    assert isinstance(task, FamiliarityTask)
    finished = task.finish(genome)
    seen, level, familiar = task._observed(genome)

    def loss(g: Genome) -> float:
        found = evidence(g.theta["readout"], seen)
        logit = log_odds(g.theta["calibration"], found, level)
        return float(binary_cross_entropy_with_logits(logit, familiar))

    assert loss(finished) < loss(genome) - 0.05
    for name in ("rule.coefficients", "log_alpha", "mixing"):
        assert torch.equal(finished.theta[name], genome.theta[name])
    again = task.finish(genome)
    assert all(torch.equal(finished.theta[n], again.theta[n]) for n in again.theta)


def test_what_is_fitted_is_what_is_lived() -> None:
    """The features and levels observed give the log-odds of a lifetime."""
    task, genome = recruiting()
    assert isinstance(task, FamiliarityTask)
    seen, level, _ = task._observed(genome)
    logit = log_odds(genome.theta["calibration"], evidence(genome.theta["readout"], seen), level)
    config = task._config
    streams = [sample_stream(config.streams, 40, random.Random(f"fitted:0:{k}")) for k in range(3)]
    lived = live(genome, task._encode([s.chunks for s in streams]))
    torch.testing.assert_close(logit, lived.logit, rtol=1e-4, atol=1e-4)


def test_the_ranking_loss_looks_at_pairs() -> None:
    """By hand: one pair in the right order by 2, one in the wrong order by 1."""
    logit = torch.tensor([[0.0], [3.0], [1.0]])
    familiar = torch.tensor([[False], [False], [True]])
    right, wrong = torch.tensor(-1.0), torch.tensor(2.0)
    expected = (softplus(right) + softplus(wrong)) / 2
    torch.testing.assert_close(ranking_loss(logit, familiar), expected)
    assert ranking_loss(logit, torch.ones(3, 1, dtype=torch.bool)) == 0
