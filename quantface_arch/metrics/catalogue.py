"""The metrics under the names that users type, with the registered type and needs of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from quantface_arch.errors import QuantFaceError

__all__ = ["METRICS", "Metric"]


@dataclass(frozen=True)
class Metric:
    """A metric of METRIC_REGISTRY, as the commands offer it.

    Attributes:
        type: its registered name.
        better: which values are better: ``higher``, ``lower`` or those closer to ``1``.
        options: the options that it takes in an options file, besides its type.
        reference: whether it compares with clean images.
        least: the smallest side in pixels that it accepts, if it does not check this itself.
        unbounded: whether it is infinite for equal images.
        by_default: whether it is computed if no metric is named.
    """

    type: str
    better: str
    options: Mapping[str, Any] = field(default_factory=dict)
    reference: bool = True
    least: int = 1
    unbounded: bool = False
    by_default: bool = True

    def __call__(self, img: Any, img2: Any, **options: Any) -> float:
        """Return the score of an image, BGR (H, W, 3) in 0…255, or of a folder for FID.

        Args:
            img: the restored image.
            img2: the clean image; metrics without reference ignore it.
            options: ``weights``, ``download`` and ``device`` of a metric in ``networks.FILES``.

        Raises:
            QuantFaceError: the image is too small, the metric itself fails, or its score is NaN. An
                infinite score is an error, too, unless the metric is ``unbounded``.
        """
        # Import these late: they import torch, which the names of metrics must not.
        import quantface_arch.metrics.registered  # noqa: F401  (before basicsr's first import)
        from basicsr.metrics import calculate_metric

        if isinstance(img, np.ndarray) and min(img.shape[:2]) < self.least:
            size = f"{img.shape[1]}x{img.shape[0]}"
            raise QuantFaceError(f"found {size} pixels, at least {self.least} per side are needed")
        data = {"img": img, "img2": img2} if self.reference else {"img": img}
        value = float(calculate_metric(data, {"type": self.type, **self.options, **options}))
        if np.isnan(value):
            raise QuantFaceError("the score is not a number")
        if np.isinf(value) and not self.unbounded:
            raise QuantFaceError("the score is infinite")
        return value


WHOLE = {"crop_border": 0}
METRICS = {
    "psnr": Metric("calculate_psnr", "higher", WHOLE, unbounded=True),
    "ssim": Metric("calculate_ssim", "higher", WHOLE),
    "ms_ssim": Metric("calculate_quantface_ms_ssim", "higher"),
    "haarpsi": Metric("calculate_quantface_haarpsi", "higher"),
    "edge_psnr": Metric("calculate_quantface_edge_psnr", "higher"),
    "sharpness": Metric("calculate_quantface_sharpness", "1"),
    # BasicSR's NIQE fits a Gaussian to blocks of 96×96 pixels and needs several of them.
    "niqe": Metric("calculate_quantface_niqe", "lower", reference=False, least=192),
    "vre": Metric("calculate_quantface_vre", "lower"),
    "lpips": Metric("calculate_quantface_lpips", "lower"),
    "dists": Metric("calculate_quantface_dists", "lower"),
    "musiq": Metric("calculate_quantface_musiq", "higher", reference=False),
    "maniqa": Metric("calculate_quantface_maniqa", "higher", reference=False),
    "clipiqa": Metric("calculate_quantface_clipiqa", "higher", reference=False),
    "fid": Metric("calculate_quantface_fid", "lower"),
    "deg": Metric("calculate_quantface_deg", "lower"),
    "lmd": Metric("calculate_quantface_lmd", "lower"),
    "lmd_detector": Metric(
        "calculate_quantface_lmd",
        "lower",
        {"landmarks": "detector"},
        by_default=False,
    ),
}
