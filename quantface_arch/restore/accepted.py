"""Check the arguments of ``FaceRestorer`` before anything is computed."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypedDict

import numpy as np
from PIL import Image

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.face import Detector
from quantface_arch.utils.images import MIN_SIDE, RGBImage, from_pil, read_image

__all__ = ["ImageLike", "RestorerOptions", "as_rgb_image", "check_range", "checked_rgb"]

ImageLike = RGBImage | np.ndarray | Image.Image | str | os.PathLike[str]


class RestorerOptions(TypedDict, total=False):
    """The keyword arguments of ``FaceRestorer``."""

    detector: str | Detector
    weights_dir: str | os.PathLike[str] | None
    offline: bool
    batch_size: int | None
    background: Callable[[np.ndarray], np.ndarray] | None
    color_fix: str | None
    identity_weights: str | os.PathLike[str] | None
    notify: Callable[[str], None]


def check_range(name: str, value: float, low: float, high: float) -> None:
    """Check that a number lies between two others, inclusive.

    Raises:
        QuantFaceError: ``value`` is outside the range, NaN or not a number.
    """
    # NaN is rejected as well, because every comparison with it is false.
    if not (isinstance(value, int | float | np.number) and low <= value <= high):
        raise QuantFaceError(f"{name}: found {value!r}, expected a number from {low:g} to {high:g}")


def as_rgb_image(image: ImageLike) -> RGBImage:
    """Return an upright (H, W, 3) array, a PIL image or the file at a path as an image.

    Raises:
        QuantFaceError: the file cannot be read, the array has another shape or dtype, the image
            is below 16 pixels wide or high, or the object has another type.
    """
    if isinstance(image, str | os.PathLike):
        return read_image(image)
    if isinstance(image, Image.Image):
        image = from_pil(image)
    elif not isinstance(image, RGBImage):
        image = RGBImage(checked_rgb(image))
    if min(image.size) < MIN_SIDE:
        raise QuantFaceError(
            f"image has {image.size[0]}x{image.size[1]} pixels: "
            f"at least {MIN_SIDE}x{MIN_SIDE} are needed"
        )
    return image


def checked_rgb(rgb: np.ndarray) -> np.ndarray:
    """Return the array if it is RGB in a supported dtype.

    Raises:
        QuantFaceError: ``rgb`` is not an array, or has another shape or dtype.
    """
    if not isinstance(rgb, np.ndarray):
        raise QuantFaceError(
            f"found {type(rgb).__name__}, expected an array, a PIL image or the path of an image"
        )
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype not in (np.uint8, np.uint16):
        raise QuantFaceError(
            f"image has shape {rgb.shape} and dtype {rgb.dtype}: "
            "(H, W, 3) RGB in uint8 or uint16 is needed"
        )
    return rgb
