"""Read videos frame by frame with OpenCV, as upright RGB."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

# OpenCV reads these when it first opens a video. The reader reports damage itself, in one line. A
# playlist with the suffix of a video must not open network addresses.
os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", "protocol_whitelist;file")

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import open_file
from quantface_arch.utils.images import MAX_PIXELS, MIN_SIDE

__all__ = ["VideoReader"]

# The largest denominator in use, in rates such as 30000/1001.
_MAX_DENOMINATOR = 1001
_MAX_RATE = 1000
# If a container does not store the number of frames, OpenCV computes it from the rounded duration.
_UNCERTAIN_FRAMES = 2
_UNCERTAIN_SHARE = 0.01


class VideoReader:
    """An open video: iterate over it once to get its frames.

    A frame is (H, W, 3) uint8 RGB, turned upright by the rotation in the file. Close the reader
    after use, or use it as a context manager.

    Attributes:
        path: path of the file.
        rate: frames per second, on average if they are not evenly spaced.
        frames: number of frames according to the file, which may be a few too many.
        pixel_aspect: width of an upright pixel divided by its height.

    Raises:
        QuantFaceError: the file is not a video, or its size or frame rate is not allowed. While
            iterating: the video ends before its last frame.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        with open_file(path) as file:
            empty = not file.read(1)
        if empty:
            raise QuantFaceError(f"{path}: empty file (0 bytes)")
        self._capture = _opened(self.path)
        try:
            self.frames = max(0, round(self._property(cv2.CAP_PROP_FRAME_COUNT)))
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
        """Close the file."""
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

    def _property(self, prop: int) -> float:
        """Return a property of the video, or 0 if it is not a finite number."""
        value = self._capture.get(prop)
        return value if math.isfinite(value) else 0.0

    def _rate(self) -> Fraction:
        rate = self._property(cv2.CAP_PROP_FPS)
        if not 0 < rate <= _MAX_RATE:
            raise QuantFaceError(
                f"{self.path}: {rate:g} frames per second: more than 0 and at most {_MAX_RATE} "
                "are allowed"
            )
        return Fraction(rate).limit_denominator(_MAX_DENOMINATOR)

    def _pixel_aspect(self) -> Fraction:
        ratio = cv2.CAP_PROP_SAR_NUM, cv2.CAP_PROP_SAR_DEN
        width, height = (round(self._property(prop)) for prop in ratio)
        aspect = Fraction(width, height) if width > 0 and height > 0 else Fraction(1)
        is_turned = round(self._property(cv2.CAP_PROP_ORIENTATION_META)) % 180 == 90
        return 1 / aspect if is_turned else aspect

    def _check_size(self) -> None:
        width, height = (
            round(self._property(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT)
        )
        if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
            raise QuantFaceError(
                f"{self.path}: frames of {width}x{height} pixels: at least {MIN_SIDE}x{MIN_SIDE} "
                f"and at most {MAX_PIXELS // 10**6} megapixels are allowed"
            )


def _opened(path: Path) -> cv2.VideoCapture:
    """Open a video file without OpenCV's own messages."""
    level = cv2.utils.logging.getLogLevel()
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
    try:
        # Use no other backend: it could take the file name for a pattern of image names. Use the
        # absolute path: a file may be called "http:a.mp4".
        capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if not capture.isOpened():
        raise QuantFaceError(f"{path}: cannot be read: not a video, or truncated or damaged")
    return capture
