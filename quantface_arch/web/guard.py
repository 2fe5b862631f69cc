"""Refuse, as middleware, every request that the page itself never sends."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request  # pyright: ignore[reportMissingImports]  (the extra app)
from starlette.responses import PlainTextResponse  # pyright: ignore[reportMissingImports]  (the extra app)
from starlette.types import (  # pyright: ignore[reportMissingImports]  (the extra app)
    ASGIApp,
    Message,
    Receive,
    Scope,
    Send,
)

__all__ = ["Guard"]

# An upload may exceed the largest file by this much, for its form. No other request may be larger.
_MARGIN = 1_000_000
# The page and Gradio's clients POST to these targets. Gradio has more, such as one that passes
# uploaded videos to ffmpeg.
_TARGETS = ("/upload", "/queue/join", "/run/predict", "/call/restore", "/cancel", "/reset")
# With this policy the browser loads nothing from other machines, whatever the page contains.
_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
    "worker-src 'self' blob:; connect-src 'self' data: blob:; frame-ancestors 'none'; "
    "form-action 'self'; base-uri 'self'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Limits requests to those of the page, bounds their size, and adds security headers.

    Args:
        app: the application behind the guard.
        max_bytes: largest uploaded file.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(event: Message) -> None:
            if event["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                event["headers"] = [*event["headers"], *own]
            await send(event)

        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        """Return the response to a forbidden request; None if it is allowed."""
        path = request.url.path
        # A reverse proxy may have merged the two slashes of an address.
        if ":/" in path:
            return PlainTextResponse("web addresses are not fetched", 403)
        if request.method != "POST":
            return None
        path = path.rstrip("/")
        if not path.endswith(tuple(f"/gradio_api{target}" for target in _TARGETS)):
            return PlainTextResponse("the page never sends this request", 404)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("the request must state its length", 411)
        largest = _MARGIN + (self.max_bytes if path.endswith("/upload") else 0)
        if int(length) > largest:
            return PlainTextResponse(f"{length} bytes: at most {largest} are allowed", 413)
        return None


def refuse_download(url: str, cache_dir: str) -> Any:
    """Refuse to fetch the web address in a visitor's request; this replaces Gradio's function.

    Raises:
        ValueError: always.
    """
    raise ValueError("web addresses are not fetched: upload the image")
