"""Find video files whose bytes are not laid out as their containers say, or end too early.

Only sizes in bytes are used: declared durations and numbers of frames are often wrong in intact
files.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from av.container import InputContainer

from quantface_arch.utils.files import open_file

__all__ = ["flaw"]

# A function that returns where the element at a position ends; None if it is of another kind.
_End = Callable[[BinaryIO, int, int], "int | None"]

# Boxes of these kinds, which hold no media data, must fit into an .mp4 file. Anything else that
# does not fit is taken for bytes after the last box.
_BOXES = {b"ftyp", b"styp", b"moov", b"moof", b"mfra", b"sidx", b"free", b"skip", b"uuid", b"meta"}
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
# Some writers of .avi files count the header of the file as part of its content.
_RIFF_SLACK = 9
_TS_PACKET = 188
_INVALID = "invalid data at byte {:,}"
_MISSING = "at least {:,} bytes are missing at its end"


def flaw(path: Path, container: InputContainer) -> str | None:
    """Return where a file is truncated or damaged, as a message; None if nothing is found.

    Call this before the first packet is read. For .mp4 files call it again after the last one,
    because the index of a fragmented file grows while it is read.

    Args:
        path: the file.
        container: the same file, opened.

    Raises:
        QuantFaceError: the file cannot be read.
    """
    names = container.format.name.split(",")
    with open_file(path) as file:
        size = os.fstat(file.fileno()).st_size
        if "mp4" in names:
            return _mp4_flaw(file, size, container)
        if "matroska" in names:
            return _matroska_flaw(file, size)
        measure = next((_ENDS[name] for name in names if name in _ENDS), None)
        end = _walked(file, size, measure) if measure else size
    return _MISSING.format(end - size) if end > size else None


def _mp4_flaw(file: BinaryIO, size: int, container: InputContainer) -> str | None:
    """Return where an .mp4 file is truncated or damaged; None if it is intact.

    The size of media data is not judged, because some cameras declare more than they use; the index
    tells which bytes are needed. Bytes after the last box are harmless, except after fragments,
    where they may be the remains of more fragments.
    """
    position, fragmented = 0, False
    while position < size:
        head = _read(file, position, 16)
        length, kind = int.from_bytes(head[:4], "big"), head[4:8]
        length = int.from_bytes(head[8:16], "big") if length == 1 else length
        if length == 0 and kind == b"mdat":
            # The box extends to the end of the file.
            length = size - position
        fits = 8 <= length <= size - position
        if not fits and kind in _BOXES and length > 8:
            return _MISSING.format(position + length - size)
        if not fits:
            break
        position, fragmented = position + length, fragmented or kind == b"moof"
    entries = (entry for stream in container.streams for entry in stream.index_entries)
    end = max((entry.pos + entry.size for entry in entries), default=0)
    if end > size:
        return _MISSING.format(end - size)
    return _INVALID.format(position) if fragmented and position < size else None


def _walked(file: BinaryIO, size: int, measure: _End) -> int:
    """Return the end of the last element that starts within the file."""
    position = 0
    while position < size:
        end = measure(file, position, size)
        if end is None or end <= position:
            break
        position = end
    return position


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _matroska_flaw(file: BinaryIO, size: int) -> str | None:
    """Return where a Matroska or WebM file is truncated or damaged; None if it is intact.

    Live recordings do not state the size of segments and clusters; the elements inside follow.
    """
    position, ends = 0, {}
    while position < size and position < ends.get(_SEGMENT, size):
        element = _element(file, position)
        if element is None:
            return _INVALID.format(position)
        kind, start, length = element
        end = size if length is None else start + length
        if end > min((outer for outer in ends.values() if outer > position), default=end):
            return _INVALID.format(position)
        if max(start, end) > size:
            return _MISSING.format(max(start, end) - size)
        if kind in (_SEGMENT, _CLUSTER):
            ends.pop(kind, None)
            ends |= {} if length is None else {kind: end}
        elif length is None:
            return _INVALID.format(position)
        position = start if kind in (_SEGMENT, _CLUSTER) else end
    return None


def _element(file: BinaryIO, position: int) -> tuple[int, int, int | None] | None:
    """Return an element's number, the start of its content and its size, or None if it is invalid.

    The size is None if the file does not state it.
    """
    head = _read(file, position, 12).ljust(12, b"\x80")
    id_length, size_length = 9 - head[0].bit_length(), 0
    if id_length <= 4:
        size_length = 9 - head[id_length].bit_length()
    if not 1 <= size_length <= 8:
        return None
    start = id_length + size_length
    unknown = (1 << 7 * size_length) - 1
    length = int.from_bytes(head[id_length:start], "big") & unknown
    kind = int.from_bytes(head[:id_length], "big")
    return kind, position + start, None if length == unknown else length


def _riff_end(file: BinaryIO, position: int, size: int) -> int | None:
    """Return the end of a RIFF chunk of an .avi file; large files have several."""
    head = _read(file, position, 8)
    length = int.from_bytes(head[4:8], "little")
    # An interrupted recording states no size.
    if head[:4] != b"RIFF" or length in (0, 0xFFFFFFFF):
        return None
    end = position + 8 + length
    return size if size < end <= size + _RIFF_SLACK else end


def _program_end(file: BinaryIO, position: int, size: int) -> int | None:
    """Return the end of a packet of an MPEG program stream."""
    head = _read(file, position, 14)
    if head[:3] != b"\0\0\1" or len(head) < 4:
        return None
    if head[3] == 0xB9:
        return position + 4
    if head[3] == 0xBA:
        is_mpeg2 = len(head) == 14 and head[4] >> 6 == 1
        return position + (14 + (head[13] & 7) if is_mpeg2 else 12)
    length = int.from_bytes(head[4:6], "big")
    return position + 6 + length if head[3] > 0xBA and length else None


def _transport_end(file: BinaryIO, position: int, size: int) -> int | None:
    """Return the end of the packets of an MPEG transport stream."""
    if _read(file, position, 1) != b"\x47":
        return None
    return position + _TS_PACKET * max(1, (size - position) // _TS_PACKET)


_ENDS: dict[str, _End] = {
    "avi": _riff_end,
    "mpeg": _program_end,
    "mpegts": _transport_end,
}
