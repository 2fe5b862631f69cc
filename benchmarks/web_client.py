"""Run the page's server and talk to it over HTTP, for web.py and the tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Client", "serving"]

APP = Path(__file__).resolve().parents[1] / "inference/app.py"
_TIMEOUT = 300


@dataclass
class Client:
    """A visitor without a browser.

    Attributes:
        url: address of the page, without a trailing slash.
        process: process of the server.
        log: lines that the server has printed so far.
    """

    url: str
    process: subprocess.Popen[str]
    log: list[str]

    def get(self, path: str) -> bytes:
        """Get a path; raises urllib.error.HTTPError for any status but 200."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=_TIMEOUT) as answer:
            return answer.read()

    def post(self, path: str, body: bytes, content_type: str) -> Any:
        """Post a body and return the decoded JSON answer; raises like :meth:`get`."""
        request = urllib.request.Request(
            f"{self.url}{path}", data=body, headers={"Content-Type": content_type}
        )
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return json.load(answer)

    def upload(self, data: bytes, name: str) -> str:
        """Upload a file and return its path on the server."""
        mark = uuid.uuid4().hex
        field = f'Content-Disposition: form-data; name="files"; filename="{name}"'
        body = f"--{mark}\r\n{field}\r\n\r\n".encode() + data + f"\r\n--{mark}--\r\n".encode()
        paths = self.post("/gradio_api/upload", body, f"multipart/form-data; boundary={mark}")
        return paths[0]

    def enqueue(
        self,
        path: str | None,
        model: str = "mini-w4a8",
        strength: float = 1.0,
        color_fix: str = "default",
        as_needed: bool = False,
    ) -> str:
        """Request a restoration; return the request's id once it is in the queue."""
        photo = path and {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = json.dumps({"data": [photo, model, strength, color_fix, as_needed]}).encode()
        return self.post("/gradio_api/call/restore", body, "application/json")["event_id"]

    def wait(self, event: str) -> list[Any] | None:
        """Return the page's fields after the request; None if the server rejected it."""
        text = self.get(f"/gradio_api/call/restore/{event}").decode()
        kind, data = re.findall(r"event: (\w+)\ndata: (.*)", text)[-1]
        return json.loads(data) if kind == "complete" else None

    def restore(self, path: str | None, **options: Any) -> list[Any] | None:
        """Request a restoration and wait for the result."""
        return self.wait(self.enqueue(path, **options))


@contextmanager
def serving(*options: str, environment: dict[str, str] | None = None) -> Iterator[Client]:
    """Run ``inference/app.py`` on a free port and end it afterwards.

    Args:
        options: options of the command line.
        environment: variables of the server's process; None takes those of this process.

    Raises:
        RuntimeError: the server ended before the page opened. The message has its output.
    """
    command = [sys.executable, str(APP), "--port", "0", "--offline", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    log: list[str] = []
    try:
        for line in process.stderr:
            log.append(line)
            found = re.search(r"is at (http\S+?)/? ", line)
            if found:
                break
        else:
            raise RuntimeError("".join(log))
        # Keep reading, or the server would block on a full pipe.
        threading.Thread(target=log.extend, args=(process.stderr,), daemon=True).start()
        yield Client(found[1], process, log)
    finally:
        process.terminate()
        process.wait(_TIMEOUT)
