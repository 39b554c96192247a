"""Other ways to tell the familiar from the new, on the same features and in the same order.

Each peer scores a chunk before it learns it, the more familiar the higher, as a cortex does. Those
whose strength hangs on a constant are run with several and the best on the file at hand is
reported: their strongest version, which a fair user could not know beforehand. Those of
river and pysad come with ``pip install '.[peers]'``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from organism.auroc import auroc
from organism.jit import F32, F64

Bools = Sequence[bool]


@dataclass(frozen=True)
class Stream:
    """What every peer is given.

    Attributes:
        chunks: as observed.
        features: centred unit vectors, as the cortex sees them, ``(steps, d_in)``.
        state_floats: what the cortex carries; a store of vectors may carry as much.
    """

    chunks: Sequence[bytes]
    features: F32
    state_floats: int


class PeerMissing(RuntimeError):
    """A peer's library is not installed."""


class Peer(Protocol):
    """Scores of familiarity for a stream, ``(steps,)``, one set for each of its constants."""

    def __call__(self, stream: Stream) -> Iterator[F64]:
        """Live through the stream once for each constant."""
        ...


def hash_set(stream: Stream) -> Iterator[F64]:
    """Chunks seen, compared byte for byte: perfect on exact repeats, blind to all others."""
    seen: set[bytes] = set()
    scores = np.zeros(len(stream.chunks))
    for t, chunk in enumerate(stream.chunks):
        scores[t] = chunk in seen
        seen.add(chunk)
    yield scores


def store(stream: Stream) -> Iterator[F64]:
    """Best cosine with the last ⌊state_floats / d_in⌋ vectors: a store of the cortex's size."""
    x = stream.features
    kept = stream.state_floats // x.shape[1]
    scores = np.full(len(x), -1.0)
    for t in range(1, len(x)):
        scores[t] = (x[max(0, t - kept) : t] @ x[t]).max()
    yield scores


def delta_rule(stream: Stream) -> Iterator[F64]:
    """Auto-associator W ← W + η·(x − Wx)xᵀ, read by its error [Widrow & Hoff 1960]."""
    for rate in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0):
        w = np.zeros((stream.features.shape[1],) * 2)
        scores = np.empty(len(stream.features))
        for t, x in enumerate(stream.features.astype(np.float64)):
            error = x - w @ x
            scores[t] = -error @ error
            w += rate * np.outer(error, x)
        yield scores


def decayed_hebb(stream: Stream) -> Iterator[F64]:
    """Correlations W ← λW + xxᵀ, read by the energy xᵀWx [Hopfield 1982; Bogacz & Brown 2003]."""
    for decay in (0.9, 0.97, 0.99, 0.997, 0.999):
        w = np.zeros((stream.features.shape[1],) * 2)
        scores = np.empty(len(stream.features))
        for t, x in enumerate(stream.features.astype(np.float64)):
            scores[t] = x @ w @ x
            w = decay * w + np.outer(x, x)
        yield scores


def hebbff(stream: Stream) -> Iterator[F64]:
    """A feed-forward net whose first layer unlearns: h = σ((W₁ + A)x + b), A ← λA − η·hxᵀ.

    Read by the mean of h, low for the familiar: the anti-Hebbian solution of Tyulmankov, Yang &
    Abbott, "Meta-learning synaptic plasticity and memory addressing for continual familiarity
    detection", Neuron 2022, with random W₁ of as many columns as the state has room for and the
    best of several λ and η.
    """
    d_in = stream.features.shape[1]
    hidden = max(1, stream.state_floats // d_in)
    gain, bias = 8.0, -4.0
    w1 = np.random.RandomState(0).standard_normal((hidden, d_in)) / np.sqrt(d_in) * gain
    for decay in (0.98, 0.995, 0.999):
        for rate in (0.3, 1.0, 3.0):
            a = np.zeros((hidden, d_in), np.float32)
            scores = np.empty(len(stream.features))
            for t, x in enumerate(stream.features):
                h = 1 / (1 + np.exp(-(w1 @ x + a @ x + bias)))
                scores[t] = -h.mean()
                a *= decay
                a -= np.outer(rate * h, x).astype(np.float32)
            yield scores


def half_space_trees(stream: Stream) -> Iterator[F64]:
    """River's HalfSpaceTrees [Tan, Ting & Liu, IJCAI 2011], features scaled to [0, 1]."""
    try:
        from river.anomaly import HalfSpaceTrees
    except ImportError as error:
        raise PeerMissing("river is not installed: pip install '.[peers]'") from error
    scaled = (stream.features.astype(np.float64) + 1) / 2
    names = list(range(scaled.shape[1]))
    model: Any = HalfSpaceTrees(n_trees=25, height=8, window_size=250, seed=0)
    scores = np.empty(len(scaled))
    for t, row in enumerate(scaled.tolist()):
        x = dict(zip(names, row, strict=True))
        scores[t] = -model.score_one(x)
        model.learn_one(x)
    yield scores


def _pysad(name: str, **settings: Any) -> Peer:
    def scored(stream: Stream) -> Iterator[F64]:
        try:
            from pysad import models
        except ImportError as error:
            raise PeerMissing("pysad is not installed: pip install '.[peers]'") from error
        given = dict(settings)
        if name == "RSHash":
            bounds = np.ones(stream.features.shape[1])
            given |= {"feature_mins": -bounds, "feature_maxes": bounds}
        model = getattr(models, name)(random_state=0, **given)
        rows = stream.features.astype(np.float64)
        yield np.array([-float(np.squeeze(model.fit_score_partial(row))) for row in rows])

    return scored


@dataclass(frozen=True)
class PlattScale:
    """Scores brought to probabilities by a logistic curve [Platt 1999].

    Attributes:
        slope: of the log-odds.
        offset: of the log-odds.
    """

    slope: float
    offset: float

    @classmethod
    def fitted(cls, scores: Sequence[float], familiar: Bools) -> PlattScale:
        """Fit by maximum likelihood.

        Raises:
            PeerMissing: scikit-learn is not installed.
        """
        try:
            from sklearn.linear_model import LogisticRegression
        except ImportError as error:
            raise PeerMissing("scikit-learn is not installed: pip install '.[peers]'") from error
        model = LogisticRegression(C=1e6).fit(np.array(scores)[:, None], np.array(familiar))
        return cls(float(model.coef_[0, 0]), float(model.intercept_[0]))

    def __call__(self, scores: F64) -> F64:
        """Probabilities of scores, of any shape."""
        probability: F64 = 1 / (1 + np.exp(-(self.slope * scores + self.offset)))
        return probability


PEERS: dict[str, Peer] = {
    "hash set": hash_set,
    "last-k store": store,
    "delta rule": delta_rule,
    "decayed Hebb": decayed_hebb,
    "HebbFF": hebbff,
    "HalfSpaceTrees": half_space_trees,
    "xStream": _pysad("xStream", window_size=25),
    "RSHash": _pysad("RSHash"),
    "LODA": _pysad("LODA"),
}
"""By the name they are shown under."""


def strongest(peer: Peer, stream: Stream, familiar: Bools) -> F64:
    """Scores of a peer with the constant that suits the file best, by its labels.

    Raises:
        PeerMissing: its library is not installed.
    """
    return max(peer(stream), key=lambda scores: auroc(scores, familiar))
