"""Pasting without a seam: the mask follows the head, and the input's grain fades slowly."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from quantface_arch.faces.align import FACE_SIZE, TEMPLATE
from quantface_arch.faces.mask import HeadMask, head_mask, head_turn
from quantface_arch.faces.paste import noise_level, paste_face

IDENTITY = np.eye(2, 3)
SIGMA = 12.0
DEEP = {np.uint8: 1, np.uint16: 257}


def noisy(level=128.0, sigma=SIGMA, dtype=np.uint8):
    noise = np.random.default_rng(0).normal(level, sigma, (FACE_SIZE, FACE_SIZE, 3))
    return np.rint(noise.clip(0, 255) * DEEP[dtype]).astype(dtype)


def flat(dtype=np.uint8):
    return np.full((FACE_SIZE, FACE_SIZE, 3), 140 * DEEP[dtype], dtype)


def pasted(canvas, face, **options):
    result = canvas.copy()
    paste_face(result, face, IDENTITY, **options)
    return result


def gradient(image, where):
    luma = image.astype(np.float32).mean(axis=2)
    return np.hypot(*np.gradient(luma))[where].mean()


@pytest.mark.parametrize("turn", [-40.0, -20.0, 0.0, 40.0])
def test_the_mask_covers_the_features_and_fades_inside_the_frame(turn):
    mask = head_mask(turn)
    for weight in (mask.coarse, mask.fine):
        assert weight.dtype == np.float32 and weight.shape == (FACE_SIZE, FACE_SIZE)
        assert weight.min() >= 0 and weight.max() == 1
        edges = weight[[0, -1]].max(), weight[:, [0, -1]].max()
        assert edges == (0, 0)
        # A large step would be visible as a seam.
        assert max(np.abs(np.diff(weight, axis=axis)).max() for axis in (0, 1)) < 0.06
    assert (mask.fine <= mask.coarse).all()


def test_the_mask_covers_a_frontal_face():
    x, y = TEMPLATE.round().astype(int).T
    assert (head_mask().coarse[y, x] == 1).all()
    assert np.allclose(head_mask().coarse, head_mask().coarse[:, ::-1], atol=1e-5)
    # The background beside the chin and in the upper corners is outside.
    assert not head_mask().coarse[400:, :40].any() and not head_mask().coarse[:60, :60].any()


def test_the_mask_moves_to_the_back_of_a_turned_head():
    turned = TEMPLATE.copy()
    turned[2, 0] -= 40
    turn = head_turn(turned)
    assert -40 <= turn < -35 and abs(head_turn(TEMPLATE)) < 5
    assert head_turn(TEMPLATE[:2]) == 0
    places = np.arange(FACE_SIZE)
    middles = [
        np.average(places, weights=head_mask(angle).coarse.sum(axis=0)) for angle in (turn, 0)
    ]
    assert middles[0] > middles[1] + 25


@pytest.mark.parametrize("nose", [-80, -40, 40, 80])
def test_the_mask_covers_the_nose_of_a_profile(nose):
    turned = TEMPLATE.copy()
    turned[2, 0] += nose
    x, y = turned[2].round().astype(int)
    assert head_mask(head_turn(turned)).coarse[y, x] > 0.9


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("grey", [False, True])
def test_pixels_outside_the_mask_do_not_change(dtype, grey):
    canvas, face = noisy(dtype=dtype), flat(dtype)
    if grey:
        canvas = np.repeat(canvas[..., :1], 3, axis=2)
    after = pasted(canvas, face)
    outside = head_mask().coarse == 0
    assert outside.mean() > 0.3
    assert np.array_equal(after[outside], canvas[outside])
    assert not np.array_equal(after, canvas)
    assert not grey or (after == after[..., :1]).all()


@pytest.mark.parametrize("sigma", [4.0, SIGMA])
def test_grain_continues_across_the_border(sigma):
    """With one weight for both bands there would be a halo, which this measure detects."""
    canvas, face, mask = noisy(sigma=sigma), flat(), head_mask()
    border = (mask.coarse > 0) & (mask.coarse < 1)
    expected = gradient(canvas, border)
    assert gradient(pasted(canvas, face, mask=mask), border) == pytest.approx(expected, rel=0.1)
    alike = HeadMask(mask.coarse, mask.coarse)
    assert gradient(pasted(canvas, face, mask=alike), border) < 0.8 * expected


def test_grain_fades_gradually_and_is_absent_in_the_middle():
    mask = head_mask()
    after = pasted(noisy(), flat(), mask=mask)
    levels = [
        gradient(after, (mask.fine >= low) & (mask.fine < low + 0.1))
        for low in np.arange(0, 1, 0.1)
    ]
    assert np.abs(np.diff(levels)).max() < 0.2 * levels[0]
    assert (after[mask.fine == 1] == 140).all()


def test_edges_of_the_input_are_not_kept_as_grain():
    """In an image with little noise, a bright bar under the face is replaced."""
    canvas = noisy(level=60, sigma=1)
    canvas[:, 330:345] = 250
    mask = head_mask()
    after = pasted(canvas, flat(), mask=mask)
    inside = (mask.coarse == 1) & (mask.fine < 1)
    assert np.abs(after.astype(int) - 140)[inside].max() < 10


def test_pasting_is_deterministic():
    assert np.array_equal(pasted(noisy(), flat()), pasted(noisy(), flat()))


def test_the_noise_level_is_robust_against_edges():
    image = noisy().astype(np.float32)
    image[::64] += 100
    high = image - cv2.GaussianBlur(image, (0, 0), 3)
    everywhere = np.ones(image.shape[:2], bool)
    assert noise_level(high, everywhere) == pytest.approx([SIGMA] * 3, rel=0.15)
    assert noise_level(high, ~everywhere) == pytest.approx(noise_level(high, everywhere))
