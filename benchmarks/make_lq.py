"""Degrade a folder of aligned face images, the same way every time.

    make_lq.py GT_DIR OUT_DIR [--size 512] [--seed 0] [--gt-out DIR]

The usual blind-face model (blur, downsample, noise, JPEG, upsample back), its parameters drawn from a generator
seeded by the file's name, so a file gets the same degradation on every machine and in every run.
Writes OUT_DIR/<name>.png, each of size x size, and the parameters to OUT_DIR.csv. With --gt-out, the clean images,
resized alike, go to DIR/<name>.png, so that the two folders pair up in BasicSR's PairedImageDataset.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np


def degrade(
    image: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, dict[str, float]]:
    """Degrade a square float32 BGR picture in [0, 1]; returns it and the parameters drawn."""
    size = image.shape[0]
    sigma = rng.uniform(0.5, 8.0) * size / 512
    scale = rng.uniform(1.0, 10.0)
    noise = rng.uniform(0.0, 15.0) / 255
    quality = int(rng.integers(50, 96))
    small = max(16, int(round(size / scale)))
    out = cv2.GaussianBlur(image, (0, 0), sigma)
    out = cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA)
    out = np.clip(out + rng.normal(0, 1, out.shape).astype(np.float32) * noise, 0, 1)
    ok, packed = cv2.imencode(".jpg", (out * 255).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise RuntimeError("OpenCV could not encode a JPEG")
    out = cv2.imdecode(packed, cv2.IMREAD_COLOR).astype(np.float32) / 255
    out = cv2.resize(out, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(out, 0, 1), dict(sigma=round(sigma, 3), scale=round(scale, 3), noise=round(noise * 255, 3), jpeg=quality)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gt", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gt-out", type=Path)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.gt_out:
        args.gt_out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in sorted(p for p in args.gt.iterdir() if p.suffix.lower() in {".png", ".jpg", ".jpeg"}):
        image = cv2.imread(str(path))
        image = cv2.resize(image, (args.size, args.size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        key = hashlib.sha256(f"{args.seed}/{path.stem}".encode()).digest()[:8]
        low, parameters = degrade(image, np.random.default_rng(int.from_bytes(key, "little")))
        cv2.imwrite(str(args.out / f"{path.stem}.png"), (low * 255).round().astype(np.uint8))
        if args.gt_out:
            cv2.imwrite(str(args.gt_out / f"{path.stem}.png"), (image * 255).round().astype(np.uint8))
        rows.append(dict(name=path.stem, **parameters))
    with open(args.out.with_name(args.out.name + ".csv"), "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} images -> {args.out}")


if __name__ == "__main__":
    main()
