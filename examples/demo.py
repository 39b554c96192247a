"""A daemon lives through Python's own standard library and is asked what it remembers.

``make demo``, or ``python -m examples.demo``: starts a daemon on a free port of this machine with
a state folder of its own, feeds it, asks it about a cue it lived through, the same cue damaged,
and one never seen, and prints the answers and the metrics. The daemon and its folder are gone
afterwards.
"""

from __future__ import annotations

import argparse
import random
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from organism.tasks.streams import damage
from server.settings import SettingsError, load_settings

_START_TIMEOUT_S = 60.0
_MESSAGE_LINES = 100
_DAMAGE = 0.1
_CUE_BYTES = 40
_RECENT_LINES = 300
_UNSEEN = b"the lighthouse keeper counted 17 herring gulls before breakfast"


def main() -> int:
    """Run the demonstration; 0 when every answer came."""
    parser = argparse.ArgumentParser("python -m examples.demo", description=__doc__)
    parser.add_argument("--lines", type=int, default=2000, help="lines to live through")
    options = parser.parse_args()
    console = Console()
    lines = standard_library(options.lines)
    with tempfile.TemporaryDirectory(prefix="organism-demo-") as folder, daemon(folder) as client:
        console.print(f"a daemon listens at {client.base_url}")
        messages = [lines[i : i + _MESSAGE_LINES] for i in range(0, len(lines), _MESSAGE_LINES)]
        for message in track(messages, f"living through {len(lines)} lines", console=console):
            post(client, "/ingest", b"\n".join(message) + b"\n")
        lived = recent_cue(lines)
        cues = {
            "lived through": lived,
            f"the same, {_DAMAGE:.0%} of its bytes damaged": damage(
                lived, _DAMAGE, random.Random(0)
            ),
            "never seen": _UNSEEN,
        }
        console.print(answers(client, cues))
        console.print(series(client))
    return 0


@contextmanager
def daemon(state_dir: str) -> Iterator[httpx.Client]:
    """Run a daemon on a free port of this machine until the block ends."""
    port = free_port()
    settings = {"ORGANISM_PORT": str(port), "ORGANISM_STATE_DIR": state_dir}
    try:
        load_settings(settings)
    except SettingsError as error:
        raise SystemExit(f"demo: {error}") from error
    log = Path(state_dir) / "log"
    with log.open("w") as stderr:
        process = subprocess.Popen([sys.executable, "-m", "server"], env=settings, stderr=stderr)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client, process, log)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Ask until the daemon takes messages; give up when it ends or takes too long."""
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"demo: the daemon did not start:\n{log.read_text()}")
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise SystemExit(f"demo: the daemon was not ready within {_START_TIMEOUT_S} s")


def free_port() -> int:
    """A TCP port of this machine that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def standard_library(count: int) -> list[bytes]:
    """The first lines, blank ones left out, of the standard library's modules in order of name."""
    lines: list[bytes] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        lines += [line for line in path.read_bytes().splitlines() if line.strip()]
        if len(lines) >= count:
            break
    return lines[:count]


def recent_cue(lines: list[bytes]) -> bytes:
    """Of the last lines, the one that came most often, the longer one among equals."""
    counts = Counter(lines[-_RECENT_LINES:])
    return max(counts, key=lambda line: (counts[line] * (len(line) >= _CUE_BYTES), len(line)))


def post(client: httpx.Client, path: str, body: bytes) -> httpx.Response:
    """Post bytes and insist on an answer."""
    reply = client.post(path, content=body, headers={"Content-Type": "application/octet-stream"})
    reply.raise_for_status()
    return reply


def answers(client: httpx.Client, cues: dict[str, bytes]) -> Table:
    """Ask about each cue."""
    table = Table(title="/recall", title_justify="left")
    for heading in ("cue", "familiarity", "entropy", "recall error", "first match"):
        table.add_column(heading, overflow="fold")
    for name, cue in cues.items():
        reply = post(client, "/recall", cue).json()
        text = cue.decode(errors="replace").strip()
        match = reply["matches"][0]["text"].strip()
        table.add_row(
            f"[bold]{name}[/bold]\n{_escape(text)}",
            f"{reply['familiarity']:.3f}",
            f"{reply['entropy']:.4f}",
            f"{reply['recall_error']:.3f}",
            _escape(match),
        )
    return table


def series(client: httpx.Client) -> Table:
    """The organism's own series, as Prometheus reads them; histograms by count and sum."""
    table = Table(title="/metrics", title_justify="left")
    table.add_column("series")
    table.add_column("value", justify="right")
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("organism_") and "_bucket" not in line and "_created" not in line:
            name, value = line.rsplit(" ", 1)
            table.add_row(_escape(name), f"{float(value):g}")
    return table


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


if __name__ == "__main__":
    sys.exit(main())
