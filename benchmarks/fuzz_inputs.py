"""Make inputs for benchmarks/robustness_fuzz.py: valid files, and strategies that damage them."""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import yaml
from hypothesis import strategies as st
from PIL import Image

__all__ = ["Strategy", "damaged", "documents", "pictures", "png_fixed", "tensor_files"]

Strategy = st.SearchStrategy[bytes]

# These values often break parsers of sizes, counts and offsets.
EDGES = (b"\0" * 4, b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0", b"\0\0\xff\xff", b"\xff" * 8)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from((0, -1, 1, 2, 3, 9, 64, 2**20, 2**31, 2**40, 2**63, 10**30, 10**400))
    | st.floats()
    | st.text(max_size=12)
    | st.sampled_from(("*" * 40, "w4a4", "../../etc/passwd", "\0", "\x1b[2J", "__class__", "auto"))
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


def damaged(seeds: list[bytes], fix: Callable[[bytes], bytes] = bytes) -> Strategy:
    """Generate valid files with bytes changed, removed, doubled or cut off, and plain noise."""
    change = st.tuples(
        st.sampled_from(("set", "set", "set", "edge", "drop", "double", "insert", "cut")),
        st.integers(0, 2**24),
        st.integers(1, 64),
        st.binary(min_size=1, max_size=8),
        st.sampled_from(EDGES),
    )
    changes = st.lists(change, min_size=1, max_size=3)
    made = st.builds(lambda data, edits: fix(_apply(data, edits)), st.sampled_from(seeds), changes)
    return made | st.binary(max_size=200)


def _apply(data: bytes, edits: list[tuple[str, int, int, bytes, bytes]]) -> bytes:
    for kind, place, length, text, edge in edits:
        at = place % (len(data) + 1)
        new = {
            "set": text,
            "edge": edge,
            "drop": b"",
            "double": data[at : at + length] * 2,
            "insert": text + data[at : at + length],
            "cut": b"",
        }[kind]
        skip = len(new) if kind in ("set", "edge") else length
        end = len(data) if kind == "cut" and length < 16 else at + skip
        data = data[:at] + new + data[end:]
    return data


def documents(seeds: list[Any], dump: Callable[[Any], bytes]) -> Strategy:
    """Generate valid documents with values replaced, removed or wrapped, and arbitrary ones."""
    change = st.tuples(
        st.integers(0, 2**16), st.sampled_from(("set", "drop", "rename", "wrap")), VALUES
    )
    changes = st.lists(change, min_size=1, max_size=4)
    made = st.builds(lambda doc, edits: dump(_edited(doc, edits)), st.sampled_from(seeds), changes)
    texts = [dump(seed) for seed in seeds]
    return made | damaged(texts) | VALUES.map(dump)


def _edited(document: Any, edits: list[tuple[int, str, Any]]) -> Any:
    root = {"root": copy.deepcopy(document)}
    for pick, kind, value in edits:
        places = list(_places(root))
        holder, key = places[pick % len(places)]
        if kind == "drop" and holder is not root:
            del holder[key]
        elif kind == "rename" and isinstance(holder, dict) and holder is not root:
            holder[str(value)] = holder.pop(key)
        else:
            holder[key] = [holder[key]] * 3 if kind == "wrap" else value
    return root["root"]


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield value, key
        if isinstance(item, (dict, list)):
            yield from _places(item)


def as_json(document: Any) -> bytes:
    """Write any document as JSON."""
    return json.dumps(document, default=str).encode("utf-8", "surrogatepass")


def as_yaml(document: Any) -> bytes:
    """Write any document as YAML."""
    return yaml.safe_dump(document, allow_unicode=False).encode()


def tensor_files(seeds: list[bytes]) -> Strategy:
    """Generate safetensors files with damaged bytes, headers, or JSON metadata."""
    parts = [_split(data) for data in seeds]
    headers = [header for header, _ in parts]
    bodies = st.sampled_from([body for _, body in parts])
    by_header = st.builds(_joined, documents(headers, as_json), bodies)
    return damaged(seeds) | by_header | st.one_of(*(_by_metadata(*part) for part in parts))


def _by_metadata(header: dict[str, Any], body: bytes) -> Strategy:
    metadata = header.get("__metadata__", {})
    ((key, text),) = metadata.items()
    changed = documents([json.loads(text)], as_json).map(lambda data: data.decode("latin-1"))
    return changed.map(lambda new: _joined(as_json({**header, "__metadata__": {key: new}}), body))


def _split(data: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def _joined(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def png_fixed(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that readers do not skip them."""
    if data[:4] != b"\x89PNG":
        return data
    made, at = data[:8], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        body = data[at + 4 : at + 8 + length]
        made += data[at : at + 4] + body + struct.pack(">I", zlib.crc32(body))
        at += 12 + length
    return made + data[at:]


def pictures() -> list[bytes]:
    """Return small image files of all formats, with 8 or 16 bits, alpha, palettes or frames."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    image = Image.fromarray(noise)
    exif = Image.Exif()
    exif[0x0112] = 6
    saved = [
        ("PNG", image, {"exif": exif}),
        ("PNG", image.convert("P"), {"transparency": 0}),
        ("PNG", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("JPEG", image, {"exif": exif}),
        ("JPEG", image, {"progressive": True}),
        ("JPEG", image.convert("CMYK"), {}),
        ("WEBP", image, {"lossless": True}),
        ("WEBP", image.convert("RGBA"), {"quality": 50}),
        ("WEBP", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("BMP", image, {}),
        ("BMP", image.convert("P"), {}),
        ("GIF", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("TIFF", image, {"dpi": (300, 300)}),
        ("TIFF", image, {"save_all": True, "append_images": [image.rotate(90)]}),
        ("PPM", image, {}),
        ("JPEG2000", image, {}),
    ]
    files = []
    for kind, picture, options in saved:
        file = io.BytesIO()
        picture.save(file, kind, **options)
        files.append(file.getvalue())
    for channels in (1, 3, 4):
        deep = np.random.default_rng(0).integers(0, 65536, (20, 18, channels), np.uint16)
        files.append(cv2.imencode(".png", deep)[1].tobytes())
    return files
