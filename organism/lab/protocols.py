"""Protocols of associative memory: capacity, overwriting, long lives, transfer, completion.

Each takes a rule, or none for the pseudo-inverse, and a seed, and gives means over lifetimes.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from organism.config import GenomeConfig
from organism.cortex import CortexState, newborn
from organism.genome import Genome
from organism.tasks.association import (
    Pairs,
    answer,
    bit_error,
    cosine,
    draw_pairs,
    draw_targets,
    joined,
    least_squares,
    store,
)

COUNTS = (8, 16, 32, 48, 64, 96, 128)
PASSES = (1, 5)
LASTS = (16, 32, 64)
LENGTHS = (200, 10_000)
SCHEDULES = ((1, 1), (5, 1), (5, 5))
"""Passes over all pairs, then over those that are given new targets."""
OVERWRITTEN, UPDATED = 48, 24
WIDE = 256

_LIFETIMES = 20
_LONG_LIFETIMES = 8
_BLOCK = 200


@torch.no_grad()
def protocols(genome: Genome | None, config: GenomeConfig, seed: int) -> dict[str, Any]:
    """Take a rule through all of them.

    Args:
        genome: the rule; None: the pseudo-inverse.
        config: for the sizes.
        seed: of pairs, of which each protocol draws its own.

    Returns:
        Figures by protocol and its case: ``capacity`` and ``completion`` by pairs stored (and
        passes, as ``32x1``), ``overwrite`` by passes before and after (``5+1``), ``lifetime`` by
        length, ``transfer`` by pairs stored in a cortex four times as wide.
    """
    return {
        "capacity": {
            f"{count}x{passes}": _capacity(genome, config, count, passes, seed)
            for count in COUNTS
            for passes in PASSES
        },
        "overwrite": {
            f"{first}+{second}": _overwrite(genome, config, first, second, seed)
            for first, second in SCHEDULES
        },
        "lifetime": {str(length): _lifetime(genome, config, length, seed) for length in LENGTHS},
        "transfer": {
            str(count): _capacity(*_widened(genome, config), count, 1, seed)
            for count in (WIDE // 4, WIDE // 2)
        },
        "completion": {
            str(count): _completion(genome, config, count, seed) for count in COUNTS[:3]
        },
    }


def _capacity(
    genome: Genome | None, config: GenomeConfig, count: int, passes: int, seed: int
) -> dict[str, float]:
    """Store N pairs, recall them all."""
    rng = np.random.default_rng([seed, count, passes])
    pairs = draw_pairs(count, _LIFETIMES, config, rng)
    memory = _Memory(genome, _LIFETIMES)
    memory.store(pairs, passes)
    return _score(memory.answer(pairs.keys), pairs.targets)


def _overwrite(
    genome: Genome | None, config: GenomeConfig, first: int, second: int, seed: int
) -> dict[str, float]:
    """Store 48 pairs, give 24 of the keys new targets; success: nearest is the latest target."""
    rng = np.random.default_rng([seed, first, second])
    pairs = draw_pairs(OVERWRITTEN, _LIFETIMES, config, rng)
    fresh = draw_targets((UPDATED, *pairs.targets.shape[1:]), rng)
    memory = _Memory(genome, _LIFETIMES)
    memory.store(pairs, first)
    memory.forget(UPDATED)
    memory.store(Pairs(pairs.keys[:UPDATED], fresh), second)
    answers = memory.answer(pairs.keys)
    latest = torch.cat([fresh, pairs.targets[UPDATED:]])
    ever = torch.cat([latest, pairs.targets[:UPDATED]])
    near = torch.einsum("kbm,cbm->kbc", answers, ever).argmax(-1)
    right = (near == torch.arange(OVERWRITTEN).unsqueeze(1)).float()
    wrong_bits = bit_error(answers, latest)
    return {
        "updated": float(right[:UPDATED].mean()),
        "untouched": float(right[UPDATED:].mean()),
        "updated_bits": 1 - float(wrong_bits[:UPDATED].mean()),
        "untouched_bits": 1 - float(wrong_bits[UPDATED:].mean()),
    }


def _lifetime(
    genome: Genome | None, config: GenomeConfig, length: int, seed: int
) -> dict[str, float]:
    """Store many pairs once, recall the last; the pseudo-inverse is given those alone."""
    rng = np.random.default_rng([seed, length])
    memory = _Memory(genome, _LONG_LIFETIMES)
    for start in range(0, length, _BLOCK):
        pairs = draw_pairs(min(_BLOCK, length - start), _LONG_LIFETIMES, config, rng)
        if genome:
            memory.store(pairs)
    last = pairs[-max(LASTS) :]
    if genome is None:
        memory.store(last)
    near = cosine(memory.answer(last.keys), last.targets)
    return {str(count): float(near[-count:].mean()) for count in LASTS}


def _completion(
    genome: Genome | None, config: GenomeConfig, count: int, seed: int
) -> dict[str, float]:
    """Store N pairs, recall them by cues of which half the entries are erased."""
    rng = np.random.default_rng([seed, count, 0, 0])
    pairs = draw_pairs(count, _LIFETIMES, config, rng)
    memory = _Memory(genome, _LIFETIMES)
    memory.store(pairs)
    order = torch.from_numpy(rng.random(tuple(pairs.keys.shape))).argsort(-1)
    halved = torch.where(order < pairs.keys.shape[-1] // 2, 0.0, pairs.keys)
    cues = halved / torch.linalg.vector_norm(halved, dim=-1, keepdim=True)
    return _score(memory.answer(cues), pairs.targets)


def _widened(genome: Genome | None, config: GenomeConfig) -> tuple[Genome | None, GenomeConfig]:
    """The same θ in a cortex of other sizes."""
    cortex = config.cortex.model_copy(update={"d_in": WIDE, "d_hidden": WIDE})
    wide = config.model_copy(update={"cortex": cortex})
    return (replace(genome, config=wide) if genome else None), wide


def _score(answers: Tensor, targets: Tensor) -> dict[str, float]:
    return {
        "cosine": float(cosine(answers, targets).mean()),
        "bit_error": float(bit_error(answers, targets).mean()),
    }


class _Memory:
    """Lifetimes side by side that store pairs by a rule; without one, by the pseudo-inverse."""

    def __init__(self, genome: Genome | None, batch: int) -> None:
        self._genome = genome
        self._state: CortexState | None = newborn(genome, batch) if genome else None
        self._pairs: list[Pairs] = []

    def store(self, pairs: Pairs, passes: int = 1) -> None:
        """Show pairs; the pseudo-inverse keeps them all."""
        if self._genome and self._state:
            self._state = store(self._genome, self._state, pairs, passes)
        else:
            self._pairs.append(pairs)

    def answer(self, keys: Tensor) -> Tensor:
        """Recall; the pseudo-inverse finds the W of least norm that errs least on its pairs."""
        if self._genome and self._state:
            return answer(self._genome, self._state, keys)
        w = least_squares(joined(self._pairs))
        return (keys.transpose(0, 1).double() @ w).transpose(0, 1).float()

    def forget(self, count: int) -> None:
        """Let the pseudo-inverse drop its first pairs, which it is not asked for."""
        if self._pairs:
            self._pairs = [self._pairs[0][count:], *self._pairs[1:]]
