"""Make the picture at the top of the README from photographs in inputs/."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from quantface_arch import FaceRestorer
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.images import load_rgb

DESCRIPTION = """\
Restore faces of inputs/ with the default model, and put each below its input. Run it again when the
shipped weights change.

example:
  python scripts/make_picture.py
"""
ROOT = Path(__file__).resolve().parents[1]
PHOTOS = ("elderly_woman", "man_with_glasses", "young_man", "old_photograph")
SIDE, GAP = 280, 6


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    target = ROOT / "docs/images/before_after.jpg"
    parser.add_argument("-o", "--output", type=Path, default=target, help="(default: %(default)s)")
    return parser


def column(restorer: FaceRestorer, photo: Path) -> np.ndarray:
    """Return the largest face of a photograph above its restoration, uint8 RGB."""
    result = restorer.restore(load_rgb(photo))
    face = max(result.faces, key=lambda face: face.box[2] - face.box[0])
    small = [
        cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        for crop in (face.crop, face.restored)
    ]
    gap = np.full((GAP, SIDE, 3), 255, np.uint8)
    return np.concatenate([small[0], gap, small[1]])


def main(args: argparse.Namespace) -> int:
    """Write the picture."""
    restorer = FaceRestorer.from_pretrained("mini-w4a8")
    columns = [column(restorer, ROOT / f"inputs/{name}.jpg") for name in PHOTOS]
    gap = np.full((2 * SIDE + GAP, GAP, 3), 255, np.uint8)
    parts = [part for one in columns for part in (gap, one)][1:]
    picture = np.concatenate(parts, axis=1)[:, :, ::-1]
    cv2.imwrite(str(args.output), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return 0


if __name__ == "__main__":
    run(main, make_parser())
