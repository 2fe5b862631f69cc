"""Whole images go through a network in tiles, and no faces are looked for."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
import videos
from PIL import Image
from small_networks import TINY
from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.archs.torch_network import TorchNetwork
from quantface_arch.background.load import load_background
from quantface_arch.background.tiles import BackgroundUpsampler
from quantface_arch.quant import save_checkpoint
from quantface_arch.restore.cli import main, make_parser
from quantface_arch.utils.cli import run
from quantface_arch.utils.images import load_rgb, resize

DOUBLE = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 2, "num_feat": 8}
DOUBLE = {**DOUBLE, "num_block": 1, "num_grow_ch": 4}


@pytest.fixture
def network(tmp_path):
    torch.manual_seed(0)
    save_checkpoint(build_arch(DOUBLE), tmp_path / "x2.safetensors", DOUBLE)
    return tmp_path / "x2.safetensors"


@pytest.fixture
def photo(repo, tmp_path):
    small = resize(load_rgb(repo / "inputs/astronaut.jpg"), 60, 44)
    Image.fromarray(small).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.fixture
def whole(network, tmp_path, monkeypatch, capsys):
    """Return a function that types the command; it returns (exit status, stdout, stderr)."""

    def call(*arguments, model=network):
        words = ["restore.py", "--whole", "--model", model, "-o", tmp_path / "out", *arguments]
        monkeypatch.setattr(sys, "argv", [*map(str, words), "--runtime", "reference"])
        with pytest.raises(SystemExit) as stopped:
            run(main, make_parser())
        return stopped.value.code, *capsys.readouterr()

    return call


def test_a_photo_is_enlarged_by_the_networks_scale(whole, network, photo, tmp_path):
    status, out, _ = whole("-i", photo, "--compare")
    assert status == 0 and "1 images, 0 failed" in out and "per image" in out
    wanted = load_background(str(network), "reference")(load_rgb(photo))
    assert np.array_equal(load_rgb(tmp_path / "out/restored/photo.png"), wanted)
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        "restored",
        "compare",
    }
    assert "all 1 images are done already" in whole("-i", photo, "--compare", "--resume")[1]
    assert whole("-i", photo, "--upscale", 1)[0] == 0
    assert load_rgb(tmp_path / "out/restored/photo.png").shape == (44, 60, 3)


def test_an_animation_is_enlarged(whole, tmp_path):
    frames = [Image.new("RGB", (40, 32), (level, 90, 200)) for level in (0, 120)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert whole("-i", tmp_path / "a.gif")[0] == 0
    with Image.open(tmp_path / "out/restored/a.png") as result:
        assert result.size == (80, 64) and result.n_frames == 2


def test_a_clip_is_enlarged(whole, tmp_path):
    frames = [np.full((32, 48, 3), level, np.uint8) for level in (60, 90, 120)]
    videos.write_video(tmp_path / "clip.mp4", frames)
    status, out, _ = whole("-i", tmp_path / "clip.mp4")
    assert status == 0 and "1 videos, 3 frames, 0 failed" in out
    shapes = [rgb.shape for rgb in videos.frames_of(tmp_path / "out/restored/clip.mp4")]
    assert shapes == [(64, 96, 3)] * 3


def test_networks_get_their_own_range_and_least_side(photo):
    seen = []

    class Same(nn.Module):
        input_range = (-1.0, 1.0)

        def forward(self, x):
            seen.append((x.shape[-2:], float(x.min()) < -0.2, float(x.max()) > 0.9))
            return x

    image = load_rgb(photo)
    tiled = BackgroundUpsampler(TorchNetwork(Same()), 1, least=50)
    assert np.array_equal(tiled(image), image)
    assert seen == [((52, 60), True, True)]


@pytest.mark.parametrize(
    "words",
    [
        ("--aligned",),
        ("--bg-upsampler", "x.pth"),
        ("--strength", 0.5),
        ("--identity", 0.5),
        ("--sample",),
        ("--color-fix", "none"),
        ("--detector", "yunet"),
        ("--weights-dir", "."),
        ("--keep-unrestored",),
        ("--batch-size", 2),
        ("--fidelity", 0.5),
    ],
)
def test_options_about_faces_are_refused(whole, photo, words):
    status, _, err = whole("-i", photo, *words)
    assert status == 2 and f"{words[0]} cannot be used with --whole: no faces" in err


def test_only_networks_for_whole_images_are_taken(whole, photo, tmp_path):
    status, _, err = whole("-i", photo, model="mini-w4a8")
    assert status == 2 and "--whole --model mini-w4a8: no such file of weights" in err
    save_checkpoint(build_arch(TINY), tmp_path / "tiny.safetensors", TINY)
    status, _, err = whole("-i", photo, model=tmp_path / "tiny.safetensors")
    assert status == 2 and "expected a network that maps whole RGB images" in err
    assert not (tmp_path / "out").exists()
