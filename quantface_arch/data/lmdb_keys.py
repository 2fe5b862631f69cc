"""Read the keys and sizes of an LMDB's images from BasicSR's ``meta_info.txt``."""

from __future__ import annotations

import re
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import read_bytes

__all__ = ["MAX_META_BYTES", "read_sides"]

MAX_META_BYTES = 1 << 30
# The name may have spaces, dots and brackets, so the fields after it are matched from the right.
LINE = re.compile(r"(?P<key>.+)\.[^./ ]+ \((?P<height>\d+),(?P<width>\d+),\d+\)(?: \d+)?")


def read_sides(folder: Path) -> dict[str, int]:
    """Return the shorter side in pixels of every image of an LMDB, by its key.

    A line is ``NAME.png (HEIGHT,WIDTH,CHANNELS) COMPRESSION``, and the key is the name without its
    suffix, which may have spaces and dots. COMPRESSION may be missing; empty lines are skipped.

    Args:
        folder: the ``.lmdb`` folder.

    Raises:
        QuantFaceError: the file cannot be read, a line has another form, a key occurs twice, or
            there is no line.
    """
    path = folder / "meta_info.txt"
    try:
        lines = read_bytes(path, MAX_META_BYTES).decode().split("\n")
    except UnicodeDecodeError as error:
        raise QuantFaceError(f"{path}: not text in UTF-8 ({error})") from error
    sides: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = line.removesuffix("\r")
        if not text.strip():
            continue
        found = LINE.fullmatch(text)
        if found is None:
            raise QuantFaceError(
                f"{path}: line {number}: found {text[:80]!r}, expected "
                "'NAME.png (HEIGHT,WIDTH,CHANNELS) COMPRESSION'"
            )
        if found["key"] in sides:
            raise QuantFaceError(f"{path}: line {number}: key {found['key']!r} occurs twice")
        sides[found["key"]] = min(int(found["height"]), int(found["width"]))
    if not sides:
        raise QuantFaceError(f"{path}: names no images")
    return sides
