"""Score restored faces against ground truth: mean PSNR, SSIM, edge PSNR, sharpness.

    score.py RESTORED_DIR GT_DIR [--size 512]

Images are matched by file stem, resized to size x size. SSIM is BasicSR's: a Gaussian window of
11 x 11 pixels, the mean of the colours, as in scripts/evaluate.py and options files. Sharpness is
the mean gradient magnitude divided by the ground truth's: 1 is ideal, less means blur, more means
noise or invented texture. The output is one JSON line. A missing or unreadable restored image is an
error, so means are complete.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import cv2
import numpy as np

from quantface_arch.metrics.catalogue import METRICS

SUFFIXES = {".png", ".jpg", ".jpeg"}
NAMES = ("psnr", "ssim", "edge_psnr", "sharpness")


def read(path: Path, size: int) -> np.ndarray:
    """Read a BGR image as (size, size, 3), float32 on the 0…255 scale."""
    image = cv2.imread(str(path))
    if image is None:
        sys.exit(f"error: {path}: not a readable image")
    method = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_CUBIC
    if image.shape[:2] != (size, size):
        image = cv2.resize(image, (size, size), interpolation=method)
    return image.astype(np.float32)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    """Return the PSNR in dB on the 0…255 scale, at most 168 for equal images."""
    return float(10 * np.log10(255.0**2 / max(np.mean((a - b) ** 2), 1e-12)))


def score(restored: np.ndarray, clean: np.ndarray) -> dict[str, float]:
    """Return the four scores of a pair of BGR images of equal size on the 0…255 scale."""
    a, b = restored.astype(np.float32), clean.astype(np.float32)
    values = (
        psnr(a, b),
        *(METRICS[name](a, b) for name in NAMES[1:]),
    )
    return {name: float(value) for name, value in zip(NAMES, values, strict=True)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("restored", type=Path)
    parser.add_argument("gt", type=Path)
    parser.add_argument("--size", type=int, default=512)
    args = parser.parse_args()
    found = {}
    for path in sorted(p for p in args.restored.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem in found:
            sys.exit(f"two restored images named {path.stem}")
        found[path.stem] = path
    totals = []
    for path in sorted(p for p in args.gt.iterdir() if p.suffix.lower() in SUFFIXES):
        if path.stem not in found:
            sys.exit(f"no restored image for {path.name}")
        a, b = read(found[path.stem], args.size), read(path, args.size)
        totals.append(score(a, b))
    means = {name: round(float(np.mean([t[name] for t in totals])), 4) for name in NAMES}
    print(json.dumps({"images": len(totals), **means}))


if __name__ == "__main__":
    main()
