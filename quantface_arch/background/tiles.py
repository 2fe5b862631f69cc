"""Run a network over an image tile by tile, so that its memory does not grow with the image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from quantface_arch.archs.array_network import ArrayNetwork
from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import MAX_OUTPUT_PIXELS

__all__ = ["CONTEXT", "GRID", "TILE", "BackgroundUpsampler", "windows"]

# One run of the network enlarges a square of this side, and sees this margin around the square.
TILE = 256
CONTEXT = 16
# Networks fold up to 4x4 pixels into channels, so all windows are aligned to that grid.
GRID = 4


@dataclass(frozen=True)
class BackgroundUpsampler:
    """Enlarges images with a super-resolution network.

    Attributes:
        network: maps float32 (1, 3, h, w) in its ``input_range`` to (1, 3, scale * h, scale * w).
        scale: factor by which width and height grow.
        tile: side of a tile in pixels of the input, a multiple of the grid.
        context: margin around a tile that the network also sees, a multiple of the grid.
        grid: number that divides the sides of all windows.
        least: least side of a window.
    """

    network: ArrayNetwork
    scale: int
    tile: int = TILE
    context: int = CONTEXT
    grid: int = GRID
    least: int = 1

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Map an RGB image to one ``scale`` times as large; a grey image stays grey.

        Args:
            rgb: (H, W, 3) uint8 or uint16.

        Returns:
            (scale * H, scale * W, 3) in the same dtype.

        Raises:
            QuantFaceError: the result would have too many pixels, or has values that are not
                finite.
        """
        height, width = (side * self.scale for side in rgb.shape[:2])
        if width * height > MAX_OUTPUT_PIXELS:
            raise QuantFaceError(
                f"{rgb.shape[1]}x{rgb.shape[0]} pixels enlarged {self.scale} times by the network "
                f"are more than {MAX_OUTPUT_PIXELS // 10**6} megapixels"
            )
        padded = _on_grid(rgb, self.grid, self.least)
        result = np.empty((height, width, 3), rgb.dtype)
        side = self.tile + 2 * self.context
        rows = list(windows(padded.shape[0], side, self.context))
        for left, from_x, to_x in windows(padded.shape[1], side, self.context):
            for top, from_y, to_y in rows:
                large = self._run(padded[top : top + side, left : left + side])
                place = np.s_[
                    from_y * self.scale : to_y * self.scale, from_x * self.scale : to_x * self.scale
                ]
                target = result[place]
                y, x = (from_y - top) * self.scale, (from_x - left) * self.scale
                target[:] = large[y : y + target.shape[0], x : x + target.shape[1]]
        if (rgb == rgb[..., :1]).all():
            return np.repeat(cv2.cvtColor(result, cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
        return result

    def _run(self, rgb: np.ndarray) -> np.ndarray:
        """Enlarge one window of the image."""
        peak, (low, high) = np.iinfo(rgb.dtype).max, self.network.input_range
        scaled = rgb.transpose(2, 0, 1).astype(np.float32) / peak * (high - low) + low
        [large] = self.network(scaled[None])
        if not np.isfinite(large).all():
            raise QuantFaceError(
                "the network that enlarges images returned values that are not finite"
            )
        levels = np.rint(((large - low) / (high - low)).clip(0, 1) * peak)
        return levels.transpose(1, 2, 0).astype(rgb.dtype)


def windows(length: int, size: int, context: int) -> Iterator[tuple[int, int, int]]:
    """Divide an axis into windows of one size that overlap by at least twice the context.

    Yields:
        (start, from, to): start of the window, and the part of the axis that it contributes. The
        parts are contiguous. Each is ``context`` away from the ends of its window, except at the
        ends of the axis. An axis no longer than ``size`` is one window.
    """
    last = max(0, length - size)
    step = size - 2 * context
    starts = [*range(0, last, step), last]
    ends = [start + context for start in starts[1:]] + [length]
    begin = 0
    for start, end in zip(starts, ends, strict=True):
        yield start, begin, end
        begin = end


def _on_grid(rgb: np.ndarray, grid: int, least: int) -> np.ndarray:
    """Mirror the image at its right and lower edge until its sides are large enough multiples."""
    below, right = (max(-side % grid, least + -least % grid - side) for side in rgb.shape[:2])
    return cv2.copyMakeBorder(rgb, 0, below, 0, right, cv2.BORDER_REFLECT_101)
