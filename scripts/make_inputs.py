"""Make the degraded photographs in inputs/ from whole portraits."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.errors import UsageError
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.images import load_rgb, resize

DESCRIPTION = """\
Degrade portraits into the photographs of inputs/, the same way in every run. The portraits are
those of github.com/faker-js/assets-person-portrait (Stable Diffusion 3, CC0). Those used here are
held out from the faces that scripts/make_default_faces.py ships. inputs/README.md says what each
photograph shows; the astronaut has another source.

example:
  python scripts/make_inputs.py ../shared/portraits
"""
OUTPUT = Path(__file__).resolve().parents[1] / "inputs"
SIDE = 640
TILE = 320
SCRATCHES = 12


@dataclass(frozen=True)
class Photograph:
    """How one photograph is made.

    Attributes:
        portraits: rows of portraits that stand side by side; a single one is larger.
        blur: σ of the blur in pixels.
        factor: how much the photograph is shrunk before it is brought back to its size.
        noise: σ of the noise in levels of 0…255.
        quality: quality of the JPEG file.
        old: whether it is grey, faded and scratched.
    """

    portraits: tuple[tuple[str, ...], ...]
    blur: float
    factor: float
    noise: float
    quality: int
    old: bool = False


PHOTOGRAPHS = {
    "elderly_woman": Photograph((("f61",),), blur=2.0, factor=2, noise=5, quality=60),
    "young_woman": Photograph((("f42",),), blur=2.5, factor=2, noise=3, quality=45),
    "young_man": Photograph((("m70",),), blur=1.5, factor=3, noise=8, quality=70),
    "man_with_glasses": Photograph((("m95",),), blur=2.0, factor=2, noise=10, quality=55),
    "group": Photograph(
        (("f71", "m82", "f97"), ("m54", "f76", "m89")), blur=0.8, factor=1.5, noise=5, quality=60
    ),
    "old_photograph": Photograph((("m06",),), blur=1.8, factor=2, noise=12, quality=65, old=True),
}


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    parser.add_argument("portraits", type=Path, help="folder of portraits, NAME.jpg")
    parser.add_argument(
        "-o", "--output", type=Path, default=OUTPUT, help="folder to write (default: inputs/)"
    )
    return parser


def main(args: argparse.Namespace) -> int:
    """Make every photograph and print its size."""
    if not args.portraits.is_dir():
        raise UsageError(f"{args.portraits}: no such folder of portraits")
    args.output.mkdir(parents=True, exist_ok=True)
    for seed, (name, photograph) in enumerate(PHOTOGRAPHS.items()):
        rgb = compose(photograph.portraits, args.portraits)
        degraded = degrade(rgb, photograph, np.random.default_rng(seed))
        path = args.output / f"{name}.jpg"
        quality = [cv2.IMWRITE_JPEG_QUALITY, photograph.quality]
        cv2.imwrite(str(path), degraded[..., ::-1], quality)
        print(f"{path}: {degraded.shape[1]}x{degraded.shape[0]}, {path.stat().st_size:,} bytes")
    return 0


def compose(rows: tuple[tuple[str, ...], ...], folder: Path) -> np.ndarray:
    """Put portraits side by side, in rows."""
    tiles = [[load_rgb(folder / f"{name}.jpg") for name in row] for row in rows]
    if len(rows) == len(rows[0]) == 1:
        return resize(tiles[0][0], SIDE, SIDE)
    return np.vstack([np.hstack([resize(tile, TILE, TILE) for tile in row]) for row in tiles])


def degrade(rgb: np.ndarray, photograph: Photograph, rng: np.random.Generator) -> np.ndarray:
    """Blur, shrink, add noise and bring back to size; uint8 in and out."""
    height, width = rgb.shape[:2]
    image = rgb.astype(np.float32)
    if photograph.old:
        image = _age(image, rng)
    image = cv2.GaussianBlur(image, (0, 0), photograph.blur)
    small = round(width / photograph.factor), round(height / photograph.factor)
    image = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
    shape = (*image.shape[:2], 1) if photograph.old else image.shape
    image += rng.normal(0, photograph.noise, shape).astype(np.float32)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    return image.clip(0, 255).round().astype(np.uint8)


def _age(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Make a colour photograph grey, faded and scratched."""
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    faded = 35 + 0.78 * grey
    height, width = grey.shape
    for _ in range(SCRATCHES):
        x, y = rng.integers(0, width), rng.integers(0, height)
        end = int(x + rng.integers(-12, 13)), int(y + rng.integers(40, 200))
        cv2.line(faded, (int(x), int(y)), end, float(rng.integers(200, 256)), 1, cv2.LINE_8)
    return np.repeat(faded[..., None], 3, axis=2)


if __name__ == "__main__":
    run(main, make_parser())
