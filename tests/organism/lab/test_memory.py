"""Rules of associative memory, and the protocols that they are taken through."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from organism.cortex import newborn
from organism.lab import memory, protocols
from organism.lab.memory import from_plain, named_rule, to_plain
from organism.presets import PRESETS
from organism.tasks.association import draw_pairs, store


@pytest.mark.parametrize("name", ["Hebb", "gated Hebb", "decay", "delta"])
def test_a_named_rule_is_what_its_equation_says(name: str) -> None:
    """Written out for each pair, key by key, in double precision."""
    rate, decay = 0.3, 0.05
    genome = named_rule(name, rate, decay)
    pairs = draw_pairs(10, 1, genome.config, np.random.default_rng(0))
    start = newborn(genome)
    w = start.w[0].double().numpy().copy()
    for x, y in zip(pairs.keys[:, 0].double().numpy(), pairs.targets[:, 0].numpy(), strict=True):
        hebb = np.outer(x, y)
        if name == "delta":
            w += rate * np.outer(x, y - np.tanh(x @ w))
        elif name == "decay":
            w += rate * (hebb - decay * w)
        elif name == "gated Hebb":
            w += rate * (hebb - 64 * x[:, None] ** 2 * w)
        else:
            w += rate * hebb
    learned = store(genome, start, pairs).w[0]
    np.testing.assert_allclose(learned.numpy(), w, atol=1e-5)


def test_a_rule_survives_its_plain_form() -> None:
    """Configuration and θ come back as they were."""
    genome = named_rule("delta", 0.2)
    again = from_plain(to_plain(genome))
    assert again.config == genome.config
    assert all(torch.equal(again.theta[name], value) for name, value in genome.theta.items())


def test_protocols(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pseudo-inverse is perfect where it can be; the delta rule keeps what is recent."""
    monkeypatch.setattr(protocols, "COUNTS", (8, 32))
    monkeypatch.setattr(protocols, "LENGTHS", (200, 1000))
    config = PRESETS["association"].genome
    best = protocols.protocols(None, config, 0)
    assert best["capacity"]["32x1"]["cosine"] == pytest.approx(1, abs=1e-4)
    assert best["overwrite"]["5+1"]["updated_bits"] == 1
    assert best["overwrite"]["5+1"]["untouched_bits"] == 1
    delta = named_rule("delta", 0.6)
    found = protocols.protocols(delta, delta.config, 0)
    assert set(found) == set(best)
    assert found["capacity"]["32x1"]["cosine"] < found["capacity"]["32x5"]["cosine"] < 1
    assert found["overwrite"]["5+5"]["updated"] > 0.99
    life = found["lifetime"]
    assert life["1000"]["16"] > life["1000"]["32"] > life["1000"]["64"] > 0.5
    assert life["1000"]["64"] == pytest.approx(life["200"]["64"], abs=0.05)
    wide, narrow = found["transfer"]["128"], found["capacity"]["32x1"]
    assert wide["cosine"] == pytest.approx(narrow["cosine"], abs=0.05)
    assert found["completion"]["32"]["cosine"] < found["capacity"]["32x1"]["cosine"]


def test_the_best_rate_is_chosen_on_other_lifetimes() -> None:
    """Of each named rule the one with the highest cosine."""
    results = {trial.name: {"cosine": 0.1} for trial in memory.tuning()}
    results["delta at rate 0.8"] = {"cosine": 0.9}
    results["decay at rate 0.1, decay 0.01"] = {"cosine": 0.5}
    best = memory.tuned(results)
    assert best["delta"] == (0.8, 0.0)
    assert best["decay"] == (0.1, 0.01)
