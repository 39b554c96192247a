"""Forward and backward through lifetimes, on all cores, against the original's eager loop.

``python -m benchmarks.meta_step [--json]``. The size is the original's: ten pairs, five steps,
32×1024, the mlp genome [D26 §6.4]. The loop is that of [D26 App. D], pair by pair, through torch's
autograd; it has its choice of one thread or all. Apart from that, a lifetime of 1,000 steps of the
default genome is trained through in a process of its own, to see what memory that takes.
"""

from __future__ import annotations

import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from benchmarks.eager import Brain, activation, eager_step
from benchmarks.measure import Figure, parser, quotients, report, take_turns
from organism.config import GenomeConfig
from organism.cortex import innate_weights
from organism.fused import set_threads
from organism.genome import Genome, new_genome
from organism.lifetime import live
from organism.presets import PRESETS
from organism.rules import Theta

_PAIRS, _STEPS = 10, 5
_LONG_STEPS = 1000
_CORES = os.cpu_count() or 1
_RATIOS = [1 - t / (_STEPS - 1) for t in range(_STEPS)]


def learnable(config: GenomeConfig) -> Genome:
    """Draw a genome whose θ takes a gradient."""
    drawn = new_genome(config)
    return Genome(config, {n: t.clone().requires_grad_() for n, t in drawn.theta.items()})


Gradient = tuple[Tensor | None, ...]
"""Of each part of θ; None where a part took no part."""


def gradient(loss: Tensor, theta: Theta) -> Gradient:
    """Go back from a loss to θ."""
    return torch.autograd.grad(loss, tuple(theta.values()), allow_unused=True)


def difference(found: Gradient, expected: Gradient) -> float:
    """Norm of the difference of two gradients over that of the second."""
    nothing = torch.zeros(())
    pairs = [
        (nothing if f is None else f, nothing if e is None else e)
        for f, e in zip(found, expected, strict=True)
    ]
    apart = sum(float((f - e).square().sum()) for f, e in pairs)
    return math.sqrt(apart / sum(float(e.square().sum()) for _, e in pairs))


def eager_gradient(genome: Genome, cues: Tensor, targets: Tensor) -> Gradient:
    """Of the mean squared error of the recall after a lifetime, pair by pair."""
    config, theta = genome.config, genome.theta
    loss = torch.zeros(())
    zeros = torch.zeros(config.cortex.d_in)
    for cue, target in zip(cues, targets, strict=True):
        brain = Brain(innate_weights(config.cortex), zeros, zeros)
        for ratio in _RATIOS:
            brain = eager_step(config, theta, brain, cue, target, ratio)
        _, answer = activation(config, theta, brain, cue)
        loss = loss + (answer - target).square().mean() / len(cues)
    return gradient(loss, theta)


def fused_gradient(genome: Genome, cues: Tensor, targets: Tensor) -> Gradient:
    """The same, as meta-training does it."""
    inputs = cues.expand(_STEPS, -1, -1)
    lived = live(genome, inputs, target=targets, teacher_ratios=_RATIOS, cues=cues)
    return gradient(mse_loss(lived.answer, targets), genome.theta)


def timed(work: Callable[[], object], repeat: int) -> float:
    """Mean seconds of a call."""
    start = time.perf_counter()
    for _ in range(repeat):
        work()
    return (time.perf_counter() - start) / repeat


def long_lifetime() -> int:
    """Train through one long lifetime of the default genome; print this process's peak memory."""
    set_threads(_CORES)
    genome = learnable(PRESETS["dense"].genome)
    inputs = torch.randn(_LONG_STEPS, 1, genome.config.cortex.d_in)
    gradient(live(genome, inputs).logit.mean(), genome.theta)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return 0


def main() -> int:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--long-lifetime", action="store_true", help="only that; print its memory")
    given = options.parse_args()
    if given.long_lifetime:
        return long_lifetime()
    genome = learnable(PRESETS["original"].genome)
    cortex = genome.config.cortex
    draws = torch.Generator().manual_seed(0)
    cues = torch.randn(_PAIRS, cortex.d_in, generator=draws)
    targets = torch.tanh(torch.randn(_PAIRS, cortex.d_hidden, generator=draws))

    def eager(threads: int) -> Callable[[], float]:
        def measure() -> float:
            torch.set_num_threads(threads)
            return timed(lambda: eager_gradient(genome, cues, targets), 1)

        return measure

    def fused() -> float:
        set_threads(_CORES)
        return timed(lambda: fused_gradient(genome, cues, targets), 20)

    contestants = {"fused": fused, "eager_1": eager(1), f"eager_{_CORES}": eager(_CORES)}
    found = take_turns(contestants, given.rounds)
    best = [min(times) for times in zip(*(found[n] for n in found if n != "fused"), strict=True)]
    set_threads(1)
    error = difference(fused_gradient(genome, cues, targets), eager_gradient(genome, cues, targets))
    command = [sys.executable, "-m", "benchmarks.meta_step", "--long-lifetime"]
    peaks = [
        float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        for _ in range(given.rounds)
    ]
    figures = [
        Figure("speedup", quotients(best, found["fused"]), "≥ 25"),
        Figure("gradient_error", [error] * given.rounds, "≤ 1e-5, relative"),
        Figure("peak_rss_bytes", peaks, "< 2e9"),
    ]
    details = {f"{name}_ms": 1e3 * sorted(times)[len(times) // 2] for name, times in found.items()}
    report("Forward and backward through lifetimes", figures, details, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
