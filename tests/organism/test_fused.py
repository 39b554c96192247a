"""The fused kernels and their adjoint, against the reference in float64."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from organism import adjoint, fused
from organism.config import GenomeConfig
from organism.cortex import respond
from organism.fused import fusable, set_threads
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.living import LivingCortex
from organism.presets import PRESETS
from organism.rules import Theta
from organism.simd import LANES
from tests.conftest import recruiting_config, small_config

STEPS, BATCH = 7, 3


def with_rule(config: GenomeConfig, **changes: Any) -> GenomeConfig:
    """Change the rule's settings."""
    return config.model_copy(update={"rule": config.rule.model_copy(update=changes)})


def lived(genome: Genome, dtype: torch.dtype, taught: bool) -> tuple[list[Tensor], Tensor]:
    """All that a lifetime gives, and the gradient of a random mixture of it, in one vector."""
    draws = torch.Generator().manual_seed(3)
    theta = {n: t.to(dtype, copy=True).requires_grad_() for n, t in genome.theta.items()}
    cortex = genome.config.cortex
    e = torch.randn(STEPS, BATCH, cortex.d_in, generator=draws).to(dtype)
    target = torch.rand(BATCH, cortex.d_hidden, generator=draws).to(dtype) - 0.5
    cues = torch.randn(BATCH, cortex.d_in, generator=draws).to(dtype)
    ratios = [1 - t / STEPS for t in range(STEPS)]
    life = live(
        Genome(genome.config, theta),
        e,
        target=target if taught else None,
        teacher_ratios=ratios if taught else None,
        cues=cues,
    )
    s = life.state
    learned = [life.logit, life.entropy, s.w, s.short_term, s.long_term, s.level, life.answer]
    loss = sum((r * torch.randn(r.shape, generator=draws).to(dtype)).sum() for r in learned)
    assert isinstance(loss, Tensor)
    results = [r.detach() for r in (*learned, s.mean, s.beta)]
    return results, gradient_of(loss, theta)


def gradient_of(loss: Tensor, theta: Theta) -> Tensor:
    """All of it in one vector; 0 where a part of θ took no part."""
    found = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
    parts = zip(found, theta.values(), strict=True)
    return torch.cat([(torch.zeros_like(t) if g is None else g).flatten() for g, t in parts])


def assert_fused_is_the_reference(config: GenomeConfig, taught: bool = False) -> None:
    """Values and gradient agree to 1e-5 of their size."""
    genome = new_genome(config, seed=2)
    values, gradient = lived(genome, torch.float32, taught)
    expected, expected_gradient = lived(genome, torch.float64, taught)
    for value, true in zip(values, expected, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-5)
    error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
    assert error < 1e-5


@pytest.mark.parametrize("recovery", [0.01, 0.0])
@pytest.mark.parametrize("scaling", ["none", "rms", "sqrt_d", "fan_in"])
@pytest.mark.parametrize("normalisation", ["row", "column", "frobenius", "none"])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_fused_is_the_reference(
    family: str, normalisation: str, scaling: str, recovery: float
) -> None:
    """Every family, norm and scaling, with every mechanism on, and with all but recovery.

    With recovery, what is pending is done in a pass of its own; without, as rows pass.
    """
    cortex: dict[str, Any] = {
        "normalisation": normalisation,
        "calibration": True,
        "recovery": recovery,
    }
    assert_fused_is_the_reference(with_rule(small_config(family, **cortex), scaling=scaling))


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_teacher_forcing_is_fused_too(family: str) -> None:
    """With ρ falling through the lifetime."""
    assert_fused_is_the_reference(small_config(family, normalisation="row"), taught=True)


@pytest.mark.parametrize("switches", [{}, {"centring": False, "memory": False, "recovery": 0.0}])
@pytest.mark.parametrize("normalisation", ["row", "column", "frobenius", "none"])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_an_answer_alone_teaches(family: str, normalisation: str, switches: dict[str, Any]) -> None:
    """With no other loss, and so no cotangent of W: values and gradient are the reference's."""
    config = small_config(family, normalisation=normalisation, **switches)
    genome = new_genome(config, seed=2)
    draws = torch.Generator().manual_seed(7)
    e = normalize(torch.randn(STEPS, BATCH, config.cortex.d_in, generator=draws), dim=-1)
    goal = torch.rand(BATCH, config.cortex.d_hidden, generator=draws) - 0.5
    found = {}
    for dtype in (torch.float32, torch.float64):
        theta = {n: t.to(dtype, copy=True).requires_grad_() for n, t in genome.theta.items()}
        answer = live(Genome(config, theta), e.to(dtype), cues=e[2].to(dtype)).answer
        assert answer.grad_fn is not None
        assert (answer.grad_fn.name() == "_LiveBackward") == (dtype == torch.float32)
        gradient = gradient_of((answer - goal.to(dtype)).square().mean(), theta)
        found[dtype] = answer.detach().double(), gradient.double()
    (answer, gradient), (expected, true) = found[torch.float32], found[torch.float64]
    torch.testing.assert_close(answer, expected, rtol=1e-5, atol=1e-5)
    assert (gradient - true).norm() < 1e-5 * true.norm()


@pytest.mark.parametrize("config", [small_config("mlp"), recruiting_config()])
def test_the_answer_is_the_response_of_the_last_state(config: GenomeConfig) -> None:
    """Of whatever kind of cortex; unasked, there is none."""
    genome, inputs = new_genome(config, seed=2), torch.randn(STEPS, BATCH, config.cortex.d_in)
    with torch.no_grad():
        asked, unasked = live(genome, inputs, cues=inputs[0]), live(genome, inputs)
        expected = respond(genome, asked.state, inputs[0])
    torch.testing.assert_close(asked.answer, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(asked.state.w, unasked.state.w)
    assert unasked.answer.shape == (0, config.cortex.d_hidden)


def test_what_was_not_asked_teaches_nothing() -> None:
    """There is no gradient of no answer."""
    drawn = new_genome(small_config(), seed=2)
    genome = Genome(drawn.config, {n: t.clone().requires_grad_() for n, t in drawn.theta.items()})
    assert not live(
        genome, torch.randn(STEPS, BATCH, drawn.config.cortex.d_in)
    ).answer.requires_grad


@pytest.mark.parametrize("double", [False, True])
def test_what_cannot_be_lived_is_refused(double: bool) -> None:
    """On the kernels as on the reference."""
    drawn = new_genome(small_config())
    theta = {n: t.double() if double else t for n, t in drawn.theta.items()}
    genome, like = Genome(drawn.config, theta), theta["log_alpha"]
    inputs = torch.randn(2, BATCH, drawn.config.cortex.d_in).to(like)
    with pytest.raises(ValueError, match="needs a target"):
        live(genome, inputs, teacher_ratios=[0.0, 0.5])
    with pytest.raises(ValueError, match="1 teacher ratios for 2 steps"):
        live(genome, inputs, teacher_ratios=[0.0])
    with pytest.raises(ValueError, match="one each"):
        live(genome, inputs, cues=inputs[0, :1])
    recruiting = new_genome(recruiting_config())
    inputs = torch.randn(2, BATCH, recruiting.config.cortex.d_in)
    with pytest.raises(ValueError, match="takes no teacher"):
        live(recruiting, inputs, target=inputs[0], teacher_ratios=[0.5, 0.5])


@pytest.mark.parametrize("recovery", [0.01, 0.0])
@pytest.mark.parametrize("exponents", [(0, 1, 0), (1, 2, 1), (1, 3, 3), (2, 1, 2), (3, 3, 3)])
def test_a_polynomial_of_any_exponents_is_fused(
    exponents: tuple[int, int, int], recovery: float
) -> None:
    """Those that are done in one loop, and those that are not."""
    pre, post, w = exponents
    config = with_rule(
        small_config(normalisation="column" if recovery else "row", recovery=recovery),
        pre_exponent=pre,
        post_exponent=post,
        weight_exponent=w,
        initialisation="anti_hebb" if pre else "decay" if w else "hebb",
    )
    if exponents == (0, 1, 0):
        config = with_rule(config, pre_exponent=1, initialisation="hebb")
    assert_fused_is_the_reference(config)


@pytest.mark.parametrize("switch", ["centring", "memory", "entropy_modulation", "metabolism"])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_every_switch_is_fused(family: str, switch: str) -> None:
    """Turned off, one at a time."""
    assert_fused_is_the_reference(small_config(family, calibration=True, **{switch: False}))


@pytest.mark.parametrize("recovery", [0.01, 0.0])
@pytest.mark.parametrize("d_hidden", [3, 27, LANES, 2 * LANES + 3, 3 * LANES, 3 * LANES + 1])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_odd_sizes_are_fused(family: str, d_hidden: int, recovery: float) -> None:
    """Sizes that no vector, no pair of rows, no block of columns and no pair of units divides."""
    config = small_config(family, d_in=7, d_hidden=d_hidden, normalisation="row", recovery=recovery)
    if family == "mlp":
        config = with_rule(config, hidden=5)
    assert_fused_is_the_reference(config)


def test_a_last_panel_that_is_not_whole_is_fused() -> None:
    """Nor the last vector in it, nor the last pair of rows."""
    sizes: dict[str, Any] = {"d_in": 3, "d_hidden": adjoint._PANEL + LANES + 3}
    config = small_config("mlp", **sizes, normalisation="row", recovery=0.0)
    assert_fused_is_the_reference(config)


@pytest.mark.parametrize("preset", ["original", "daemon"])
def test_the_presets_are_fused(preset: Any) -> None:
    """At their full sizes: panels of columns, and sums over many synapses."""
    assert_fused_is_the_reference(PRESETS[preset].genome)


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_living_segments_again_changes_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W kept at every step or every few, the gradient is the same to the last bit."""
    genome = new_genome(small_config(family, calibration=True), seed=2)
    _, kept = lived(genome, torch.float32, taught=False)
    monkeypatch.setattr(fused, "_KEPT_BYTES", 0)
    _, recomputed = lived(genome, torch.float32, taught=False)
    assert torch.equal(kept, recomputed)


def test_memory_grows_with_the_root_of_a_lifetime() -> None:
    """A long lifetime keeps √steps copies of W, not one a step."""
    config = PRESETS["dense"].genome
    genome = new_genome(config)
    theta = {name: tensor.clone().requires_grad_() for name, tensor in genome.theta.items()}
    steps = 4000
    life = live(Genome(config, theta), torch.randn(steps, 2, config.cortex.d_in))
    assert life.logit.grad_fn is not None
    node: Any = life.logit.grad_fn.next_functions[0][0]
    assert node.checkpoints.w.shape[1] == -(-steps // 64)


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Two threads for a test, one again afterwards."""
    set_threads(2)
    yield
    set_threads(1)


def test_threads_change_nothing(request: pytest.FixtureRequest) -> None:
    """Shared between two threads, lifetimes and gradient are the same to the last bit."""
    genome = new_genome(small_config(calibration=True), seed=2)
    values, gradient = lived(genome, torch.float32, taught=False)
    request.getfixturevalue("two_threads")
    shared, shared_gradient = lived(genome, torch.float32, taught=False)
    assert all(torch.equal(a, b) for a, b in zip(values, shared, strict=True))
    assert torch.equal(gradient, shared_gradient)


@pytest.fixture
def threads() -> Iterator[fused._Threads]:
    """Threads of their own, which end with the test."""
    own = fused._Threads()
    yield own
    own.set(1)


@pytest.mark.parametrize("total", [1, 2, 5, 10, 33])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_lifetime_is_lived_once(threads: fused._Threads, count: int, total: int) -> None:
    """By threads that are all at it, as many as there are pieces for."""
    lived: list[int] = []
    met: set[int] = set()
    all_there = threading.Barrier(min(count, total))

    def work(first: int, last: int) -> None:
        if threading.get_ident() not in met:
            met.add(threading.get_ident())
            all_there.wait(timeout=30)
        lived.extend(range(first, last))

    threads.set(count)
    threads.share(work, total)
    assert sorted(lived) == list(range(total))
    assert len(met) == min(count, total)


@pytest.mark.parametrize("caller", [True, False])
def test_what_fails_in_a_thread_is_heard_of(threads: fused._Threads, caller: bool) -> None:
    """In whichever it is; an index out of range is no end of the work."""
    both_there = threading.Barrier(2)

    def work(first: int, last: int) -> None:
        both_there.wait(timeout=30)
        if (threading.current_thread() is threading.main_thread()) is caller:
            raise IndexError("of a lifetime")

    threads.set(2)
    with pytest.raises(IndexError, match="of a lifetime"):
        threads.share(work, 2)


def test_only_theta_learns_on_the_kernels() -> None:
    """What they cannot do goes to the reference: float64, and gradients in inputs."""
    genome, inputs = new_genome(small_config()), torch.zeros(3)
    double = replace(genome, theta={name: t.double() for name, t in genome.theta.items()})
    assert fusable(genome, [inputs, None])
    assert not fusable(double, [inputs])
    assert not fusable(genome, [inputs.clone().requires_grad_()])


def test_a_recruiting_genome_learns_on_the_reference() -> None:
    """It lives on the kernels, and has no adjoint there."""
    genome = new_genome(recruiting_config())
    assert fusable(genome, [])
    genome.theta["log_alpha"].requires_grad_()
    assert not fusable(genome, [])


def test_what_is_not_a_number_is_not_hidden() -> None:
    """The guard of meta-training must see it."""
    genome = new_genome(small_config("mlp"), seed=2)
    inputs = torch.randn(3, 2, genome.config.cortex.d_in)
    inputs[1, 0, 0] = torch.nan
    logit = live(genome, inputs).logit
    assert logit[1:, 0].isnan().all()
    assert not logit[:, 1].isnan().any()


def test_nor_is_its_gradient() -> None:
    """At any width of a vector."""
    drawn = new_genome(small_config("mlp"), seed=2)
    genome = Genome(drawn.config, {n: t.clone().requires_grad_() for n, t in drawn.theta.items()})
    inputs = torch.randn(3, 2, genome.config.cortex.d_in)
    inputs[1, 0, 0] = torch.nan
    names = ("rule.w1", "rule.w2", "rule.b2", "log_alpha")
    learned = [genome.theta[name] for name in names]
    found = torch.autograd.grad(live(genome, inputs).logit.sum(), learned)
    for name, gradient in zip(names, found, strict=True):
        assert gradient.isnan().any(), name


def phased_config(family: str, **cortex: Any) -> GenomeConfig:
    """A small genome whose rule has phases."""
    return with_rule(small_config(family, **cortex), phases=True, scaling="fan_in")


@pytest.mark.parametrize("normalisation", ["column", "none"])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_phases_are_fused(family: str, normalisation: str) -> None:
    """With ρ falling through the lifetime: as many phases as steps."""
    assert_fused_is_the_reference(phased_config(family, normalisation=normalisation), taught=True)


@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_a_target_a_step_is_fused(family: str) -> None:
    """Pairs shown freely and clamped in turn."""
    genome = new_genome(phased_config(family, metabolism=False), seed=2)
    draws = torch.Generator().manual_seed(5)
    d_in, d_hidden = genome.config.cortex.d_in, genome.config.cortex.d_hidden
    cues = torch.randn(STEPS, BATCH, d_in, generator=draws).repeat_interleave(2, 0)
    targets = (torch.rand(STEPS, BATCH, d_hidden, generator=draws) - 0.5).repeat_interleave(2, 0)
    found: dict[torch.dtype, list[Tensor]] = {}
    for dtype in (torch.float32, torch.float64):
        theta = {n: t.to(dtype, copy=True).requires_grad_() for n, t in genome.theta.items()}
        life = live(
            Genome(genome.config, theta),
            cues.to(dtype),
            target=targets.to(dtype),
            teacher_ratios=[0.0, 1.0] * STEPS,
        )
        node: Any = life.state.w.grad_fn
        assert (node.name() == "_LiveBackward") == (dtype == torch.float32)
        loss = life.state.w.square().sum() + life.logit.sum()
        parts = torch.autograd.grad(loss, list(theta.values()), allow_unused=True)
        found[dtype] = [life.state.w.detach(), *(p.flatten() for p in parts if p is not None)]
    for value, true in zip(found[torch.float32], found[torch.float64], strict=True):
        assert (value.double() - true).norm() <= 1e-5 * true.norm() + 1e-9


def test_a_living_cortex_learns_in_the_free_phase() -> None:
    """The daemon's ρ is 0, whatever phases its genome has."""
    genome = new_genome(phased_config("polynomial"), seed=2)
    inputs = torch.randn(STEPS, 1, genome.config.cortex.d_in)
    cortex = LivingCortex(genome)
    cortex.learn(inputs[:, 0].numpy())
    with torch.no_grad():
        theta = {name: tensor.double() for name, tensor in genome.theta.items()}
        expected = live(Genome(genome.config, theta), inputs.double()).state.w[0]
    learned = torch.from_numpy(cortex.copy().w).double()
    torch.testing.assert_close(learned, expected, rtol=1e-5, atol=1e-6)
