"""Feature maps that losses compare, from networks in the package or from no network at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError

__all__ = ["EdgePyramid", "FrozenLoss", "VREFeatures", "relative"]


class FrozenLoss(nn.Module):
    """A loss whose networks never train and never leave evaluation mode.

    Args:
        loss_weight: factor of the result.
    """

    def __init__(self, loss_weight: float) -> None:
        super().__init__()
        self.loss_weight = loss_weight

    def train(self, mode: bool = True) -> FrozenLoss:
        return super().train(False)


class EdgePyramid(nn.Module):
    """An image and its edges by direction (half-wave rectified Sobel gradients), at some scales.

    Args:
        scales: number of scales, each half the size of the one before. There are fewer if a side
            would have less than 8 pixels.
    """

    sobel: Tensor

    def __init__(self, scales: int = 4) -> None:
        super().__init__()
        self.scales = scales
        along_x = torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([-1.0, 0.0, 1.0])) / 4
        filters = torch.stack((along_x, along_x.T, -along_x, -along_x.T))
        self.register_buffer("sobel", filters.unsqueeze(1), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return maps (N, 7, h, w) of an image (N, 3, H, W) in [-1, 1], the finest first."""
        x = (image + 1) / 2
        maps: list[Tensor] = []
        for scale in range(self.scales):
            if scale > 0 and min(x.shape[-2:]) < 16:
                break
            x = F.avg_pool2d(x, 2) if scale > 0 else x
            grey = F.pad(x.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
            maps.append(torch.cat((x, F.relu(F.conv2d(grey, self.sobel))), dim=1))
        return maps


class VREFeatures(nn.Module):
    """The features of a face at the end of each level of a restorer's frozen VRE encoder.

    Args:
        weights: a shipped model's name or a path, as ``zoo.load_model`` takes.
        size: side in pixels to which images are resized; None takes the VRE's own resolution.

    Raises:
        QuantFaceError: there is no such model, or it has no VRE.
    """

    def __init__(self, weights: str, size: int | None = None) -> None:
        super().__init__()
        from quantface_arch.pretrained.zoo import load_model

        vre = getattr(load_model(weights, runtime="reference"), "vre", None)
        if vre is None:
            raise QuantFaceError(
                f"weights {weights!r}: this network has no VRE to take features from"
            )
        self.size = size or vre.resolution
        self.encoder = vre.encoder.requires_grad_(False)

    def _ends(self) -> Iterator[nn.Module]:
        for stage in self.encoder.down:
            yield stage.attn[-1] if len(stage.attn) else stage.block[-1]
        yield self.encoder.mid.block_2

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the maps (N, C, h, w) of images (N, 3, H, W) in [-1, 1], the finest first."""
        side = (self.size, self.size)
        # We resize with antialiasing, unlike the VRE, so that every pixel gets a gradient.
        x = F.interpolate(image, size=side, mode="bilinear", align_corners=False, antialias=True)
        maps: list[Tensor] = []

        def keep(_module: nn.Module, _inputs: tuple[Any, ...], output: Tensor) -> None:
            maps.append(output)

        hooks = [module.register_forward_hook(keep) for module in self._ends()]
        try:
            # This is the VRE's second normalization, see ``VRE.features``.
            self.encoder((x - 0.5) / 0.5)
        finally:
            for hook in hooks:
                hook.remove()
        return maps


def relative(pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return both maps (N, C, h, w), divided by the root mean square of each target map."""
    size = target.detach().square().mean(dim=(1, 2, 3), keepdim=True).sqrt() + 1e-6
    return pred / size, target / size
