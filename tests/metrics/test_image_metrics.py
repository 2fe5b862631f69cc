"""Metrics of pictures: best at equality, worse for worse pictures, and nothing is downloaded."""

from __future__ import annotations

import inspect

import cv2
import facexlib
import numpy as np
import pytest
import torch
from facexlib.alignment import FAN, awing_arch, init_alignment_model
from facexlib.recognition.arcface_arch import Backbone
from torchvision.models import AlexNet_Weights, VGG16_Weights, alexnet

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.metrics import calculate_metric, calculate_niqe
from quantface_arch.errors import QuantFaceError
from quantface_arch.metrics import face as face_metrics
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.metrics.networks import FILES, OF_PYIQA, MetricUnavailable, find_files, network

OFFLINE = ["psnr", "ssim", "ms_ssim", "haarpsi", "edge_psnr", "sharpness", "vre"]
RANDOM = ["lpips", "deg", "lmd"]


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    """The caches of torch and facexlib are below an empty folder, and no download is tried."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a download was tried")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(facexlib, "__file__", str(tmp_path / "facexlib/__init__.py"))
    return tmp_path


def file_name(metric, index=0):
    return FILES[metric][index][1].rsplit("/", 1)[-1]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder with random weights of the shapes that lpips, deg and lmd want."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("weights")
    torch.save(alexnet().state_dict(), folder / file_name("lpips"))
    arcface = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    torch.save(arcface.state_dict(), folder / file_name("deg"))
    fan = FAN(num_modules=4, num_landmarks=98, device="cpu")
    torch.save({"state_dict": fan.state_dict()}, folder / file_name("lmd"))
    return folder


@pytest.fixture(scope="module")
def face(repo):
    """A face, BGR (256, 256, 3) uint8."""
    picture = cv2.imread(str(repo / "inputs/astronaut_closeup.jpg"))
    return cv2.resize(picture, (256, 256), interpolation=cv2.INTER_AREA)


def blurred(image, sigma):
    return cv2.GaussianBlur(image, (0, 0), sigma)


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


def badness(name, figure):
    """Distance from the best in the metric's own units, less being better."""
    return {"higher": -figure, "lower": figure, "1": abs(figure - 1)}[METRICS[name].better]


@pytest.mark.parametrize(("spoil", "amounts"), [(blurred, (1, 2, 4)), (noisy, (5, 15, 40))])
@pytest.mark.parametrize("name", OFFLINE)
def test_more_degradation_is_worse(name, spoil, amounts, face):
    values = [badness(name, METRICS[name](spoil(face, amount), face)) for amount in amounts]
    same = badness(name, METRICS[name](face, face))
    assert same < values[0] < values[1] < values[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lpips", "deg"])
def test_more_noise_is_worse_through_any_network(name, face, weights):
    pictures = (face, noisy(face, 10), noisy(face, 30), noisy(face, 90))
    values = [METRICS[name](picture, face, weights=weights) for picture in pictures]
    assert values[0] < values[1] < values[2] < values[3]


@pytest.mark.slow
def test_equal_pictures_have_the_best_figure(face, weights):
    best = {"psnr": np.inf, "ssim": 1, "ms_ssim": 1, "haarpsi": 1, "sharpness": 1, "vre": 0}
    for name, value in {**best, **dict.fromkeys(RANDOM, 0)}.items():
        options = {"weights": weights} if name in RANDOM else {}
        assert METRICS[name](face, face, **options) == pytest.approx(value, abs=1e-5), name


@pytest.mark.parametrize("name", ["ms_ssim", "haarpsi", "vre", "lpips", "deg"])
def test_options_files_take_them_with_float_pictures_and_basicsr_s_own_keys(name, face, weights):
    metric = METRICS[name]
    option = {"type": metric.type, "better": metric.better, "weights": str(weights)}
    option = option if name in RANDOM else {"type": metric.type, "better": "higher"}
    pair = {"img": noisy(face, 20).astype(np.float64), "img2": face.astype(np.float64)}
    options = {"weights": weights} if name in RANDOM else {}
    wanted = metric(noisy(face, 20), face, **options)
    assert calculate_metric(pair, option) == pytest.approx(wanted, rel=1e-4)
    with pytest.raises(QuantFaceError, match="256x256 and 200x256"):
        calculate_metric({"img": face, "img2": face[:, :200]}, option)


def test_colours_are_told_apart(face):
    """The channels reach the networks as RGB: red and blue do not weigh the same."""
    red, blue = face.copy(), face.copy()
    red[..., 2] //= 2
    blue[..., 0] //= 2
    assert METRICS["haarpsi"](red, face) != METRICS["haarpsi"](blue, face)
    grey = np.full_like(face, 128)
    (tensor,) = face_metrics.as_tensors(np.stack([grey[..., 0] * 0, grey[..., 0], grey[..., 1]], 2))
    assert tensor[0, 2].max() == 0 < tensor[0, 0].min() == pytest.approx(128 / 255)


def test_niqe_is_basicsr_s_and_needs_no_clean_picture(face):
    figure = METRICS["niqe"](face, None)
    assert figure == calculate_niqe(face, crop_border=0)
    assert figure < METRICS["niqe"](blurred(face, 3), None)


def test_what_has_no_figure_is_an_error(face):
    flat = np.full((64, 64, 3), 9, np.uint8)
    for name, picture, words in (
        ("niqe", flat, "64x64 pixels, at least 192"),
        ("ms_ssim", flat, "64x64 pixels, at least 161"),
        ("haarpsi", flat[:15], "64x15 pixels, at least 16"),
        ("fid", face, "two folders"),
    ):
        with pytest.raises(QuantFaceError, match=words), np.errstate(invalid="ignore"):
            METRICS[name](picture, picture)


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("level", [0, 1, 128, 255])
def test_equal_flat_images_have_the_best_figure(name, level):
    flat = np.full((192, 192, 3), level, np.uint8)
    best = {"psnr": np.inf, "edge_psnr": METRICS["edge_psnr"](noisy(flat, 9), noisy(flat, 9))}
    wanted = 0 if name == "vre" else best.get(name, 1)
    assert METRICS[name](flat, flat) == pytest.approx(wanted, abs=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OFFLINE if name != "psnr"])
def test_figures_of_dull_images_are_finite_or_refused(name, face):
    black = np.zeros_like(face)
    dot, half = black.copy(), face.copy()
    dot[0, 0, 0] = 1
    half[:, 100:] = 128
    pictures = (black, dot, half, face, np.full_like(face, 128), np.full_like(face, 255))
    for first in pictures:
        for second in pictures:
            try:
                assert np.isfinite(METRICS[name](first, second))
            except QuantFaceError as error:
                assert "undefined" in str(error)
                assert not np.array_equal(first, second)


@pytest.mark.parametrize("level", [0, 128, 255])
def test_niqe_of_images_without_texture_is_refused(level, face):
    flat = np.full_like(face, level)
    step = flat.copy()
    step[:, 96:] = 77
    for picture in (flat, step):
        with pytest.raises(QuantFaceError, match=r"NIQE is undefined: fewer than two .*texture"):
            METRICS["niqe"](picture, None)
        with pytest.raises(QuantFaceError, match="undefined"):
            calculate_metric({"img": picture}, {"type": "calculate_quantface_niqe"})


@pytest.mark.slow
def test_deg_is_the_angle_between_embeddings(face, weights):
    net = network("deg", weights)
    other = np.ascontiguousarray(face[::-1])
    with torch.no_grad():
        first, second = (net.embed(2 * x - 1)[0] for x in face_metrics.as_tensors(face, other))
    wanted = np.degrees(np.arccos(float(first @ second)))
    assert METRICS["deg"](face, other, weights=weights) == pytest.approx(wanted, abs=0.05)
    tiny = face.copy()
    tiny[128, 128] ^= 1
    assert 0 < METRICS["deg"](tiny, face, weights=weights) < 0.1


def test_peaks_are_facexlibs(monkeypatch):
    monkeypatch.setattr(np, "float", float, raising=False)
    heatmaps = np.random.default_rng(0).random((20, 64, 64), np.float32)
    heatmaps[:, [0, -1]] = heatmaps[:, :, [0, -1]] = 0
    found = face_metrics.peaks(heatmaps) * 64
    assert np.array_equal(found, awing_arch.calculate_points(heatmaps[None])[0])


def test_peaks_at_the_border_stay_inside():
    heatmaps = np.zeros((4, 8, 16), np.float32)
    corners = [(0, 0), (0, 15), (7, 0), (7, 15)]
    for heatmap, corner in zip(heatmaps, corners, strict=True):
        heatmap[corner] = 1
    found = face_metrics.peaks(heatmaps) * (16, 8)
    assert np.abs(found - [(x + 0.5, y + 0.5) for y, x in corners]).max() <= 0.25


@pytest.mark.slow
def test_lmd_is_in_pixels_of_the_picture(face, weights):
    spoiled = noisy(face, 60)
    small = METRICS["lmd"](spoiled, face, weights=weights)
    twice = (np.repeat(np.repeat(image, 2, 0), 2, 1) for image in (spoiled, face))
    assert 0 < 2 * small == pytest.approx(METRICS["lmd"](*twice, weights=weights))


def test_landmarks_of_the_detector_follow_the_face(face, data_root):
    folder = data_root / "weights/facexlib"
    large = cv2.resize(face, (512, 512))
    moved = cv2.warpAffine(
        large, np.float32([[1, 0, 12], [0, 1, -9]]), (512, 512), borderMode=cv2.BORDER_REPLICATE
    )
    figure = METRICS["lmd_detector"]
    assert figure(large, large, weights=folder) == 0
    assert figure(moved, large, weights=folder) == pytest.approx(15, abs=2)
    with pytest.raises(QuantFaceError, match="no face found by retinaface"):
        figure(np.full_like(large, 128), large, weights=folder)
    with pytest.raises(QuantFaceError, match=r"landmarks: found 'nose'.*alignment, detector"):
        face_metrics.calculate_quantface_lmd(large, large, landmarks="nose")


def test_a_network_is_loaded_once(weights):
    for name in RANDOM:
        first = network(name, weights)
        assert first is network(name, weights=str(weights), download=True, device="cpu")


def test_weights_come_from_the_folder_and_then_from_the_libraries_caches(weights, cache):
    for name, place in (("lpips", "hub/checkpoints"), ("lmd", "facexlib/weights")):
        assert find_files(name, weights) == (weights / file_name(name),)
        for options in ({}, {"weights": cache}):
            with pytest.raises(MetricUnavailable, match=f"^{name}: no file .*{file_name(name)}"):
                find_files(name, **options)
        (cache / place).mkdir(parents=True)
        (cache / place / file_name(name)).symlink_to(weights / file_name(name))
        for options in ({}, {"weights": cache}):
            assert find_files(name, **options) == (cache / place / file_name(name),)


def test_a_download_goes_to_the_folder_and_its_failure_names_the_metric(monkeypatch, cache):
    def give(url, path, digest):
        with open(path, "w") as file:
            file.write(f"{url} {digest}")

    monkeypatch.setattr(torch.hub, "download_url_to_file", give)
    (file,) = find_files("lpips", cache / "new", download=True)
    assert file.parent == cache / "new" and file.read_text().endswith("7be5be79.pth 7be5be79")

    def fail(*_args):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    with pytest.raises(MetricUnavailable, match=r"^deg: .*no route to host"):
        find_files("deg", download=True)


def test_damaged_and_foreign_weights_are_errors_of_their_own(weights, cache):
    for name, content in (("deg", "lpips"), ("lmd", "deg")):
        (cache / file_name(name)).symlink_to(weights / file_name(content))
        with pytest.raises(QuantFaceError, match=file_name(name)) as caught:
            network(name, cache)
        assert not isinstance(caught.value, MetricUnavailable)


def test_files_are_those_that_their_libraries_ask_for():
    assert FILES["lpips"][0][1] == AlexNet_Weights.IMAGENET1K_V1.url
    assert FILES["dists"][0][1] == VGG16_Weights.IMAGENET1K_V1.url
    assert FILES["lmd"][0][1] in inspect.getsource(init_alignment_model)


@pytest.mark.parametrize("name", OF_PYIQA)
def test_without_pyiqa_its_metrics_say_so(name, tmp_path, monkeypatch):
    (tmp_path / "pyiqa.py").write_text("import a_package_that_is_not_there")
    for _, url in FILES[name]:
        (tmp_path / url.rsplit("/", 1)[-1]).touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "pyiqa", raising=False)
    with pytest.raises(MetricUnavailable, match=f"^{name}: pyiqa cannot be imported: .*not_there"):
        network(name, tmp_path)
    (tmp_path / "pyiqa.py").unlink()
    monkeypatch.setattr("sys.path", [str(tmp_path)])
    with pytest.raises(MetricUnavailable, match=rf"^{name}: pyiqa is not installed: .*metrics"):
        find_files(name, tmp_path)
