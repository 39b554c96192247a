"""Recruitment: the equations one by one, and the fused kernels against the reference."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from organism import recruitment
from organism.config import GenomeConfig
from organism.cortex import newborn, recall, step
from organism.genome import Genome, new_genome
from organism.lifetime import live
from tests.conftest import recruiting_config


def drawn(seed: int = 1, family: str = "polynomial", **cortex: Any) -> Genome:
    """A genome whose every number plays a part."""
    genome = new_genome(recruiting_config(family, **cortex), seed)
    generator = torch.Generator().manual_seed(seed)
    theta = {
        n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in genome.theta.items()
    }
    return replace(genome, theta=theta)


def hebbian(**cortex: Any) -> Genome:
    """A genome that writes what it meets, and nothing else."""
    genome = new_genome(recruiting_config(memory=False, **cortex))
    theta = {**genome.theta, "rule.coefficients": torch.zeros(2, 4, 3)}
    theta["rule.coefficients"][1, 1, 0] = 1
    return replace(genome, theta=theta)


def recurring(genome: Genome, steps: int, batch: int) -> Tensor:
    """Inputs of which each comes several times, some of them blurred."""
    generator = torch.Generator().manual_seed(7)
    d_in = genome.config.cortex.d_in
    base = torch.randn(30, batch, d_in, generator=generator)
    which = torch.randint(0, 30, (steps, batch), generator=generator)
    blur = 0.3 * torch.randn(steps, batch, d_in, generator=generator)
    some = torch.rand(steps, batch, 1, generator=generator) < 0.5
    return base.gather(0, which.unsqueeze(2).expand(-1, -1, d_in)) + some * blur


@pytest.mark.parametrize(
    "cortex",
    [
        {},
        {"memory": False, "metabolism": False, "entropy_modulation": False},
        {"reuse": -1.0},
        {"protection": 0.6},
        {"calibration": False},
        {"plasticity": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("family", ["polynomial", "mlp"])
def test_the_kernels_are_the_reference(family: str, cortex: dict[str, Any]) -> None:
    """A lifetime of recruiting, matching and forgetting, step by step in float32."""
    genome = drawn(family=family, **cortex)
    inputs = recurring(genome, 120, 2)
    lived = live(genome, inputs)
    state, odds, entropy = newborn(genome, 2), [], []
    for e in inputs:
        state, reading = step(genome, state, e)
        odds.append(reading.logit)
        entropy.append(reading.entropy)
    torch.testing.assert_close(lived.logit, torch.stack(odds), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(lived.entropy, torch.stack(entropy), rtol=1e-5, atol=1e-6)
    for name in ("w", "trace", "mean", "beta", "level", "short_term"):
        torch.testing.assert_close(
            getattr(lived.state, name), getattr(state, name), rtol=1e-5, atol=1e-6
        )


def test_a_new_chunk_is_written_whole_and_only_there() -> None:
    """One column becomes the input, at unit norm; every other keeps its bits."""
    genome = hebbian()
    inputs = recurring(genome, 9, 1)
    state = live(genome, inputs[:8]).state
    e = 5 * torch.randn(1, 8, generator=torch.Generator().manual_seed(99))
    reading = recall(genome, state, e)
    after, _ = step(genome, state, e)
    changed = (after.w != state.w).any(dim=1)[0]
    column = int(state.trace.argmin())
    assert changed.nonzero().flatten().tolist() == [column]
    torch.testing.assert_close(after.w[0, :, column], reading.z[0] / reading.z[0].norm())
    assert after.trace[0, column] == 1


def test_a_near_chunk_moves_its_winner_and_counts() -> None:
    """The winner turns towards the chunk; its trace decays and gains one use."""
    genome = hebbian()
    state = live(genome, recurring(genome, 12, 1)).state
    near = state.mean + 3 * (state.w[0, :, 2] + 0.05)
    before = recall(genome, state, near)
    after, _ = step(genome, state, near)
    assert int(before.drive.argmax()) == 2
    again = recall(genome, replace(after, mean=state.mean, beta=state.beta), near)
    assert again.drive[0, 2] > before.drive[0, 2]
    torch.testing.assert_close(after.trace[0, 2], 0.9 * state.trace[0, 2] + 1)


def test_what_recurs_outlives_what_came_once() -> None:
    """With more new chunks than columns, the one that keeps coming keeps its column."""
    genome = hebbian(trace_decay=0.99)
    often = torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(1))
    others = recurring(genome, 200, 1)
    inputs = torch.cat([torch.cat([often, others[k : k + 4]]) for k in range(0, 200, 4)])
    state = live(genome, inputs).state
    assert state.trace.max() > 3
    best = recall(genome, state, often[0]).drive.max() / state.beta
    assert best > 0.8


def test_protected_columns_are_not_recruited() -> None:
    """Once all are in use and none has decayed, new chunks leave no trace."""
    genome = hebbian(protection=0.5, trace_decay=0.999, vigilance=0.999)
    full = live(genome, torch.randn(24, 1, 8, generator=torch.Generator().manual_seed(2))).state
    more = live(genome, torch.randn(10, 1, 8, generator=torch.Generator().manual_seed(3)), full)
    assert torch.equal(more.state.w, full.w)
    torch.testing.assert_close(more.state.trace, full.trace * 0.999**10)


def test_the_features_are_their_sums() -> None:
    """Closeness of the best, and log Σ trace·matchᵖ for p = 2, 8, 32; negative matches are 0."""
    match, trace = torch.tensor([[0.9, -0.5, 0.4]]), torch.tensor([[2.0, 7.0, 0.5]])
    (found,) = recruitment.features(match, trace)
    expected = [-math.log(1.02 - 0.9)]
    expected += [math.log(2 * 0.9**p + 0.5 * 0.4**p + 1e-3) for p in recruitment.POWERS]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_log_odds_are_a_bent_line() -> None:
    """Far to either side they run straight, with slope and slope + bend."""
    calibration = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    level = torch.tensor([0.9])
    odds = [
        float(recruitment.log_odds(calibration, torch.tensor([x]), level))
        for x in (-30.0, -31.0, 30.0, 31.0)
    ]
    assert odds[0] - odds[1] == pytest.approx(1.0)
    assert odds[3] - odds[2] == pytest.approx(1.5, rel=1e-4)
    assert odds[0] == pytest.approx(-31.0)


def test_the_level_follows_near_matches() -> None:
    """A far one hardly moves it."""
    level = torch.tensor([0.8])
    near = recruitment.next_level(level, torch.tensor([1.0]), 0.1)
    far = recruitment.next_level(level, torch.tensor([0.3]), 0.1)
    assert near == pytest.approx(0.82)
    assert abs(far - level) < 1e-8


def test_frozen_it_finds_nothing_familiar() -> None:
    """Silent columns answer every chunk alike, to the last bit."""
    genome = drawn(plasticity=False)
    logit = live(genome, recurring(genome, 50, 1)).logit
    assert torch.equal(logit, logit[:1].expand_as(logit))


def test_it_takes_no_teacher() -> None:
    """Who learns is chosen by the chunk."""
    genome = drawn()
    with pytest.raises(ValueError, match="takes no teacher"):
        step(genome, newborn(genome), torch.ones(1, 8), torch.zeros(1, 24), 0.5)


@pytest.mark.parametrize(
    ("cortex", "message"),
    [
        ({"innate": "gaussian"}, "innate 'silent'"),
        ({"centring": False}, "centring"),
        ({"normalisation": "row"}, "normalisation 'column'"),
        ({"recovery": 0.1}, "no recovery"),
    ],
)
def test_what_does_not_go_with_it_is_refused(cortex: dict[str, Any], message: str) -> None:
    """With the reason, and what it needs."""
    with pytest.raises(ValidationError, match=message):
        recruiting_config(**cortex)


def test_root_mean_squares_do_not_go_with_silence() -> None:
    """Refused with the remedy."""
    config = recruiting_config().model_dump()
    config["rule"]["scaling"] = "rms"
    with pytest.raises(ValidationError, match="sqrt_d"):
        GenomeConfig.model_validate(config)
