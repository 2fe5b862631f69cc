"""Open video files, read their packets, and report damage in one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import av
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.stream import Stream

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import open_file

__all__ = ["damaged", "demuxed", "file_url", "open_input", "step"]

T = TypeVar("T")

# This packet marks the end of a file.
_END = Packet()

# These readers of FFmpeg open only the file itself. Others, such as those of playlists, also open
# files or network addresses that the input names.
_FORMATS = (
    *("mov", "matroska", "avi", "mpeg", "mpegts", "mpegvideo", "m4v", "h264", "hevc"),
    *("flv", "asf", "ogg", "mxf", "nut", "ivf", "dv", "gif", "rm"),
)
_OPTIONS = {"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "file"}


def file_url(path: Path) -> str:
    """Return a path as a URL, so that FFmpeg does not take a name such as "http:a.mp4" for one."""
    return f"file:{path.absolute()}"


def open_input(path: Path) -> InputContainer:
    """Open a video file for reading.

    Raises:
        QuantFaceError: the file is missing, empty, not a regular file, or not a video.
    """
    with open_file(path) as file:
        empty = not file.read(1)
    if empty:
        raise QuantFaceError(f"{path}: empty file (0 bytes)")
    opened, _ = step(
        lambda: av.open(file_url(path), container_options=_OPTIONS, metadata_errors="replace")
    )
    if opened is None:
        raise QuantFaceError(f"{path}: cannot be read: not a video, or truncated or damaged")
    return opened


def damaged(path: Path, reason: str) -> QuantFaceError:
    """Return the error to raise for a video that is truncated or damaged."""
    return QuantFaceError(f"{path}: truncated or damaged: {reason}")


def step(action: Callable[[], T]) -> tuple[T | None, str]:
    """Call a function that reads with FFmpeg; return its result, or None and why FFmpeg failed.

    The error itself is not passed on. It would be chained to the caller's error, and
    ``atomic_path`` could report it as a failure to write.
    """
    try:
        return action(), ""
    except FFmpegError as error:
        return None, error.strerror or "unknown error"


def demuxed(path: Path, container: InputContainer, streams: Sequence[Stream]) -> Iterator[Packet]:
    """Yield the packets of some streams, then one empty packet per stream to end its decoding.

    Raises:
        QuantFaceError: the file is truncated or damaged.
    """
    packets = container.demux(*streams)
    while True:
        packet, reason = step(lambda: next(packets, _END))
        if packet is None:
            raise damaged(path, reason)
        if packet is _END:
            return
        yield packet
