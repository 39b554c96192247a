"""A living cortex: a lifetime in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from organism import kernels
from organism.chunking import chunk_spans
from organism.cortex import recall
from organism.encoder import encode_spans
from organism.genome import Genome, new_genome
from organism.jit import F32, aligned
from organism.lifetime import live
from organism.living import LivingCortex, Trace, as_cortex, as_state
from organism.recruitment import Choice, next_trace
from tests.conftest import recruiting_config, small_config


def vectors(genome: Genome, steps: int) -> F32:
    """Random encoded chunks."""
    draws = np.random.default_rng(5)
    return draws.standard_normal((steps, genome.config.cortex.d_in)).astype(np.float32)


def test_it_lives_a_lifetime(genome: Genome) -> None:
    """In place and step by step, the same state and the same readings to the last bit."""
    inputs = vectors(genome, 20)
    life = live(genome, torch.from_numpy(inputs).unsqueeze(1))
    cortex = LivingCortex(genome)
    trace = cortex.learn(inputs)
    assert as_cortex(cortex.copy()).to_bytes() == life.state.to_bytes()
    assert np.array_equal(trace.entropy, life.entropy[:, 0].numpy())
    np.testing.assert_allclose(trace.familiarity, torch.sigmoid(life.logit[:, 0]), rtol=1e-6)
    assert trace.beta[-1] == life.state.beta


def test_chunks_are_encoded_and_lived_in_one_call(genome: Genome) -> None:
    """The same bits as encoded first, then learned; an empty chunk is refused, none is lived."""
    config = genome.config
    data = b"one line\nand another\n\nand 12\n"
    spans = chunk_spans(data, "lines", 4096)
    at_once, apart = LivingCortex(genome), LivingCortex(genome)
    found = at_once.live(data, spans)
    expected = apart.learn(encode_spans(data, spans, config.encoder, config.cortex.d_in))
    for ours, theirs in zip(vars(found).values(), vars(expected).values(), strict=True):
        assert np.array_equal(ours, theirs)
    before = as_cortex(apart.copy()).to_bytes()
    assert as_cortex(at_once.copy()).to_bytes() == before
    with pytest.raises(ValueError, match="chunk 1 is empty"):
        at_once.live(data, np.array([[0, 3], [5, 5]]))
    assert as_cortex(at_once.copy()).to_bytes() == before


def test_how_a_life_is_cut_into_calls_does_not_matter(genome: Genome) -> None:
    """One stretch or many: the same to the last bit, though norms wait within a stretch."""
    inputs = vectors(genome, 30)
    whole, cut = LivingCortex(genome), LivingCortex(genome)
    at_once = whole.learn(inputs)
    stretches = Trace.joined([cut.learn(part) for part in np.split(inputs, [1, 2, 9, 29])])
    assert as_cortex(whole.copy()).to_bytes() == as_cortex(cut.copy()).to_bytes()
    assert np.array_equal(at_once.familiarity, stretches.familiarity)


def test_a_recall_reads_and_changes_nothing(genome: Genome) -> None:
    """It is the reference's reading, at the state of the moment."""
    inputs = vectors(genome, 12)
    cortex = LivingCortex(genome)
    cortex.learn(inputs[:11])
    before = as_cortex(cortex.copy())
    familiarity, entropy = cortex.recall(inputs[11])
    reading = recall(genome, before, torch.from_numpy(inputs[11:]))
    np.testing.assert_allclose(familiarity, reading.familiarity.item(), rtol=1e-5)
    np.testing.assert_allclose(entropy, reading.entropy.item(), rtol=1e-5)
    assert as_cortex(cortex.copy()).to_bytes() == before.to_bytes()


def test_a_copy_is_apart_and_can_be_gone_back_to(genome: Genome) -> None:
    """What is learned afterwards does not reach it."""
    inputs = vectors(genome, 10)
    cortex = LivingCortex(genome)
    cortex.learn(inputs[:5])
    kept = cortex.copy()
    before = as_cortex(kept).to_bytes()
    once = cortex.learn(inputs[5:])
    assert as_cortex(kept).to_bytes() == before
    cortex.restore(kept)
    assert np.array_equal(cortex.learn(inputs[5:]).familiarity, once.familiarity)
    assert as_cortex(kept).to_bytes() == before


def test_state_round_trip(genome: Genome) -> None:
    """From the kernels' form to the others' and back."""
    cortex = LivingCortex(genome)
    cortex.learn(vectors(genome, 3))
    state = as_cortex(cortex.copy())
    assert as_cortex(as_state(state)).to_bytes() == state.to_bytes()


def test_a_frozen_cortex_answers_as_its_innate_self() -> None:
    """To the last bit, so that all chunks are equally familiar."""
    genome = new_genome(small_config(plasticity=False), 1)
    trace = LivingCortex(genome).learn(vectors(genome, 50))
    assert len(set(trace.familiarity.tolist())) == 1
    assert len(set(trace.entropy.tolist())) == 50


def test_the_kernels_tanh() -> None:
    """To four units in the last place, from tiny to saturated, zero and infinity included."""
    a = aligned((4007,))
    a[:4000] = np.concatenate([np.linspace(-12, 12, 2000), np.geomspace(1e-30, 1, 2000)])
    a[4000:] = [0, -0.0, 1e-45, 100, -100, np.inf, -np.inf]
    h = aligned((4007,))
    kernels._tanh(a, h)
    np.testing.assert_allclose(h, np.tanh(a.astype(np.float64)), rtol=2.5e-7, atol=0)


def test_a_trace_that_nothing_tells_from_none_is_none() -> None:
    """In the kernel as in the reference: what is smaller still would be no normal number."""
    genome = new_genome(recruiting_config(), 1)
    born = LivingCortex(genome)
    state = born.copy()
    state.trace[:] = 1e-30
    born.restore(state)
    born.learn(vectors(genome, 1))
    assert np.count_nonzero(born.copy().trace) == 1
    none = torch.tensor([0])
    choice = Choice(none, none == 0, none == 0)
    after = next_trace(torch.full((1, 4), 1e-30), choice, 0.999, 1.0)
    assert after.tolist() == [[1, 0, 0, 0]]
