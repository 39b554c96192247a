"""Figures of an evaluation; needs matplotlib (``pip install '.[peers]'``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from organism.auroc import auroc
from organism.jit import F64
from organism.peers import PeerMissing

_SIZE_INCHES = (12, 8)
_DPI = 150
_WINDOW = 50


def plot_life(
    path: Path,
    title: str,
    familiar: Sequence[bool],
    familiarity: F64,
    entropy: F64,
    peers: Mapping[str, F64],
) -> None:
    """Draw one life: ROC curves beside the peers, and familiarity and entropy over time.

    Args:
        path: of the PNG.
        title: of the figure.
        familiar: labels.
        familiarity: before each line was learned, ``(lines,)``.
        entropy: H of each line, ``(lines,)``.
        peers: scores of each, ``(lines,)``.

    Raises:
        PeerMissing: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise PeerMissing("--plot needs matplotlib: pip install '.[peers]'") from error
    figure = Figure(figsize=_SIZE_INCHES, dpi=_DPI, layout="constrained")
    figure.suptitle(title)
    panels: Any = figure.subfigures(1, 2, width_ratios=(1, 1.2))
    roc = panels[0].subplots()
    for name, scores in {"organism": familiarity, **peers}.items():
        false, true = _roc(scores, familiar)
        own = name == "organism"
        roc.plot(
            false,
            true,
            label=f"{name} {auroc(scores, familiar):.3f}",
            linewidth=2.5 if own else 1,
            color="black" if own else None,
            zorder=3 if own else 2,
        )
    roc.plot([0, 1], [0, 1], color="0.8", linewidth=1, zorder=1)
    roc.set(xlabel="false alarms", ylabel="hits", title="ROC, with the area under it", aspect=1)
    roc.legend(loc="lower right", fontsize=8)
    over_time, below = panels[1].subplots(2, 1, sharex=True)
    lines = np.arange(len(familiar))
    known = np.array(familiar)
    for mask, name, colour in ((known, "lived before", "C0"), (~known, "new", "C3")):
        over_time.scatter(lines[mask], familiarity[mask], s=4, alpha=0.4, color=colour, label=name)
    over_time.set(ylabel="familiarity", ylim=(-0.05, 1.05), title="before each line is learned")
    over_time.legend(loc="center right", fontsize=8)
    below.plot(lines, entropy, color="0.8", linewidth=0.5)
    window = min(_WINDOW, len(lines))
    smooth = np.convolve(entropy, np.ones(window) / window, mode="valid")
    below.plot(lines[window - 1 :], smooth, color="C2", label=f"mean of {window} lines")
    below.set(xlabel="line", ylabel="entropy H = std(h)")
    below.legend(loc="upper right", fontsize=8)
    figure.savefig(path)


def _roc(scores: F64, familiar: Sequence[bool]) -> tuple[F64, F64]:
    """Shares of new and of lived lines at or above each threshold, from none to all."""
    order = np.argsort(-scores, kind="stable")
    known = np.array(familiar)[order]
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    true = np.cumsum(known)[last_of_ties] / max(known.sum(), 1)
    false = np.cumsum(~known)[last_of_ties] / max((~known).sum(), 1)
    return np.append(0, false), np.append(0, true)
