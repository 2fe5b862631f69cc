"""Write .mp4 videos: H.264, with the sound, subtitles and tags of the video they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.codec.context import Flags
from av.error import FFmpegError
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from av.video.stream import VideoStream

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path
from quantface_arch.video.container import file_url
from quantface_arch.video.pixels import INTERPOLATION
from quantface_arch.video.reader import Span, VideoReader
from quantface_arch.video.tracks import OtherTracks

__all__ = ["video_writer"]

Write = Callable[[np.ndarray, Span], None]
# CRF 17 is nearly indistinguishable from the input. In .mp4 files, durations are gaps between times
# of decoding. They are exact only without B-frames, which are decoded out of order.
_ENCODER, _OPTIONS = "libx264", {"crf": "17", "preset": "medium", "bf": "0"}
# With this flag, players can start before they have the whole file.
_CONTAINER = {"movflags": "+faststart"}
# Times are stored in units of at most 1/_MIN_TICKS s. Units below 1/_MAX_TICKS s become
# 1/_OTHER_TICKS s.
_MIN_TICKS, _MAX_TICKS = 10_000, 1_000_000
_OTHER_TICKS = 90_000
# The encoder gets this rate as a hint if the video states none.
_USUAL_RATE = 25


@contextmanager
def video_writer(path: Path, source: VideoReader) -> Iterator[Write]:
    """Yield a function that appends (H, W, 3) uint8 RGB frames of one size to a new video.

    The function also takes the frame's span of time. The aspect of the pixels, the sound, the text
    subtitles, the chapters and the tags are those of ``source``. H.264 needs sides of even length,
    so the last row or column of an odd side is repeated. The file appears only when the block ends
    without an exception.

    Args:
        path: path of the new video, ending in ``.mp4``.
        source: the video that the frames come from.

    Raises:
        QuantFaceError: ``path`` cannot be written, or the sound of ``source`` is damaged.
        WriteError: the disk is full or refuses the file.
    """
    with atomic_path(path) as temporary:
        encoder = _Encoder(temporary, source)
        try:
            yield encoder.write
            encoder.finish()
        except (FFmpegError, _NoFrames) as error:
            raise QuantFaceError(f"cannot write {path}: {error}") from error
        finally:
            encoder.close()


class _NoFrames(Exception):
    """The video would be empty."""


class _Encoder:
    """Encode frames into a file, and copy the other tracks up to the time of each frame."""

    def __init__(self, path: Path, source: VideoReader) -> None:
        self._source = source
        self._output = av.open(file_url(path), "w", format="mp4", container_options=_CONTAINER)
        self._video: VideoStream | None = None
        self._others: OtherTracks | None = None
        self._time_base = _time_base(source.time_base)
        self._last = -1

    def write(self, rgb: np.ndarray, span: Span) -> None:
        """Append a frame."""
        rgb = _even(rgb)
        if self._video is None:
            self._video = self._new_track(rgb.shape[1], rgb.shape[0])
            self._others = OtherTracks(self._source, self._output)
        assert self._others is not None
        self._others.write_until(span.start)
        image = av.VideoFrame.from_ndarray(rgb, format="rgb24").reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation=INTERPOLATION,
        )
        image.time_base = self._time_base
        image.pts = self._last = max(self._last + 1, round(span.start / self._time_base))
        image.duration = max(1, round(span.duration / self._time_base))
        self._output.mux(self._video.encode(image))

    def finish(self) -> None:
        """Write what is left, and complete the file.

        Raises:
            _NoFrames: nothing was written.
        """
        if self._video is None or self._others is None:
            raise _NoFrames("no frames")
        self._output.mux(self._video.encode(None))
        self._others.write_until(None)
        self._output.close()

    def close(self) -> None:
        """Close the files, whether or not the new one is complete."""
        if self._others is not None:
            self._others.close()
        with contextlib.suppress(FFmpegError):
            self._output.close()

    def _new_track(self, width: int, height: int) -> VideoStream:
        rate = self._source.rate or _USUAL_RATE
        track = self._output.add_stream(_ENCODER, rate=rate, options=dict(_OPTIONS))
        assert isinstance(track, VideoStream)
        track.width, track.height, track.pix_fmt = width, height, "yuv420p"
        context = track.codec_context
        context.time_base = self._time_base
        # Without this flag the encoder derives the duration of each frame from the mean rate.
        context.flags |= Flags.frame_duration
        context.sample_aspect_ratio = self._source.pixel_aspect
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.ITU709
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        return track


def _time_base(unit: Fraction) -> Fraction:
    """Return a unit of time in seconds in which the times of a video are whole numbers.

    Very small units, which .mp4 cannot store, are rounded.
    """
    ticks = unit.denominator * -(-_MIN_TICKS // unit.denominator)
    return Fraction(1, ticks if ticks <= _MAX_TICKS else _OTHER_TICKS)


def _even(rgb: np.ndarray) -> np.ndarray:
    """Return a frame whose sides have even lengths."""
    below, right = rgb.shape[0] % 2, rgb.shape[1] % 2
    return cv2.copyMakeBorder(rgb, 0, below, 0, right, cv2.BORDER_REPLICATE)
