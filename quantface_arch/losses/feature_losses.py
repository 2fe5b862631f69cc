"""Losses on feature maps that need no downloaded weights, registered in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import LOSS_REGISTRY
from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.losses.features import EdgePyramid, FrozenLoss, VREFeatures, relative

__all__ = ["QuantFaceFeatureLoss", "QuantFaceStructureLoss"]

DISTANCES = ("l1", "l2")
# This avoids divisions by zero in flat regions. Its unit is the square of the image's range.
SMALL = 1e-5


@LOSS_REGISTRY.register()
class QuantFaceFeatureLoss(FrozenLoss):
    """Distance of two faces in the features of a restorer's frozen VRE encoder.

    The loss is the mean of |a - b| (or its square) over the encoder's levels, where each level's
    maps are divided by the root mean square of the target's. Nothing is downloaded: the weights are
    those of a shipped model or of your own checkpoint.

    Args:
        loss_weight: factor of the result.
        weights: a shipped model's name or a checkpoint's path; its VRE is used.
        distance: ``l1`` or ``l2``.
        size: side in pixels to which faces are resized; None takes the VRE's own resolution.

    Raises:
        QuantFaceError: there is no such model, it has no VRE, or the distance is unknown.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        weights: str = "mini",
        distance: str = "l1",
        size: int | None = None,
    ) -> None:
        super().__init__(loss_weight)
        check_choice("distance", distance, DISTANCES)
        self.distance = F.l1_loss if distance == "l1" else F.mse_loss
        self.features = VREFeatures(weights, size)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of images (N, 3, H, W) in [-1, 1]; return a scalar."""
        with torch.no_grad():
            wanted = self.features(target)
        levels = zip(self.features(pred), wanted, strict=True)
        distances = [self.distance(*relative(found, level)) for found, level in levels]
        return self.loss_weight * torch.stack(distances).mean()


@LOSS_REGISTRY.register()
class QuantFaceStructureLoss(FrozenLoss):
    """Dissimilarity of structure and texture: like DISTS, but it is not DISTS.

    DISTS (Ding et al., "Image Quality Assessment: Unifying Structure and Texture Similarity", 2020,
    eq. 4-7) compares maps of a VGG network by their means (texture) and their covariance
    (structure). The formulas are the same here, over windows instead of the whole image; but the
    maps are the image itself and its rectified gradients at several scales, or a VRE's, and the
    terms are not weighted by human judgement. Its values cannot be compared with DISTS's.

    Args:
        loss_weight: factor of the result, which is 0 for equal images and at most 2.
        texture: share of the texture term, 0 to 1; the structure term has the rest.
        window: side of the windows in positions of each map.
        scales: number of scales of the gradients, each half the size of the one before.
        weights: a shipped model's name or a checkpoint's path, whose VRE is used; None takes the
            gradients.

    Raises:
        QuantFaceError: there is no such model, it has no VRE, or the share is outside 0 to 1.
    """

    def __init__(
        self,
        loss_weight: float = 1.0,
        texture: float = 0.5,
        window: int = 16,
        scales: int = 4,
        weights: str | None = None,
    ) -> None:
        super().__init__(loss_weight)
        if not 0 <= texture <= 1:
            raise QuantFaceError(f"texture: found {texture!r}, allowed is 0 to 1")
        self.texture = texture
        self.window = window
        self.features = EdgePyramid(scales) if weights is None else VREFeatures(weights)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of images (N, 3, H, W) in [-1, 1]; return a scalar."""
        with torch.no_grad():
            wanted = self.features(target)
        levels = zip(self.features(pred), wanted, strict=True)
        return self.loss_weight * torch.stack([self._distance(*pair) for pair in levels]).mean()

    def _distance(self, a: Tensor, b: Tensor) -> Tensor:
        if isinstance(self.features, VREFeatures):
            a, b = relative(a, b)
        side = min(self.window, *a.shape[-2:])

        def mean(x: Tensor) -> Tensor:
            return F.avg_pool2d(x, side, max(side // 2, 1))

        mean_a, mean_b = mean(a), mean(b)
        variances = mean(a * a) - mean_a * mean_a + mean(b * b) - mean_b * mean_b
        covariance = mean(a * b) - mean_a * mean_b
        texture = (2 * mean_a * mean_b + SMALL) / (mean_a.square() + mean_b.square() + SMALL)
        structure = (2 * covariance + SMALL) / (variances + SMALL)
        return 1 - (self.texture * texture + (1 - self.texture) * structure).mean()
