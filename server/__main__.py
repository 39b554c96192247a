"""``python -m server``: run the daemon with the settings of the environment."""

from __future__ import annotations

import logging
import signal
import sys
from typing import Any

import uvicorn

from organism.fused import set_threads
from organism.genome import GenomeError, load
from server.app import make_app
from server.engine import Engine
from server.metrics import Metrics
from server.settings import ServerSettings, SettingsError, load_settings
from server.storage.snapshot import StateDirError

SERVING: dict[str, Any] = {
    "http": "httptools",
    "loop": "asyncio",
    "proxy_headers": False,
    "ws": "websockets-sansio",
    "ws_per_message_deflate": False,
    # While the window is full nothing is read, pongs included: no client dies of its own backlog.
    "ws_ping_timeout": None,
    "access_log": False,
}
"""How uvicorn serves, whatever it serves."""

_EXIT_FAILED = 1
_EXIT_USAGE = 2


def main() -> int:
    """Run until SIGTERM or Ctrl-C.

    Returns:
        0 after a clean stop, 1 where the state cannot be read or written, 2 for settings that
        cannot be run with; uvicorn exits with 3 where the address cannot be had.
    """
    logging.basicConfig(level=logging.INFO, format="%(levelname)-8s %(name)s: %(message)s")
    # uvicorn raises the signal that stopped it once more when it is done: then, as before it has
    # begun, there is nothing left to do but to leave.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    set_threads(1)
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"organism: {error}", file=sys.stderr)
        return _EXIT_USAGE
    metrics = Metrics()
    engine = Engine(settings, metrics, lambda: load(settings.genome))
    try:
        engine.start()
    except (StateDirError, GenomeError) as error:
        print(f"organism: {error}", file=sys.stderr)
        return _EXIT_FAILED
    try:
        _serve(settings, engine, metrics)
    finally:
        # A second signal must not cut the snapshot short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        stopped = _stop(engine)
    return 0 if stopped else _EXIT_FAILED


def _stop(engine: Engine) -> bool:
    try:
        engine.stop()
    except OSError as error:
        print(f"organism: cannot write the snapshot: {error}", file=sys.stderr)
        return False
    return True


def _serve(settings: ServerSettings, engine: Engine, metrics: Metrics) -> None:
    config = uvicorn.Config(
        make_app(settings, engine, metrics),
        host=settings.host,
        port=settings.port,
        ws_max_size=settings.body_limit_bytes,
        timeout_graceful_shutdown=settings.stop_timeout_s,
        **SERVING,
    )
    uvicorn.Server(config).run()


if __name__ == "__main__":
    sys.exit(main())
