"""The restore command restores every frame of an animation."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageSequence

from quantface_arch.utils.images import load_rgb, open_animation, resize


@pytest.fixture
def animation(repo, tmp_path):
    """Return a GIF of a face that moves to the right and of an empty last frame."""
    face = resize(load_rgb(repo / "inputs/astronaut.jpg"), 256, 256)
    frames = [np.roll(face, 4 * index, axis=1) for index in range(3)] + [np.full_like(face, 90)]
    folder = tmp_path / "in"
    folder.mkdir()
    first, *others = (Image.fromarray(frame) for frame in frames)
    options = {"save_all": True, "append_images": others, "loop": 0}
    first.save(folder / "moving.gif", duration=[40, 80, 120, 500], **options)
    return folder / "moving.gif"


def levels(path):
    with Image.open(path) as image:
        return [
            np.asarray(frame.convert("RGB")).astype(int) for frame in ImageSequence.Iterator(image)
        ]


@pytest.mark.slow
@pytest.mark.parametrize("upscale", [1, 2])
def test_every_frame_is_restored(restore, animation, tmp_path, upscale):
    status, out, _ = restore("-i", animation, "--compare", "--upscale", str(upscale))
    assert status == 0 and "1 images, 3 faces restored" in out
    result = open_animation(tmp_path / "out/restored/moving.png")
    assert result is not None and result.loops == 0
    assert [duration for _, duration in result.frames()] == [40, 80, 120, 500]
    before, after = levels(animation), levels(tmp_path / "out/restored/moving.png")
    assert all(frame.shape == (256 * upscale, 256 * upscale, 3) for frame in after)
    if upscale == 1:
        changed = [np.abs(a - b).max() for a, b in zip(before, after, strict=True)]
        assert min(changed[:3]) > 20 and changed[3] == 0
    assert len(levels(tmp_path / "out/compare/moving.png")) == 4


@pytest.mark.slow
def test_a_done_animation_is_skipped(restore, animation, tmp_path):
    assert restore("-i", animation)[0] == 0
    for flag in ("--resume", "--skip-existing"):
        status, out, _ = restore("-i", animation, flag)
        assert status == 0 and "done already" in out


@pytest.mark.slow
def test_aligned_animations(restore, animation, tmp_path):
    status, out, _ = restore("-i", animation, "--aligned")
    assert status == 0 and "4 faces restored" in out
    assert len(levels(tmp_path / "out/restored_faces/moving.png")) == 4


@pytest.mark.slow
def test_an_animation_without_a_face_is_an_error(restore, tmp_path):
    frames = [Image.fromarray(np.full((64, 64, 3), level, np.uint8)) for level in (50, 90)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:])
    status, _, err = restore("-i", tmp_path / "a.webp")
    assert status == 1 and "no face found by yunet in any of 2 frames" in err
    assert not (tmp_path / "out/restored/a.png").exists()
    assert restore("-i", tmp_path / "a.webp", "--keep-unrestored")[0] == 0
    assert len(levels(tmp_path / "out/restored/a.png")) == 2


@pytest.mark.slow
def test_an_animation_that_becomes_too_large_is_an_error(restore, animation, monkeypatch):
    monkeypatch.setattr("quantface_arch.restore.animation_run.MAX_OUTPUT_PIXELS", 10**6)
    status, _, err = restore("-i", animation, "--upscale", "2")
    assert status == 1 and "enlarging 4 frames 2 times gives 1 megapixels together" in err


@pytest.mark.slow
def test_metadata_is_kept_or_left_out(restore, repo, tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "a description"
    with Image.open(repo / "inputs/astronaut.jpg") as image:
        image.save(tmp_path / "a.jpg", exif=exif)
    for words, kept in (([], True), (["--no-metadata"], False)):
        assert restore("-i", tmp_path / "a.jpg", *words)[0] == 0
        with Image.open(tmp_path / "out/restored/a.png") as image:
            assert (0x010E in image.getexif()) == kept
        with Image.open(tmp_path / "out/restored_faces/a_00.png") as image:
            assert not image.getexif()
