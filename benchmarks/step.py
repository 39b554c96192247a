"""One step of the cortex, on one core, against eager torch and against bare arithmetic.

``python -m benchmarks.step [--json]``. References, in turns with the kernels: the
original's step in eager torch (``benchmarks/eager.py``), and a loop that does as many
multiply-adds and maxima as the mlp's kernel but keeps everything in registers: no kernel that reads
and writes W can be faster. Each round is a process of its own: how long eager torch takes differs
up to eightfold from one process to the next, with what memory it is given, and little within one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.eager import Brain, eager_step
from benchmarks.measure import Figure, parser, quotients, report, seconds_a_call, take_turns
from organism import jit
from organism.config import GenomeConfig
from organism.cortex import innate_weights
from organism.figures import to_json
from organism.genome import new_genome
from organism.living import LivingCortex
from organism.presets import PRESETS
from organism.simd import LANES, larger, multiply_add, spread, total_of

_STEPS = 64
_CHAINS = 8
# Beside the hidden units: zW and zW₀, the step along Δ and towards W₀, the square for the norm
# and the division by it; each counted as one of the three operations of a unit.
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
    draws = torch.Generator().manual_seed(0)
    e = torch.nn.functional.normalize(torch.randn(config.cortex.d_in, generator=draws), dim=0)

    def step() -> None:
        nonlocal brain
        brain = eager_step(config, theta, brain, e)

    @torch.no_grad()
    def measure() -> float:
        return seconds_a_call(step)()

    return measure


def floor(config: GenomeConfig) -> Callable[[], float]:
    """Return what times the mlp kernel's arithmetic, and nothing else, for one step, in seconds."""
    size, operations = config.cortex.d_in * config.cortex.d_hidden, 3 * config.rule.hidden
    units = (operations + _OTHER_MULTIPLY_ADDS) / 3
    numbers = np.random.default_rng(0).uniform(-0.5, 0.5, 4 + _CHAINS).astype(np.float32)
    loops = 1 << 14
    call = seconds_a_call(lambda: _arithmetic(numbers, loops))
    return lambda: call() * size * units / (LANES * _CHAINS * loops)


@jit.kernel(reassociate=False)
def _arithmetic(numbers: jit.F32, loops: int) -> jit.Number:
    """Do what a hidden unit does to a vector of synapses, eight vectors a loop, in registers.

    Each starts from what it came to before, or the compiler would do it once; eight are as many as
    keep the units busy meanwhile.
    """
    a, b, c, onset = spread(numbers[0]), spread(numbers[1]), spread(numbers[2]), spread(numbers[3])
    y0, y1, y2 = spread(numbers[4]), spread(numbers[5]), spread(numbers[6])
    y3, y4, y5 = spread(numbers[7]), spread(numbers[8]), spread(numbers[9])
    y6, y7 = spread(numbers[10]), spread(numbers[11])
    for _ in range(loops):
        y0 = multiply_add(c, larger(onset, multiply_add(a, y0, b)), y0)
        y1 = multiply_add(c, larger(onset, multiply_add(a, y1, b)), y1)
        y2 = multiply_add(c, larger(onset, multiply_add(a, y2, b)), y2)
        y3 = multiply_add(c, larger(onset, multiply_add(a, y3, b)), y3)
        y4 = multiply_add(c, larger(onset, multiply_add(a, y4, b)), y4)
        y5 = multiply_add(c, larger(onset, multiply_add(a, y5, b)), y5)
        y6 = multiply_add(c, larger(onset, multiply_add(a, y6, b)), y6)
        y7 = multiply_add(c, larger(onset, multiply_add(a, y7, b)), y7)
    return total_of(((y0 + y1) + (y2 + y3)) + ((y4 + y5) + (y6 + y7)))


def one_round() -> dict[str, float]:
    """Seconds of each contestant, by name and size."""
    torch.set_num_threads(1)
    mlp, polynomial = PRESETS["original"].genome, PRESETS["dense"].genome
    sizes = {"32x1024": (32, 1024)}
    sizes["default_size"] = polynomial.cortex.d_in, polynomial.cortex.d_hidden
    contestants: dict[str, Callable[[], float]] = {}
    for name, size in sizes.items():
        contestants |= {
            f"eager_{name}": eager(sized(mlp, *size)),
            f"mlp_{name}": kernel_step(sized(mlp, *size)),
            f"floor_{name}": floor(sized(mlp, *size)),
            f"polynomial_{name}": kernel_step(sized(polynomial, *size)),
        }
    return {name: seconds for name, (seconds,) in take_turns(contestants, 1).items()}


def main() -> int:
    """Run the command."""
    options = parser(__doc__)
    options.add_argument("--one-round", action="store_true", help="only that; print its seconds")
    given = options.parse_args()
    if given.one_round:
        print(to_json(one_round()))
        return 0
    command = [sys.executable, "-m", "benchmarks.step", "--one-round"]
    rounds = [
        json.loads(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout)
        for _ in range(given.rounds)
    ]
    found = {name: [each[name] for each in rounds] for name in rounds[0]}
    figures = []
    for size, suffix in (("32x1024", ""), ("default_size", "_default_size")):
        eager_s, mlp_s = found[f"eager_{size}"], found[f"mlp_{size}"]
        polynomial_s = found[f"polynomial_{size}"]
        figures += [
            Figure(f"mlp_speedup{suffix}", quotients(eager_s, mlp_s), "≥ 18"),
            Figure(f"mlp_floor_ratio{suffix}", quotients(mlp_s, found[f"floor_{size}"]), "≤ 2"),
            Figure(f"polynomial_speedup{suffix}", quotients(eager_s, polynomial_s), "≥ 80"),
        ]
    details = {f"{name}_us": 1e6 * float(np.median(times)) for name, times in found.items()}
    report("One step, one core", figures, details, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
