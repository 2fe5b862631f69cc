"""Write .mp4 videos: H.264 with sound by ffmpeg, or MPEG-4 without sound by OpenCV."""

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

__all__ = ["video_writer"]

Write = Callable[[np.ndarray], None]
# Larger than the space that can be left in a file's last block.
_PIECE = 1 << 20
# Nearly indistinguishable from the input.
_QUALITY = "17"
_BT709 = ("-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
_TO_BT709 = "scale=out_color_matrix=bt709:out_range=tv"


@contextmanager
def video_writer(path: Path, source: VideoReader) -> Iterator[Write]:
    """Yield a function that appends (H, W, 3) uint8 RGB frames of one size to a new video.

    The frame rate, the aspect of the pixels and, with ffmpeg, the sound are those of ``source``.
    H.264 needs sides of even length, so the last row or column of an odd side is repeated. The file
    appears only when the block ends without an exception.

    Args:
        path: path of the new video, ending in ``.mp4``.
        source: the video that the frames come from.

    Raises:
        QuantFaceError: ``path`` cannot be written.
        WriteError: the disk is full or refuses the file.
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
    """Raise the system's error if the disk is full, because encoders do not report it."""
    with path.open("ab") as file:
        file.write(bytes(_PIECE))


def _even(rgb: np.ndarray) -> np.ndarray:
    """Return a frame whose sides have even lengths."""
    below, right = rgb.shape[0] % 2, rgb.shape[1] % 2
    return cv2.copyMakeBorder(rgb, 0, below, 0, right, cv2.BORDER_REPLICATE)


class _Ffmpeg:
    """Encode with ffmpeg, which reads the frames from a pipe and starts at the first one."""

    def __init__(self, program: str, path: Path, source: VideoReader) -> None:
        self.program, self.path, self.source = program, path, source
        self.process: subprocess.Popen[bytes] | None = None
        # ffmpeg would block on a full pipe, so its messages go to a file.
        self.messages = tempfile.TemporaryFile()  # noqa: SIM115 (close() closes it)

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
        # Start a new session, so that Ctrl+C reaches this process only, which removes the file.
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
        # Close the pipe and wait.
        self.process.communicate()
        if self.process.returncode:
            raise OSError(self._reason())

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            # The pipe's buffer can no longer be written to ffmpeg.
            with contextlib.suppress(BrokenPipeError):
                self.process.communicate()
        self.messages.close()

    def _reason(self) -> str:
        self.messages.seek(0)
        text = self.messages.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"ffmpeg: {''.join(text) or 'no reason given'}"


class _OpenCV:
    """Encode MPEG-4 Part 2 without sound, with the codecs that come with OpenCV."""

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
        # OpenCV does not report a full disk.
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
        raise OSError(f"OpenCV cannot encode MPEG-4 with {size[0]}x{size[1]} pixels")
    return writer
