"""The commands by which the README's figures can be had again; apart, since they take a while."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
_PATIENCE_S = 240


@pytest.mark.slow
def test_every_command_behind_a_figure_works(tmp_path: Path) -> None:
    """Those that measure, on a log that stands for the ones that are not shipped."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(_ROOT)}
    (tmp_path / "checkpoints").symlink_to(_ROOT / "checkpoints")

    def typed(command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "-c", command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_PATIENCE_S,
        )

    log = typed("python -m examples.service | head -100").stdout
    for name in ("Linux.content.log", "Linux.raw.log"):
        (tmp_path / name).write_text(log)
    commands = re.findall(r"^    (python -m .*)$", (_ROOT / "README.md").read_text(), re.M)
    assert len(commands) >= 5
    for command in commands:
        done = typed(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        assert done.stdout, command
    assert (tmp_path / "life.png").stat().st_size > 10_000
