"""The anatomy of a rule, on rules that are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from organism.genome import Genome, new_genome, save
from organism.lab.__main__ import main
from organism.lab.anatomy import (
    answers,
    box,
    decay,
    distilled,
    faces,
    fixed_points,
    form,
    hebbian,
    projections,
    r_squared,
    visited,
)
from organism.lab.atlas import symbolic_genome
from organism.lab.memory import named_rule
from organism.presets import PRESETS
from organism.rules import Powers
from tests.conftest import recruiting_config, small_config


def _rule(terms: dict[Powers, float]) -> Genome:
    """A genome whose rule is a sum of terms."""
    genome = new_genome(small_config("polynomial"))
    coefficients = torch.zeros_like(genome.theta["rule.coefficients"])
    for powers, value in terms.items():
        coefficients[powers] = value
    return replace(genome, theta={**genome.theta, "rule.coefficients": coefficients})


def test_regimes_of_a_known_rule() -> None:
    """0.3·pre·post − 0.1·w gives those coefficients, in intervals that are narrow."""
    genome = _rule({(1, 1, 0): 0.3, (0, 0, 1): -0.1})
    sample = box(genome, genome.theta)
    for fit, true in ((hebbian(sample), 0.3), (decay(sample), -0.1)):
        assert fit.value == pytest.approx(true, abs=1e-6)
        assert fit.low - 1e-6 <= true <= fit.high + 1e-6
        assert fit.high - fit.low < 1e-3


def test_an_interval_tells_of_what_a_term_does_not_explain() -> None:
    """A cubic term makes the coefficient of pre·post uncertain, not only wrong."""
    genome = _rule({(1, 1, 0): 0.3, (1, 3, 0): 0.1})
    fit = hebbian(box(genome, genome.theta))
    assert fit.high - fit.low > 0.005


@pytest.mark.parametrize(
    ("name", "terms"),
    [
        ("hebb", {(1, 1, 0): 2.0}),
        ("oja", {(1, 1, 0): 0.5, (0, 2, 1): -0.5}),
        ("decay", {(0, 0, 1): -3.0}),
    ],
)
def test_a_named_rule_is_named(name: str, terms: dict[Powers, float]) -> None:
    """Alone it explains everything, by its factor; others do not."""
    genome = _rule(terms)
    found = projections(box(genome, genome.theta))
    factor, explained = found[name]
    assert explained == pytest.approx(1, abs=1e-6)
    assert factor == pytest.approx({"hebb": 2.0, "oja": 0.5, "decay": 3.0}[name], rel=1e-4)
    others = {n: r for n, (_, r) in found.items() if n not in (name, "anti_hebb")}
    assert max(others.values()) < 0.95


def test_a_form_of_few_terms_is_found() -> None:
    """Three planted terms, and no others of any size; what they answer is what the rule does."""
    planted = {(1, 1, 0): -1.0, (1, 3, 0): 0.2, (0, 2, 1): 0.5}
    genome = _rule(planted)
    sample = box(genome, genome.theta)
    found = distilled(sample, 3)
    assert found == pytest.approx(planted, abs=1e-4)
    assert r_squared(form(found, sample), sample.delta) == pytest.approx(1, abs=1e-8)


def test_a_form_is_the_rule_where_it_is_exact() -> None:
    """In the genome's place, with phases too."""
    for genome in (_rule({(1, 1, 0): -1.0, (0, 0, 1): 0.25}), named_rule("delta", 0.2)):
        terms = {face: distilled(box(genome, theta), 2) for face, theta in faces(genome).items()}
        again = symbolic_genome(genome, terms)
        for face, theta in faces(genome).items():
            sample, twin = box(genome, theta), box(again, faces(again)[face])
            torch.testing.assert_close(twin.delta, sample.delta, atol=1e-4, rtol=1e-4)


def test_fixed_points_of_ojas_rule() -> None:
    """post·(pre − post·w) rests at w = pre/post; turned round it leaves there."""
    for sign, stable in ((1.0, True), (-1.0, False)):
        genome = _rule({(1, 1, 0): sign, (0, 2, 1): -sign})
        (point,) = fixed_points(genome, genome.theta, 1.0, 2.0)
        assert point.w == pytest.approx(0.5, abs=1e-3)
        assert point.stable is stable
    genome = _rule({(1, 1, 0): 1.0})
    assert fixed_points(genome, genome.theta, 1.0, 1.0) == []


@pytest.mark.parametrize("config", [small_config("mlp"), recruiting_config()])
def test_a_rule_is_watched_where_it_lives(config: object) -> None:
    """What is kept is what the rule answers there, on every kind of cortex."""
    genome = new_genome(config, 1)  # type: ignore[arg-type]
    (sample,) = visited(genome, "familiarity").values()
    again = answers(genome, genome.theta, sample.pre, sample.post, sample.w)
    torch.testing.assert_close(again, sample.delta, atol=1e-4, rtol=1e-4)
    assert len(sample) > 10_000


def test_both_phases_are_watched() -> None:
    """Each has its own sample: clamped, post is ±1."""
    samples = visited(named_rule("delta", 0.2), "association")
    assert set(samples) == {"clamped", "free"}
    assert set(samples["clamped"].post.tolist()) == {-1.0, 1.0}
    assert float(samples["free"].post.abs().max()) < 1


def test_the_command_writes_an_atlas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a small genome: figures, fits, and the form's score beside the genome's."""
    config = PRESETS["original"].genome
    cortex = config.cortex.model_copy(update={"d_in": 8, "d_hidden": 16})
    genome = new_genome(config.model_copy(update={"cortex": cortex}))
    path = tmp_path / "small.genome"
    save(genome, path)
    out = tmp_path / "atlas"
    assert main(["anatomy", str(path), "--world", "projection", "--out", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["score"] == "fresh_nmse"
    assert len(printed["terms"][""]) <= 6
    assert printed["difference"] == pytest.approx(printed["symbolic"] - printed["genome"])
    for name in ("over-pre-and-post", "over-pre-and-w", "one-synapse", "symbolic-form"):
        assert (out / f"{name}.png").stat().st_size > 5000
        assert (out / f"{name}.svg").exists()
