"""Write a contact sheet of crops from the images of cells, with methods side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from cells import Cells
from make_lq import degrade_file

matplotlib.use("Agg")
import matplotlib.pyplot as plt

__all__ = ["write_sheet"]

# This is the centre of an aligned 512×512 face, with eyes, nose and mouth.
CROP = slice(150, 406), slice(128, 384)


def write_sheet(path: Path, cells: Cells, names: Mapping[str, str]) -> None:
    """Write a PNG with a row per face: input, every cell's image, clean face.

    Args:
        names: column title → name of a cell whose images are in the cache.
    """
    faces = cells.faces[: cells.shown]
    titles = ["input", *names, "clean"]
    figure, axes = plt.subplots(
        len(faces), len(titles), figsize=(1.9 * len(titles), 2.1 * len(faces)), squeeze=False
    )
    for line, face in zip(axes, faces, strict=True):
        clean, low, _ = degrade_file(face)
        kept = [cells.image(name, face) for name in names.values()]
        pictures = [low, *(cv2.imread(str(file)) for file in kept), clean]
        for place, title, picture in zip(line, titles, pictures, strict=True):
            place.imshow(np.ascontiguousarray(picture[CROP][:, :, ::-1]))
            place.set_axis_off()
            if face == faces[0]:
                place.set_title(title, fontsize=8)
    figure.tight_layout(pad=0.3)
    figure.savefig(path, dpi=150)
    plt.close(figure)
