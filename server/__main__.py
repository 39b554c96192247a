"""``python -m server``: run the daemon with the settings of the environment."""

from __future__ import annotations

import logging
import sys

import torch
import uvicorn

from server.app import make_app
from server.settings import SettingsError, load_settings


def main() -> int:
    """Run until SIGTERM or Ctrl-C; 0 after a clean stop, 2 for settings that cannot be run with."""
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # One core for the learner: a step's matrices are too small to share, and idle threads would
    # spin.
    torch.set_num_threads(1)
    try:
        settings = load_settings()
        app = make_app(settings)
    except SettingsError as error:
        print(f"organism: {error}", file=sys.stderr)
        return 2
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            ws="websockets-sansio",
            ws_max_size=settings.body_limit_bytes,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=int(settings.stop_timeout_s),
            access_log=False,
        )
    )
    server.run()
    return 0 if server.started else 1


if __name__ == "__main__":
    sys.exit(main())
