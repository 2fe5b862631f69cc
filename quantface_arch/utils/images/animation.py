"""Read animations (GIF, PNG, WebP and AVIF), and write them as animated PNG."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageSequence

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path, open_file, read_bytes
from quantface_arch.utils.images.chunks import insert_chunks
from quantface_arch.utils.images.description import Description
from quantface_arch.utils.images.opening import frame_count, opened
from quantface_arch.utils.images.pixels import decode_8bit
from quantface_arch.utils.images.read import MAX_FILE_BYTES
from quantface_arch.utils.images.rgb_image import RGBImage
from quantface_arch.utils.images.write import description_chunks
from quantface_arch.utils.limits import MAX_PIXELS

__all__ = ["Animation", "open_animation", "write_animation"]

# Players show a frame without a duration for this many ms.
_DEFAULT_DURATION = 100.0


@dataclass(frozen=True)
class Animation:
    """An animation in memory.

    Attributes:
        path: its file.
        data: the file's bytes.
        count: the number of frames.
        pixels: the pixels of all frames together.
        loops: how often it is played; 0 means without end.
    """

    path: Path
    data: bytes
    count: int
    pixels: int
    loops: int

    def frames(self) -> Iterator[tuple[RGBImage, float]]:
        """Yield each frame, whole and upright with 8 bits per channel, and its duration in ms.

        Raises:
            QuantFaceError: a frame is damaged.
        """
        with opened(self.path, io.BytesIO(self.data)) as file:
            png = self.data if file.format == "PNG" else b""
            description = None
            for frame in ImageSequence.Iterator(file):
                pixels = decode_8bit(frame)
                # The description in a file holds for all its frames.
                description = description or Description.of(frame, png)
                yield (
                    description.image(*pixels),
                    float(frame.info.get("duration") or _DEFAULT_DURATION),
                )


def open_animation(path: str | os.PathLike[str]) -> Animation | None:
    """Read a file of several frames; return None if it holds one image or cannot be read.

    Raises:
        QuantFaceError: the frames have more than 100 megapixels together.
    """
    path = Path(path)
    try:
        with open_file(path) as file, opened(path, file) as image:
            count = frame_count(image)
            if count == 1:
                return None
            pixels, loops = count * image.width * image.height, _loops(image)
    except QuantFaceError:
        return None
    if pixels > MAX_PIXELS:
        raise QuantFaceError(
            f"{path}: {count} frames have {pixels / 1e6:.0f} megapixels together: "
            f"at most {MAX_PIXELS // 10**6} are allowed"
        )
    return Animation(path, read_bytes(path, MAX_FILE_BYTES), count, pixels, loops)


def _loops(image: Image.Image) -> int:
    # An AVIF states no number of repetitions, and players repeat it forever. A GIF that states none
    # is played once.
    return int(image.info.get("loop", 0 if image.format == "AVIF" else 1))


def write_animation(
    path: str | os.PathLike[str], frames: Sequence[tuple[RGBImage, float]], loops: int
) -> None:
    """Write frames of 8 bits per channel as an animated PNG, completely or not at all.

    Args:
        path: the file, which ends in ``.png``.
        frames: each frame and its duration in ms. The first one's colours and metadata are kept.
        loops: how often the animation is played; 0 means without end.

    Raises:
        QuantFaceError: ``path`` cannot be written.
        WriteError: the disk is full or refuses the file.
    """
    first, *others = (_to_pil(image) for image, _ in frames)
    target = io.BytesIO()
    first.save(
        target,
        format="PNG",
        save_all=True,
        append_images=others,
        duration=[duration for _, duration in frames],
        loop=loops,
        # Each frame replaces the one before, including its alpha.
        disposal=0,
        blend=0,
    )
    with atomic_path(path) as temporary:
        chunks = description_chunks(frames[0][0])
        temporary.write_bytes(insert_chunks(target.getvalue(), chunks))


def _to_pil(image: RGBImage) -> Image.Image:
    if image.alpha is None:
        return Image.fromarray(image.rgb)
    return Image.fromarray(np.dstack([image.rgb, image.alpha]))
