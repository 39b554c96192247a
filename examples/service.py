"""The log of a small web service, to try the organism on: ``python -m examples.service``.

Prints lines of a shop that takes orders: a few hundred distinct ones, as often as they come in such
logs. With ``--incident`` something happens that never did before.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Iterator

_PATHS = ("/", "/cart", "/checkout", "/login", "/orders", "/products", "/search", "/status")
_USERS = ("alice", "bob", "carol", "dave", "erin", "frank", "grace", "heidi", "ivan", "judy")
_WORKERS = ("cache-1", "cache-2", "mailer", "search-index", "thumbnails")
_INCIDENT = (
    "ERROR payments: provider answered 502, 3 orders are held",
    "ERROR payments: retry queue is growing, oldest entry waits since 41 s",
    "WARN  database: replica 2 is 17 s behind, reads go to the primary",
)


def main() -> int:
    """Print the log; 0 when it is done, or when nobody reads it any more."""
    parser = argparse.ArgumentParser("python -m examples.service", description=__doc__)
    parser.add_argument("--lines", type=int, default=3000, help="how many lines")
    parser.add_argument("--rate", type=float, default=0, help="lines a second; 0: all at once")
    parser.add_argument("--seed", type=int, default=1, help="which stretch of the service's life")
    parser.add_argument("--incident", action="store_true", help="end with what never happened")
    options = parser.parse_args()
    lines = [*service(options.lines, random.Random(options.seed))]
    try:
        for line in [*lines, *(_INCIDENT if options.incident else ())]:
            print(line, flush=options.rate > 0)
            if options.rate > 0:
                time.sleep(1 / options.rate)
    except BrokenPipeError:
        sys.stderr.close()  # or the interpreter would complain once more
    return 0


def service(count: int, rng: random.Random) -> Iterator[str]:
    """Lines of an ordinary day."""
    for _ in range(count):
        user, path, worker = rng.choice(_USERS), rng.choice(_PATHS), rng.choice(_WORKERS)
        yield rng.choices(
            (
                f"INFO  web: GET {path} 200 for {user}",
                f"INFO  web: POST /orders 201 for {user}",
                f"WARN  web: GET {path} 404 for {user}",
                f"INFO  worker: {worker} is idle",
                f"INFO  session: {user} signed in",
            ),
            weights=(60, 15, 3, 12, 10),
        )[0]


if __name__ == "__main__":
    sys.exit(main())
