"""Render a restoration for the browser: image files, and a table of timings."""

from __future__ import annotations

import html
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from quantface_arch.restore.compare import side_by_side
from quantface_arch.utils.images import RGBImage, to_uint8, write_image
from quantface_arch.web.service import Restoration, count

__all__ = ["Views", "message", "timings", "write_views"]

# The page shows images whose sides are at most this long. The download has the full size.
_SHOWN_SIDE = 2048
_QUALITY = 92
_BOX = (255, 200, 0)
_INK = (0, 0, 0)


@dataclass(frozen=True)
class Views:
    """The files of one restoration, in one folder.

    Attributes:
        result: restored image as a PNG of full size and bit depth, with its colour profile.
        before, after: input and result as JPEG files, shrunk to sides of at most 2048 pixels.
        boxes: the input with a box around each face, in the same format.
        faces: for each face, its crop before and after restoration, side by side.
    """

    result: Path
    before: Path
    after: Path
    boxes: Path
    faces: list[Path]


def write_views(done: Restoration, folder: Path) -> Views:
    """Write the files that the page shows into ``folder``."""
    factor = min(1.0, _SHOWN_SIDE / max(done.before.size))
    views = Views(
        result=folder / f"{done.name}_restored.png",
        before=folder / "before.jpg",
        after=folder / "after.jpg",
        boxes=folder / "faces.jpg",
        faces=[folder / f"face_{index}.jpg" for index in range(1, len(done.faces) + 1)],
    )
    write_image(views.result, done.after)
    before = _shrunk(done.before, factor)
    _write_jpeg(views.before, before)
    _write_jpeg(views.after, _shrunk(done.after, factor))
    boxes = [face.box * factor for face in done.faces]
    _write_jpeg(views.boxes, before.with_pixels(_marked(before.rgb, boxes)))
    for path, face in zip(views.faces, done.faces, strict=True):
        pair = side_by_side(
            done.before.with_pixels(face.crop), done.before.with_pixels(face.restored)
        )
        _write_jpeg(path, pair)
    return views


def _shrunk(image: RGBImage, factor: float) -> RGBImage:
    """Return a smaller copy with 8 bits per channel and without alpha."""
    width, height = (max(1, round(side * factor)) for side in image.size)
    small = image.resized(width, height)
    return small.with_pixels(to_uint8(small.rgb))


def _marked(rgb: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """Return a copy of an (H, W, 3) uint8 image with numbered boxes."""
    marked = np.ascontiguousarray(rgb.copy())
    scale = max(0.5, max(rgb.shape[:2]) / 1200)
    thick = max(2, round(3 * scale))
    for number, box in enumerate(boxes, start=1):
        left, top, right, bottom = (int(edge) for edge in np.rint(box))
        cv2.rectangle(marked, (left, top), (right, bottom), _BOX, thick)
        (width, height), below = cv2.getTextSize(str(number), cv2.FONT_HERSHEY_DUPLEX, scale, 1)
        corner = left + width + 2 * below, top + height + 2 * below
        cv2.rectangle(marked, (left, top), corner, _BOX, cv2.FILLED)
        place = left + below, top + height + below
        cv2.putText(
            marked, str(number), place, cv2.FONT_HERSHEY_DUPLEX, scale, _INK, 1, cv2.LINE_AA
        )
    return marked


def _write_jpeg(path: Path, image: RGBImage) -> None:
    options = {"quality": _QUALITY, "subsampling": 0, "icc_profile": image.icc_profile}
    Image.fromarray(image.rgb).save(path, **options)


def timings(done: Restoration) -> str:
    """Return the duration of each step as an HTML table."""
    rows = [*done.seconds.items(), ("total", sum(done.seconds.values()))]
    cells = "".join(
        f"<tr><td>{html.escape(step)}</td><td>{spent:.2f} s</td></tr>" for step, spent in rows
    )
    width, height = done.before.size
    size = f"<caption>{width}×{height} pixels, {count(len(done.faces))}</caption>"
    return f'<table class="timings">{size}{cells}</table>'


def message(text: str, kind: str) -> str:
    """Return a message as HTML.

    Args:
        text: the message.
        kind: ``empty``, ``ready``, ``done`` or ``failed``, which selects the style.
    """
    return f'<div class="message {kind}" role="status">{html.escape(text)}</div>'
