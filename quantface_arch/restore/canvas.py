"""Put restored faces back into their image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import transform
from quantface_arch.faces.mask import head_mask, head_turn
from quantface_arch.faces.paste import paste_face
from quantface_arch.restore.results import FoundFaces, RestoredFace
from quantface_arch.restore.strength import blend
from quantface_arch.utils.images import MAX_OUTPUT_PIXELS, RGBImage, resize

__all__ = ["make_canvas", "paste_faces"]


def make_canvas(
    image: RGBImage, upscale: float, background: Callable[[np.ndarray], np.ndarray] | None
) -> RGBImage:
    """Return an enlarged copy of an image, into which faces can be pasted.

    Args:
        image: the image.
        upscale: factor of the enlargement.
        background: enlarges the pixels, see ``FaceRestorer``; None interpolates.

    Raises:
        QuantFaceError: the result has too many pixels.
    """
    width, height = (round(side * upscale) for side in image.size)
    if width * height > MAX_OUTPUT_PIXELS:
        raise QuantFaceError(
            f"enlarging {image.size[0]}x{image.size[1]} pixels {upscale:g} times gives "
            f"{width}x{height}: at most {MAX_OUTPUT_PIXELS // 10**6} megapixels are allowed"
        )
    canvas = image.resized(width, height)
    if background is None:
        return replace(canvas, rgb=canvas.rgb.copy())
    return replace(canvas, rgb=resize(background(image.visible().rgb), width, height))


def paste_faces(
    canvas: RGBImage, found: FoundFaces, restored: Sequence[np.ndarray], strengths: Sequence[float]
) -> list[RestoredFace]:
    """Paste restored faces into a canvas, in place, and return them blended.

    Args:
        canvas: the image, possibly enlarged.
        found: the image before and its faces.
        restored: restored crops, in the order of ``found.crops``.
        strengths: weight of each restored crop, 0 to 1.
    """
    scale = canvas.size[0] / found.image.size[0], canvas.size[1] / found.image.size[1]
    faces = []
    for face, crop, matrix, new, strength in zip(
        found.faces, found.crops, found.matrices, restored, strengths, strict=True
    ):
        mask = head_mask(head_turn(transform(face.landmarks, matrix)))
        paste_face(canvas.rgb, new, matrix, scale, strength, mask)
        blended = blend(crop, new, strength)
        faces.append(RestoredFace(face.box, face.landmarks, crop, blended, strength))
    return faces
