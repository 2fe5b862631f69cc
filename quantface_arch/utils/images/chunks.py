"""Read and insert the chunks of a PNG file, which hold its metadata besides its pixels."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

__all__ = ["Chunk", "insert_chunks", "read_chunks", "text_chunk"]

_SIGNATURE_BYTES = 8
_HEADER_END = 33  # the signature and the IHDR chunk with its checksum


class Chunk(NamedTuple):
    """One chunk of a PNG file.

    Attributes:
        kind: its four letters, such as ``b"tEXt"``.
        body: its data.
    """

    kind: bytes
    body: bytes


def read_chunks(data: bytes) -> Iterator[Chunk]:
    """Yield the chunks of a PNG file up to the first that is cut off."""
    start = _SIGNATURE_BYTES
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            return
        yield Chunk(kind, data[start + 8 : end])
        start = end + 4


def insert_chunks(data: bytes, chunks: Iterable[Chunk]) -> bytes:
    """Return a PNG file with more chunks directly after its header."""
    added = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return data[:_HEADER_END] + added + data[_HEADER_END:]


def text_chunk(keyword: str, text: str) -> Chunk:
    """Return a chunk of UTF-8 text under a Latin-1 keyword."""
    # The zeros end the keyword, mark the text as uncompressed, and leave its language open.
    return Chunk(b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode())
