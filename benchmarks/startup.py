"""How soon the daemon is ready, and whether it grows.

``python -m benchmarks.startup [--json] [--chunks N]``. import_ratio: time from the start of the
process to its first 200 from ``/readyz``, less one second, against ``python -c "import torch,
fastapi"``; the kernels have been compiled by a start before. rss_growth: resident memory after N
chunks against a tenth of them; every line is new, so that the episode memory is full and turning
over at both.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Iterator

import psutil

from benchmarks.clients import Connection, request
from benchmarks.measure import Figure, parser, report, take_turns
from benchmarks.processes import daemon

_ALLOWED_S = 1.0
_LINES_A_MESSAGE = 500
_CONNECTIONS = 4


def ready_s() -> float:
    """Seconds from the start of a new daemon to its readiness."""
    with daemon() as server:
        return server.seconds_to_ready


def import_s() -> float:
    """Seconds that a process takes to import what the daemon stands on."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch, fastapi"], check=True)
    return time.perf_counter() - start


def new_messages() -> Iterator[bytes]:
    """Endless messages of lines that never come twice."""
    for k in itertools.count():
        first = k * _LINES_A_MESSAGE
        lines = (
            b"%08d host-%d sshd[%d]: session %d opened for user u%d from 10.0.%d.%d port %d\n"
            % (i, i % 40, i % 9973, i, i % 611, i % 251, i % 241, i % 60_013)
            for i in range(first, first + _LINES_A_MESSAGE)
        )
        yield request("/ingest", b"".join(lines))


def growth(chunks: int) -> float:
    """Resident memory after so many chunks over that after a tenth of them, less 1."""
    with daemon() as server:
        connections = [Connection(server.port) for _ in range(_CONNECTIONS)]
        process, messages, lived = psutil.Process(server.pid), new_messages(), 0
        resident = []
        for goal in (chunks // 10, chunks):
            while lived < goal:
                for connection in connections:
                    connection.send(next(messages))
                for connection in connections:
                    connection.answered()
                lived += _LINES_A_MESSAGE * _CONNECTIONS
            resident.append(process.memory_info().rss)
        for connection in connections:
            connection.socket.close()
    return float(resident[1] / resident[0] - 1)


def main() -> int:
    """Run the command."""
    options = parser(__doc__, rounds=5)
    options.add_argument("--chunks", type=int, default=1_000_000, help="chunks to live through")
    given = options.parse_args()
    found = take_turns({"ready": ready_s, "import": import_s}, given.rounds)
    ratios = [
        (ready - _ALLOWED_S) / imported
        for ready, imported in zip(found["ready"], found["import"], strict=True)
    ]
    figures = [
        Figure("import_ratio", ratios, "≤ 1.5"),
        Figure("rss_growth", [growth(given.chunks)], "within ± 0.02"),
    ]
    details = {f"{name}_s": sorted(times)[len(times) // 2] for name, times in found.items()}
    report("Starting, and staying the same size", figures, details, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
