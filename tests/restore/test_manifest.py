"""The manifest decides what is done: by settings, inputs and outputs."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from torch import nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.restore import manifest as restore_manifest
from quantface_arch.restore.cli import make_parser, parse_options
from quantface_arch.restore.files import Source
from quantface_arch.restore.manifest import Manifest, settings_of
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.utils.images import RGBImage, write_image

ALIGNED = ("--aligned", "--runtime", "reference")


@pytest.fixture
def settings(model, tmp_path):
    """Return a function: words of the command line to its settings."""
    own, background = tmp_path / "model.safetensors", tmp_path / "x2.pth"
    own.write_bytes(model.read_bytes())
    background.write_bytes(b"weights")

    def of(*words):
        command = ["-i", "x", "--model", own, "--bg-upsampler", background, *words]
        options = parse_options(make_parser().parse_args(list(map(str, command))))
        color_fix = options.faces.color_fix
        restorer = FaceRestorer(nn.Identity(), detector="yunet", color_fix=color_fix)
        return settings_of(options, restorer)

    return of


@pytest.mark.parametrize(
    "words",
    [
        ("--aligned",),
        ("--upscale", "2"),
        ("--strength", "0.5"),
        ("--color-fix", "adain"),
        ("--sample",),
        ("--compare",),
        ("--runtime", "openvino"),
        ("--bg-upsampler", "realesrgan_x2"),
    ],
)
def test_options_that_change_pixels_are_settings(settings, words):
    before = settings("--runtime", "reference")
    assert json.loads(json.dumps(before)) == before
    assert settings("--runtime", "reference", *words) != before


def test_contents_of_files_and_the_version_are_settings(settings, tmp_path, monkeypatch):
    found = [settings()]
    for name in ("model.safetensors", "x2.pth"):
        with (tmp_path / name).open("ab") as file:
            file.write(b"x")
        found.append(settings())
    monkeypatch.setattr(restore_manifest, "__version__", "0.0.0")
    found.append(settings())
    assert all(one != other for i, one in enumerate(found) for other in found[:i])


def test_the_seed_is_a_setting_only_with_sampling(settings):
    assert settings("--seed", "1") == settings("--seed", "2")
    assert settings("--sample", "--seed", "1") != settings("--sample", "--seed", "2")
    assert settings() == settings("--batch-size", "3", "--keep-unrestored")


SETTINGS = {"x": 1}
RECORD = {"name": "a", "sha256": "b", "outputs": {}, "faces": 1, "error": None}
RECORD["settings"] = SETTINGS
CHANGES = ({"name": []}, {"sha256": {}}, {"outputs": []}, {"faces": "x"}, {"settings": {}})
ODD = [json.dumps({**RECORD, **change}).encode() for change in CHANGES]
ODD += [b"", b"\xff\xfe", b"[" * 100_000, b"7", b'{"error": null}']


@pytest.mark.parametrize("line", ODD)
def test_malformed_lines_are_ignored(tmp_path, line):
    image = tmp_path / "a.png"
    image.write_bytes(b"image")
    manifest = Manifest(tmp_path, SETTINGS)
    (tmp_path / "manifest-1.jsonl").write_bytes(line + b"\n")
    manifest.load()
    assert not manifest.has(Source(image, "a"), True)
    # They do not affect the lines after them.
    digest = restore_manifest.file_digest(image)
    Manifest(tmp_path, SETTINGS, rank=1).add(Source(image, "a"), digest, [image], 1)
    manifest.load()
    assert manifest.has(Source(image, "a"), False)


def test_a_manifest_that_is_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "manifest-3.jsonl")
    with pytest.raises(QuantFaceError, match=r"manifest-3\.jsonl: .*it is a pipe"):
        Manifest(tmp_path, {}).load()


def test_resuming_reports_special_files_and_goes_on(restore, tmp_path):
    """A pipe without a writer and a dangling link are errors; the other inputs are done."""
    folder = tmp_path / "faces"
    write_image(folder / "a.png", RGBImage(np.zeros((24, 24, 3), np.uint8)))
    os.mkfifo(folder / "b.png")
    (folder / "c.png").symlink_to("nothing")
    for done in ("1 images", "0 images"):
        status, stdout, stderr = restore("-i", folder, *ALIGNED, "--resume")
        assert status == 1 and done in stdout and "2 failed" in stdout
        errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
        assert "b.png: cannot be read: it is a pipe" in errors[0] and "c.png" in errors[1]
