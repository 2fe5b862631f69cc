"""Clips in, frame by frame, through OpenCV: upright RGB, and an error where a clip ends early."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

# Read when OpenCV first opens a clip. Damage is reported by us, in one line; and a playlist that is
# called a clip must not lead into the network.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import open_file
from quantface_arch.utils.images import MAX_PIXELS, MIN_SIDE

__all__ = ["VideoReader"]

# Rates like 30000/1001 have the largest denominator in use.
_MAX_DENOMINATOR = 1001
_MAX_RATE = 1000
# Containers without a count of frames get it from their length in seconds, which is rounded.
_UNCERTAIN_FRAMES = 2
_UNCERTAIN_SHARE = 0.01


class VideoReader:
    """An open clip; iterate over it once for its frames, close it or use it as a context.

    A frame is (H, W, 3) uint8 RGB, turned upright by the clip's rotation.

    Attributes:
        path: of the file.
        rate: frames per second, the mean where they are not evenly spaced.
        frames: how many the file says it has; a few more than there are where it can only guess.
        pixel_aspect: width of a pixel over its height, upright.

    Raises:
        QuantFaceError: not a clip, one without pictures, or of a size or rate that is not allowed;
            while iterating: the clip ends before its last frame.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open_file(path) as file:
            empty = not file.read(1)
        if empty:
            raise QuantFaceError(f"{path}: empty file (0 bytes)")
        self._capture = _opened(self.path)
        try:
            self.frames = max(0, round(self._fact(cv2.CAP_PROP_FRAME_COUNT)))
            self.rate = self._rate()
            self.pixel_aspect = self._pixel_aspect()
            self._check_size()
        except QuantFaceError:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        self._capture.release()

    def __iter__(self) -> Iterator[np.ndarray]:
        count = 0
        while True:
            read, frame = self._capture.read()
            if not read:
                break
            count += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        missing = self.frames - count
        if not count or missing > max(_UNCERTAIN_FRAMES, _UNCERTAIN_SHARE * self.frames):
            raise QuantFaceError(
                f"{self.path}: truncated or damaged: {count} of {self.frames} frames can be read"
            )

    def _fact(self, prop: int) -> float:
        value = self._capture.get(prop)
        return value if math.isfinite(value) else 0.0

    def _rate(self) -> Fraction:
        rate = self._fact(cv2.CAP_PROP_FPS)
        if not 0 < rate <= _MAX_RATE:
            raise QuantFaceError(
                f"{self.path}: {rate:g} frames per second: more than 0 and at most {_MAX_RATE} "
                "are allowed"
            )
        return Fraction(rate).limit_denominator(_MAX_DENOMINATOR)

    def _pixel_aspect(self) -> Fraction:
        wide, high = (round(self._fact(p)) for p in (cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN))
        aspect = Fraction(wide, high) if wide > 0 and high > 0 else Fraction(1)
        on_its_side = round(self._fact(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90
        return 1 / aspect if on_its_side else aspect

    def _check_size(self) -> None:
        width, height = (
            round(self._fact(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
            raise QuantFaceError(
                f"{self.path}: frames of {width}x{height} pixels: at least {MIN_SIDE}x{MIN_SIDE} "
                f"and at most {MAX_PIXELS // 10**6} megapixels are allowed"
            )


def _opened(path: Path) -> cv2.VideoCapture:
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        # This backend alone: others would take the file's name for a pattern of pictures. And from
        # the root on: a name such as "http:a.mp4" is a file's, too.
        capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise QuantFaceError(f"{path}: cannot be read: not a clip, or truncated or damaged")
    return capture
