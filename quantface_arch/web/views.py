"""What the page shows of a restoration: files for the browser, a table of timings."""

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

# The slider and the boxes are shown at this size at most; the download has every pixel.
_SHOWN_SIDE = 2048
_QUALITY = 92
_BOX = (255, 200, 0)
_INK = (0, 0, 0)


@dataclass(frozen=True)
class Views:
    """Files of one restoration, all of them in one folder.

    Attributes:
        result: the restored picture, PNG, at full size, depth and with its profile.
        before, after: JPEG, at most 2048 pixels a side.
        boxes: the input with the faces marked, alike.
        faces: of each face, before and after side by side.
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
    _write_jpeg(views.boxes, RGBImage(_marked(before.rgb, boxes), icc_profile=before.icc_profile))
    profile = done.before.icc_profile
    for path, face in zip(views.faces, done.faces, strict=True):
        pair = side_by_side(RGBImage(face.crop), RGBImage(face.restored, icc_profile=profile))
        _write_jpeg(path, pair)
    return views


def _shrunk(picture: RGBImage, factor: float) -> RGBImage:
    width, height = (max(1, round(side * factor)) for side in picture.size)
    small = picture.resized(width, height)
    return RGBImage(to_uint8(small.rgb), icc_profile=small.icc_profile)


def _marked(rgb: np.ndarray, boxes: list[np.ndarray]) -> np.ndarray:
    """A copy of (H, W, 3) uint8 with numbered boxes."""
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


def _write_jpeg(path: Path, picture: RGBImage) -> None:
    image = Image.fromarray(picture.rgb)
    image.save(path, quality=_QUALITY, subsampling=0, icc_profile=picture.icc_profile)


def timings(done: Restoration) -> str:
    """The steps and their seconds, as an HTML table."""
    rows = [*done.seconds.items(), ("together", sum(done.seconds.values()))]
    cells = "".join(
        f"<tr><td>{html.escape(step)}</td><td>{spent:.2f} s</td></tr>" for step, spent in rows
    )
    width, height = done.before.size
    size = f"<caption>{width}×{height} pixels, {count(len(done.faces))}</caption>"
    return f'<table class="timings">{size}{cells}</table>'


def message(text: str, kind: str) -> str:
    """A line for the visitor, as HTML; ``kind`` is empty, ready, done or failed."""
    return f'<div class="message {kind}" role="status">{html.escape(text)}</div>'
