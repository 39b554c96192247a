"""One step of the cortex, on one core, against eager torch and against bare arithmetic.

``python -m benchmarks.step [--json]``. References, in turns with the kernels: the
original's step in eager torch (``benchmarks/eager.py``), and a loop that does as many
maxima and additions as the mlp's kernel but keeps everything in registers: no kernel that reads
and writes W can be faster.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
import torch

from benchmarks.eager import Brain, eager_step
from benchmarks.measure import Figure, parser, quotients, report, seconds_a_call, take_turns
from organism import jit  # sets how wide numba's vectors are, for the floor too
from organism.config import GenomeConfig
from organism.cortex import innate_weights
from organism.genome import new_genome
from organism.living import LivingCortex
from organism.presets import PRESETS

_STEPS = 64
_LANES = 1 << 12
# Beside the hidden units: zW and zW₀, the step along Δ and towards W₀, the square for the norm
# and the division by it; each counted as one multiply-add.
_OTHER_MULTIPLY_ADDS = 6


def sized(config: GenomeConfig, d_in: int, d_hidden: int) -> GenomeConfig:
    """Take another size, all else equal."""
    cortex = config.cortex.model_copy(update={"d_in": d_in, "d_hidden": d_hidden})
    return config.model_copy(update={"cortex": cortex})


def kernel_step(config: GenomeConfig) -> Callable[[], float]:
    """Return what times a step of a living cortex, in seconds."""
    cortex = LivingCortex(new_genome(config))
    draws = np.random.default_rng(0)
    inputs = draws.standard_normal((_STEPS, config.cortex.d_in)).astype(np.float32)
    inputs /= np.linalg.norm(inputs, axis=1, keepdims=True)
    call = seconds_a_call(lambda: cortex.learn(inputs))
    return lambda: call() / _STEPS


def eager(config: GenomeConfig) -> Callable[[], float]:
    """Return what times a step of the original in eager torch, in seconds."""
    theta = new_genome(config).theta
    zeros = torch.zeros(config.cortex.d_in)
    brain = Brain(innate_weights(config.cortex), zeros, zeros)
    e = torch.nn.functional.normalize(torch.randn(config.cortex.d_in), dim=0)

    def step() -> None:
        nonlocal brain
        brain = eager_step(config, theta, brain, e)

    @torch.no_grad()
    def measure() -> float:
        return seconds_a_call(step)()

    return measure


def floor(config: GenomeConfig) -> Callable[[], float]:
    """Return what times the mlp kernel's arithmetic, and nothing else, for one step, in seconds."""
    blocks = -(-config.rule.hidden // 4)

    @numba.njit(nogil=True, fastmath={"contract"})
    def arithmetic(x: jit.F32, out: jit.F32, k: Any, rounds: int) -> None:
        a, b0, b1, b2, b3, s0, s1, s2, s3, c = k
        for _ in range(rounds):
            for j in range(x.shape[0]):
                w = x[j]
                y0, y1, y2, y3 = w, w, w, w
                for _ in range(blocks):
                    t0, t1, t2, t3 = a * w + b0, a * w + b1, a * w + b2, a * w + b3
                    t0 = s0 if t0 < s0 else t0
                    t1 = s1 if t1 < s1 else t1
                    t2 = s2 if t2 < s2 else t2
                    t3 = s3 if t3 < s3 else t3
                    y0, y1, y2, y3 = c * t0 + y0, c * t1 + y1, c * t2 + y2, c * t3 + y3
                    w = y0  # or the next block would be the same numbers, computed once
                for _ in range(_OTHER_MULTIPLY_ADDS // 2):
                    y1, y2 = a * y1 + b0, a * y2 + b1
                out[j] = (y0 + y1) + (y2 + y3)

    x, out = jit.aligned((_LANES,)), jit.aligned((_LANES,))
    x[:] = np.linspace(-1, 1, _LANES)
    size = config.cortex.d_in * config.cortex.d_hidden
    numbers = tuple(np.random.default_rng(0).uniform(-0.5, 0.5, 10).astype(np.float32))
    rounds = 16
    call = seconds_a_call(lambda: arithmetic(x, out, numbers, rounds))
    return lambda: call() * size / (_LANES * rounds)


def main() -> int:
    """Run the command."""
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    mlp, polynomial = PRESETS["original"].genome, PRESETS["dense"].genome
    sizes = {"": (32, 1024), "_default_size": (polynomial.cortex.d_in, polynomial.cortex.d_hidden)}
    figures, details = [], {}
    for suffix, size in sizes.items():
        found = take_turns(
            {
                "eager": eager(sized(mlp, *size)),
                "mlp": kernel_step(sized(mlp, *size)),
                "floor": floor(sized(mlp, *size)),
                "polynomial": kernel_step(sized(polynomial, *size)),
            },
            options.rounds,
        )
        eager_s, mlp_s = found["eager"], found["mlp"]
        figures += [
            Figure(f"mlp_speedup{suffix}", quotients(eager_s, mlp_s), "≥ 18"),
            Figure(f"mlp_floor_ratio{suffix}", quotients(mlp_s, found["floor"]), "≤ 2"),
            Figure(f"polynomial_speedup{suffix}", quotients(eager_s, found["polynomial"]), "≥ 80"),
        ]
        for name, seconds in found.items():
            details[f"{name}{suffix or '_32x1024'}_us"] = 1e6 * float(np.median(seconds))
    report("One step, one core", figures, details, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
