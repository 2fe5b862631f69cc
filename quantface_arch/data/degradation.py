"""Degradations of clean faces, built from BasicSR's own operators and repeatable from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import numpy as np

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.data.degradations import random_add_gaussian_noise, random_mixed_kernels
from quantface_arch.utils.option_fields import Limits, option

__all__ = ["Degradation", "jpeg", "seeded"]

REFERENCE_SIZE = 512
SHARE = Limits(least=0, most=1)


@contextmanager
def seeded(*key: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators from ``key``, and restore them afterwards.

    BasicSR's degradations draw from both. Inside this context, a sample depends only on its key,
    whichever worker makes it and in whatever order.
    """
    python_state, numpy_state = random.getstate(), np.random.get_state()
    words = np.random.SeedSequence(list(key)).generate_state(2)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@dataclass(frozen=True)
class Degradation:
    """Blur, downsample, noise, JPEG, upsample back: the usual blind-face model.

    Values are drawn uniformly from their ranges, [least, most].
    """

    blur_sigma: tuple[float, float] = option(
        "range of the blur's sigma, in pixels of a 512×512 face; it scales with the face.",
        (0.5, 8.0),
    )
    downsample: tuple[float, float] = option("range of the downsampling factor.", (1.0, 10.0))
    noise: tuple[float, float] = option(
        "range of the noise's standard deviation on the 0…255 scale.", (0.0, 15.0)
    )
    jpeg: tuple[float, float] = option("range of the JPEG quality.", (50, 95))
    aniso_prob: float = option("share of anisotropic blur kernels.", 0.2, limits=SHARE)
    gray_noise_prob: float = option("share of images with grey noise.", 0.0, limits=SHARE)
    second_order_prob: float = option(
        "share of images on which the chain runs a second time, at half strength (after "
        "Real-ESRGAN, Wang et al., 2021).",
        0.0,
        limits=SHARE,
    )
    kernel_size: int = option(
        "side of the blur kernels in pixels, odd.", 61, limits=Limits(least=1)
    )

    def __call__(self, image: np.ndarray, face_size: int) -> np.ndarray:
        """Degrade an image with draws from the global generators (see ``seeded``).

        Args:
            image: float32 (H, W, 3) in [0, 1], possibly a crop.
            face_size: side in pixels of the whole face that ``image`` was cut from.

        Returns:
            float32 (H, W, 3) in [0, 1].
        """
        image = self._once(image, face_size, 1.0)
        if random.random() < self.second_order_prob:
            image = self._once(image, face_size, 0.5)
        return image

    def _once(self, image: np.ndarray, face_size: int, strength: float) -> np.ndarray:
        height, width = image.shape[:2]
        low, high = (s * face_size / REFERENCE_SIZE * strength for s in self.blur_sigma)
        kernel = random_mixed_kernels(
            ["iso", "aniso"],
            [1 - self.aniso_prob, self.aniso_prob],
            self.kernel_size,
            (max(low, 0.05), max(high, 0.06)),
            (max(low, 0.05), max(high, 0.06)),
            noise_range=None,
        )
        out = cv2.filter2D(image, -1, kernel.astype(np.float32), borderType=cv2.BORDER_REFLECT_101)
        factor = 1 + (np.random.uniform(*self.downsample) - 1) * strength
        small = (max(16, round(width / factor)), max(16, round(height / factor)))
        out = cv2.resize(out, small, interpolation=cv2.INTER_AREA)
        noise = tuple(value * strength for value in self.noise)
        out = random_add_gaussian_noise(out, noise, self.gray_noise_prob)
        out = jpeg(out.astype(np.float32), round(np.random.uniform(*self.jpeg)))
        out = cv2.resize(out, (width, height), interpolation=cv2.INTER_CUBIC)
        return np.clip(out, 0, 1).astype(np.float32)


def jpeg(image: np.ndarray, quality: int) -> np.ndarray:
    """Compress (H, W, 3) float32 BGR in [0, 1] as JPEG, and decode it again.

    The result equals that of BasicSR's ``add_jpg_compression``, which passes floats to OpenCV.
    Newer versions of OpenCV warn about floats once in every process that loads data.
    """
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    _, encoded = cv2.imencode(".jpg", levels, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.float32) / 255
