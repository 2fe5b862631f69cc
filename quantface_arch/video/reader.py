"""Read videos frame by frame, as upright RGB with the time of each frame."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
import numpy as np
from av.stream import Stream
from av.video.stream import VideoStream

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.images import MAX_PIXELS, MIN_SIDE
from quantface_arch.video.container import damaged, demuxed, open_input, step
from quantface_arch.video.pixels import Orientation, upright_rgb
from quantface_arch.video.structure import flaw

__all__ = ["Span", "VideoReader"]

# A frame lasts this many seconds if the file states neither times nor durations.
_USUAL_GAP = Fraction(1, 25)
# These formats state the duration of the last frame.
_STATE_DURATIONS = {"avi", "mp4"}
# Frames that are a little out of order are put in order; a larger jump back, in seconds, is an
# error, because it would shift the sound against the images.
_MAX_JUMP_BACK = 1


@dataclass(frozen=True)
class Span:
    """When a frame is shown, in seconds.

    Attributes:
        start: time at which it appears, from the start of the video.
        duration: how long it is shown.
    """

    start: Fraction
    duration: Fraction


class VideoReader:
    """An open video: iterate over it once to get its frames, each with its ``Span`` of time.

    A frame is (H, W, 3) uint8 RGB, turned upright by the rotation in the file. Every frame keeps
    its own time, so the gaps between frames may differ. Frames that an edit list hides are left
    out. Close the reader after use, or use it as a context manager.

    Attributes:
        path: path of the file.
        frames: number of frames according to the file, 0 if it does not say; use it only to show
            progress.
        rate: frames per second, on average; None if the file does not say.
        time_base: the unit of the file's times, in seconds.
        origin: time in the file that counts as 0, in seconds.
        pixel_aspect: width of an upright pixel divided by its height.

    Raises:
        QuantFaceError: the file is not a video, its frames have a size that is not allowed, or it
            is truncated or damaged. Damage may appear only while iterating.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._container = open_input(self.path)
        try:
            self._stream = self._video_stream()
            self._check_structure()
            self.frames = self._stream.frames
            self.rate = self._stream.average_rate
            self.time_base = Fraction(self._stream.time_base or Fraction(1, 1000))
            decoded = self._decoded()
            first = next(decoded, None)
            if first is None:
                raise QuantFaceError(f"{path}: cannot be read: no frame can be decoded")
            self._decoded_frames = chain([first], decoded)
            self._size = first.width, first.height
            # Broadcast recordings start at any time, so times count from the start of the file.
            # Sound does not move it below 0, because samples before 0 are not played.
            begin = max(Fraction(0), Fraction(self._container.start_time or 0, av.time_base))
            self.origin = min(begin, self._time(first, begin))
            aspect = self._stream.sample_aspect_ratio or Fraction(1)
            self.pixel_aspect = 1 / aspect if Orientation.of(first).transposed else aspect
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def other_streams(self) -> list[Stream]:
        """The tracks of the file except the one that is read."""
        return [stream for stream in self._container.streams if stream is not self._stream]

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def __iter__(self) -> Iterator[tuple[np.ndarray, Span]]:
        shown, start, gap = None, Fraction(0), Fraction(0)
        for frame in self._decoded_frames:
            expected = start + (_stated(shown) or gap or _USUAL_GAP) if shown else start
            following = self._time(frame, expected + self.origin) - self.origin
            if shown is not None:
                gap = self._gap(start, following)
                yield upright_rgb(shown, self._size), Span(start, gap)
                following = start + gap
            shown, start = frame, following
        if shown is not None:
            # For other formats FFmpeg guesses the duration from the mean rate; the previous gap is
            # a better guess.
            states_it = _STATE_DURATIONS & set(self._container.format.name.split(","))
            first, second = (_stated(shown), gap) if states_it else (gap, _stated(shown))
            yield upright_rgb(shown, self._size), Span(start, first or second or _USUAL_GAP)

    def _video_stream(self) -> VideoStream:
        """Return the video track that players show.

        Raises:
            QuantFaceError: there is none, or the size of its frames is not allowed.
        """
        stream = self._container.streams.best("video")
        if not isinstance(stream, VideoStream) or stream.codec_context is None:
            raise QuantFaceError(f"{self.path}: cannot be read: no video track that can be decoded")
        width, height = stream.width, stream.height
        if min(width, height) < MIN_SIDE or width * height > MAX_PIXELS:
            raise QuantFaceError(
                f"{self.path}: frames of {width}x{height} pixels: at least {MIN_SIDE}x{MIN_SIDE} "
                f"and at most {MAX_PIXELS // 10**6} megapixels are allowed"
            )
        return stream

    def _decoded(self) -> Iterator[av.VideoFrame]:
        """Yield the decoded frames in the order in which they are shown."""
        count = packets = 0
        begun = False
        names = self._container.format.name
        indexed = len(self._stream.index_entries) if names == "avi" else 0
        for packet in demuxed(self.path, self._container, (self._stream,)):
            packets += packet.size > 0
            frames, reason = step(packet.decode)
            if packet.is_corrupt:
                frames, reason = None, "a packet is incomplete"
            # A recording may begin between two key frames, where nothing can be decoded yet.
            begun |= packet.is_keyframe
            if frames is None and begun:
                raise damaged(self.path, f"after frame {count}: {reason}")
            for frame in frames or ():
                count += 1
                yield frame
        # FFmpeg skips damaged chunks of .avi files without an error, so the packets are counted.
        if packets < indexed:
            raise damaged(self.path, f"{indexed - packets} of {indexed} packets cannot be found")
        if "mp4" in names:
            self._check_structure()

    def _check_structure(self) -> None:
        """Raise QuantFaceError if the bytes of the file contradict its container."""
        found = flaw(self.path, self._container)
        if found:
            raise damaged(self.path, found)

    def _time(self, frame: av.VideoFrame, expected: Fraction) -> Fraction:
        """Return the time of a frame in the file in seconds; ``expected`` if it has none."""
        ticks = frame.dts if frame.pts is None else frame.pts
        if ticks is None or frame.time_base is None:
            return expected
        return ticks * frame.time_base

    def _gap(self, start: Fraction, following: Fraction) -> Fraction:
        """Return the seconds between two frames, at least one unit of time.

        Raises:
            QuantFaceError: the times jump back.
        """
        if following < start - _MAX_JUMP_BACK:
            raise QuantFaceError(
                f"{self.path}: after {float(start):.2f} s the times jump back to "
                f"{float(following):.2f} s: they must increase"
            )
        return max(following - start, self.time_base)


def _stated(frame: av.VideoFrame) -> Fraction:
    """Return a frame's duration in seconds, stated or guessed by FFmpeg; 0 if it is unknown."""
    return frame.duration * Fraction(frame.time_base or 0)
