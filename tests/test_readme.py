"""The README, typed as a newcomer types it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests.server.conftest import Daemon, free_port, genome_path, until

__all__ = ["genome_path"]  # a fixture, for pytest to find

_ROOT = Path(__file__).resolve().parents[1]
_PORT = "8765"
_PATIENCE_S = 240
_PROMPT = "$ "
_ELIDED = "…"
# This test is in `make test`, which cannot run itself; `make run` does not end, and the tour's
# daemon stands for it.
_NOT_RUN = {"make test", "make run"}
# What a newcomer may not have: without it, its commands are left out.
_OPTIONAL = ("prometheus", "promtool")


class _Shown(NamedTuple):
    """A command of the README, and the lines that it says come back."""

    command: str
    output: list[str]


def _consoles(text: str) -> Iterator[_Shown]:
    """Commands of all ``console`` blocks, in order."""
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        shown: _Shown | None = None
        for line in block.splitlines():
            if line.startswith(_PROMPT):
                if shown:
                    yield shown
                command = line.removeprefix(_PROMPT).partition("  # ")[0].strip()
                shown = _Shown(command, [])
            else:
                assert shown, f"output before any command: {line}"
                shown.output.append(line)
        if shown:
            yield shown


def _words(text: str) -> set[str]:
    """Words of a text: what is drawn, and every number, aside."""
    return set(re.findall(r"[A-Za-z_]{3,}", text))


@contextmanager
def _background(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run a command until the block ends; it must not have ended before."""
    with (folder / f"{command.split()[0]}.said").open("w") as out:
        process = subprocess.Popen(
            ["bash", "-c", f"exec {command}"], cwd=folder, env=environment, stdout=out, stderr=out
        )
        try:
            yield
            assert process.poll() is None, f"{command} has ended by itself"
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(timeout=60)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """The files of the repository, where a newcomer would have put them, already installed."""
    folder = tmp_path / "organism"
    kept = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in kept.stdout.splitlines():
        if (_ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(_ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    for stamp in (".python", ".run", ".dev"):
        (folder / ".venv" / stamp).touch()
    return folder


@pytest.mark.slow
def test_every_command_of_the_readme_works(clone: Path) -> None:
    """Each ends well, and says at least the words that the README shows, in the README's order."""
    port = str(free_port())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ORGANISM_")} | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ORGANISM_PORT": port,
        "ORGANISM_URL": f"http://127.0.0.1:{port}",
        "XDG_STATE_HOME": str(clone / "state-home"),
        "COLUMNS": "100",
    }
    shown = [*_consoles((clone / "README.md").read_text())]
    assert len(shown) > 12, "the README shows hardly anything any more"
    assert {s.command for s in shown} >= {"make run", "make test"}
    with ExitStack() as running:
        running.enter_context(_background("python -m server", clone, environment))
        _wait_until_ready(port)
        for command, output in shown:
            tool = command.split()[0]
            if command in _NOT_RUN or (tool in _OPTIONAL and shutil.which(tool) is None):
                continue
            typed = command.replace(_PORT, port)
            if typed.endswith("&"):
                typed = typed.removesuffix("&").strip()
                if tool == "prometheus":
                    typed += f" --web.listen-address=127.0.0.1:{free_port()}"
                running.enter_context(_background(typed, clone, environment))
                continue
            done = subprocess.run(
                ["bash", "-c", typed],
                cwd=clone,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_PATIENCE_S,
            )
            said = done.stdout + done.stderr
            assert done.returncode == 0, f"{typed}\n{said}"
            expected = _words("\n".join(output).replace(_ELIDED, ""))
            missing = expected - _words(said)
            assert not missing, f"{typed}: the README also shows {sorted(missing)}\n{said}"


@pytest.mark.slow
def test_the_ten_lines_of_python_work(clone: Path, tmp_path: Path, genome_path: Path) -> None:
    """They say what was learned, what was found, and where the stream is."""
    (block,) = re.findall(r"^```python\n(.*?)^```$", (clone / "README.md").read_text(), re.M | re.S)
    (clone / "app.log").write_bytes(b"one line\nand another\n")
    with Daemon(tmp_path / "state", genome_path) as daemon:
        script = block.replace(f"http://127.0.0.1:{_PORT}", str(daemon.client.base_url))
        done = subprocess.run(
            [sys.executable, "-c", script], cwd=clone, capture_output=True, text=True, timeout=60
        )
    assert done.returncode == 0, done.stderr
    familiarity, match, offset = done.stdout.split("\n")[:3]
    assert 0 < float(familiarity) < 1
    assert (match, int(offset)) == ("a first line", len("a first line\none line\nand another\n"))


def _wait_until_ready(port: str) -> None:
    def ready() -> bool:
        try:
            return httpx.get(f"http://127.0.0.1:{port}/readyz").is_success
        except httpx.TransportError:
            return False

    until(ready)
