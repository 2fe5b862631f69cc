"""Image losses that need no downloaded weights, registered in BasicSR's LOSS_REGISTRY."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import quantface_arch.compat  # noqa: F401  (before basicsr's first import)
from basicsr.utils.registry import LOSS_REGISTRY

__all__ = ["QuantFaceColorLoss", "QuantFaceEdgeLoss", "QuantFaceTextureLoss"]


def gradients(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return forward differences along x and y, one pixel smaller than the image on both axes."""
    dx = image[..., 1:, 1:] - image[..., 1:, :-1]
    dy = image[..., 1:, 1:] - image[..., :-1, 1:]
    return dx, dy


@LOSS_REGISTRY.register()
class QuantFaceEdgeLoss(nn.Module):
    """Mean absolute difference of two images' gradients, which compares the edges at each pixel.

    Args:
        loss_weight: factor of the result.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of images (N, C, H, W); return a scalar."""
        (found_x, found_y), (wanted_x, wanted_y) = gradients(pred), gradients(target)
        along_x, along_y = (found_x - wanted_x).abs().mean(), (found_y - wanted_y).abs().mean()
        return self.loss_weight * (along_x + along_y)


class _BlockLoss(nn.Module):
    """Mean absolute difference of features that are means over blocks."""

    def __init__(self, loss_weight: float, window: int) -> None:
        super().__init__()
        self.loss_weight = loss_weight
        self.window = window

    def features(self, image: Tensor) -> Tensor:
        """Return the features of images (N, C, H, W)."""
        raise NotImplementedError

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of RGB images (N, 3, H, W); return a scalar."""
        return self.loss_weight * (self.features(pred) - self.features(target)).abs().mean()


@LOSS_REGISTRY.register()
class QuantFaceTextureLoss(_BlockLoss):
    """Difference in the amount of local detail, wherever exactly the detail lies.

    A pixelwise loss prefers blur to detail that is a pixel off. This loss compares the mean
    gradient magnitude of each ``window`` × ``window`` block instead, so blur costs more. The mean
    is better than the root mean square, which a single strong edge amid smoothed-out texture can
    match. Sobel's gradient is better than the difference of neighbours, which an invisible pattern
    of single pixels can match.

    Args:
        loss_weight: factor of the result.
        window: side of the blocks in pixels.
    """

    sobel: Tensor

    def __init__(self, loss_weight: float = 1.0, window: int = 8) -> None:
        super().__init__(loss_weight, window)
        along_x = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([-1.0, 0.0, 1.0])) / 8
        self.register_buffer("sobel", torch.stack((along_x, along_x.T)).unsqueeze(1))

    def features(self, image: Tensor) -> Tensor:
        """Return the mean gradient magnitude of each block."""
        grey = image.mean(dim=1, keepdim=True)
        squares = F.conv2d(grey, self.sobel).square().sum(dim=1, keepdim=True)
        # The offset keeps the root's slope finite in flat regions.
        return F.avg_pool2d(torch.sqrt(squares + 1e-6), self.window)


@LOSS_REGISTRY.register()
class QuantFaceColorLoss(_BlockLoss):
    """Mean absolute difference of two images' colour, and of their brightness, at low resolution.

    Most of a face has one hue, and red lips are few pixels, so a pixelwise loss is low even if the
    whole face has that hue. This loss compares the block means of R - G and (R + G)/2 - B. A
    degraded image still has the brightness of large areas, but losses on details outweigh it; so
    the block means of (R + G + B)/3 can be compared as well.

    Args:
        loss_weight: factor of the result.
        window: side of the blocks in pixels.
        brightness: factor of the difference in brightness, relative to those in colour.
    """

    def __init__(self, loss_weight: float = 1.0, window: int = 4, brightness: float = 0.0) -> None:
        super().__init__(loss_weight, window)
        self.brightness = brightness

    def features(self, image: Tensor) -> Tensor:
        """Return the mean R - G, (R + G)/2 - B and weighted brightness of each block."""
        means = F.avg_pool2d(image, self.window)
        red, green, blue = means.unbind(dim=1)
        colors = [red - green, (red + green) / 2 - blue]
        return torch.stack([*colors, self.brightness * means.mean(dim=1)])

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compare two batches of RGB images (N, 3, H, W); return a scalar."""
        differences = (self.features(pred) - self.features(target)).abs()
        # The loss without brightness is the mean over two features.
        return self.loss_weight * differences.mean(dim=(1, 2, 3)).sum() / 2
