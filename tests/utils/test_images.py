"""Images are read upright and unchanged, and unreadable files are reported in one line."""

from __future__ import annotations

import re
import struct
import sys
import zlib
from dataclasses import replace

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import (
    RGBImage,
    formats,
    load_rgb,
    missing_decoder,
    read_image,
    to_uint8,
    write_image,
)


@pytest.fixture
def pixels() -> np.ndarray:
    smooth = cv2.resize(np.random.randint(0, 256, (4, 5, 3), np.uint8), (40, 24))
    return np.ascontiguousarray(smooth)


@pytest.fixture
def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


EXACT = (".png", ".bmp", ".webp", ".tif", ".ppm", ".jp2")
LOSSY = (".jpg", ".mpo", ".gif", ".avif", ".heic")


@pytest.mark.parametrize("suffix", [*EXACT, *LOSSY])
def test_every_format_is_read(tmp_path, pixels, suffix):
    if (missing := missing_decoder(suffix)) is not None:
        pytest.skip(missing)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, quality=95, lossless=True)
    error = np.abs(load_rgb(path).astype(int) - pixels)
    assert error.mean() <= (0 if suffix in EXACT else 8)


def test_a_missing_decoder_is_named(tmp_path, pixels, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    formats.formats_here.cache_clear()
    (tmp_path / "a.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(QuantFaceError, match=r'a\.heic: .*pip install "pillow-heif"'):
        load_rgb(tmp_path / "a.heic")
    formats.formats_here.cache_clear()


@pytest.mark.parametrize("suffix", [".tif", ".pgm", ".png"])
def test_16_bits_of_grey_are_kept(tmp_path, suffix):
    levels = np.random.randint(0, 65536, (24, 40)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / f"a{suffix}"), levels)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}").rgb, np.dstack([levels] * 3))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_more_than_16_bits_are_refused(tmp_path, dtype):
    Image.fromarray(np.full((24, 40), 70000, dtype)).save(tmp_path / "a.tif")
    with pytest.raises(QuantFaceError, match=r"more than 16 bits per channel"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_exif_orientation_is_undone(tmp_path, pixels, orientation, deep):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)))
    if deep:
        _deepen(path, pixels)
    assert np.array_equal(load_rgb(path), expected)


def _deepen(path, pixels):
    """Convert a PNG to 16 bits with the same levels, and keep its other chunks."""
    other = re.search(rb"....eXIf.*?(?=....I(DAT|END))", path.read_bytes(), re.DOTALL)
    data = cv2.imencode(".png", pixels[..., ::-1].astype(np.uint16) * 257)[1].tobytes()
    path.write_bytes(data[:33] + other.group() + data[33:])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("with_alpha", [False, True])
@pytest.mark.parametrize("with_profile", [False, True])
def test_writing_and_reading_is_the_identity(tmp_path, profile, dtype, with_alpha, with_profile):
    peak = np.iinfo(dtype).max
    rgb = np.random.randint(0, peak + 1, (17, 33, 3)).astype(dtype)
    alpha = np.random.randint(0, peak + 1, (17, 33)).astype(dtype) if with_alpha else None
    picture = RGBImage(rgb, alpha, profile if with_profile else None)
    write_image(tmp_path / "a.png", picture)
    back = read_image(tmp_path / "a.png")
    assert back.rgb.dtype == dtype
    assert np.array_equal(back.rgb, rgb)
    assert back.icc_profile == picture.icc_profile
    assert (back.alpha is None) == (alpha is None)
    assert alpha is None or np.array_equal(back.alpha, alpha)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path, pixels, mode):
    image = Image.fromarray(pixels).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image.save(path)
    picture = read_image(path)
    expected = np.asarray(image.convert("RGB")).astype(int)
    assert np.abs(picture.rgb - expected).max() <= (24 if mode == "CMYK" else 0)
    assert (picture.alpha is not None) == ("A" in mode)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_pngs_keep_their_levels(tmp_path, channels):
    shape = (20, 30) if channels == 1 else (20, 30, channels)
    levels = np.random.randint(0, 65536, shape).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "a.png"), levels)
    picture = read_image(tmp_path / "a.png")
    assert picture.bit_depth == 16
    colour = np.repeat(levels[..., None], 3, 2) if channels == 1 else levels[..., 2::-1]
    assert np.array_equal(picture.rgb, colour)
    assert (picture.alpha is not None) == (channels == 4)


def test_a_profile_of_another_colour_space_is_dropped(tmp_path, pixels, profile):
    grey = profile[:16] + b"GRAY" + profile[20:]
    Image.fromarray(pixels).convert("L").save(tmp_path / "a.png", icc_profile=grey)
    assert read_image(tmp_path / "a.png").icc_profile is None


def test_to_uint8_undoes_widening():
    levels = np.arange(256, dtype=np.uint16)
    assert np.array_equal(to_uint8(levels * 257), levels)


def test_resizing_keeps_alpha_and_dtype(pixels):
    picture = RGBImage(pixels.astype(np.uint16), pixels[..., 0].astype(np.uint16))
    larger = picture.resized(80, 48)
    assert larger.rgb.shape == (48, 80, 3) and larger.rgb.dtype == np.uint16
    assert larger.alpha.shape == (48, 80)
    assert replace(picture).resized(40, 24).rgb is picture.rgb


def _png_header(width, height):
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT"


def test_damaged_and_unfit_files_are_named_in_one_line(tmp_path, pixels):
    noise = np.random.randint(0, 256, (64, 64, 3), np.uint8)
    whole = {}
    for suffix in ("png", "jpg", "webp", "bmp"):
        Image.fromarray(noise).save(tmp_path / f"whole.{suffix}")
        whole[suffix] = (tmp_path / f"whole.{suffix}").read_bytes()
    deep = cv2.imencode(".png", noise.astype(np.uint16) * 257)[1].tobytes()
    bad = {
        "missing.png": (None, "No such file"),
        "zero.png": (b"", "empty file"),
        "text.jpg": (b"hello\n", "not an image of a supported format .*PNG"),
        "one.png": (cv2.imencode(".png", noise[:1, :1])[1].tobytes(), "1x1 pixels: at least 16x16"),
        # No pixels follow, so the size alone must be enough.
        "bomb.png": (_png_header(20000, 20000), "20000x20000 pixels .400 megapixels.: at most 100"),
        "deep.png": (deep[: len(deep) // 2], "cannot be read"),
        **{
            f"cut.{suffix}": (data[: len(data) // 2], "cannot be read")
            for suffix, data in whole.items()
        },
    }
    for name, (data, message) in bad.items():
        path = tmp_path / name
        if data is not None:
            path.write_bytes(data)
        with pytest.raises(QuantFaceError, match=f"^{re.escape(str(path))}: .*{message}") as caught:
            read_image(path)
        assert "\n" not in str(caught.value)


def test_an_unwritable_place_is_named(tmp_path, pixels):
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantFaceError, match=r"file/a\.png"):
        write_image(tmp_path / "file" / "a.png", RGBImage(pixels))
    with pytest.raises(QuantFaceError, match=r"written as \.png"):
        write_image(tmp_path / "a.jpg", RGBImage(pixels))
