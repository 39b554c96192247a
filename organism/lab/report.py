"""Reports: one HTML file that needs no other, with its figures, seeds, commit and command.

Owns how findings are laid out; knows nothing of what was measured. Figures are also left beside the
report, as PNG and as SVG.
"""

from __future__ import annotations

import base64
import io
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import fmean, stdev
from typing import Any


class LabMissing(ImportError):
    """What the laboratory needs is not installed; the message says how to install it."""


@dataclass(frozen=True)
class Table:
    """Rows of text under a caption."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """A matplotlib figure, and the words that stand for it."""

    name: str
    caption: str
    figure: Any


@dataclass
class Report:
    """What a command found, in the order in which it is read.

    Attributes:
        title: of the page.
        summary: what was found, in a few sentences.
        seeds: all seeds that it rests on, in words.
        parts: tables, drawings and paragraphs.
        figures: what matters most, for programs.
    """

    title: str
    summary: str
    seeds: str
    parts: list[Table | Drawing | str] = field(default_factory=list)
    figures: Mapping[str, Any] = field(default_factory=dict)

    def write(self, folder: Path, command: Sequence[str]) -> Path:
        """Write ``report.html`` and the figures into a folder; return the report's path.

        Raises:
            LabMissing: jinja2 is not installed.
        """
        try:
            from jinja2 import Environment, FileSystemLoader
        except ImportError as error:
            raise LabMissing("reports need jinja2: pip install '.[lab]'") from error
        folder.mkdir(parents=True, exist_ok=True)
        shown = [_shown(part, folder) for part in self.parts]
        templates = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
        page = templates.get_template("report.html.jinja")
        path = folder / "report.html"
        path.write_text(
            page.render(
                title=self.title,
                summary=self.summary,
                seeds=self.seeds,
                parts=shown,
                provenance=provenance(command),
            )
        )
        return path


def provenance(command: Sequence[str]) -> dict[str, str]:
    """Where a report comes from: command, commit, versions, machine and time."""
    return {
        "command": shlex.join(command),
        "commit": _commit(),
        "versions": f"Python {platform.python_version()}, torch {_version('torch')}, "
        f"numpy {_version('numpy')}, organism {_version('organism')}",
        "machine": f"{platform.machine()}, {platform.system()}",
        "written": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


def spread(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation of a sample; what is not finite is counted apart.

    >>> spread([0.1, 0.2, 0.3])
    '0.200 ± 0.100'
    >>> spread([0.1, 0.3, float("nan")], 1)
    '0.2 ± 0.1 (1 not finite)'
    >>> spread([float("inf")])
    'not finite'
    """
    finite = [value for value in values if abs(value) < float("inf")]
    if not finite:
        return "not finite"
    text = f"{fmean(finite):.{digits}f}"
    if len(finite) > 1:
        text += f" ± {stdev(finite):.{digits}f}"
    lost = len(values) - len(finite)
    return f"{text} ({lost} not finite)" if lost else text


def plain(report: Report) -> str:
    """Tables and paragraphs of a report as a terminal shows them."""
    from rich.console import Console
    from rich.table import Table as Grid

    console = Console(file=io.StringIO(), width=160)
    console.print(report.title, style="bold", markup=False)
    console.print(report.summary, markup=False)
    for part in report.parts:
        if isinstance(part, Table):
            grid = Grid(*part.head, title=part.caption, title_justify="left")
            for row in part.rows:
                grid.add_row(*row)
            console.print(grid)
            console.print(part.note, markup=False)
        elif isinstance(part, str):
            console.print(part, markup=False)
    written = console.file
    assert isinstance(written, io.StringIO)
    return written.getvalue()


def _shown(part: Table | Drawing | str, folder: Path) -> dict[str, Any]:
    if isinstance(part, str):
        return {"kind": "text", "text": part}
    if isinstance(part, Table):
        return {"kind": "table", "table": part}
    png, svg = io.BytesIO(), io.BytesIO()
    part.figure.savefig(png, format="png", dpi=150)
    part.figure.savefig(svg, format="svg")
    (folder / f"{part.name}.png").write_bytes(png.getvalue())
    (folder / f"{part.name}.svg").write_bytes(svg.getvalue())
    encoded = base64.b64encode(png.getvalue()).decode()
    return {
        "kind": "drawing",
        "caption": part.caption,
        "source": f"data:image/png;base64,{encoded}",
    }


def _commit() -> str:
    """Commit of the sources, and whether they differ from it; "unknown" outside a checkout."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", str(here.parent))
        return git("rev-parse", "HEAD") + (" with changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"


def command_line(module: str, arguments: Sequence[str]) -> list[str]:
    """Write the command that makes a report as a person types it."""
    return [Path(sys.executable).name, "-m", module, *arguments]
