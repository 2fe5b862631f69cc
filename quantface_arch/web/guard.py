"""What stands before the page's server and refuses what the page never asks for."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Guard"]

# What surrounds the file in an upload, and the largest request that is no upload.
_MARGIN = 1_000_000
# Where the page and Gradio's clients send something; Gradio itself takes films, too, for ffmpeg.
_TARGETS = ("/upload", "/queue/join", "/run/predict", "/call/restore", "/cancel", "/reset")
# The browser itself then loads nothing from elsewhere, whatever the page says.
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
    """Middleware: the page's own requests, bounded; no fetching of web addresses; strict browsers.

    Args:
        app: what answers.
        max_bytes: of an uploaded file.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_strictly(event: Message) -> None:
            if event["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                event["headers"] = [*event["headers"], *own]
            await send(event)

        refusal = self._refusal(Request(scope))
        await (refusal or self.app)(scope, receive, send_strictly)

    def _refusal(self, request: Request) -> PlainTextResponse | None:
        path = request.url.path
        # Servers in front may have merged the two slashes.
        if ":/" in path:
            return PlainTextResponse("web addresses are not fetched", 403)
        if request.method != "POST":
            return None
        path = path.rstrip("/")
        if not path.endswith(tuple(f"/gradio_api{target}" for target in _TARGETS)):
            return PlainTextResponse("the page never asks for this", 404)
        length = request.headers.get("content-length", "")
        if not length.isdecimal():
            return PlainTextResponse("a request must tell its length", 411)
        largest = _MARGIN + (self.max_bytes if path.endswith("/upload") else 0)
        if int(length) > largest:
            return PlainTextResponse(f"{length} bytes: at most {largest} are allowed", 413)
        return None


def refuse_download(url: str, cache_dir: str) -> Any:
    """Stands in for Gradio's function that fetches the web address in a visitor's request.

    Raises:
        ValueError: always.
    """
    raise ValueError("web addresses are not fetched: upload the picture")
