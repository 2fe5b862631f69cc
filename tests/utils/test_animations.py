"""Animations are read and written frame by frame, and nothing takes one for a single image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image, ImageSequence, features

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import (
    RGBImage,
    load_rgb,
    open_animation,
    read_image,
    write_animation,
)

SUFFIXES = [".gif", ".png", ".webp", *([".avif"] if features.check("avif") else [])]


def smooth(seed: int, channels: int = 3) -> np.ndarray:
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), np.uint8)
    return cv2.resize(small, (40, 24), interpolation=cv2.INTER_CUBIC)


def save(path, frames: list[np.ndarray], durations: list[int], loops: int = 0) -> None:
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {} if path.suffix == ".avif" else {"loop": loops, "lossless": True}
    first.save(path, save_all=True, append_images=others, duration=durations, **options)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_frame_and_its_duration_is_read(tmp_path, suffix):
    frames, durations = [smooth(seed) for seed in range(4)], [50, 200, 70, 1000]
    save(tmp_path / f"a{suffix}", frames, durations)
    animation = open_animation(tmp_path / f"a{suffix}")
    assert animation is not None and animation.count == 4 and animation.loops == 0
    assert animation.pixels == 4 * 40 * 24
    found = list(animation.frames())
    assert [duration for _, duration in found] == durations
    for (image, _), frame in zip(found, frames, strict=True):
        error = np.abs(image.rgb.astype(int) - frame)
        assert error.mean() < (12 if suffix in (".gif", ".avif") else 0.01)


@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("loops", [0, 3])
def test_writing_and_reading_is_the_identity(tmp_path, alpha, loops):
    # Two equal frames in a row are a pause, whose length counts.
    seeds, durations = [0, 1, 2, 0], [40.0, 250.0, 30.0, 90.0]
    frames = []
    for seed in seeds:
        pixels = smooth(seed, 4)
        rgb = np.ascontiguousarray(pixels[..., :3])
        frames.append(RGBImage(rgb, np.ascontiguousarray(pixels[..., 3]) if alpha else None))
    write_animation(tmp_path / "a.png", list(zip(frames, durations, strict=True)), loops)
    animation = open_animation(tmp_path / "a.png")
    assert animation is not None and animation.loops == loops
    found = list(animation.frames())
    assert [duration for _, duration in found] == durations
    for (image, _), frame in zip(found, frames, strict=True):
        assert np.array_equal(image.rgb, frame.rgb)
        assert (image.alpha is None) == (frame.alpha is None)
        assert frame.alpha is None or np.array_equal(image.alpha, frame.alpha)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_an_animation_is_no_single_image(tmp_path, suffix):
    save(tmp_path / f"a{suffix}", [smooth(0), smooth(1)], [50, 50])
    with pytest.raises(QuantFaceError, match=r"an animation of 2 frames: expected a single image"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_single_image_is_no_animation(tmp_path, suffix):
    Image.fromarray(smooth(0)).save(tmp_path / f"a{suffix}")
    assert open_animation(tmp_path / f"a{suffix}") is None
    assert load_rgb(tmp_path / f"a{suffix}").shape == (24, 40, 3)


def test_several_pages_are_refused_and_a_smaller_copy_is_not(tmp_path):
    pages = [Image.fromarray(smooth(seed)) for seed in range(2)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    with pytest.raises(QuantFaceError, match=r"a\.tif: 2 pages: expected one"):
        read_image(tmp_path / "a.tif")
    tifffile = pytest.importorskip("tifffile")
    with tifffile.TiffWriter(tmp_path / "b.tif") as file:
        file.write(smooth(0), photometric="rgb")
        file.write(smooth(1)[::2, ::2], photometric="rgb", subfiletype=1)
    assert np.array_equal(load_rgb(tmp_path / "b.tif"), smooth(0))


def test_too_many_frames_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    save(tmp_path / "a.gif", [smooth(0), smooth(1)], [50, 50])
    monkeypatch.setattr("quantface_arch.utils.images.animation.MAX_PIXELS", 1000)
    with pytest.raises(QuantFaceError, match=r"a\.gif: 2 frames have 0 megapixels together"):
        open_animation(tmp_path / "a.gif")


def test_the_result_plays_in_other_programs(tmp_path):
    frames = [(RGBImage(smooth(seed)), 40.0) for seed in range(3)]
    write_animation(tmp_path / "a.png", frames, 0)
    shown = [
        np.asarray(frame.convert("RGB"))
        for frame in ImageSequence.Iterator(Image.open(tmp_path / "a.png"))
    ]
    assert all(np.array_equal(a, b.rgb) for a, (b, _) in zip(shown, frames, strict=True))
