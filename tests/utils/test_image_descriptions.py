"""What a file says beside its pixels is applied or kept: colours, alpha and metadata."""

from __future__ import annotations

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from quantface_arch.utils.images import RGBImage, from_pil, read_image, write_image

SRGB = ImageCms.createProfile("sRGB")
GRADIENT = np.tile(np.linspace(0, 255, 256).round().astype(np.uint8), (32, 1))


def gray_profile(gamma: float) -> bytes:
    """Return a grey profile whose curve is one exponent."""
    tags = [
        (b"wtpt", b"XYZ \0\0\0\0" + struct.pack(">3i", 63190, 65536, 54061)),
        (b"kTRC", b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))),
    ]
    table, body, start = b"", b"", 128 + 4 + 12 * len(tags)
    for name, data in tags:
        table += name + struct.pack(">II", start + len(body), len(data))
        body += data
    fields = start + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ "
    header = struct.pack(">I4sI4s4s4s", *fields)
    header = header.ljust(36, b"\0") + b"acsp"
    header = header.ljust(68, b"\0") + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def shown(path) -> np.ndarray:
    """Return the levels of an image as a viewer with colour management shows them."""
    image = Image.open(path)
    profile = image.info.get("icc_profile")
    if profile:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        image = ImageCms.profileToProfile(image, source, SRGB, outputMode="RGB")
    levels = np.asarray(image.convert("RGB")) / 255
    gamma = image.info.get("gamma")
    return 255 * (levels ** (1 / gamma / 2.2) if gamma else levels)


def png_with(chunks: list[tuple[bytes, bytes]], pixels: np.ndarray = GRADIENT) -> bytes:
    data = cv2.imencode(".png", pixels)[1].tobytes()
    added = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:33] + added + data[33:]


def copied(tmp_path, name: str):
    write_image(tmp_path / "copy.png", read_image(tmp_path / name))
    return tmp_path / "copy.png"


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
@pytest.mark.parametrize("mode", ["L", "LA"])
def test_grey_with_a_profile_of_its_own_looks_the_same(tmp_path, gamma, mode):
    image = Image.fromarray(GRADIENT).convert(mode)
    image.save(tmp_path / "a.png", icc_profile=gray_profile(gamma))
    image.convert("L").save(tmp_path / "plain.png", icc_profile=gray_profile(gamma))
    before, after = shown(tmp_path / "plain.png"), shown(copied(tmp_path, "a.png"))
    assert np.abs(before - after).max() <= 1
    assert np.abs(after - GRADIENT[..., None]).max() > 10


def test_16_bits_of_grey_with_a_profile_follow_the_same_curve(tmp_path):
    deep = GRADIENT.astype(np.uint16) * 257
    profile = b"p\0\0" + zlib.compress(gray_profile(1.8))
    (tmp_path / "deep.png").write_bytes(png_with([(b"iCCP", profile)], deep))
    (tmp_path / "a.png").write_bytes(png_with([(b"iCCP", profile)]))
    deep_rgb, rgb = (read_image(tmp_path / name).rgb for name in ("deep.png", "a.png"))
    assert deep_rgb.dtype == np.uint16 and np.array_equal(deep_rgb, rgb.astype(np.uint16) * 257)


@pytest.mark.parametrize("value", [20000, 100000])
@pytest.mark.parametrize("deep", [False, True])
def test_an_unusual_gamma_looks_the_same(tmp_path, value, deep):
    pixels = GRADIENT.astype(np.uint16) * 257 if deep else GRADIENT
    (tmp_path / "a.png").write_bytes(png_with([(b"gAMA", struct.pack(">I", value))], pixels))
    (tmp_path / "plain.png").write_bytes(png_with([(b"gAMA", struct.pack(">I", value))]))
    before, after = shown(tmp_path / "plain.png"), shown(copied(tmp_path, "a.png"))
    assert np.abs(before - after).max() <= 1
    assert np.abs(after - GRADIENT[..., None]).max() > 10


@pytest.mark.parametrize(
    ("chunks", "kept"),
    [
        ([(b"cICP", b"\x09\x10\0\x01"), (b"gAMA", struct.pack(">I", 100000))], {b"cICP"}),
        ([(b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 100000))], set()),
        ([(b"gAMA", struct.pack(">I", 45455))], set()),
        ([(b"gAMA", struct.pack(">I", 0))], set()),
        ([(b"cHRM", bytes(32))], {b"gAMA", b"cHRM"}),
    ],
)
def test_values_stay_where_another_chunk_says_what_they_mean(tmp_path, chunks, kept):
    (tmp_path / "a.png").write_bytes(png_with(chunks))
    data = copied(tmp_path, "a.png").read_bytes()
    assert np.array_equal(read_image(tmp_path / "copy.png").rgb[..., 0], GRADIENT)
    assert {kind for kind in (b"cICP", b"gAMA", b"cHRM", b"sRGB") if kind in data[:200]} == kept


def test_cmyk_without_a_profile_is_read_as_before(tmp_path):
    image = Image.fromarray(GRADIENT).convert("RGB").convert("CMYK")
    image.save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif").rgb, np.asarray(image.convert("RGB")))


def test_lab_becomes_srgb(tmp_path):
    gray = np.dstack([GRADIENT, np.full_like(GRADIENT, 128), np.full_like(GRADIENT, 128)])
    lab = Image.fromarray(gray).convert("RGB")
    lab = ImageCms.profileToProfile(lab, SRGB, ImageCms.createProfile("LAB"), outputMode="LAB")
    lab.save(tmp_path / "a.tif")
    error = np.abs(read_image(tmp_path / "a.tif").rgb.astype(int) - gray)
    assert error.mean() < 3


def described_photo(path, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x010E], exif[0x0112], exif[0x0132] = "a description", orientation, "2001:02:03 04:05:06"
    exif[0x8769] = {0x9003: "2001:02:03 04:05:06", 0xA002: 999, 0x829A: 0.01}
    exif[0x8825] = {1: "N", 2: (48.0, 8.0, 0.0), 3: "E", 4: (11.0, 34.0, 0.0)}
    image = Image.fromarray(np.dstack([GRADIENT] * 3))
    image.save(path, exif=exif.tobytes(), dpi=(300, 300))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".jfif"])
def test_exif_and_resolution_go_along_without_the_orientation(tmp_path, suffix):
    described_photo(tmp_path / f"a{suffix}")
    copy = Image.open(copied(tmp_path, f"a{suffix}"))
    exif = copy.getexif()
    assert copy.size == (32, 256)
    assert exif[0x010E] == "a description" and 0x0112 not in exif
    assert exif.get_ifd(0x8769)[0x9003] == "2001:02:03 04:05:06"
    assert 0xA002 not in exif.get_ifd(0x8769)
    assert exif.get_ifd(0x8825)[2] == (48.0, 8.0, 0.0)
    if suffix != ".webp":  # which holds no resolution outside of EXIF
        assert copy.info["dpi"] == pytest.approx((300, 300), abs=0.1)


def test_texts_xmp_and_comments_go_along(tmp_path):
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "steps: 20", zip=True)
    texts.add_itxt("Title", "Föhn")
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/" tiff:Orientation="6">Föhn</x:xmpmeta>'
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    image = Image.fromarray(GRADIENT)
    image.save(tmp_path / "a.png", pnginfo=texts)
    found = Image.open(copied(tmp_path, "a.png"))
    assert found.text["parameters"] == "steps: 20" and found.text["Title"] == "Föhn"
    assert found.info["XML:com.adobe.xmp"] == xmp.replace('"6"', '"1"')
    image.save(tmp_path / "b.jpg", comment=b"two\nlines", xmp=xmp.encode())
    found = Image.open(copied(tmp_path, "b.jpg"))
    assert found.text["Comment"] == "two lines"
    assert found.info["XML:com.adobe.xmp"] == xmp.replace('"6"', '"1"')


def test_metadata_that_cannot_be_parsed_does_not_stop_the_image(tmp_path):
    described_photo(tmp_path / "a.jpg", orientation=1)
    data = (tmp_path / "a.jpg").read_bytes()
    start = data.index(b"Exif\0\0") + 14
    for seed in range(40):
        noise = np.random.default_rng(seed).bytes(60)
        (tmp_path / "b.jpg").write_bytes(data[:start] + noise + data[start + 60 :])
        image = read_image(tmp_path / "b.jpg")
        assert sorted(image.rgb.shape) == [3, 32, 256]
        write_image(tmp_path / "c.png", image)
        Image.open(tmp_path / "c.png").load()


def test_pil_images_bring_their_metadata(tmp_path):
    described_photo(tmp_path / "a.jpg")
    assert (
        from_pil(Image.open(tmp_path / "a.jpg")).metadata == read_image(tmp_path / "a.jpg").metadata
    )


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("hidden", [0, 255])
def test_hidden_colours_do_not_ring_into_visible_ones(dtype, hidden):
    top = np.iinfo(dtype).max
    rgb = np.full((40, 40, 3), hidden * (top // 255), dtype)
    alpha = np.zeros((40, 40), dtype)
    rgb[10:30, 10:30], alpha[10:30, 10:30] = top // 2, top
    image = RGBImage(rgb, alpha).resized(160, 160)
    assert (image.rgb[image.alpha > 0] == top // 2).all()


def test_an_image_that_hides_all_or_nothing_is_left_alone():
    rgb = np.zeros((20, 20, 3), np.uint8)
    for alpha in (np.zeros((20, 20), np.uint8), np.full((20, 20), 255, np.uint8), None):
        assert RGBImage(rgb, alpha).visible().rgb is rgb


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiffs_are_turned_upright_once(tmp_path, orientation, dtype):
    tifffile = pytest.importorskip("tifffile")
    levels = np.random.randint(0, np.iinfo(dtype).max, (24, 40, 3)).astype(dtype)
    tag = (0x0112, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", levels, photometric="rgb", extratags=[tag])
    Image.fromarray(levels.astype(np.uint8)).save(
        tmp_path / "plain.tif", tiffinfo={0x0112: orientation}
    )
    turned = np.asarray(Image.open(tmp_path / "plain.tif"))
    image = read_image(tmp_path / "a.tif")
    assert image.rgb.dtype == dtype
    assert np.array_equal(image.rgb.astype(np.uint8), turned)
