"""The pages and all that they load, from memory: nothing of them lies anywhere else."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources

from fastapi import FastAPI, Request
from fastapi.responses import Response

CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
PAGES = {"/": "chat.html", "/planner": "planner.html", "/pipeline": "pipeline.html"}
FOLDER = "/page/"

# What a model writes is shown on these pages: no script but the package's own may run, nothing may be loaded
# from or sent to anywhere else, and no text can become markup (`trusted-types`).
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
_HEADERS = {
    # Asked for again each time, and answered with 304: an upgrade of the package shows at once.
    "Cache-Control": "no-cache",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True)
class Asset:
    """A file of the pages."""

    content: bytes
    content_type: str
    etag: str


def _load() -> dict[str, Asset]:
    """The assets by path."""
    found: dict[str, Asset] = {}
    files = {file.name: file for file in resources.files("step3.server.page").joinpath("assets").iterdir()}
    for name, file in files.items():
        content_type = CONTENT_TYPES.get(name[name.rfind(".") :])
        if content_type is not None and content_type != CONTENT_TYPES[".html"]:
            found[FOLDER + name] = _asset(file.read_bytes(), content_type)
    for path, name in PAGES.items():
        found[path] = _asset(files[name].read_bytes(), CONTENT_TYPES[".html"])
    return found


def _asset(content: bytes, content_type: str) -> Asset:
    return Asset(content, content_type, f'"{hashlib.sha256(content).hexdigest()[:24]}"')


ASSETS = _load()
"""All of them by path; they hold no secret and are served to whoever reaches the server."""


def add_assets(app: FastAPI) -> None:
    """Serves each asset at its path, and nothing that is no asset."""
    for path, asset in ASSETS.items():
        app.add_route(path, _serve(asset), methods=["GET", "HEAD"], include_in_schema=False)


def _serve(asset: Asset) -> Callable[[Request], Awaitable[Response]]:
    headers = {**_HEADERS, "ETag": asset.etag}

    async def serve(request: Request) -> Response:
        if asset.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(asset.content, media_type=asset.content_type, headers=headers)

    return serve
