"""Files from a server, downloaded completely and checked, or not at all."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.download import Unavailable, download

CONTENT = bytes(range(256)) * 8


@pytest.fixture
def address():
    """Return a server's address; a path sets the announced size, and 2000 bytes are sent."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            if self.path != "/unknown":
                self.send_header("Content-Length", self.path[1:])
            self.end_headers()
            self.wfile.write(CONTENT[:2000])

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def get(url, target, check=lambda path: None, offline=False):
    """Download, and return the notifications."""
    notes = []
    download("it", url, target, "name it", offline=offline, notify=notes.append, check=check)
    return notes


@pytest.mark.parametrize("length", ["2000", "unknown"])
def test_what_is_served_is_shown_and_then_written(address, tmp_path, length):
    target, shown = tmp_path / "new/a.pth", []
    url = f"{address}/{length}"
    notes = get(url, target, lambda path: shown.append((path, path.read_bytes())))
    assert notes == [f"downloading it from {url} to {target}"]
    ((path, content),) = shown
    assert path != target and not path.exists()
    assert content == target.read_bytes() == CONTENT[:2000]


def test_what_ends_early_or_is_refused_leaves_what_was_there(address, tmp_path):
    def refuse(path):
        raise QuantFaceError("another file")

    target = tmp_path / "a.pth"
    target.write_bytes(b"before")
    ended = "it is not in .*/2048 ended after 2000 of 2048 bytes.*: get .*/2048 and name it"
    with pytest.raises(Unavailable, match=ended):
        get(f"{address}/2048", target)
    with pytest.raises(Unavailable, match="another file"):
        get(f"{address}/2000", target, refuse)
    with pytest.raises(Unavailable, match=r"--offline forbids the download: get .* and name it"):
        get(f"{address}/2000", target, offline=True)
    assert target.read_bytes() == b"before" and len(list(tmp_path.iterdir())) == 1
