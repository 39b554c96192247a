"""The two tasks of meta-training, as the outer loop sees them."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from organism.config import GenomeConfig
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.tasks.familiarity import FamiliarityConfig, FamiliarityTask
from organism.tasks.projection import ProjectionConfig, ProjectionTask
from organism.tasks.protocol import Task
from tests.conftest import small_config

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


TASKS = pytest.mark.parametrize("make", [projection, familiarity])


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
    assert scores == task.held_out(genome)


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
        births.append(carry["births"].tolist())
        # A life is as old as the segments since its birth.
        for slot in range(3):
            segments = index - births[-1][slot] + 1
            assert int(carry["state.steps"][slot]) == 6 * segments
            assert int(carry["positions"][slot]) == 6 * segments
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
    torch.testing.assert_close(carry["state.w"][slot], whole.state.w[0])


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
