"""Serve repositories as the Hugging Face hub does, with the faults that a network has."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["FAULTS", "Fault", "Hub", "Repository"]

# Files from this size on have a SHA-256, as those do that the hub keeps outside of git.
LARGE_BYTES = 4096


@dataclass
class Repository:
    """The files of a repository at one commit."""

    files: dict[str, bytes]

    @property
    def commit(self) -> str:
        names = json.dumps({name: self.digest(name) for name in sorted(self.files)})
        return hashlib.sha1(names.encode()).hexdigest()

    def digest(self, name: str) -> str:
        """Return the hub's name for the contents of a file."""
        data = self.files[name]
        if len(data) >= LARGE_BYTES:
            return hashlib.sha256(data).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    def listing(self, name: str) -> dict[str, Any]:
        """Return what the hub says about the repository."""
        return {
            "id": name,
            "modelId": name,
            "sha": self.commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [self._entry(path) for path in self.files],
        }

    def _entry(self, path: str) -> dict[str, Any]:
        data, digest = self.files[path], self.digest(path)
        entry = {"rfilename": path, "size": len(data), "blobId": digest[:40]}
        if len(data) >= LARGE_BYTES:
            entry["lfs"] = {"sha256": digest, "size": len(data), "pointerSize": 134}
        return entry


@dataclass
class Fault:
    """What goes wrong with the requests whose path contains ``where``, ``times`` times.

    Attributes:
        kind: one of ``FAULTS``.
        where: part of the path of a request.
        times: how many requests fail; after that the hub works.
        place: where in a file it happens, as a share of its length.
    """

    kind: str
    where: str = "/resolve/"
    times: int = 1
    place: float = 0.5


# Faults that are an answer of their own.
STATUS = {"401": 401, "403": 403, "absent": 404, "429": 429, "500": 500, "503": 503}
FAULTS = (*STATUS, "altered", "cut", "html", "moved", "slow", "stale")


@dataclass
class Hub:
    """A hub on this machine.

    Attributes:
        repositories: by id, ``USER/REPOSITORY``.
        faults: what goes wrong, in turn.
        ranges: the ranges that were asked for, one for every download that went on.
    """

    repositories: dict[str, Repository]
    faults: list[Fault] = field(default_factory=list)
    ranges: list[str] = field(default_factory=list)
    url: str = ""

    def take(self, path: str) -> Fault | None:
        """Return the fault of a request, if it has one, and count it."""
        for fault in self.faults:
            if fault.times > 0 and fault.where in path:
                fault.times -= 1
                return fault
        return None

    @contextmanager
    def serving(self) -> Iterator[Hub]:
        """Answer requests at ``url`` until the block ends."""
        handler = type("Handler", (_Handler,), {"hub": self})
        server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that was killed."""


class _Handler(BaseHTTPRequestHandler):
    """Answer the requests that huggingface_hub makes for a listing and for files."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        fault = self.hub.take(path)
        kind = fault.kind if fault else ""
        if kind in STATUS:
            self._send(STATUS[kind], b'{"error": "no"}', "application/json")
        elif kind == "html":
            self._send(200, b"<html>Log in to this network</html>", "text/html")
        elif kind == "moved":
            self._redirect(path)
        elif path.startswith("/api/models/"):
            self._list(path)
        else:
            self._file(path, fault)

    def _redirect(self, path: str) -> None:
        """Send to the same path of the repository's new name."""
        old = next(name for name in self.hub.repositories if f"/{name}/" in f"{path}/")
        new = f"{old}-moved"
        self.hub.repositories.setdefault(new, self.hub.repositories[old])
        self._send(307, b"", "text/plain", {"Location": path.replace(old, new)})

    def _list(self, path: str) -> None:
        name, _, revision = path.removeprefix("/api/models/").partition("/revision/")
        repository = self.hub.repositories.get(name)
        if repository is None or revision not in ("", "main", repository.commit):
            code = "RepoNotFound" if repository is None else "RevisionNotFound"
            self._send(404, b'{"error": "no"}', "application/json", {"X-Error-Code": code})
            return
        self._send(200, json.dumps(repository.listing(name)).encode(), "application/json")

    def _file(self, path: str, fault: Fault | None) -> None:
        name, _, rest = path.lstrip("/").partition("/resolve/")
        repository, file = self.hub.repositories.get(name), rest.partition("/")[2]
        if repository is None or file not in repository.files:
            self._send(404, b"no", "text/plain", {"X-Error-Code": "EntryNotFound"})
            return
        self._send_file(_spoiled(repository.files[file], fault), fault)

    def _send_file(self, data: bytes, fault: Fault | None) -> None:
        headers, start = {"Accept-Ranges": "bytes"}, 0
        if asked := self.headers.get("Range"):
            self.hub.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").partition("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        part = data[start:]
        self._start(206 if start else 200, len(part), "application/octet-stream", headers)
        if fault and fault.kind == "cut":
            self.wfile.write(part[: int(len(part) * fault.place)])
            self.close_connection = True
            return
        if fault and fault.kind == "slow":
            half = len(part) // 2
            self.wfile.write(part[:half])
            time.sleep(0.3)
            part = part[half:]
        self.wfile.write(part)

    def _send(
        self, status: int, body: bytes, kind: str, headers: dict[str, str] | None = None
    ) -> None:
        self._start(status, len(body), kind, headers or {})
        self.wfile.write(body)

    def _start(self, status: int, length: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(length))
        self.send_header("Content-Type", kind)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _spoiled(data: bytes, fault: Fault | None) -> bytes:
    """Return what is sent in place of a file."""
    spoil: dict[str, Callable[[int], bytes]] = {
        "altered": lambda place: data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :],
        "stale": lambda place: data[place:] + data[:place],
    }
    if fault is None or fault.kind not in spoil or not data:
        return data
    return spoil[fault.kind](min(int(len(data) * fault.place), len(data) - 1))
