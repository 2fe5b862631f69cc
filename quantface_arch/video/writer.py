"""Clips out, as .mp4, whole or not at all: H.264 with sound by ffmpeg, else MPEG-4 by OpenCV."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.utils.files import atomic_path
from quantface_arch.video.ffmpeg import ENCODER, file_url, find_ffmpeg, sound_options
from quantface_arch.video.reader import VideoReader

__all__ = ["written"]

Write = Callable[[np.ndarray], None]
# More than a file system may have left in the last block of a file.
_PIECE = 1 << 20
# Hard to tell from the frames that went in.
_QUALITY = "17"
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
_TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv"


@contextmanager
def written(path: Path, source: VideoReader) -> Iterator[Write]:
    """Yield a function that appends (H, W, 3) uint8 RGB frames, all of one size, to a new clip.

    Frame rate, shape of the pixels and, with ffmpeg, sound are those of ``source``. A side of odd
    length is made even by repeating the last row or column, which H.264 demands. ``path``, an .mp4,
    appears when the block has ended without an exception.

    Raises:
        QuantFaceError: ``path`` cannot be written.
        WriteError: because the disk takes no more.
    """
    program = find_ffmpeg()
    with atomic_path(path) as temporary:
        encoder = _Ffmpeg(program, temporary, source) if program else _OpenCV(temporary, source)
        try:
            yield lambda rgb: encoder.write(_even(rgb))
            encoder.finish()
        except OSError as error:
            _try_disk(temporary)
            raise QuantFaceError(f"cannot write {path}: {error}") from error
        finally:
            encoder.close()


def _try_disk(path: Path) -> None:
    """Raise the system's own error if the disk takes no more: encoders do not pass it on."""
    with path.open("ab") as file:
        file.write(bytes(_PIECE))


def _even(rgb: np.ndarray) -> np.ndarray:
    below, right = rgb.shape[0] % 2, rgb.shape[1] % 2
    return cv2.copyMakeBorder(rgb, 0, below, 0, right, cv2.BORDER_REPLICATE)


class _Ffmpeg:
    """Frames go through a pipe; ffmpeg begins with the first of them."""

    def __init__(self, program: str, path: Path, source: VideoReader) -> None:
        self.program, self.path, self.source = program, path, source
        self.process: subprocess.Popen[bytes] | None = None
        # A file, since a full pipe would stop ffmpeg.
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the rest)

    def _start(self, width: int, height: int) -> subprocess.Popen[bytes]:
        sound = sound_options(self.program, self.source.path)
        options = ["-hide_banner", "-v", "error", "-y"]
        options += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}"]
        options += ["-r", str(self.source.rate), "-i", "pipe:0"]
        if sound is not None:
            options += ["-protocol_whitelist", "file", "-i", file_url(self.source.path)]
            options += ["-map", "0:v", "-map", "1:a", *sound]
        options += [
            "-vf",
            f"{_TO_BT709},setsar={self.source.pixel_aspect}",
            "-pix_fmt",
            "yuv420p",
            *_BT709,
        ]
        options += ["-c:v", ENCODER, "-crf", _QUALITY, "-preset", "medium"]
        options += ["-movflags", "+faststart", file_url(self.path)]
        # A session of its own: Ctrl+C is for us, who then remove the file.
        return subprocess.Popen(
            [self.program, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self.messages,
            start_new_session=True,
        )

    def write(self, rgb: np.ndarray) -> None:
        if self.process is None:
            self.process = self._start(rgb.shape[1], rgb.shape[0])
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(rgb.tobytes())
        except BrokenPipeError:
            self.process.wait()
            raise OSError(self._reason()) from None

    def finish(self) -> None:
        if self.process is None:
            raise OSError("no frames")
        # Closes the pipe, waits.
        self.process.communicate()
        if self.process.returncode:
            raise OSError(self._reason())

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            # What is still in the pipe's buffer has nowhere to go.
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()
        self.messages.close()

    def _reason(self) -> str:
        self.messages.seek(0)
        text = self.messages.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"ffmpeg: {''.join(text) or 'it gave no reason'}"


class _OpenCV:
    """MPEG-4 Part 2 without sound, by the codecs that come with OpenCV."""

    def __init__(self, path: Path, source: VideoReader) -> None:
        self.path, self.rate = path, source.rate
        self.writer: cv2.VideoWriter | None = None
        self.count = 0

    def write(self, rgb: np.ndarray) -> None:
        if self.writer is None:
            self.writer = _opencv_writer(self.path, self.rate, (rgb.shape[1], rgb.shape[0]))
        self.writer.write(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))
        self.count += 1

    def finish(self) -> None:
        self.close()
        # OpenCV does not say when the disk is full.
        try:
            with VideoReader(self.path) as result:
                found = result.frames
        except QuantFaceError as error:
            raise OSError(one_line(error)) from error
        if found != self.count:
            raise OSError(f"{found} of {self.count} frames were written; is the disk full?")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.release()


def _opencv_writer(path: Path, rate: Fraction, size: tuple[int, int]) -> cv2.VideoWriter:
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path.absolute()), cv2.CAP_FFMPEG, code, float(rate), size)
    if not writer.isOpened():
        raise OSError(f"OpenCV cannot encode MPEG-4 of {size[0]}x{size[1]} pixels")
    return writer
