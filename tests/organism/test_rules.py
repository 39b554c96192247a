"""The rule families, against each other and against the named rules written out."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from organism.config import CortexConfig, GenomeConfig, RuleConfig
from organism.cortex import newborn, recall
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.rules import (
    CLAMPED,
    FREE,
    NAMED_RULES,
    MLPRule,
    PolynomialRule,
    at_phase,
    make_rule,
    scaled_delta,
)

B, D, M = 3, 5, 7


def activity(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Random pre, post and w."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((B, D), (B, M), (B, D, M))
    pre, post, w = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    return pre, post, w


def polynomial(start: str = "hebb") -> PolynomialRule:
    """A family wide enough for every named rule."""
    return PolynomialRule(2, 3, 2, start)


WRITTEN_OUT = {
    "hebb": lambda x, y, w: x * y,
    "anti_hebb": lambda x, y, w: -x * y,
    "selective_anti_hebb": lambda x, y, w: -0.3 * x * y**3,
    "oja": lambda x, y, w: y * (x - y * w),
    "bcm": lambda x, y, w: x * y * (y - 1),
    "decay": lambda x, y, w: -w,
    "contrastive": lambda x, y, w: x * (y - w * y),
}


@pytest.mark.parametrize("name", NAMED_RULES)
def test_polynomial_expresses_every_named_rule(name: str) -> None:
    """A named rule's coefficients give what its equation gives, at every synapse."""
    pre, post, w = activity()
    coefficients = polynomial().named(name).double()
    expected = WRITTEN_OUT[name](pre.unsqueeze(2), post.unsqueeze(1), w)
    found = polynomial()({"rule.coefficients": coefficients}, pre, post, w)
    torch.testing.assert_close(found, expected.expand_as(found))


def test_polynomial_is_the_sum_of_its_terms() -> None:
    """Outer products and Horner's scheme equal the plain triple sum."""
    pre, post, w = activity()
    coefficients = torch.randn(3, 4, 3, dtype=torch.float64)
    expected = sum(
        coefficients[a, b, m] * pre.unsqueeze(2) ** a * post.unsqueeze(1) ** b * w**m
        for a in range(3)
        for b in range(4)
        for m in range(3)
    )
    found = polynomial()({"rule.coefficients": coefficients}, pre, post, w)
    torch.testing.assert_close(found, expected)


def test_mlp_is_the_network_on_stacked_features() -> None:
    """Without stacking, the same as W₂·relu(W₁·[pre, post, w] + b₁) + b₂ of [D26 §3.1, §3.2]."""
    pre, post, w = activity()
    rule = MLPRule(16, "torch")
    theta = {n: t.double() for n, t in rule.initial(torch.Generator().manual_seed(1)).items()}
    assert sum(t.numel() for t in theta.values()) == 81
    stacked = torch.stack([pre.unsqueeze(2).expand_as(w), post.unsqueeze(1).expand_as(w), w], dim=3)
    hidden = torch.relu(stacked @ theta["rule.w1"].T + theta["rule.b1"])
    expected = hidden @ theta["rule.w2"] + theta["rule.b2"]
    torch.testing.assert_close(rule(theta, pre, post, w), expected)


def test_mlp_expresses_the_named_decay() -> None:
    """An mlp of two units, relu(x) − relu(−x) = x, is exactly linear: weight decay."""
    pre, post, w = activity()
    theta = {
        "rule.w1": torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]], dtype=torch.float64),
        "rule.b1": torch.zeros(2, dtype=torch.float64),
        "rule.w2": torch.tensor([-1.0, 1.0], dtype=torch.float64),
        "rule.b2": torch.zeros((), dtype=torch.float64),
    }
    torch.testing.assert_close(MLPRule(2, "torch")(theta, pre, post, w), -w)


def test_mlp_learns_the_named_hebb() -> None:
    """On scaled inputs the mlp fits pre·post, which a ReLU network can only approximate."""
    generator = torch.Generator().manual_seed(0)
    rule = MLPRule(16, "torch")
    theta = {n: t.requires_grad_() for n, t in rule.initial(generator).items()}
    adam = torch.optim.Adam(theta.values(), lr=2e-2)
    pre, post, w = (torch.randn(s, generator=generator) for s in ((8, 16), (8, 16), (8, 16, 16)))
    target = pre.unsqueeze(2) * post.unsqueeze(1)
    for _ in range(300):
        error = (rule(theta, pre, post, w) - target).square().mean()
        adam.zero_grad()
        torch.autograd.backward(error)
        adam.step()
    assert error.item() < 0.1 * target.square().mean().item()


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_gradients_match_finite_differences(family: str) -> None:
    """In float64, in every input and parameter."""
    pre, post, w = activity()
    rule = MLPRule(3, "torch") if family == "mlp" else PolynomialRule(1, 2, 1, "oja", 0.1)
    names, values = zip(*rule.initial(torch.Generator().manual_seed(2)).items(), strict=True)
    inputs = [t.double().requires_grad_() for t in (*values, pre, post, w)]

    def apply(*arguments: Tensor) -> Tensor:
        theta = dict(zip(names, arguments, strict=False))
        return rule(theta, *arguments[-3:])

    assert torch.autograd.gradcheck(apply, inputs)


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_a_batch_is_its_members(family: str) -> None:
    """Batched = looped."""
    pre, post, w = activity()
    rule = MLPRule(4, "torch") if family == "mlp" else polynomial("bcm")
    theta = {n: t.double() for n, t in rule.initial(torch.Generator().manual_seed(3)).items()}
    looped = [rule(theta, pre[i : i + 1], post[i : i + 1], w[i : i + 1]) for i in range(B)]
    torch.testing.assert_close(rule(theta, pre, post, w), torch.cat(looped))


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_a_rule_is_local(family: str) -> None:
    """Δw at one synapse does not change with the activity of other neurons [D26 §2.3]."""
    pre, post, w = activity()
    rule = MLPRule(4, "torch") if family == "mlp" else polynomial("oja")
    theta = {n: t.double() for n, t in rule.initial(torch.Generator().manual_seed(4)).items()}
    before = rule(theta, pre, post, w)[:, 0, 0]
    pre[:, 1:] += 1
    post[:, 1:] += 1
    w[:, 1:, 1:] += 1
    torch.testing.assert_close(rule(theta, pre, post, w)[:, 0, 0], before)


def test_appendix_c_draws_small_weights() -> None:
    """W₁ ~ N(0, 0.1²·2/(3+h)) [D26 App. C]."""
    w1 = MLPRule(16, "appendix_c").initial(torch.Generator().manual_seed(0))["rule.w1"]
    many = torch.cat(
        [
            MLPRule(16, "appendix_c").initial(torch.Generator().manual_seed(s))["rule.w1"]
            for s in range(50)
        ]
    )
    assert w1.shape == (16, 3)
    assert many.std().item() == pytest.approx(0.1 * math.sqrt(2 / 19), rel=0.05)


@pytest.mark.parametrize(
    ("scaling", "normalisation"),
    [("rms", "row"), ("rms", "column"), ("rms", "frobenius"), ("sqrt_d", "column")],
)
def test_scaled_rules_see_unit_inputs(normalisation: str, scaling: str) -> None:
    """Each input reaches the rule with a mean square near 1, whatever β; Δw is in units of w."""
    d_in, d_hidden = 256, 512
    generator = torch.Generator().manual_seed(0)
    beta = torch.tensor([0.5, 2.0])
    w = torch.randn(2, d_in, d_hidden, generator=generator)
    dims = {"row": 2, "column": 1, "frobenius": (1, 2)}[normalisation]
    w = w / torch.linalg.vector_norm(w, dim=dims, keepdim=True)
    x = torch.nn.functional.normalize(torch.randn(2, d_in, generator=generator))
    pre = beta.unsqueeze(1) * x
    post = torch.tanh(torch.bmm(pre.unsqueeze(1), w).squeeze(1))
    seen: list[float] = []

    class Spy:
        def initial(self, generator: torch.Generator) -> dict[str, Tensor]:
            raise AssertionError

        def __call__(self, theta: object, pre: Tensor, post: Tensor, w: Tensor) -> Tensor:
            seen.extend(float(x.square().mean()) for x in (pre, post, w))
            return torch.ones_like(w)

    config = RuleConfig.model_validate({"scaling": scaling})
    cortex = CortexConfig.model_validate(
        {"d_in": d_in, "d_hidden": d_hidden, "normalisation": normalisation}
    )
    delta = scaled_delta(Spy(), {}, config, cortex, pre, post, w, beta)
    assert seen == pytest.approx([1, 1, 1], rel=0.1)
    torch.testing.assert_close(delta.square().mean(), w.square().mean(), rtol=0.1, atol=0)


def test_post_is_clamped() -> None:
    """No synapse sees a scaled post beyond the clamp."""
    config = RuleConfig.model_validate(
        {"family": "polynomial", "initialisation": "hebb", "post_clamp": 0.5}
    )
    pre, post, w = torch.ones(1, 2), torch.tensor([[-3.0, 0.25, 3.0]]), torch.zeros(1, 2, 3)
    rule = make_rule(config)
    theta = rule.initial(torch.Generator())
    delta = scaled_delta(
        rule, theta, config, CortexConfig(d_in=2, d_hidden=3), pre, post, w, torch.ones(1)
    )
    assert delta[0, 0].tolist() == [-0.5, 0.25, 0.5]


def test_with_fan_in_post_is_left_as_it_is() -> None:
    """A clamped target reaches the rule whole; pre and w are of unit size."""
    config = RuleConfig.model_validate(
        {"family": "polynomial", "initialisation": "hebb", "scaling": "fan_in"}
    )
    cortex = CortexConfig(d_in=4, d_hidden=2, normalisation="row")
    rule = make_rule(config)
    pre, post = torch.full((1, 4), 0.5), torch.tensor([[-1.0, 1.0]])
    w = torch.zeros(1, 4, 2)
    theta = rule.initial(torch.Generator())
    delta = scaled_delta(rule, theta, config, cortex, pre, post, w, torch.ones(1))
    assert delta.tolist() == [[[-0.5, 0.5]] * 4]  # (0.5·√4)·(±1)/√4


@pytest.mark.parametrize("family", ["polynomial", "mlp"])
def test_a_phase_folds_into_the_parameters(family: str) -> None:
    """At phase 0 the rule is the one without phases; the sum over both phases is twice that one.

    For the mlp where no unit changes its mind: there it is linear in the phase.
    """
    start = "hebb" if family == "polynomial" else "torch"
    config = RuleConfig.model_validate(
        {"family": family, "initialisation": start, "phases": True}
        | ({"initialisation_noise": 0.1} if family == "polynomial" else {})
    )
    rule = make_rule(config)
    theta = rule.initial(torch.Generator().manual_seed(0))
    if family == "mlp":
        theta["rule.b1"] = theta["rule.b1"] + 100
    pre, post, w = torch.randn(2, 3), torch.randn(2, 4), torch.randn(2, 3, 4)
    clamped, free, none = (rule(at_phase(theta, p), pre, post, w) for p in (CLAMPED, FREE, 0.0))
    torch.testing.assert_close(clamped + free, 2 * none)
    assert not torch.equal(clamped, free)
    torch.testing.assert_close(none, rule(theta, pre, post, w))


def test_with_phases_a_delta_rule_is_expressible() -> None:
    """phase·pre·post moves W by α·pre·(y − h) over the two phases of a pair."""
    config = GenomeConfig(
        rule=RuleConfig(family="polynomial", scaling="fan_in", phases=True, initialisation="hebb"),
        cortex=CortexConfig(
            d_in=4,
            d_hidden=3,
            memory=False,
            metabolism=False,
            entropy_modulation=False,
            normalisation="none",
        ),
    )
    genome = new_genome(config)
    hebb = genome.theta["rule.coefficients"]
    theta = {
        **genome.theta,
        "rule.coefficients": torch.zeros_like(hebb),
        "rule.phase_coefficients": hebb,
    }
    genome = Genome(config, theta)
    state = newborn(genome)
    e = torch.nn.functional.normalize(torch.randn(1, 4))
    y = torch.tensor([[1.0, -1.0, 1.0]])
    h = recall(genome, state, e).h
    lived = live(genome, torch.stack([e, e]), state, y, [0.0, 1.0]).state.w
    expected = state.w + config.cortex.alpha * e.unsqueeze(2) * (y - h).unsqueeze(1)
    torch.testing.assert_close(lived, expected)


def test_a_rule_without_phases_is_saved_as_before_there_were_any() -> None:
    """Genomes from before keep their bytes, and so their hashes."""
    assert "phases" not in RuleConfig().model_dump(mode="json")
    dumped = RuleConfig(phases=True).model_dump(mode="json")
    assert RuleConfig.model_validate(dumped) == RuleConfig(phases=True)


def test_a_named_rule_beyond_the_exponents_is_refused() -> None:
    """The message names the term and the remedy."""
    with pytest.raises(ValueError, match="raise them"):
        PolynomialRule(1, 1, 0, "oja").named("oja")
    with pytest.raises(ValueError, match="no rule named"):
        polynomial().named("nobody")


@pytest.mark.parametrize(
    "settings",
    [
        {"family": "mlp", "initialisation": "hebb"},
        {"family": "polynomial", "initialisation": "torch"},
        {"family": "mlp", "initialisation": "torch", "initialisation_noise": 0.1},
    ],
)
def test_a_start_that_does_not_fit_the_family_is_refused(settings: dict[str, object]) -> None:
    """A setting that would do nothing is an error."""
    with pytest.raises(ValueError, match="initialisation"):
        RuleConfig.model_validate(settings)
