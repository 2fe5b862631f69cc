"""What each colour fix takes from the input, and what it keeps of the network's image."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from quantface_arch.archs.presets import PRESETS
from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.choices import COLOR_FIXES
from quantface_arch.faces.color import default_color_fix, fix_color
from quantface_arch.models.restorer_model import RestorerModel
from quantface_arch.pretrained.names import resolve_model, shipped_models
from quantface_arch.quant.checkpoint.metadata import opened
from quantface_arch.restore.restorer import FaceRestorer

TINT = np.array([0.10, -0.05, 0.02])
DTYPES = [np.uint8, np.uint16, np.float32]


def peak_of(dtype):
    return 1.0 if dtype == np.float32 else np.iinfo(dtype).max


def in_dtype(image, dtype):
    image = image.clip(0, 1) * peak_of(dtype)
    return (image if dtype == np.float32 else np.rint(image)).astype(dtype)


def smooth_face(dtype):
    ramp = np.linspace(0.3, 0.6, 512)
    face = np.stack([np.outer(ramp, ramp) + shift for shift in (0.1, 0.05, 0.0)], axis=2)
    return in_dtype(face, dtype)


def pair(dtype):
    """Return a face, and its copy with another tint, less contrast and more detail."""
    original = smooth_face(dtype)
    detail = np.random.default_rng(0).normal(0, 0.02, (512, 512, 1))
    restored = 0.8 * original / peak_of(dtype) + detail + TINT + 0.05
    return in_dtype(restored, dtype), original


def blocks(image):
    return cv2.resize(image.astype(np.float32), (32, 32), interpolation=cv2.INTER_AREA)


def low_band(image):
    return cv2.GaussianBlur(image.astype(np.float32), (0, 0), 13)


@pytest.mark.parametrize("dtype", DTYPES)
def test_none_returns_the_network_s_image(dtype):
    restored, original = pair(dtype)
    assert np.array_equal(fix_color(restored, original, "none"), restored)


@pytest.mark.parametrize("dtype", DTYPES)
def test_lowres_keeps_the_block_means_of_the_input(dtype):
    restored, original = pair(dtype)
    fixed, peak = fix_color(restored, original, "lowres"), peak_of(dtype)
    assert fixed.dtype == dtype
    assert np.abs(blocks(fixed) - blocks(original)).max() < 0.01 * peak
    assert np.abs(blocks(restored) - blocks(original)).max() > 0.05 * peak


def wave(period):
    """Return vertical stripes whose amplitude is a tenth of the range, float32 (512, 512, 3)."""
    stripes = 0.1 * np.sin(np.arange(512) * 2 * np.pi / period)
    return np.tile(stripes, (512, 1))[..., None].repeat(3, axis=2).astype(np.float32)


def amplitude(image, period):
    return 2 * float((image * wave(period) / 0.1).mean())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("period", "share"), [(2.56, 0.0), (8, 0.15)])
def test_structure_takes_a_share_of_coarse_shapes_and_no_noise(dtype, period, share):
    grey = np.full((512, 512, 3), 0.5, np.float32)
    restored, original = in_dtype(grey, dtype), in_dtype(grey + wave(period), dtype)
    fixed = fix_color(restored, original, "structure")
    assert fixed.dtype == dtype
    assert amplitude(fixed / peak_of(dtype), period) == pytest.approx(0.1 * share, abs=0.002)


@pytest.mark.parametrize("dtype", DTYPES)
def test_structure_keeps_the_block_means_of_the_input(dtype):
    restored, original = pair(dtype)
    fixed, peak = fix_color(restored, original, "structure"), peak_of(dtype)
    assert np.abs(blocks(fixed) - blocks(original)).max() < 0.01 * peak


@pytest.mark.parametrize("dtype", DTYPES)
def test_adain_matches_mean_and_deviation_of_each_channel(dtype):
    restored, original = pair(dtype)
    fixed, peak = fix_color(restored, original, "adain"), peak_of(dtype)
    for measure in (np.mean, np.std):
        found, wanted, before = (
            measure(image.astype(float), axis=(0, 1)) for image in (fixed, original, restored)
        )
        assert found == pytest.approx(wanted, abs=0.003 * peak)
        assert np.abs(before - wanted).max() > 0.005 * peak


@pytest.mark.parametrize("dtype", DTYPES)
def test_wavelet_combines_the_input_s_low_band_with_the_network_s_high_band(dtype):
    restored, original = pair(dtype)
    fixed, peak = fix_color(restored, original, "wavelet"), peak_of(dtype)
    inner = np.s_[64:-64, 64:-64]
    assert np.abs(low_band(fixed) - low_band(original))[inner].max() < 0.01 * peak
    high, wanted = (image - low_band(image) for image in (fixed, restored))
    assert np.abs(high - wanted)[inner].max() < 0.01 * peak
    assert (
        np.abs(low_band(restored) - low_band(original))[inner].min(axis=(0, 1)).max() > 0.05 * peak
    )


@pytest.mark.parametrize("name", COLOR_FIXES)
def test_a_face_without_drift_does_not_change(name):
    original = smooth_face(np.uint8)
    assert np.array_equal(fix_color(original, original, name), original)


@pytest.mark.parametrize("name", COLOR_FIXES)
def test_a_flat_face_gives_finite_values(name):
    flat, face = np.full((512, 512, 3), 0.5, np.float32), smooth_face(np.float32)
    for restored, original in ((flat, face), (face, flat)):
        assert np.isfinite(fix_color(restored, original, name)).all()


def test_unknown_names_are_refused():
    face = smooth_face(np.uint8)
    allowed = "found 'sepia', allowed are none, structure, lowres, wavelet, adain"
    for call in (
        lambda: fix_color(face, face, "sepia"),
        lambda: FaceRestorer(nn.Identity(), color_fix="sepia"),
        lambda: FaceRestorer(nn.Identity()).restore_aligned([face], color_fix="sepia"),
    ):
        with pytest.raises(QuantFaceError, match=allowed):
            call()


class Tinted(nn.Module):
    """Returns its input with more red."""

    def __init__(self, arch):
        super().__init__()
        self.arch_options = arch

    def forward(self, lq):
        return lq + torch.tensor([0.2, 0.0, 0.0]).view(3, 1, 1)


def test_the_default_is_the_model_s_own():
    face = smooth_face(np.uint8)
    for preset, wanted in (("osdface", "none"), (None, "none"), ("mini", "structure")):
        arch = {"type": "OSDFace", **({"preset": preset} if preset else {})}
        restorer = FaceRestorer(Tinted(arch))
        assert restorer.color_fix == wanted
        drift = restorer.restore_aligned([face])[0].mean() - face.mean()
        assert drift > 5 if wanted == "none" else drift < 1
        own = FaceRestorer(Tinted(arch), color_fix="adain")
        assert own.color_fix == "adain"
        assert own.restore_aligned([face], color_fix="none")[0].mean() - face.mean() > 5
    assert default_color_fix({}) == default_color_fix({"type": "RRDBNet"}) == "none"
    small = [name for name in PRESETS if name.startswith("mini")]
    found = {default_color_fix({"type": "OSDFace", "preset": name}) for name in small}
    assert found == {"structure"}


@pytest.mark.parametrize("name", shipped_models())
def test_shipped_models_keep_the_tones_of_the_input(name):
    with opened(resolve_model(name)) as (_, metadata):
        assert default_color_fix(metadata.arch) == "structure"


class NetTest(RestorerModel):
    """BasicSR's test of one network, without files."""

    def __init__(self, val):
        self.opt, self.net = {"val": val, "dist": False}, Tinted({})
        self.net.input_range = (-1, 1)
        self.net_g, self.lq = self.net, torch.zeros(2, 3, 64, 64)

    def tested_network(self):
        return self.net

    states = load_states = final_network = None


def test_the_color_fix_of_an_options_file():
    drift = {}
    for name in (None, *COLOR_FIXES):
        model = NetTest({} if name is None else {"color_fix": name})
        model.test()
        drift[name] = float(model.output[:, 0].mean())
    assert drift[None] == drift["none"] == pytest.approx(0.2)
    assert [drift[name] for name in COLOR_FIXES[1:]] == pytest.approx([0] * 4, abs=1e-3)
    with pytest.raises(QuantFaceError, match="val option color_fix: found 'sepia'"):
        NetTest({"color_fix": "sepia"}).test()
