"""Make the picture at the top of the README from photographs in inputs/."""

from __future__ import annotations

import argparse
from pathlib import Path

import cv2
import numpy as np

from quantface_arch import FaceRestorer
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.images import load_rgb, resize

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


def tile(face: np.ndarray) -> np.ndarray:
    """Shrink a face (512, 512, 3), and leave a white gap to its right and below it."""
    small = resize(face, SIDE, SIDE)
    return cv2.copyMakeBorder(small, 0, GAP, 0, GAP, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def column(restorer: FaceRestorer, photo: Path) -> np.ndarray:
    """Return the largest face of a photograph above its restoration, uint8 RGB."""
    result = restorer.restore(load_rgb(photo))
    face = max(result.faces, key=lambda face: face.box[2] - face.box[0])
    return np.vstack([tile(face.crop), tile(face.restored)])


def main(args: argparse.Namespace) -> int:
    """Write the picture, and print its size."""
    restorer = FaceRestorer.from_pretrained("mini-w4a8")
    columns = [column(restorer, ROOT / f"inputs/{name}.jpg") for name in PHOTOS]
    picture = np.hstack(columns)[:-GAP, :-GAP, ::-1]
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    with atomic_path(args.output) as temporary:
        temporary.write_bytes(encoded.tobytes())
    print(f"{args.output}: {picture.shape[1]}x{picture.shape[0]}, {len(encoded):,} bytes")
    return 0


if __name__ == "__main__":
    run(main, make_parser())
