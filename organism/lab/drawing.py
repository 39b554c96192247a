"""How the laboratory draws: one way to make a figure, and curves with their spread.

Needs matplotlib (``pip install '.[lab]'``); knows nothing of what is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from organism.lab.report import LabMissing

_WIDTH_INCHES = 10
_MARKERS = "os^Dv<>PX"


def new_figure(height_inches: float, rows: int = 1, columns: int = 1, sharey: bool = False) -> Any:
    """Return a figure and its panels, ``(rows, columns)``.

    Raises:
        LabMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise LabMissing("figures need matplotlib: pip install '.[lab]'") from error
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def legend_below(figure: Any, panel: Any, columns: int) -> None:
    """Name what a panel shows below the figure, where it hides nothing."""
    named = panel.get_legend_handles_labels()
    figure.legend(*named, fontsize=8, loc="outside lower center", ncols=columns)


def curves(
    panel: Any, xs: Sequence[float], courses: Mapping[str, Sequence[Sequence[float]]]
) -> None:
    """Draw the mean over seeds of each course, and one standard deviation around it.

    Args:
        panel: to draw on.
        xs: where the values stand, ``(points,)``.
        courses: values by name, ``(seeds, points)``.
    """
    for k, (name, values) in enumerate(courses.items()):
        columns = [*zip(*values, strict=True)]
        means = [fmean(column) for column in columns]
        marker = _MARKERS[k % len(_MARKERS)]
        panel.plot(xs, means, marker=marker, markersize=4, label=name, color=f"C{k}")
        if len(values) > 1:
            spreads = [stdev(column) for column in columns]
            low = [m - s for m, s in zip(means, spreads, strict=True)]
            high = [m + s for m, s in zip(means, spreads, strict=True)]
            panel.fill_between(xs, low, high, color=f"C{k}", alpha=0.15, linewidth=0)
