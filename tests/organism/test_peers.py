"""Peers on streams where it is plain what they must say."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from organism.auroc import auroc
from organism.peers import PEERS, PeerMissing, PlattScale, Stream, strongest


def stream(steps: int = 120, d_in: int = 12) -> tuple[Stream, list[bool]]:
    """Random unit vectors, of which the second half repeats the first."""
    draws = np.random.default_rng(0)
    half = draws.standard_normal((steps // 2, d_in)).astype(np.float32)
    half /= np.linalg.norm(half, axis=1, keepdims=True)
    chunks = [b"%d" % i for i in range(steps // 2)] * 2
    familiar = [False] * (steps // 2) + [True] * (steps // 2)
    return Stream(chunks, np.concatenate([half, half]), 60 * d_in + 5), familiar


def test_exact_memories_are_perfect_on_exact_repeats() -> None:
    """The hash set always, the store within its k = 60."""
    given, familiar = stream()
    for name in ("hash set", "last-k store"):
        assert auroc(strongest(PEERS[name], given, familiar), familiar) == 1


def test_a_store_forgets_beyond_its_size() -> None:
    """With room for half, the repeats are as new as before."""
    given, familiar = stream()
    small = Stream(given.chunks, given.features, 30 * 12)
    scores = strongest(PEERS["last-k store"], small, familiar)
    assert scores[familiar].max() < 0.999


@pytest.mark.parametrize("name", ["delta rule", "decayed Hebb", "HebbFF"])
def test_learning_peers_score_before_they_learn(name: str) -> None:
    """The past alone decides: what comes later changes no score."""
    given, familiar = stream()
    cut = Stream(given.chunks[:70], given.features[:70], given.state_floats)
    for whole, part in zip(PEERS[name](given), PEERS[name](cut), strict=True):
        np.testing.assert_array_equal(whole[:70], part)
    assert auroc(strongest(PEERS[name], given, familiar), familiar) > 0.6


DETECTORS = {"HalfSpaceTrees": "river", "xStream": "pysad", "RSHash": "pysad", "LODA": "pysad"}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_of_other_libraries_score_each_chunk(name: str) -> None:
    """Where they are installed."""
    pytest.importorskip(DETECTORS[name])
    given, familiar = stream(60)
    scores = strongest(PEERS[name], given, familiar)
    assert scores.shape == (60,)
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("name", DETECTORS)
def test_a_missing_library_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to install."""
    monkeypatch.setitem(sys.modules, DETECTORS[name], None)
    monkeypatch.setitem(sys.modules, f"{DETECTORS[name]}.anomaly", None)
    given, familiar = stream(60)
    with pytest.raises(PeerMissing, match="pip install"):
        strongest(PEERS[name], given, familiar)


def test_a_scale_brings_scores_to_frequencies() -> None:
    """Where it is fitted, mean probability and mean label agree."""
    pytest.importorskip("sklearn")
    draws = np.random.default_rng(1)
    scores = draws.standard_normal(2000)
    familiar = draws.random(2000) < 1 / (1 + np.exp(-(2 * scores - 1)))
    scale = PlattScale.fitted(scores.tolist(), familiar.tolist())
    assert scale.slope == pytest.approx(2, rel=0.15)
    assert scale(scores).mean() == pytest.approx(familiar.mean(), abs=0.01)
