"""Measure perceptual distance, identity and pattern artefacts of restored faces."""

from __future__ import annotations

import sys

import cv2
import numpy as np
import torch
from report import data_root
from torch import Tensor

from quantface_arch.losses.network_losses import QuantFaceIdentityLoss, QuantFaceLPIPSLoss

__all__ = ["FaceMetrics", "PatternMeter"]

PERIODS = 8
# A frequency is compared with the neighbouring bins at these offsets.
NEAREST, FARTHEST = 2, 6


class FaceMetrics:
    """Measures LPIPS (SqueezeNet) and the cosine of face embeddings (MobileFaceNet).

    A metric whose weights are not in the data's ``weights/`` is left out, and stderr says so.

    Attributes:
        names: the metrics that are measured, of ``lpips`` and ``identity``.
    """

    def __init__(self) -> None:
        folder = data_root() / "weights"
        perceptual = folder / "perceptual/squeezenet1_1_features.pth"
        identity = folder / "identity/MobileFaceNet.onnx"
        self.lpips = self.identity = None
        if perceptual.is_file():
            self.lpips = QuantFaceLPIPSLoss(net="squeeze", weights=perceptual)
        if identity.is_file():
            self.identity = QuantFaceIdentityLoss(net="mobileface", weights=identity)
        for path in (perceptual, identity):
            if not path.is_file():
                print(f"no {path}: its metric is left out", file=sys.stderr)
        networks = {"lpips": self.lpips, "identity": self.identity}
        self.names = tuple(name for name, network in networks.items() if network is not None)

    @torch.inference_mode()
    def __call__(self, restored: np.ndarray, clean: np.ndarray) -> dict[str, float]:
        """Return ``lpips`` and ``identity`` of two uint8 BGR faces (512, 512, 3)."""
        a, b = (_signed(image) for image in (restored, clean))
        found: dict[str, float] = {}
        if self.lpips is not None:
            found["lpips"] = float(self.lpips(a, b))
        if self.identity is not None:
            found["identity"] = float((self.identity.embed(a) * self.identity.embed(b)).sum())
        return found


class PatternMeter:
    """Measures how far regular patterns stand out in the spectrum of a set of images.

    The mean log power spectrum of the luma's second differences is compared, at every frequency
    that is a multiple of 1/8 cycle per pixel, with the median of its neighbourhood. Photographs
    have up to 5 dB.
    """

    def __init__(self) -> None:
        self.total: np.ndarray | None = None
        self.count = 0

    def add(self, image: np.ndarray) -> None:
        """Add a uint8 BGR image; all must be squares of the same size."""
        grey = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY).astype(np.float32)
        window = np.hanning(len(grey))
        detail = cv2.Laplacian(grey, cv2.CV_32F, ksize=1) * window[:, None] * window
        power = np.log(np.abs(np.fft.fft2(detail)) ** 2 + 1e-3)
        self.total = power if self.total is None else self.total + power
        self.count += 1

    def worst_peak(self) -> float:
        """Return the largest excess over the neighbourhood, in dB."""
        spectrum = 10 / np.log(10) * self.total / self.count
        size = len(spectrum)
        step = size // PERIODS
        reach = range(-FARTHEST, FARTHEST + 1)
        around = [(i, j) for i in reach for j in reach if max(abs(i), abs(j)) >= NEAREST]
        peaks = [
            spectrum[u, v]
            - np.median([spectrum[(u + i) % size, (v + j) % size] for i, j in around])
            for u in range(0, size // 2 + 1, step)
            for v in range(0, size, step)
            if u or v
        ]
        return float(max(peaks))


def _signed(image: np.ndarray) -> Tensor:
    rgb = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None]
    return rgb.float() / 127.5 - 1
