"""Score how natural a single image looks, by BasicSR's NIQE; say why where it is undefined."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.metrics import calculate_niqe
from basicsr.utils.registry import METRIC_REGISTRY
from quantface_arch.errors import QuantFaceError

__all__ = ["calculate_quantface_niqe"]


@METRIC_REGISTRY.register()
def calculate_quantface_niqe(img: np.ndarray, crop_border: int = 0, **options: Any) -> float:
    """Return BasicSR's NIQE (Mittal et al., 2013), which fits a Gaussian to blocks of an image.

    Args:
        img: BGR (H, W, 3), 0…255.
        crop_border: number of pixels to leave out on every side.
        options: other options of BasicSR's ``calculate_niqe``.

    Raises:
        QuantFaceError: fewer than two blocks have texture, so that no Gaussian can be fitted.
    """
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        # numpy warns of blocks without texture, which BasicSR leaves out.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            figure = float(calculate_niqe(img, crop_border, **options))
        except np.linalg.LinAlgError:
            figure = math.nan
    if not math.isfinite(figure):
        raise QuantFaceError(
            "NIQE is undefined: fewer than two of the image's blocks of 96x96 pixels have texture"
        )
    return figure
