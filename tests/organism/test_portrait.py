"""The portrait of a rule."""

from __future__ import annotations

import pytest
import torch

from organism.genome import Genome, new_genome
from organism.portrait import name_of, portrait
from organism.rules import NAMED_RULES, PolynomialRule, make_rule
from tests.conftest import small_config


def _named(name: str) -> Genome:
    """A genome whose rule is a named one."""
    genome = new_genome(small_config("polynomial"), 0)
    rule = make_rule(genome.config.rule)
    assert isinstance(rule, PolynomialRule)
    return Genome(genome.config, dict(genome.theta) | {"rule.coefficients": rule.named(name)})


def test_it_draws_the_rule_itself(genome: Genome) -> None:
    """Every point of the drawing is what the rule gives a single synapse."""
    drawn = portrait(genome)
    rule = make_rule(genome.config.rule)
    for k, i, j in ((0, 0, 0), (1, 7, 3), (2, 24, 11)):
        pre, post = drawn.pre[i].reshape(1, 1), drawn.post[j].reshape(1, 1)
        alone = rule(genome.theta, pre, post, drawn.w[k].reshape(1, 1, 1))
        torch.testing.assert_close(drawn.delta[k, i, j], alone[0, 0, 0].detach())


@pytest.mark.parametrize("name", ["oja", "anti_hebb", "decay"])
def test_the_terms_of_a_named_rule_are_named(name: str) -> None:
    """Those it has, with their coefficients, and no others; their shares make up the whole."""
    terms = portrait(_named(name)).terms
    expected = {name_of(powers): value for powers, value in NAMED_RULES[name].items()}
    assert {term.name: term.coefficient for term in terms} == pytest.approx(expected)
    assert sum(term.share for term in terms) == pytest.approx(1)
    assert [term.share for term in terms] == sorted((t.share for t in terms), reverse=True)


def test_a_network_that_is_linear_is_explained_by_linear_terms() -> None:
    """ReLUs that are always on make a plane; the fit finds its coefficients, and explains all."""
    genome = new_genome(small_config("mlp"), 0)
    hidden = genome.config.rule.hidden
    plane = torch.tensor([0.5, -1.0, 2.0])
    theta = dict(genome.theta) | {
        "rule.w1": plane.expand(hidden, 3).clone(),
        "rule.b1": torch.full((hidden,), 100.0),
        "rule.w2": torch.full((hidden,), 1 / hidden),
        "rule.b2": torch.tensor(-100.0),
    }
    drawn = portrait(Genome(genome.config, theta))
    found = {term.name: term.coefficient for term in drawn.terms}
    assert drawn.r_squared == pytest.approx(1, abs=1e-6)
    assert [found[n] for n in ("pre", "post", "w")] == pytest.approx(plane.tolist(), abs=1e-3)


def test_a_fit_says_how_much_it_explains() -> None:
    """A network with kinks is not a polynomial of the third degree."""
    assert 0 < portrait(new_genome(small_config("mlp"), 1)).r_squared < 1


def test_powers_are_written_as_people_write_them() -> None:
    """No factor where the power is none; one without any is 1."""
    assert [name_of(p) for p in ((1, 3, 0), (0, 2, 1), (0, 0, 0))] == ["pre·post³", "post²·w", "1"]
