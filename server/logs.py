"""What the daemon says of itself on stderr: one JSON object a line, or text for a person.

No line carries bytes of the stream or of a cue: a request is named by its id, method and path.
"""

from __future__ import annotations

import logging
import sys

from pythonjsonlogger.json import JsonFormatter

from server.settings import ServerSettings

_FIELDS = ["asctime", "levelname", "name", "message"]
_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}


def set_up(settings: ServerSettings) -> None:
    """Send every logger to stderr, in the format of the settings."""
    handler = logging.StreamHandler()
    if settings.log_format == "text" or (settings.log_format == "auto" and sys.stderr.isatty()):
        handler.setFormatter(logging.Formatter("%(levelname)-8s %(name)s: %(message)s"))
    else:
        formatter = JsonFormatter(_FIELDS, rename_fields=_NAMES)
        formatter.default_time_format, formatter.default_msec_format = (
            "%Y-%m-%dT%H:%M:%S",
            "%s.%03d",
        )
        handler.setFormatter(formatter)
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    # Libraries tell at debug level of every frame and its bytes, and at any other of requests that
    # clients got wrong, and their queries: those are refused, and counted.
    logging.basicConfig(level=max(level, logging.WARNING), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("organism").setLevel(level)
