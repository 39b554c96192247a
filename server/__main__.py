"""``python -m server``: run the daemon with the settings of the environment.

``python -m server verify [FOLDER]`` inspects a state folder, ``--repair`` makes it start again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import signal
import socket
import sys
import time
from concurrent.futures import Future
from typing import Any

import uvicorn

from organism.fused import set_threads
from organism.genome import GenomeError, load
from organism.jit import compiled_for_the_cache
from server import logs, verify
from server.app import make_app
from server.engine import Engine, Stopped
from server.learner import warm_up
from server.life import Life
from server.metrics import Metrics
from server.patience import PatientSocket, listen, patient
from server.settings import ServerSettings, SettingsError, load_settings
from server.storage.journal import JournalDamaged
from server.storage.statedir import StateDirError
from server.waking import choose

SERVING: dict[str, Any] = {
    "loop": "asyncio",
    "proxy_headers": False,
    "ws_per_message_deflate": False,
    # While the window is full nothing is read, pongs included: no client dies of its own backlog.
    "ws_ping_timeout": None,
    "access_log": False,
    "log_config": None,
}
"""How uvicorn serves, whatever it serves."""

# Set where this process has begun anew; without a cache that lasts, once must be enough.
_RESTARTED = "_ORGANISM_KERNELS_COMPILED"
_EXIT_FAILED = 1
_EXIT_USAGE = 2
# Objects made and not freed until the collector looks for cycles among them. Its own threshold of
# 700 is soon reached where small posts come by the thousand.
_YOUNG_OBJECTS = 5_000
# What a stop may take beyond its time: the snapshot.
_LEAST_PATIENCE_S = 1.0

_log = logging.getLogger("organism")


def main() -> int:
    """Run until SIGTERM or Ctrl-C, or inspect a state folder.

    Returns:
        0 after a clean stop; 1 where the state cannot be read or written, or the address cannot
        be had; 2 for settings that cannot be run with.
    """
    parser = argparse.ArgumentParser("python -m server", description=__doc__)
    verify.describe(parser.add_subparsers(dest="command", metavar="verify"))
    options = parser.parse_args()
    try:
        settings = load_settings()
    except SettingsError as error:
        print(f"organism: {error}", file=sys.stderr)
        return _EXIT_USAGE
    if options.command == "verify":
        return verify.run(options, settings.state_dir)
    return serve(settings)


def serve(settings: ServerSettings) -> int:
    """Run until SIGTERM or Ctrl-C; return the exit status, as ``main`` does."""
    logs.set_up(settings)
    # uvicorn raises the signal that stopped it once more when it is done: then, as before it has
    # begun, there is nothing left to do but to leave.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    set_threads(1)
    _load_kernels(settings)
    metrics = Metrics()
    engine = Engine(settings, metrics, lambda: load(settings.genome))
    server = _Server(settings, engine, metrics)
    try:
        listener = listen(settings)
    except OSError as error:
        address = f"{settings.host}:{settings.port}"
        print(f"organism: cannot listen on {address}: {error.strerror}", file=sys.stderr)
        return _EXIT_FAILED
    # What there is by now stays: no collection need look at it again.
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
    try:
        server.serve_until_stopped(listener, engine.start())
    except StateDirError as error:
        print(f"organism: {error}", file=sys.stderr)
        return _EXIT_FAILED
    except SystemExit:
        pass  # the signal; how the stop ends is told below
    finally:
        # A second signal must not cut the snapshot short.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        stopped = _stop(engine, server.patience_s)
    return 0 if stopped else _EXIT_FAILED


def _load_kernels(settings: ServerSettings) -> None:
    """Load every kernel that learning needs; where they had to be compiled first, start again.

    A replay must round as the life did, and compiled kernels do not round as loaded ones.
    """
    try:
        life = choose(settings.state_dir).life or Life.born(load(settings.genome), 0, 0)
    except GenomeError:
        return  # the engine says so
    warm_up(life)
    if compiled_for_the_cache() and _RESTARTED not in os.environ:
        os.environ[_RESTARTED] = "1"
        os.execv(sys.executable, sys.orig_argv)


def _stop(engine: Engine, patience_s: float) -> bool:
    try:
        engine.stop(patience_s)
    except OSError as error:
        print(f"organism: cannot write the snapshot: {error}", file=sys.stderr)
        return False
    fault = engine.recovered.exception() if engine.recovered.done() else None
    if fault is None or isinstance(fault, Stopped):
        return True
    if not isinstance(fault, JournalDamaged | StateDirError | GenomeError | OSError):
        _log.critical("recovery failed", exc_info=fault)
    print(f"organism: {fault}", file=sys.stderr)
    return False


class _Server(uvicorn.Server):
    """uvicorn's server, which is not ready from the moment it stops, or cannot recover."""

    def __init__(self, settings: ServerSettings, engine: Engine, metrics: Metrics) -> None:
        served = make_app(settings, engine, metrics)
        super().__init__(
            uvicorn.Config(
                served.app,
                host=settings.host,
                port=settings.port,
                http=patient(settings, metrics, served.express),
                ws=PatientSocket,
                ws_max_size=settings.body_limit_bytes,
                timeout_graceful_shutdown=settings.stop_timeout_s,
                **SERVING,
            )
        )
        self._settings = settings
        self._engine = engine
        self._deadline = float("inf")

    @property
    def patience_s(self) -> float:
        """Time that is left to stop in."""
        return max(self._deadline - time.monotonic(), _LEAST_PATIENCE_S)

    def serve_until_stopped(self, listener: socket.socket, recovered: Future[None]) -> None:
        """Serve until a signal comes, or until there is nothing to serve."""
        recovered.add_done_callback(self._look)
        self.run([listener])

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take nothing more, and give requests under way their time."""
        self._deadline = time.monotonic() + self._settings.stop_timeout_s
        self._engine.close()
        await super().shutdown(sockets)

    def _look(self, recovered: Future[None]) -> None:
        if recovered.exception() is not None:
            self.should_exit = True


if __name__ == "__main__":
    sys.exit(main())
