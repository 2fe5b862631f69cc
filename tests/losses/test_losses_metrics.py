"""Losses and metrics that BasicSR's registries hold: what they punish and what they ignore."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

import quantface_arch.register  # noqa: F401
from basicsr.losses import build_loss
from basicsr.metrics import calculate_metric


def blurred(image):
    return F.avg_pool2d(F.pad(image, (2, 2, 2, 2), mode="reflect"), 5, stride=1)


@pytest.mark.parametrize("name", ["QuantFaceEdgeLoss", "QuantFaceTextureLoss"])
def test_detail_losses_see_blur_and_not_brightness(name):
    loss = build_loss({"type": name, "loss_weight": 2.0})
    image = torch.rand(2, 3, 32, 32)
    assert loss(image, image) == 0
    assert loss(image + 0.3, image) < 1e-5
    assert loss(blurred(image), image) > loss(0.5 * blurred(image) + 0.5 * image, image) > 0.01
    half = build_loss({"type": name, "loss_weight": 1.0})
    assert torch.isclose(2 * half(blurred(image), image), loss(blurred(image), image))


def test_texture_loss_forgives_misplaced_detail_where_edge_loss_does_not():
    image = torch.rand(1, 3, 64, 64)
    moved = image.roll((1, 1), (2, 3))
    ratios = []
    for name in ("QuantFaceTextureLoss", "QuantFaceEdgeLoss"):
        loss = build_loss({"type": name})
        ratios.append(loss(moved, image) / loss(blurred(image), image))
    assert ratios[0] < 0.2 < 1 < ratios[1]


def test_color_loss_sees_hue_and_not_brightness_or_detail():
    loss = build_loss({"type": "QuantFaceColorLoss"})
    grey = torch.rand(1, 1, 32, 32).expand(1, 3, 32, 32)
    red = grey.clone()
    red[:, 0, :8, :8] += 0.5
    assert loss(grey + 0.2, grey) < 1e-6
    assert loss(blurred(grey), grey) < 1e-6
    assert torch.isclose(loss(red, grey), torch.tensor((0.5 + 0.25) / 2 / 16))


def test_color_loss_adds_brightness_on_demand():
    plain, bright = (
        build_loss({"type": "QuantFaceColorLoss", "window": 8, "brightness": x}) for x in (0.0, 3.0)
    )
    image = torch.rand(1, 3, 32, 32)
    assert plain(image + 0.2, image) < 1e-6
    assert torch.isclose(bright(image + 0.2, image), torch.tensor(3 * 0.2 / 2))
    red = image + torch.tensor([0.3, 0, 0]).view(3, 1, 1)
    assert torch.isclose(bright(red, image), plain(red, image) + 3 * 0.1 / 2)


def test_losses_have_finite_gradients_in_flat_pictures():
    flat = torch.zeros(1, 3, 16, 16, requires_grad=True)
    for name in ("QuantFaceEdgeLoss", "QuantFaceTextureLoss"):
        build_loss({"type": name})(flat, torch.rand(1, 3, 16, 16)).backward()
    assert torch.isfinite(flat.grad).all()


def test_sharpness_is_below_one_for_blur_and_above_for_noise():
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (16, 16, 3), np.uint8), (64, 64))
    noisy = np.clip(image + rng.normal(0, 20, image.shape), 0, 255).astype(np.uint8)

    def measured(name, picture):
        return calculate_metric({"img": picture, "img2": image}, {"type": name})

    sharpness = "calculate_quantface_sharpness"
    blurry, blurrier = (cv2.GaussianBlur(image, (0, 0), sigma) for sigma in (2, 4))
    assert measured(sharpness, image) == 1
    assert measured(sharpness, blurrier) < measured(sharpness, blurry) < 1
    assert measured(sharpness, noisy) > 1.05
    edge = "calculate_quantface_edge_psnr"
    assert measured(edge, image) > 100 > measured(edge, blurry) > measured(edge, blurrier)
