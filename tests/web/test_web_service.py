"""The web page without a server: options, limits, messages and rendered files."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageCms
from small_networks import TINY

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.pretrained.names import shipped_models
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import RGBImage, load_rgb, read_image, write_image
from quantface_arch.web import cli, server
from quantface_arch.web.limits import Limits
from quantface_arch.web.service import Service
from quantface_arch.web.views import message, timings, write_views


@pytest.fixture(scope="module")
def restorer():
    return FaceRestorer(build_arch(TINY), detector="yunet", batch_size=2)


@pytest.fixture
def service(restorer):
    return Service(lambda model: restorer, "mini-w4a8", Limits(max_side=1200, max_faces=2))


@pytest.fixture
def crowd(repo, tmp_path):
    """Return a function that writes a photograph with a given number of faces."""
    face = load_rgb(repo / "inputs/astronaut.jpg")[:400, 100:400]

    def make(faces, name="crowd.png"):
        path = tmp_path / name
        write_image(path, RGBImage(np.concatenate([face] * faces, axis=1)))
        return path

    return make


@pytest.fixture
def type_command(monkeypatch, capsys):
    """Return a function that runs app.py with wrong options: arguments to (status, message)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["app.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            run(cli.main, cli.make_parser())
        text = capsys.readouterr().err.strip()
        assert text.startswith("error: ") and "\n" not in text
        return stopped.value.code, text

    return call


def quiet(part, text):
    """Ignore progress."""


@pytest.mark.slow
def test_an_upload_is_restored_as_the_restorer_does_and_progress_is_reported(service, crowd):
    told = []
    service.limits = Limits(max_faces=3)
    path = crowd(3)
    done = service.restore(path, "mini-w4a8", 1.0, lambda *words: told.append(words))
    expected = service.load("").restore(read_image(path))
    assert np.array_equal(done.after.rgb, expected.image) and len(done.faces) == 3
    assert np.array_equal(done.before.rgb, load_rgb(path))
    parts, texts = zip(*told, strict=True)
    assert parts == pytest.approx((0, 0, 0.05, 0.1, 0.1 + 0.8 * 2 / 3, 0.9))
    assert texts[3:] == ("Face 1 of 3", "Face 3 of 3", "Pasting back")
    assert all(0 <= spent < 60 for spent in done.seconds.values())
    assert list(done.seconds)[2:] == ["find faces", "restore 3 faces", "paste back"]


@pytest.mark.slow
def test_requests_run_one_at_a_time_with_the_sampling_options(restorer, crowd, monkeypatch):
    asked, alone, busy = [], [], threading.Lock()

    def restore_aligned(faces, **options):
        asked.append(options)
        alone.append(busy.acquire(blocking=False))
        time.sleep(0.5)
        if alone[-1]:
            busy.release()
        return faces

    path, options = crowd(1), {"sample": True, "seed": 3}
    found = restorer.find(read_image(path))
    monkeypatch.setattr(restorer, "find", lambda picture: found)
    monkeypatch.setattr(restorer, "restore_aligned", restore_aligned)
    service = Service(lambda model: restorer, "mini", Limits(), options)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: service.restore(path, "mini", 1.0, quiet), range(2)))
    assert alone == [True, True] and asked == [{**options, "color_fix": None}] * 2


def test_the_strength_as_needed_is_that_of_the_restorer(service, crowd):
    done = service.restore(crowd(1), "mini-w4a8", "auto", quiet)
    expected = service.load("").restore(read_image(crowd(1)))
    assert np.array_equal(done.after.rgb, expected.image)
    assert done.faces[0].strength == expected.faces[0].strength > 0.5


def test_a_limit_on_identity_needs_its_network_before_the_page_opens(restorer, tmp_path):
    own = FaceRestorer(restorer.model, detector="yunet", identity_weights=tmp_path / "a.onnx")
    with pytest.raises(QuantFaceError, match="--identity-weights: no file"):
        Service(lambda model: own, "mini", Limits(), identity=0.5).open()


def test_strength_zero_keeps_the_faces(service, crowd):
    done = service.restore(crowd(1), "mini-w4a8", 0.0, quiet)
    assert np.array_equal(done.before.rgb, done.after.rgb)
    for wrong in (-0.1, 1.1, float("nan"), "much"):
        with pytest.raises(QuantFaceError, match="strength"):
            service.restore(crowd(1), "mini-w4a8", wrong, quiet)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("three faces", "found 3 faces, at most 2 are allowed"),
        ("large", "1201x100 pixels: at most 1200 on the longer side are allowed"),
        ("grey", "no face found"),
        ("broken", "cannot be read"),
        ("empty", "empty file"),
    ],
)
def test_errors_name_the_upload_without_its_folder(service, crowd, tmp_path, content, reason):
    path = tmp_path / "mine.png"
    if content == "three faces":
        crowd(3, path.name)
    elif content in ("large", "grey"):
        width = 1201 if content == "large" else 300
        Image.new("RGB", (width, 100), "grey").save(path)
    else:
        path.write_bytes(b"\x89PNG broken" if content == "broken" else b"")
    with pytest.raises(QuantFaceError, match=reason) as caught:
        service.restore(path, "mini-w4a8", 1.0, quiet)
    assert str(caught.value).startswith("mine.png: ") and str(tmp_path) not in str(caught.value)


def test_visitors_choose_models_by_name(crowd, restorer, tmp_path):
    loaded = []
    own = tmp_path / "own.safetensors"
    service = Service(lambda m: loaded.append(m) or restorer, str(own), Limits())
    assert service.first_model == "own.safetensors" and "mini" in service.models
    assert not any(str(tmp_path) in name for name in service.models)
    for name in ("own.safetensors", "mini", "mini"):
        service.restore(crowd(1), name, 1.0, quiet)
    assert loaded == [str(own), "mini"]
    for other in (str(own), "../own.safetensors", ""):
        with pytest.raises(QuantFaceError, match="choose from"):
            service.restore(crowd(1), other, 1.0, quiet)
    for name in shipped_models():
        assert Service(lambda m: restorer, name, Limits()).first_model == name
    # A path with the name of a shipped model does not hide that model.
    assert len(Service(lambda m: restorer, "/elsewhere/mini", Limits()).models) == len(
        service.models
    )


def check_boxes(views, done, factor):
    """Check that boxes are drawn around the faces, and nowhere else."""
    changed = np.abs(load_rgb(views.boxes).astype(int) - load_rgb(views.before)).max(axis=2) > 60
    for face in done.faces:
        left, top, right, bottom = np.rint(face.box * factor).astype(int)
        assert changed[top + 5 : bottom - 5, left].mean() > 0.9
        changed[top - 8 : bottom + 8, left - 8 : right + 8] = False
    assert changed.mean() < 0.001


def test_files_for_the_browser_show_the_restoration(service, crowd, tmp_path):
    path = crowd(2)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    write_image(path, RGBImage(load_rgb(path), icc_profile=profile))
    done = service.restore(path, "mini-w4a8", 1.0, quiet)
    folder = tmp_path / "shown"
    folder.mkdir()
    views = write_views(done, folder)
    assert views.result.name == "crowd_restored.png"
    assert np.array_equal(load_rgb(views.result), done.after.rgb)
    for path, image in ((views.before, done.before), (views.after, done.after)):
        assert np.abs(load_rgb(path).astype(float) - image.rgb).mean() < 2
    assert len(views.faces) == 2
    for path, face in zip(views.faces, done.faces, strict=True):
        pair = load_rgb(path)[-FACE_SIZE:].astype(float)
        assert np.abs(pair[:, :FACE_SIZE] - face.crop).mean() < 2
        assert np.abs(pair[:, -FACE_SIZE:] - face.restored).mean() < 6
    for path in (views.result, views.before, views.after, views.boxes, *views.faces):
        with Image.open(path) as image:
            assert image.info["icc_profile"] == profile, path
    check_boxes(views, done, 1.0)


@pytest.mark.slow
def test_large_images_are_shown_smaller_and_downloaded_in_full_size(service, repo, tmp_path):
    path = tmp_path / "large.png"
    write_image(path, read_image(repo / "inputs/astronaut.jpg").resized(2400, 2400))
    service.limits = Limits(max_side=2400)
    done = service.restore(path, "mini-w4a8", 1.0, quiet)
    views = write_views(done, tmp_path)
    check_boxes(views, done, 2048 / 2400)
    assert read_image(views.before).size == read_image(views.after).size == (2048, 2048)
    assert read_image(views.result).size == (2400, 2400)


def test_file_names_are_escaped_on_the_page(service, crowd):
    class Tags(HTMLParser):
        def handle_starttag(self, tag, attrs):
            assert tag != "img"

    Tags().feed(message('<img src=x onerror="alert(1)">.png', "failed"))
    done = service.restore(crowd(1), "mini-w4a8", 1.0, quiet)
    done.seconds = {"read": 1.25, "<img>": 2.0}
    Tags().feed(timings(done))
    assert "300×400 pixels, 1 face<" in timings(done) and "1.25 s" in timings(done)
    assert "<td>total</td><td>3.25 s</td>" in timings(done)


def test_without_gradio_the_error_says_what_to_install(type_command, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    status, text = type_command()
    assert status == 2 and "pip install gradio" in text


def test_options_are_checked_before_anything_is_loaded(type_command, monkeypatch):
    monkeypatch.setattr(cli, "find_spec", lambda name: name)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        status, text = type_command("--port", port)
        assert status == 2 and f"--port {port}" in text and "in use" in text
    for words, reason in (
        (("--port", 70000), "at most 65535"),
        (("--port", "x"), "not a whole number"),
        (("--max-mb", 0), "--max-mb"),
        (("--max-side", 5), "at least 16"),
        (("--max-faces", 0), "at least 1"),
        (("--max-users", 0), "at least 1"),
        (("--keep-minutes", -1), "--keep-minutes"),
        (("--host", "256.1.1.1"), "--host 256.1.1.1"),
        (("--model", "absent", "--port", 0), "neither a shipped model"),
    ):
        status, text = type_command(*words)
        assert status == 2 and reason in text, words


def test_options_reach_the_service(monkeypatch):
    served = []
    monkeypatch.setattr(cli, "find_spec", lambda name: name)
    monkeypatch.setattr(cli, "load_restorer", lambda runtime, faces: (runtime, faces))
    monkeypatch.setattr(Service, "open", lambda self: None)
    monkeypatch.setattr(server, "serve", lambda *words: served.append(words))
    words = "--model mini --port 0 --sample --seed 8 --max-mb 3 --max-side 99 --max-faces 5"
    words += " --root-path /faces --identity 0.5"
    cli.main(cli.make_parser().parse_args([*words.split(), "--max-users=6", "--keep-minutes=7"]))
    service, address, _ = served[0]
    assert (service.model, service.sampling) == ("mini", {"sample": True, "seed": 8})
    assert service.identity == 0.5
    assert service.limits == Limits(max_mb=3, max_side=99, max_faces=5, max_users=6, keep_minutes=7)
    assert service.limits.max_bytes == 3_000_000
    assert (address.host, address.root_path) == ("127.0.0.1", "/faces") and address.port > 0
    runtime, faces = service.load("mini-w4a4")
    assert (runtime.model, faces.seed) == ("mini-w4a4", 8)


def test_help_is_quick_and_loads_nothing_heavy(repo):
    code = (
        "import sys; sys.argv = ['app.py', '--help']\n"
        "from quantface_arch.web.cli import make_parser\n"
        "try:\n    make_parser().parse_args()\n"
        "except SystemExit:\n    print([m for m in ('torch', 'gradio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True)
    assert "--max-mb" in done.stdout and done.stdout.strip().endswith("[]")
