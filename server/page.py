"""The dashboard's files: one static page, its style and its script, from ``server/dashboard``.

The page asks for its data as any client does; nothing is made here, and nothing comes from
elsewhere.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from starlette.responses import Response

_FOLDER = Path(__file__).parent / "dashboard"
_FILES = {
    "/": ("index.html", "text/html"),
    "/dashboard/dashboard.css": ("dashboard.css", "text/css"),
    "/dashboard/dashboard.js": ("dashboard.js", "text/javascript"),
}
PATHS = tuple(_FILES)
"""Paths that they are served at."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def serve(path: str) -> Callable[[], Awaitable[Response]]:
    """Make the route of one of ``PATHS``; its file is read once, now."""
    name, media_type = _FILES[path]
    content = (_FOLDER / name).read_bytes()

    async def file() -> Response:
        return Response(content, media_type=f"{media_type}; charset=utf-8", headers=_HEADERS)

    return file
