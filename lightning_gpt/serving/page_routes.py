"""The chat page at `/`: static files, read once, sent with strict headers.

The page is plain HTML, CSS and JavaScript modules without a build step and loads nothing from elsewhere; the content
security policy holds it to that, so that a text that a model writes could not run or fetch anything even if it got
into the page as markup.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

FOLDER = Path(__file__).parent / "page"
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
"""Suffix -> content type; files of other kinds are not served."""
HEADERS = {
    "cache-control": "no-cache",  # kept, but asked for again: a 304 costs little, and an upgrade shows at once
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
}


def page_routes() -> list[Route]:
    """`/` and `/page/NAME` for every file of the folder: GET and HEAD, with an ETag, 304 where it is known.

    Only names found at the start are routes, so that no path can lead elsewhere.
    """
    from starlette.routing import Route

    routes = []
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in TYPES:
            url = "/" if path.name == "index.html" else f"/page/{path.name}"
            routes.append(Route(url, _sender(path), name=path.name, include_in_schema=False))
    return routes


def _sender(path: Path):
    from starlette.responses import Response

    body = path.read_bytes()
    etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = {**HEADERS, "etag": etag, "content-type": TYPES[path.suffix]}

    async def send(request: Request) -> Response:
        known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
        if etag in known or "*" in known:
            return Response(status_code=304, headers={**HEADERS, "etag": etag})
        return Response(body, headers=headers)

    return send
