"""Reports: whole in one file, and honest about where they come from."""

from __future__ import annotations

import re
from pathlib import Path

from organism.lab.drawing import curves, new_figure
from organism.lab.report import Drawing, Report, Table, command_line, plain


def _report() -> Report:
    figure, panels = new_figure(2.0)
    curves(panels[0][0], [1, 2], {"rule": [[0.1, 0.2], [0.3, 0.4]]})
    return Report(
        "A title",
        "What was <found>.",
        "0 to 9",
        [
            Table("A table", ("row", "figure"), [["a & b", "0.5"]], "A note."),
            "A word.",
            Drawing("curve", "A curve", figure),
        ],
        {"figure": 0.5},
    )


def test_a_report_needs_nothing_else(tmp_path: Path) -> None:
    """Every figure is inside, no address is fetched, and what could be markup is escaped."""
    path = _report().write(
        tmp_path / "out", command_line("organism.lab", ["tables", "--seeds", "2"])
    )
    page = path.read_text()
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)
    assert page.count("data:image/png;base64,") == 1
    assert "What was &lt;found&gt;." in page
    assert "a &amp; b" in page
    for told in ("A note.", "A word.", "0 to 9", "-m organism.lab tables --seeds 2", "torch"):
        assert told in page
    assert re.search(r"<dt>commit</dt><dd>([0-9a-f]{40}( with changes)?|unknown)</dd>", page)


def test_figures_lie_beside_it(tmp_path: Path) -> None:
    """As PNG and as SVG."""
    _report().write(tmp_path, ["lab"])
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "curve.svg").read_text()


def test_a_terminal_sees_tables(tmp_path: Path) -> None:
    """Title, summary, tables with their notes, and paragraphs."""
    shown = plain(_report())
    for told in ("A title", "What was <found>.", "A table", "a & b", "0.5", "A note.", "A word."):
        assert told in shown
