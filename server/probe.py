"""Live recall: how well the organism knows again what it has lived, asked of itself.

Chunks are drawn from episode memory, a tenth of their bytes is damaged, and cortex and memory are
asked about them, as a client would ask. The cortex's answers are held against those it gave to new
chunks before it learned them. Changes nothing that is learned.
"""

from __future__ import annotations

import logging
import math
import random
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

import numpy as np
from rapidfuzz.distance import OSA

from organism.auroc import auroc
from organism.tasks.streams import damage
from server.episodes import Episode, Episodes
from server.errors import Problem
from server.learner import CueReading
from server.observer import Observer

DAMAGE = 0.1
"""Chance that a byte of a probe is replaced."""

_PROBES_A_ROUND = 4
_WINDOW = 256
# Below so many of a kind, an area under a curve says nothing.
_LEAST = 16
_PATIENCE_S = 5.0

_log = logging.getLogger("organism.probe")


class Measured(NamedTuple):
    """Live recall over the last probes; NaN before there are enough.

    Attributes:
        auroc: area under the ROC of familiarity: damaged lived chunks against new ones, 0 to 1.
        top1: share of damaged lived chunks whose first match is the lived one, 0 to 1.
        error: mean normalised edit distance from the first match to the lived chunk, 0 to 1.
    """

    auroc: float = math.nan
    top1: float = math.nan
    error: float = math.nan


class _Outcome(NamedTuple):
    familiarity: float
    found: bool
    error: float


class Probe:
    """Asks an organism about its past, from time to time, on a thread of its own."""

    def __init__(
        self,
        recall: Callable[[bytes], Future[CueReading]],
        episodes: Episodes,
        observer: Observer,
        seed: int = 0,
    ) -> None:
        self._recall = recall
        self._episodes = episodes
        self._observer = observer
        self._rng = random.Random(seed)
        self._outcomes: deque[_Outcome] = deque(maxlen=_WINDOW)
        self.measured = Measured()

    def run(self, interval_s: float, stopping: threading.Event) -> None:
        """Measure until the stop; rest once all that counts was asked after the last chunk."""
        seen, rounds = -1, 0
        while not stopping.wait(interval_s):
            chunks = self._observer.totals.chunks
            rounds = rounds + 1 if chunks == seen else 0
            seen = chunks
            if rounds * _PROBES_A_ROUND > _WINDOW:
                continue
            try:
                self.measure()
            except (Problem, TimeoutError):  # it stops
                continue
            except Exception:  # the thread's edge
                _log.exception("live recall could not be measured")

    def measure(self) -> None:
        """Ask about a few lived chunks, and sum up the last of them."""
        for episode in self._episodes.sample(_PROBES_A_ROUND, self._rng):
            self._outcomes.append(self._ask(episode))
        if self._outcomes:
            self.measured = self._summed_up()

    def _ask(self, episode: Episode) -> _Outcome:
        cue = damage(episode.chunk, DAMAGE, self._rng)
        reading = self._recall(cue)
        matches = self._episodes.search(cue, 1)
        match = matches[0].episode.chunk if matches else b""
        familiarity = reading.result(_PATIENCE_S).familiarity
        error = 1 - OSA.normalized_similarity(episode.chunk, match)
        return _Outcome(familiarity, match == episode.chunk, error)

    def _summed_up(self) -> Measured:
        known = [outcome.familiarity for outcome in self._outcomes]
        new = self._observer.new_scores
        enough = min(len(known), len(new)) >= _LEAST
        labels = np.repeat([True, False], [len(known), len(new)])
        return Measured(
            auroc(np.array(known + new), labels) if enough else math.nan,
            sum(outcome.found for outcome in self._outcomes) / len(self._outcomes),
            math.fsum(outcome.error for outcome in self._outcomes) / len(self._outcomes),
        )
