"""Convert the metadata of image files to PNG chunks: EXIF, XMP, texts and resolution."""

from __future__ import annotations

import re
import struct
from typing import Any

from PIL import Image

from quantface_arch.errors import one_line
from quantface_arch.utils.images.chunks import Chunk, text_chunk

__all__ = ["metadata_chunks"]

# These EXIF tags stay true of the restored image. The tags of its size, its layout in the file, its
# orientation and its thumbnail do not.
_KEPT_TAGS = (
    0x010E,  # ImageDescription
    0x010F,  # Make
    0x0110,  # Model
    0x011A,  # XResolution
    0x011B,  # YResolution
    0x0128,  # ResolutionUnit
    0x0131,  # Software
    0x0132,  # DateTime
    0x013B,  # Artist
    0x013C,  # HostComputer
    0x4746,  # Rating
    0x4749,  # RatingPercent
    0x8298,  # Copyright
    *range(0x9C9B, 0x9CA0),  # title, comment, author, keywords and subject of Windows
)
_EXIF_IFD, _GPS_IFD = 0x8769, 0x8825
_STALE_IN_EXIF_IFD = (0xA002, 0xA003, 0xA005)  # width, height, interoperability
_EXIF_PREFIX = b"Exif\0\0"
_XMP_KEYWORD = "XML:com.adobe.xmp"
_XMP_ORIENTATION = re.compile(r"(tiff:Orientation\s*(?:=\s*[\"']|>))\s*[1-8]")
_TEXT_CHUNKS = (b"tEXt", b"zTXt", b"iTXt")
_METERS_PER_INCH = 0.0254


def metadata_chunks(image: Image.Image, chunks: list[Chunk]) -> tuple[Chunk, ...]:
    """Return the metadata of a file as PNG chunks, with the orientation of an upright image.

    Metadata that cannot be parsed is left out.

    Args:
        image: the opened file.
        chunks: its chunks if it is a PNG file, else an empty list.
    """
    found = [chunk for chunk in chunks if chunk.kind in _TEXT_CHUNKS and not _is_xmp(chunk)]
    for part in (_exif, _xmp, _comment, _resolution):
        try:
            chunk = part(image)
        except Exception:
            # Parsers raise almost any type of exception on damaged metadata, and the image itself
            # is intact.
            continue
        found += [] if chunk is None else [chunk]
    return tuple(found)


def _is_xmp(chunk: Chunk) -> bool:
    return chunk.body.startswith(_XMP_KEYWORD.encode() + b"\0")


def _exif(image: Image.Image) -> Chunk | None:
    exif, kept = image.getexif(), Image.Exif()
    for tag in _KEPT_TAGS:
        if tag in exif:
            kept[tag] = exif[tag]
    for tag in (_EXIF_IFD, _GPS_IFD):
        entries = dict(exif.get_ifd(tag))
        if tag == _EXIF_IFD:
            entries = {key: entries[key] for key in entries if key not in _STALE_IN_EXIF_IFD}
        if entries:
            kept[tag] = entries
    if not kept:
        return None
    return Chunk(b"eXIf", kept.tobytes().removeprefix(_EXIF_PREFIX))


def _xmp(image: Image.Image) -> Chunk | None:
    data = image.info.get("xmp") or image.info.get(_XMP_KEYWORD)
    if not data:
        return None
    text = data if isinstance(data, str) else data.rstrip(b"\0").decode()
    return text_chunk(_XMP_KEYWORD, _XMP_ORIENTATION.sub(r"\g<1>1", text))


def _comment(image: Image.Image) -> Chunk | None:
    comment: Any = image.info.get("comment")
    if not comment or image.format == "PNG":
        return None
    text = comment if isinstance(comment, str) else comment.decode()
    return text_chunk("Comment", one_line(text))


def _resolution(image: Image.Image) -> Chunk | None:
    dots = image.info.get("dpi")
    if not dots:
        return None
    per_meter = [round(float(value) / _METERS_PER_INCH) for value in dots]
    if min(per_meter) < 1:
        return None
    return Chunk(b"pHYs", struct.pack(">IIB", *per_meter, 1))
