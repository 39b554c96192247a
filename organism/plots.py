"""Figures of an evaluation; needs matplotlib (``pip install '.[peers]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from organism.auroc import auroc
from organism.jit import F64
from organism.peers import PeerMissing

_SIZE_INCHES = (12, 9)
_DPI = 150
_WINDOW = 50


def plot_life(
    path: Path,
    title: str,
    familiar: Sequence[bool],
    scores: Mapping[str, F64],
    entropy: F64,
    damages: Sequence[float],
    curves: Mapping[str, Sequence[float]],
) -> None:
    """Draw one life beside its peers: ROC, AUROC against damage, familiarity and entropy over time.

    Args:
        path: of the PNG.
        title: of the figure.
        familiar: labels.
        scores: familiarity of the organism, first, before each line was learned, and what its peers
            said, ``(lines,)`` each.
        entropy: H of each line, ``(lines,)``.
        damages: rates of damage.
        curves: AUROC at each rate, by name as the scores.

    Raises:
        PeerMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PeerMissing("--plot needs matplotlib: pip install '.[peers]'") from error
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subplots(2, 2)
    colours = dict(zip(curves, ("black", *(f"C{k}" for k in range(len(curves)))), strict=False))
    _draw_roc(panels[0, 0], familiar, scores, colours)
    _draw_curves(panels[1, 0], damages, curves, colours)
    _draw_course(panels[0, 1], panels[1, 1], familiar, next(iter(scores.values())), entropy)
    figure.savefig(path)


def _style(name: str, colours: Mapping[str, str]) -> dict[str, Any]:
    own = colours.get(name) == "black"
    return {"color": colours.get(name), "linewidth": 2.5 if own else 1, "zorder": 3 if own else 2}


def _draw_roc(
    panel: Any, familiar: Sequence[bool], scores: Mapping[str, F64], colours: Mapping[str, str]
) -> None:
    for name, given in scores.items():
        label = f"{name} {auroc(given, familiar):.3f}"
        panel.plot(*_roc(given, familiar), label=label, **_style(name, colours))
    panel.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=1)
    panel.set(xlabel="false alarms", ylabel="hits", title="ROC, with the area under it")
    panel.legend(loc="lower right", fontsize=8)


def _draw_curves(
    panel: Any,
    damages: Sequence[float],
    curves: Mapping[str, Sequence[float]],
    colours: Mapping[str, str],
) -> None:
    percent = [100 * damage for damage in damages]
    for name, values in curves.items():
        panel.plot(percent, values, marker="o", markersize=3, label=name, **_style(name, colours))
    panel.axhline(0.5, color="0.8", linewidth=1, zorder=1)
    panel.set(xlabel="bytes damaged, %", ylabel="AUROC", title="mean over the seeds of damage")
    panel.legend(loc="upper right", fontsize=7, ncols=2)


def _draw_course(
    above: Any, below: Any, familiar: Sequence[bool], familiarity: F64, entropy: F64
) -> None:
    lines, known = np.arange(len(familiar)), np.array(familiar)
    for mask, name, colour in ((known, "lived before", "C0"), (~known, "new", "C3")):
        above.scatter(lines[mask], familiarity[mask], s=4, alpha=0.4, color=colour, label=name)
    above.set(xlabel="line", ylabel="familiarity", ylim=(-0.05, 1.05))
    above.set_title("before each line is learned")
    above.legend(loc="center right", fontsize=8, markerscale=3)
    below.plot(lines, entropy, color="0.8", linewidth=0.5)
    window = min(_WINDOW, len(lines))
    smooth = np.convolve(entropy, np.ones(window) / window, mode="valid")
    below.plot(lines[window - 1 :], smooth, color="C2", label=f"mean of {window} lines")
    below.set(xlabel="line", ylabel="entropy H = std(h)")
    below.legend(loc="upper right", fontsize=8)


def _roc(scores: F64, familiar: Sequence[bool]) -> tuple[F64, F64]:
    """Shares of new and of lived lines at or above each threshold, from none to all."""
    order = np.argsort(-scores, kind="stable")
    known = np.array(familiar)[order]
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true = np.cumsum(known)[last_of_ties] / max(known.sum(), 1)
    false = np.cumsum(~known)[last_of_ties] / max((~known).sum(), 1)
    return np.append(0, false), np.append(0, true)
