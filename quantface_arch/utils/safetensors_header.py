"""Check the header of a ``.safetensors`` file before any object is built from it.

The library refuses a header of more than 100 MB, an unknown dtype, and a shape that does not match
the tensor's bytes. It also refuses tensors that overlap, leave gaps or do not fill the file, sizes
that overflow, and metadata other than strings. This module refuses what the library accepts.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.foreign_files import refuse_foreign
from quantface_arch.utils.safe_yaml_json import parse_json

__all__ = ["MAX_DIMENSIONS", "MAX_HEADER_BYTES", "MAX_TENSORS", "check_header"]

MAX_HEADER_BYTES = 16 << 20
MAX_TENSORS = 100_000
MAX_DIMENSIONS = 8

_FIELDS = {"dtype", "shape", "data_offsets"}
_LENGTH = struct.Struct("<Q")


def check_header(path: str | os.PathLike[str]) -> None:
    """Check what safetensors does not: sizes, counts, repeated names and foreign fields.

    A file that ends inside its header passes, because the library will refuse it.

    Raises:
        QuantFaceError: the header breaks a limit or names a foreign field. The message names the
            file and the field, and says what was found and what is allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise QuantFaceError(f"{path}: no such file")
    refuse_foreign(path, pytorch=False)
    try:
        with path.open("rb") as file:
            start = file.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                return
            (length,) = _LENGTH.unpack(start)
            size = path.stat().st_size - _LENGTH.size
            if length > size:
                return
            if length > MAX_HEADER_BYTES:
                raise QuantFaceError(
                    f"{path}: header: found {length:,} bytes, "
                    f"at most {MAX_HEADER_BYTES:,} are allowed"
                )
            text = file.read(length)
    except OSError as error:
        raise QuantFaceError(f"{path}: cannot be read: {error.strerror or error}") from error
    header = parse_json(f"{path}: header", text)
    if not isinstance(header, dict):
        raise QuantFaceError(f"{path}: header: found {type(header).__name__}, expected a mapping")
    header.pop("__metadata__", None)
    if len(header) > MAX_TENSORS:
        raise QuantFaceError(
            f"{path}: header: found {len(header):,} tensors, at most {MAX_TENSORS:,} are allowed"
        )
    for name, entry in header.items():
        _check_entry(path, name, entry)


def _check_entry(path: Path, name: str, entry: Any) -> None:
    what = f"{path}: header: tensor {name!r}"
    if not name.isprintable():
        raise QuantFaceError(f"{what}: names of tensors must be printable")
    if not isinstance(entry, dict) or entry.keys() != _FIELDS:
        found = sorted(entry) if isinstance(entry, dict) else entry
        raise QuantFaceError(f"{what}: found {found!r}, expected {', '.join(sorted(_FIELDS))}")
    shape = entry["shape"]
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS:
        found = f"{len(shape)} dimensions" if isinstance(shape, list) else repr(shape)
        raise QuantFaceError(f"{what}: shape: found {found}, at most {MAX_DIMENSIONS} are allowed")
    if not all(type(length) is int and 0 <= length < 2**48 for length in shape):
        raise QuantFaceError(f"{what}: shape: found {shape!r}, allowed are lengths below 2^48")
