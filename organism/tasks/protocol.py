"""What meta-training needs of a task. Both tasks and the outer loop stand on this leaf."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from organism.genome import Genome

Carry = Mapping[str, Tensor]
"""What a task hands from one outer step to the next, as named tensors; saved in checkpoints."""

Metrics = dict[str, float]


@dataclass(frozen=True)
class Outcome:
    """What one outer step gave.

    Attributes:
        loss: scalar, to be minimised.
        metrics: what to show beside it.
        carry: for the next outer step, cut from the autograd graph.
    """

    loss: Tensor
    metrics: Metrics
    carry: Carry


class Task(Protocol):
    """A source of lifetimes with a loss. Equal seeds and indices give equal lifetimes."""

    def begin(self) -> Carry:
        """Return the carry before the first outer step."""
        ...

    def outer_step(self, genome: Genome, carry: Carry, index: int) -> Outcome:
        """Live through the batch of outer step ``index``; the loss is differentiable in θ."""
        ...

    def held_out(self, genome: Genome) -> Metrics:
        """Measure a genome on lifetimes that no outer step draws."""
        ...

    def finish(self, genome: Genome) -> Genome:
        """Fit what of θ needs no outer steps, after the last of them."""
        ...
