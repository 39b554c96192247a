"""One step of the cortex, against its equations written out, and its mechanisms one by one."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from organism import tensorfile
from organism.config import GenomeConfig
from organism.cortex import (
    STATE_SCHEMA,
    CortexState,
    innate_weights,
    newborn,
    normalise,
    plasticity_rate,
    recall,
    step,
)
from organism.encoder import encode
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.tensorfile import TensorFileError
from tests.conftest import small_config


def inputs(steps: int, batch: int, genome: Genome) -> Tensor:
    """Random encoded chunks, of the genome's floating type."""
    generator = torch.Generator().manual_seed(7)
    e = torch.randn(steps, batch, genome.config.cortex.d_in, generator=generator)
    return e.to(genome.theta["log_alpha"])


def assert_equal(left: CortexState, right: CortexState) -> None:
    """Every tensor of two states is the same, to the last bit."""
    for f in fields(CortexState):
        assert torch.equal(getattr(left, f.name), getattr(right, f.name)), f.name


def test_a_step_is_its_equations() -> None:
    """The original's step, design §3 line by line, on plain numbers."""
    config = GenomeConfig.model_validate(
        {"cortex": {"d_in": 3, "d_hidden": 4, "normalisation": "row", "innate_std": 0.5}}
    )
    genome = new_genome(config, seed=5)
    state = replace(
        newborn(genome),
        short_term=torch.tensor([[0.1, -0.2, 0.3]]),
        long_term=torch.tensor([[-0.3, 0.2, 0.1]]),
        beta=torch.tensor([1.5]),
    )
    e, y, rho = torch.tensor([[1.0, -2.0, 0.5]]), torch.full((1, 4), 0.3), 0.25
    mixed = 0.6 * e + 0.3 * state.short_term + 0.1 * state.long_term
    z = 1.5 * mixed
    h = torch.tanh(z @ state.w[0])
    entropy = h.std(correction=0)
    post = rho * y + (1 - rho) * h
    theta = genome.theta
    delta = torch.zeros(3, 4)
    for i in range(3):
        for j in range(4):
            features = torch.stack([z[0, i], post[0, j], state.w[0, i, j]])
            hidden = torch.relu(theta["rule.w1"] @ features + theta["rule.b1"])
            delta[i, j] = theta["rule.w2"] @ hidden + theta["rule.b2"]
    w = state.w[0] + 0.1 * (1 + 10 * entropy) * delta
    after, reading = step(genome, state, e, y, rho)
    close = torch.testing.assert_close
    close(reading.h, h)
    close(reading.entropy[0], entropy)
    close(after.w[0], w / w.norm(dim=1, keepdim=True))
    close(after.short_term, 0.8 * state.short_term + 0.2 * mixed)
    close(after.long_term, 0.999 * state.long_term + 0.001 * mixed)
    close(after.beta, torch.tensor([1.5 * (0.95 if entropy > 0.2 else 1.05)]))
    assert after.steps.tolist() == [1]


def test_recall_is_the_reading_half_and_changes_nothing(genome: Genome) -> None:
    """A recall before a step reads what the step reads; the state given is not written to."""
    e = inputs(6, 2, genome)
    state = live(genome, e[:5]).state
    kept = CortexState(**{f.name: getattr(state, f.name).clone() for f in fields(state)})
    reading = recall(genome, state, e[5])
    _, stepped = step(genome, state, e[5])
    for f in fields(reading):
        assert torch.equal(getattr(reading, f.name), getattr(stepped, f.name)), f.name
    assert_equal(state, kept)


def test_many_cues_are_read_as_one_by_one(genome: Genome) -> None:
    """Asked together, ``(cues, batch, d_in)``, each gets the answer it gets alone."""
    e = inputs(9, 2, genome)
    state = live(genome, e[:5]).state
    together = recall(genome, state, e[5:])
    for k, cue in enumerate(e[5:]):
        alone = recall(genome, state, cue)
        for f in fields(alone):
            torch.testing.assert_close(getattr(together, f.name)[k], getattr(alone, f.name))


def test_a_batch_of_lifetimes_is_its_members(genome: Genome) -> None:
    """Batched = looped, through a whole lifetime."""
    e = inputs(10, 3, genome)
    together = live(genome, e)
    for i in range(3):
        alone = live(genome, e[:, i : i + 1])
        torch.testing.assert_close(together.logit[:, i : i + 1], alone.logit)
        torch.testing.assert_close(together.state.w[i : i + 1], alone.state.w)


@pytest.mark.parametrize("normalisation", ["row", "column", "frobenius", "none"])
@pytest.mark.parametrize("family", ["mlp", "polynomial"])
def test_gradients_match_finite_differences(family: str, normalisation: str) -> None:
    """In float64, of what two lifetimes end with, in all of θ, through every mechanism."""
    config = small_config(family, d_in=3, d_hidden=4, normalisation=normalisation, calibration=True)
    drawn = new_genome(config, seed=2)
    names, values = zip(*drawn.theta.items(), strict=True)
    e = torch.randn(4, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def end(*theta: Tensor) -> tuple[Tensor, ...]:
        genome = Genome(config, dict(zip(names, theta, strict=True)))
        lived = live(genome, e)
        return lived.state.w, lived.state.short_term, lived.logit, lived.entropy

    inputs_ = [value.double().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(end, inputs_)


def test_a_step_keeps_the_autograd_graph_whole(genome: Genome) -> None:
    """Every part of θ that takes part gets a gradient from a later step's reading."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in genome.theta.items()}
    lived = live(Genome(genome.config, theta), inputs(5, 2, genome))
    torch.autograd.backward(lived.logit.sum())
    for name, tensor in theta.items():
        assert tensor.grad is not None, name
        assert tensor.grad.abs().sum() > 0, name


@pytest.mark.parametrize("normalisation", ["row", "column", "frobenius"])
def test_normalisation_gives_unit_norms(normalisation: str) -> None:
    """Over rows, columns or the whole matrix."""
    w = torch.randn(2, 3, 5)
    unit = normalise(w, normalisation, 1e-8)  # type: ignore[arg-type]
    dims = {"row": (2,), "column": (1,), "frobenius": (1, 2)}[normalisation]
    norms = torch.linalg.vector_norm(unit, dim=dims)
    torch.testing.assert_close(norms, torch.ones_like(norms))


def test_no_normalisation_leaves_w() -> None:
    """``none`` is the identity."""
    w = torch.randn(2, 3, 5)
    assert normalise(w, "none", 1e-8) is w


def test_metabolism_moves_beta_within_its_bounds() -> None:
    """β rises by 1.05 while H is low, falls by 0.95 while it is high, and stays in [0.1, 2]."""
    for threshold, bound, factor in ((1.0, 2.0, 1.05), (0.0, 0.1, 0.95)):
        genome = new_genome(small_config(entropy_threshold=threshold))
        state = newborn(genome)
        e = inputs(80, 1, genome)
        after, _ = step(genome, state, e[0])
        assert float(after.beta) == pytest.approx(factor)
        assert float(live(genome, e).state.beta) == pytest.approx(bound)


@pytest.mark.parametrize(
    ("switch", "field"),
    [
        ("metabolism", "beta"),
        ("centring", "mean"),
        ("calibration", "level"),
        ("plasticity", "w"),
        ("memory", "short_term"),
        ("memory", "long_term"),
    ],
)
def test_a_switch_turned_off_keeps_its_state(switch: str, field: str) -> None:
    """Off: the mechanism's state stays as it was at birth. On: it moves."""
    for on in (True, False):
        settings: dict[str, Any] = {switch: on}
        genome = new_genome(small_config(**settings))
        after = live(genome, inputs(5, 1, genome)).state
        moved = not torch.equal(getattr(after, field), getattr(newborn(genome), field))
        assert moved == on


def test_memory_turned_off_is_no_mixing() -> None:
    """Off: z̃ is the input itself, whatever was lived."""
    genome = new_genome(small_config(memory=False, centring=False))
    e = inputs(4, 1, genome)
    reading = recall(genome, live(genome, e[:3]).state, e[3])
    assert torch.equal(reading.mixed, e[3])


def test_recovery_draws_w_towards_its_innate_self() -> None:
    """W ← W + κ·(W₀ − W) beside plasticity; off, θ has no κ."""
    on, off = (new_genome(small_config(recovery=k, normalisation="none")) for k in (0.25, 0.0))
    assert "log_recovery" not in off.theta
    e = inputs(1, 1, on)
    w0 = newborn(on).w
    state = replace(newborn(on), w=w0 + 1)
    recovered, plastic = step(on, state, e[0])[0].w, step(off, state, e[0])[0].w
    torch.testing.assert_close(recovered, plastic - 0.25, rtol=0, atol=1e-5)


def test_entropy_modulates_plasticity() -> None:
    """α = α₀·(1 + 10·H) with modulation, α₀ without."""
    entropy = torch.tensor([0.0, 0.1])
    on, off = (new_genome(small_config(entropy_modulation=m)) for m in (True, False))
    torch.testing.assert_close(plasticity_rate(on, entropy), torch.tensor([0.05, 0.1]))
    torch.testing.assert_close(plasticity_rate(off, entropy), torch.tensor([0.05, 0.05]))


def test_centring_gives_unit_inputs_and_keeps_zero_zero() -> None:
    """Inputs have unit norm about the running mean; a chunk equal to the mean is silent."""
    genome = new_genome(small_config(memory=False))
    e = inputs(9, 1, genome)
    state = live(genome, e[:8]).state
    torch.testing.assert_close(state.mean, e[:8].mean(0))
    assert float(recall(genome, state, e[8]).mixed.norm()) == pytest.approx(1)
    silent = recall(genome, state, state.mean)
    assert not silent.h.any()
    assert silent.entropy.item() == 0
    assert math.isfinite(silent.logit.item())


def test_familiarity_reads_what_learning_has_changed(genome: Genome) -> None:
    """Before any learning it is the same for every chunk; afterwards it is not."""
    e = inputs(30, 1, genome)
    born = newborn(genome)
    first = {recall(genome, born, chunk).logit.item() for chunk in e}
    assert len(first) == 1
    lived = live(genome, e[:20]).state
    assert len({recall(genome, lived, chunk).logit.item() for chunk in e}) == 30


def test_gradients_of_a_silent_chunk_are_finite(genome: Genome) -> None:
    """std(h) has no slope at 0: none is invented, and none is infinite."""
    theta = {name: tensor.clone().requires_grad_() for name, tensor in genome.theta.items()}
    e = inputs(1, 1, genome).expand(3, 1, -1)
    lived = live(Genome(genome.config, theta), e)
    torch.autograd.backward(lived.logit.sum() + lived.entropy.sum())
    for name, tensor in theta.items():
        assert tensor.grad is not None, name
        assert bool(torch.isfinite(tensor.grad).all()), name


def test_training_may_follow_inference_in_one_process() -> None:
    """What is drawn once and shared is not spoilt for gradients by whoever needed it first."""
    config = small_config(innate_seed=77)
    genome = new_genome(config)
    with torch.inference_mode():
        recall(genome, newborn(genome), encode([b"abc"], config.encoder, 8))
    theta = {name: tensor.clone().requires_grad_() for name, tensor in genome.theta.items()}
    e = encode([b"abc", b"def"], config.encoder, 8).unsqueeze(1)
    torch.autograd.backward(live(Genome(config, theta), e).logit.sum())
    assert theta["rule.coefficients"].grad is not None


def test_a_tight_frame_answers_all_unit_inputs_alike() -> None:
    """‖xW₀‖ is the same for every unit x, and columns are unit."""
    w = innate_weights(small_config(d_in=8, d_hidden=24).cortex)
    torch.testing.assert_close(w @ w.T, 3 * torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(w.norm(dim=0), torch.ones(24))


def test_a_tight_frame_may_be_cut_short() -> None:
    """A width that is not a multiple of d_in still gives unit columns."""
    w = innate_weights(small_config(d_in=8, d_hidden=21).cortex)
    assert w.shape == (8, 21)
    torch.testing.assert_close(w.norm(dim=0), torch.ones(21))


def test_appendix_c_synapses() -> None:
    """W₀ ~ N(0, 0.01²) [D26 App. C]."""
    w = innate_weights(GenomeConfig().cortex)
    assert w.shape == (32, 1024)
    assert w.std().item() == pytest.approx(0.01, rel=0.02)


def test_state_round_trip(genome: Genome) -> None:
    """Saved and read again: identical bits, and an identical life from there."""
    e = inputs(8, 2, genome)
    state = live(genome, e[:5]).state
    again = CortexState.from_bytes(state.to_bytes())
    assert_equal(state, again)
    assert_equal(live(genome, e[5:], state).state, live(genome, e[5:], again).state)


def test_a_damaged_state_is_refused(genome: Genome) -> None:
    """One flipped bit is enough."""
    blob = bytearray(newborn(genome).to_bytes())
    blob[len(blob) // 2] ^= 1
    with pytest.raises(TensorFileError, match="sha256"):
        CortexState.from_bytes(bytes(blob))


def test_tensors_that_are_no_state_are_refused(genome: Genome) -> None:
    """Whole files of wrong names, shapes or types."""
    state = newborn(genome)
    tensors = {f.name: getattr(state, f.name) for f in fields(state)}
    for name, wrong in (
        ("w", torch.zeros(3)),
        ("mean", torch.zeros(1, 9)),
        ("beta", torch.zeros(2)),
        ("trace", torch.zeros(1, 3)),
        ("level", torch.zeros(1, dtype=torch.float64)),
        ("extra", torch.zeros(1)),
    ):
        blob = tensorfile.pack("cortex", STATE_SCHEMA, {}, {**tensors, name: wrong})
        with pytest.raises(TensorFileError, match="not the tensors of a cortex state"):
            CortexState.from_bytes(blob)
    with pytest.raises(TensorFileError, match="not the tensors"):
        CortexState.from_bytes(tensorfile.pack("cortex", STATE_SCHEMA, {}, {}))


def test_state_floats_count_everything_carried(genome: Genome) -> None:
    """W, both memories, the mean, β and the level."""
    assert newborn(genome, 3).float_count == 8 * 24 + 3 * 8 + 1 + 1


def test_teacher_forcing_needs_a_target(genome: Genome) -> None:
    """ρ > 0 without y is an error, not a guess."""
    with pytest.raises(ValueError, match="needs a target"):
        step(genome, newborn(genome), inputs(1, 1, genome)[0], teacher_ratio=0.5)


def test_as_many_ratios_as_steps(genome: Genome) -> None:
    """A schedule that does not fit the lifetime is an error."""
    with pytest.raises(ValueError, match="one a step"):
        live(genome, inputs(3, 1, genome), teacher_ratios=[1.0])
