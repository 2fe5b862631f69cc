"""The served page: over HTTP, and in a real browser."""

from __future__ import annotations

import io
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.quant.checkpoint.save_load import save_checkpoint
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.images import load_rgb

pytest.importorskip("gradio", reason="Gradio is not installed (pip install gradio)")

import web_browser
from web_client import serving

# The fixture of the module takes seconds.
pytestmark = pytest.mark.slow
MODEL = "tiny.safetensors"
OPTIONS = ("--runtime", "reference", "--detector", "yunet")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / MODEL
    save_checkpoint(build_arch(TINY), path, TINY)
    return path


@pytest.fixture(scope="module")
def client(model):
    """Run the command on a free port with small limits; it leaves no files behind."""
    limits = ("--max-mb=0.3", "--max-side=700", "--max-faces=1", "--max-users=4")
    limits += ("--keep-minutes=0.5",)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRADIO_ROOT_PATH", "/elsewhere")
        with serving("--model", str(model), *OPTIONS, *limits) as running:
            yield running
            folder = Path(running.upload(b"x", "last.png")).parents[1]
    assert not folder.exists()


@pytest.fixture(scope="module")
def photo(repo):
    return (repo / "inputs/astronaut.jpg").read_bytes()


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "grey").save(file, "PNG")
    return file.getvalue()


def status_of(call, *arguments):
    with pytest.raises(urllib.error.HTTPError) as caught:
        call(*arguments)
    caught.value.close()
    return caught.value.code


def served(client, file):
    """Return a file of a response as an array."""
    data = client.get(f"/gradio_api/file={urllib.parse.quote(file['path'])}")
    return np.asarray(Image.open(io.BytesIO(data)))


def test_a_photograph_is_restored(client, photo, model, repo):
    answer = client.restore(client.upload(photo, "mine.jpg"), model=MODEL, as_needed=True)
    said, pair, button, _, boxes, faces, spent = answer
    assert "1 face restored" in said and "restore 1 face" in spent and len(faces) == 1
    result = served(client, button["value"])
    assert button["value"]["path"].endswith("/mine_restored.png")
    source = load_rgb(repo / "inputs/astronaut.jpg")
    restorer = FaceRestorer.from_pretrained(model, "reference", detector="yunet")
    assert np.abs(result.astype(int) - restorer.restore(source).image).max() <= 1
    before, after = (served(client, file).astype(int) for file in pair)
    assert np.abs(before - source).mean() < 2 and np.abs(after - result).mean() < 2
    assert served(client, boxes).shape == source.shape
    # Another request does not overwrite this result.
    again = client.restore(client.upload(photo, "mine.jpg"), model=MODEL, strength=0.0)
    assert np.array_equal(served(client, again[2]["value"]), source)
    assert np.array_equal(served(client, button["value"]), result)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff\xd8\xff broken", "a.png: cannot be read"),
        (png(300, 200), "a.png: no face found"),
        (png(701, 20), "a.png: 701x20 pixels: at most 700"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.png: cannot be read"),
    ],
)
def test_refused_uploads_show_a_message_and_no_result(client, data, reason):
    path = client.upload(data, "a.png")
    said, pair, button, details, boxes, faces, spent = client.restore(path, model=MODEL)
    assert "Not restored" in said and reason in said and "failed" in said
    assert str(Path(path).parent) not in said
    assert not pair and not boxes and not faces and not spent
    assert button["value"] is None and not button["interactive"] and not details["visible"]


def test_no_photograph_and_a_deleted_photograph(client, photo):
    assert "Drop a photograph" in client.restore(None, model=MODEL)[0]
    path = client.upload(photo, "gone.jpg")
    Path(path).unlink()
    said = client.restore(path, model=MODEL)[0]
    assert "deleted after 0.5 minutes" in said


def test_other_models_cannot_be_chosen(client, photo, model):
    path = client.upload(photo, "a.jpg")
    for name in (str(model), "absent", "../tiny.safetensors"):
        assert client.restore(path, model=name) is None


def test_files_elsewhere_are_out_of_reach(client, repo):
    folder = Path(client.upload(b"x", "a.png")).parents[1]
    readme, beside = repo / "README.md", folder / "../../etc/passwd"
    for path in (
        "/etc/passwd",
        readme,
        beside,
        "../README.md",
        "..%2f..%2fetc%2fpasswd",
        "/proc/1",
    ):
        assert status_of(client.get, f"/gradio_api/file={path}") == 403, path
    for path in ("http://example.com/a.png", "http:/example.com/a.png", "https:%2f%2fexample.com"):
        for route in ("file=", "file/"):
            with pytest.raises(urllib.error.HTTPError) as caught:
                client.get(f"/gradio_api/{route}{path}")
            answer = caught.value.code, caught.value.read()
            assert answer == (403, b"web addresses are not fetched"), path
    assert status_of(client.get, "/assets/..%2f..%2f..%2fblocks.py") >= 400
    # They cannot be restored either.
    for path in (repo / "inputs/astronaut.jpg", beside, "http://example.com/a.png"):
        assert client.restore(str(path), model=MODEL) is None
    assert "web addresses are not fetched" in "".join(client.log)


def is_too_large(send, *words):
    """Return whether a request is refused, possibly by closing the connection."""
    try:
        return status_of(send, *words) == 413
    except urllib.error.URLError as error:
        return isinstance(error.reason, BrokenPipeError | ConnectionResetError)


def status_at_last(send):
    """Return the status; retry if the connection was closed before everything was sent."""
    for _ in range(5):
        try:
            return status_of(send)
        except urllib.error.URLError as error:
            if not isinstance(error.reason, BrokenPipeError | ConnectionResetError):
                raise
    return None


def test_the_size_of_requests_is_bounded(client):
    assert status_at_last(lambda: client.upload(bytes(310_000), "a.png")) == 413
    # The server refuses the announced length and does not read the body.
    assert is_too_large(client.upload, bytes(2_000_000), "a.png")
    big = bytes(1_100_000)
    assert is_too_large(client.post, "/gradio_api/call/restore", big, "application/json")
    target, kind = "/gradio_api/upload", "multipart/form-data"
    assert status_at_last(lambda: client.post(target, iter([b"x"]), kind)) == 411


def test_requests_that_the_page_never_sends_are_refused(client, photo):
    path = client.upload(photo, "a.jpg")
    words = {"data": [{"path": path}, MODEL, 1.0, "default"], "fn_index": 0, "session_hash": "mine"}
    body = json.dumps(words).encode()
    # These would bypass the queue, or run ffmpeg on an uploaded video.
    for target in ("run/predict", "run/restore", "api/restore/", "process_recording"):
        refused = status_of(client.post, f"/gradio_api/{target}", body, "application/json")
        assert refused == 404, target
    restoring, *changing = json.loads(client.get("/config"))["dependencies"]
    assert restoring["api_name"] == "restore"
    assert {action["api_visibility"] for action in changing} == {"private"}
    assert status_of(client.get, "/monitoring/summary") == 403
    # Choosing another photograph cancels the restoration.
    assert [restoring["id"]] in [action["cancels"] for action in changing]


def test_the_queue_keeps_its_order_and_refuses_requests_when_full(client, photo):
    path = client.upload(photo, "a.jpg")
    moments = {}

    def wait(event):
        said = client.wait(event)[0]
        moments[event] = time.perf_counter()
        return "1 face restored" in said

    # One request runs, the others are pending.
    events, refused = [], 0
    for _ in range(12):
        try:
            events.append(client.enqueue(path, model=MODEL))
        except urllib.error.HTTPError as error:
            refused += 1
            assert error.code == 503 and "ull" in error.read().decode()
    assert refused and len(events) >= 4
    with ThreadPoolExecutor(len(events)) as pool:
        assert all(pool.map(wait, events))
    assert sorted(events, key=moments.__getitem__) == events


def test_the_page_refers_to_no_other_machine(client):
    page = client.get("/").decode()
    scripts = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"'](.*?)[\"']", page)
    assert scripts and not [address for address in scripts if "//" in address]
    config = client.get("/config").decode()
    assert "at most 0.3 MB, 700 pixels on the longer side" in config
    for word in ("/elsewhere", "googleapis", "gstatic", "gradio.live", '"analytics_enabled":true'):
        assert word not in config.replace(" ", ""), word
    with urllib.request.urlopen(client.url) as answer:
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy and "frame-ancestors 'none'" in policy
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_old_uploads_and_results_are_deleted(client, photo):
    old, new = (Path(client.upload(photo + end, "a.jpg")) for end in (b"old", b"new"))
    result = Path(client.restore(str(old), model=MODEL)[2]["value"]["path"])
    folder = old.parents[1]
    assert result.is_relative_to(folder) and folder.stat().st_mode & 0o077 == 0
    past = time.time() - 60
    for path in (old, result, result.parent):
        os.utime(path, (past, past))
    end = time.monotonic() + 20
    while (old.exists() or result.exists()) and time.monotonic() < end:
        time.sleep(0.1)
    assert not old.exists() and not result.exists() and new.exists()


@pytest.mark.skipif(web_browser.missing() is not None, reason=str(web_browser.missing()))
def test_in_a_browser(client, repo, tmp_path):
    faceless = tmp_path / "faceless.png"
    faceless.write_bytes(png(300, 200))
    with web_browser.browsing() as driver:
        browser = web_browser.Browser(driver, client.url)
        assert browser.one("h1").text == "QuantFace"
        assert MODEL in browser.one("#model input").get_attribute("value")
        browser.upload(repo / "inputs/astronaut.jpg")
        assert "1 face restored" in browser.restore()
        for place, count in (("#slider", 2), ("#boxes", 1), ("#faces", 1)):
            browser.wait_for_pictures(place, count)
        assert "total" in browser.one("#timings").text
        # Another photograph and a failure clear the results.
        browser.clear()
        browser.upload(faceless)
        for place in ("#slider", "#boxes", "#faces"):
            browser.wait_for_pictures(place, 0)
        assert "no face found" in browser.restore()
        for place in ("#slider", "#boxes", "#faces"):
            browser.wait_for_pictures(place, 0)
        requested = browser.requested()
    outside = [u for u in requested if not u.startswith((client.url, "data:", "blob:", "about:"))]
    assert len(requested) > 10 and not outside
