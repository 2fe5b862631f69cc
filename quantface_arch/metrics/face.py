"""Metrics of how well a face is kept: its identity, landmarks, and features in a VRE encoder.

Images are aligned faces, as restorers see them. The networks of identity and landmarks are
facexlib's. Papers that report "Deg." and "LMD" mostly use others, so values can be compared within
this project only.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.losses.feature_losses import QuantFaceFeatureLoss
from quantface_arch.losses.network_losses import QuantFaceIdentityLoss
from quantface_arch.metrics.networks import network
from quantface_arch.metrics.tensors import as_tensors, check_sizes
from quantface_arch.utils.state_dict import fill, read_state

__all__ = ["calculate_quantface_deg", "calculate_quantface_lmd", "calculate_quantface_vre"]

FAN_SIDE = 256

# Such a function maps an image, BGR (H, W, 3), 0…255, to landmarks (K, 2), x and y in pixels.
Landmarks = Callable[[np.ndarray], np.ndarray]


def build_arcface(_metric: str, files: tuple[Path, ...], device: str) -> QuantFaceIdentityLoss:
    """Build ArcFace with the crop of aligned faces that the identity loss takes."""
    return QuantFaceIdentityLoss(weights=files[0]).to(device)


def build_alignment(_metric: str, files: tuple[Path, ...], device: str) -> Landmarks:
    """Build facexlib's alignment network, which finds 98 landmarks."""
    from facexlib.alignment import FAN

    net = FAN(num_modules=4, num_landmarks=98, device=device)
    fill(net, files[0], read_state(files[0], ("state_dict",)))
    return functools.partial(_align, net.eval().requires_grad_(False).to(device), device)


def _align(net: nn.Module, device: str, image: np.ndarray) -> np.ndarray:
    # We resize like facexlib's ``get_landmarks``, which itself needs NumPy before 1.24.
    small = cv2.resize(image, (FAN_SIDE, FAN_SIDE))
    with torch.no_grad():
        heatmaps = net(*as_tensors(small, device=device))[0][-1][0, :-1].cpu().numpy()
    height, width = image.shape[:2]
    return peaks(heatmaps) * (width, height)


def peaks(heatmaps: np.ndarray) -> np.ndarray:
    """Return where heatmaps are highest, float64 (K, 2): x and y as shares of width and height.

    Along each axis, a peak is moved by a quarter of a pixel towards its higher neighbour.

    Args:
        heatmaps: (K, h, w).
    """
    count, height, width = heatmaps.shape
    flat = heatmaps.reshape(count, -1).argmax(axis=1)
    y, x = np.divmod(flat, width)
    padded = np.pad(heatmaps, ((0, 0), (1, 1), (1, 1)), mode="edge")
    each = np.arange(count)
    dx = np.sign(padded[each, y + 1, x + 2] - padded[each, y + 1, x])
    dy = np.sign(padded[each, y + 2, x + 1] - padded[each, y, x + 1])
    points = np.stack([x + 0.5 + 0.25 * dx, y + 0.5 + 0.25 * dy], axis=1)
    return points / (width, height)


def build_detector(_metric: str, files: tuple[Path, ...], device: str) -> Landmarks:
    """Build RetinaFace, which finds five landmarks; those of the largest face are used."""
    from quantface_arch.faces.retinaface import RetinaFaceDetector

    return functools.partial(_detect, RetinaFaceDetector("retinaface_mobile0.25", files[0], device))


def _detect(detector: Any, image: np.ndarray) -> np.ndarray:
    faces = detector.detect(np.rint(image[..., ::-1]).astype(np.uint8))
    if not faces:
        raise QuantFaceError(f"no face found by {detector.name}, so it has no landmarks")
    return max(faces, key=lambda face: np.prod(face.box[2:] - face.box[:2])).landmarks


LANDMARKS = {"alignment": "lmd", "detector": "lmd_detector"}


@METRIC_REGISTRY.register()
def calculate_quantface_deg(
    img: np.ndarray,
    img2: np.ndarray,
    weights: str | None = None,
    download: bool = False,
    device: str = "cpu",
    **_: Any,
) -> float:
    """Return the angle in degrees between two faces' ArcFace embeddings (Deng et al., 2019).

    Args:
        img, img2: BGR (H, W, 3), 0…255; aligned as FFHQ.
        weights, download: see ``networks.find_files``.
        device: a torch device.

    Returns:
        0 for equal embeddings; unrelated faces are near 90, and the maximum is 180.

    Raises:
        QuantFaceError: see ``networks.network``; or the sizes of the images differ.
    """
    net = network("deg", weights, download, device)
    faces = torch.cat(as_tensors(img, img2, device=device)) * 2 - 1
    with torch.no_grad():
        first, second = net.embed(faces).double()
    # We avoid the arc cosine, because its argument is 1 up to rounding for all small angles.
    half = torch.atan2((first - second).norm(), (first + second).norm())
    return float(torch.rad2deg(2 * half))


@METRIC_REGISTRY.register()
def calculate_quantface_lmd(
    img: np.ndarray,
    img2: np.ndarray,
    landmarks: str = "alignment",
    weights: str | None = None,
    download: bool = False,
    device: str = "cpu",
    **_: Any,
) -> float:
    """Return the mean distance of two aligned faces' landmarks, in pixels of the images.

    Args:
        img, img2: BGR (H, W, 3), 0…255.
        landmarks: ``alignment``, 98 points of facexlib's alignment network, or ``detector``, the
            five of RetinaFace (MobileNet 0.25). Their values cannot be compared with each other.
        weights, download: see ``networks.find_files``.
        device: a torch device.

    Raises:
        QuantFaceError: see ``networks.network``; or ``landmarks`` is unknown, the sizes of the
            images differ, or the detector finds no face.
    """
    check_choice("landmarks", landmarks, LANDMARKS)
    check_sizes(img, img2)
    find = network(LANDMARKS[landmarks], weights, download, device)
    return float(np.linalg.norm(find(img) - find(img2), axis=1).mean())


@METRIC_REGISTRY.register()
def calculate_quantface_vre(
    img: np.ndarray, img2: np.ndarray, weights: str = "mini", device: str = "cpu", **_: Any
) -> float:
    """Return the distance of two aligned faces in a VRE's features, see ``QuantFaceFeatureLoss``.

    Args:
        img, img2: BGR (H, W, 3), 0…255.
        weights: a shipped model's name or a checkpoint's path; its VRE is used.
        device: a torch device.

    Raises:
        QuantFaceError: there is no such model, it has no VRE, or the sizes of the images differ.
    """
    a, b = as_tensors(img, img2, device=device)
    with torch.no_grad():
        return float(_vre(str(weights), str(device))(2 * a - 1, 2 * b - 1))


@functools.cache
def _vre(weights: str, device: str) -> QuantFaceFeatureLoss:
    return QuantFaceFeatureLoss(weights=weights).to(device)
