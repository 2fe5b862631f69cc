"""Convert decoded frames to upright RGB."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from av import VideoFrame
from av.video.reformatter import Colorspace

__all__ = ["INTERPOLATION", "Orientation", "upright_rgb"]

# With the usual rounding and chroma, each conversion darkens frames by one or two levels. These
# are FFmpeg's SWS_BICUBIC, SWS_ACCURATE_RND, SWS_FULL_CHR_H_INT and SWS_FULL_CHR_H_INP; PyAV 17
# does not name them all.
INTERPOLATION = 0x4 | 0x40000 | 0x2000 | 0x4000
# AVCOL_SPC_UNSPECIFIED, which PyAV does not name.
_UNTAGGED = 2
# Untagged videos with at least this many lines count as HD, as in players.
_HD_LINES = 720


@dataclass(frozen=True)
class Orientation:
    """How a decoded frame has to be turned for display.

    Attributes:
        transposed: whether rows and columns are swapped first.
        mirrored: whether the result is then mirrored from left to right.
        flipped: whether the result is then mirrored from top to bottom.
    """

    transposed: bool
    mirrored: bool
    flipped: bool

    @classmethod
    def of(cls, frame: VideoFrame) -> Orientation:
        """Return the orientation in a frame's display matrix, to the nearest quarter turn."""
        # The matrix maps one pixel to the right to (a, b), and one pixel down to (c, d). The third
        # column is for projections, which videos do not use.
        data = frame.side_data.get("DISPLAYMATRIX")
        a, b, _, c, d = struct.unpack("=9i", bytes(data))[:5] if data else (1, 0, 0, 0, 1)
        if abs(a) >= abs(b):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def apply(self, rgb: np.ndarray) -> np.ndarray:
        """Return an upright copy of an (H, W, 3) array."""
        turned = rgb.transpose(1, 0, 2) if self.transposed else rgb
        turned = turned[:, ::-1] if self.mirrored else turned
        return np.ascontiguousarray(turned[::-1] if self.flipped else turned)


def upright_rgb(frame: VideoFrame, size: tuple[int, int]) -> np.ndarray:
    """Return a decoded frame as upright (H, W, 3) uint8 RGB.

    The frame's tags give the matrix and range of its colours. Untagged frames are read as
    BT.601 if they have fewer than 720 lines, else as BT.709. Transparency is dropped.

    Args:
        frame: the decoded frame.
        size: width and height in pixels before the rotation; other frames are resized to it.
    """
    guess = Colorspace.ITU709 if frame.height >= _HD_LINES else Colorspace.ITU601
    rgb = frame.to_ndarray(
        width=size[0],
        height=size[1],
        format="rgb24",
        src_colorspace=guess if frame.colorspace == _UNTAGGED else None,
        interpolation=INTERPOLATION,
    )
    return Orientation.of(frame).apply(rgb)
