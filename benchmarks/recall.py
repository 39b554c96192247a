"""How long a question waits while the daemon learns as fast as it can.

``python -m benchmarks.recall [--json]``. p99_load_ratio: the 99th percentile of ``POST /recall``,
one after the other on one connection, while another process posts 64 KiB messages on four, against
the same with nothing else to do. Both see an episode memory that is full.
"""

from __future__ import annotations

import multiprocessing
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from benchmarks.clients import Connection, post_for, request
from benchmarks.ingest import lines_of, messages_of
from benchmarks.measure import Figure, parser, quotients, report, take_turns
from benchmarks.processes import daemon

_MESSAGE_BYTES = 1 << 16
_CONNECTIONS = 4
_QUESTIONS = 400


def p99_s(port: int, cues: Sequence[bytes]) -> float:
    """99th percentile of the time to an answer, in seconds."""
    connection, times = Connection(port), []
    for cue in cues:
        start = time.perf_counter()
        connection.send(cue)
        connection.answered()
        times.append(time.perf_counter() - start)
    connection.socket.close()
    return float(np.percentile(times, 99))


def _load(port: int, requests: Sequence[bytes]) -> None:
    while True:
        post_for(port, requests, _CONNECTIONS, 3600)


@contextmanager
def load(port: int, requests: Sequence[bytes]) -> Iterator[None]:
    """Post from another process until the block ends."""
    process = multiprocessing.get_context("fork").Process(target=_load, args=(port, requests))
    process.start()
    time.sleep(0.5)  # until messages wait
    try:
        yield
    finally:
        process.kill()
        process.join()


def main() -> int:
    """Run the command."""
    given = parser(__doc__).parse_args()
    lines = lines_of(None)
    messages = [request("/ingest", m) for m in messages_of(lines, _MESSAGE_BYTES)]
    draws = random.Random(1)
    cues = [request("/recall", draws.choice(lines)) for _ in range(_QUESTIONS)]
    with daemon() as server:
        post_for(server.port, messages, _CONNECTIONS, 2.0)

        def loaded() -> float:
            with load(server.port, messages):
                return p99_s(server.port, cues)

        found = take_turns({"idle": lambda: p99_s(server.port, cues), "load": loaded}, given.rounds)
    figure = Figure("p99_load_ratio", quotients(found["load"], found["idle"]), "≤ 5")
    details = {f"{name}_p99_ms": 1e3 * float(np.median(t)) for name, t in found.items()}
    report("Recall under load", [figure], details, given.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
