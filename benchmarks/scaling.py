"""How the cost grows with size, message and age: four figures, each with its fitted exponent.

``python -m benchmarks.scaling [--json] [--plot FILE.png]``. Time ∝ sizeᵖ is fitted by least
squares on logarithms. A step's cost should grow as its synapses (p near 1 in d_in and d_hidden); a
message's as its bytes; and a chunk's not at all with the age of the stream (p near 0).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.ingest import lines_of, messages_of, own_engine
from benchmarks.measure import Figure, parser, report
from benchmarks.step import kernel_step, sized
from organism.fused import set_threads
from organism.presets import PRESETS

_DAEMON = PRESETS["daemon"].genome


@dataclass(frozen=True)
class Curve:
    """What one thing costs as another grows.

    Attributes:
        name: of its exponent in the JSON.
        title: what is measured, with its unit.
        sizes: what grows.
        seconds: the least of all rounds, at each size.
        whole: how far the fit goes back, in sizes: the first may be all overhead.
    """

    name: str
    title: str
    sizes: Sequence[int]
    seconds: Sequence[float]
    whole: int = 0

    @property
    def fit(self) -> tuple[float, float]:
        """Exponent, and logarithm of the factor."""
        sizes, seconds = np.log(self.sizes[self.whole :]), np.log(self.seconds[self.whole :])
        slope, start = np.polyfit(sizes, seconds, 1)
        return float(slope), float(start)


def least(measures: Sequence[Callable[[], float]], rounds: int) -> list[float]:
    """Let each measure itself in turn, so many rounds; the least of each."""
    found = [[measure() for measure in measures] for _ in range(rounds)]
    return [min(times) for times in zip(*found, strict=True)]


def step_curves(rounds: int) -> list[Curve]:
    """A step against d_in and against d_hidden."""
    inputs, hidden = (16, 32, 64, 128, 256, 512), (64, 128, 256, 512, 1024, 2048)
    return [
        Curve(
            "d_in_exponent",
            "a step at d_hidden = 256, against d_in",
            inputs,
            least([kernel_step(sized(_DAEMON, d, 256)) for d in inputs], rounds),
        ),
        Curve(
            "d_hidden_exponent",
            "a step at d_in = 64, against d_hidden",
            hidden,
            least([kernel_step(sized(_DAEMON, 64, d)) for d in hidden], rounds),
        ),
    ]


def message_curve(rounds: int) -> Curve:
    """A message of log lines, from the engine's door to its receipt, against its bytes."""
    sizes = [1 << k for k in range(8, 21, 2)]
    lines = lines_of(None)
    with own_engine() as engine:

        def learn(messages: Sequence[bytes]) -> Callable[[], float]:
            def measure() -> float:
                start = time.perf_counter()
                for message in messages:
                    engine.submit(message).result()
                return (time.perf_counter() - start) / len(messages)

            return measure

        measures = [learn(messages_of(lines, size)[:8]) for size in sizes]
        seconds = least(measures, rounds)
    return Curve("message_exponent", "a message, against its bytes", sizes, seconds, whole=3)


def age_curve() -> Curve:
    """A chunk, against how many were lived before it."""
    messages = messages_of(lines_of(None), 1 << 16)
    ages, seconds, lived = [1 << k for k in range(14, 21)], [], 0
    with own_engine() as engine:
        k = 0
        for age in ages:
            while lived < age:
                lived += engine.submit(messages[k % len(messages)]).result().chunks
                k += 1
            start, before = time.perf_counter(), lived
            for message in messages[:20]:
                lived += engine.submit(message).result().chunks
            seconds.append((time.perf_counter() - start) / (lived - before))
    return Curve("age_exponent", "a chunk, against the chunks before it", ages, seconds)


def plot(curves: Sequence[Curve], path: Path) -> None:
    """Draw the curves with their fits."""
    from matplotlib.figure import Figure as Canvas
    from matplotlib.ticker import NullFormatter

    canvas = Canvas(figsize=(10, 7.5), layout="constrained")
    for axes, curve in zip(canvas.subplots(2, 2).flat, curves, strict=True):
        exponent, start = curve.fit
        sizes = np.array(curve.sizes)
        fitted = sizes[curve.whole :]
        axes.loglog(sizes, np.array(curve.seconds) * 1e6, "o", color="C0")
        label = f"fit: size^{exponent:.2f}"
        axes.loglog(fitted, np.exp(start) * fitted**exponent * 1e6, color="C1", label=label)
        axes.set_title(curve.title, fontsize=11)
        axes.set_ylabel("µs")
        low, high = min(curve.seconds) * 1e6, max(curve.seconds) * 1e6
        axes.set_ylim(low / 2, high * 2)
        axes.grid(True, which="both", alpha=0.25)
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.legend()
    canvas.savefig(path, dpi=120)


def main() -> int:
    """Run the command."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--plot", type=Path, help="write the figures to this PNG")
    given = options.parse_args()
    set_threads(1)
    curves = [*step_curves(given.rounds), message_curve(given.rounds), age_curve()]
    figures = [Figure(curve.name, [curve.fit[0]], curve.title) for curve in curves]
    details = {
        curve.name.replace("exponent", "us"): {
            str(size): round(1e6 * s, 2) for size, s in zip(curve.sizes, curve.seconds, strict=True)
        }
        for curve in curves
    }
    report("Cost against size", figures, details, given.json)
    if given.plot:
        plot(curves, given.plot)
    return 0


if __name__ == "__main__":
    sys.exit(main())
