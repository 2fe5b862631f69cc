"""Degrade a folder of aligned face images deterministically.

    make_lq.py [GT_DIR OUT_DIR] [--size 512] [--seed 0] [--gt-out DIR]

This applies the usual degradation model: blur, downsample, noise, JPEG, upsample. The parameters
come from a generator seeded by the file name, so a file gets the same degradation on every machine
and in every run. Images go to OUT_DIR/<name>.png in size x size, and parameters to OUT_DIR.csv.
--gt-out also writes the clean images, resized the same, to DIR/<name>.png, so that the two folders
form pairs for BasicSR's PairedImageDataset. Without folders, the faces that ship with the package
are degraded and written to datasets/faces_val/gt and lq, where options files read validation pairs.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
from pathlib import Path

import cv2
import numpy as np

SUFFIXES = {".png", ".jpg", ".jpeg"}
SHIPPED = Path(__file__).resolve().parents[1] / "quantface_arch/data/faces/val"
PAIRS = Path("datasets/faces_val")


def degrade(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, dict[str, float]]:
    """Degrade a square float32 BGR image in [0, 1]; return it and its parameters."""
    size = image.shape[0]
    sigma = rng.uniform(0.5, 8.0) * size / 512
    scale = rng.uniform(1.0, 10.0)
    noise = rng.uniform(0.0, 15.0) / 255
    quality = int(rng.integers(50, 96))
    small = max(16, round(size / scale))
    out = cv2.GaussianBlur(image, (0, 0), sigma)
    out = cv2.resize(out, (small, small), interpolation=cv2.INTER_AREA)
    out = np.clip(out + rng.normal(0, 1, out.shape).astype(np.float32) * noise, 0, 1)
    ok, packed = cv2.imencode(
        ".jpg", (out * 255).round().astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not ok:
        raise RuntimeError("OpenCV could not encode a JPEG")
    out = cv2.imdecode(packed, cv2.IMREAD_COLOR).astype(np.float32) / 255
    out = cv2.resize(out, (size, size), interpolation=cv2.INTER_CUBIC)
    drawn = {"sigma": sigma, "scale": scale, "noise": noise * 255, "jpeg": quality}
    return np.clip(out, 0, 1), {name: round(value, 3) for name, value in drawn.items()}


def degrade_file(
    path: Path, size: int = 512, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """Return a face clean and degraded, uint8 BGR (size, size, 3), and the parameters."""
    image = cv2.imread(str(path))
    if image is None:
        raise SystemExit(f"error: {path}: not a readable image")
    grows = min(image.shape[:2]) < size
    mode = cv2.INTER_LANCZOS4 if grows else cv2.INTER_AREA
    clean = cv2.resize(image, (size, size), interpolation=mode)
    key = hashlib.sha256(f"{seed}/{path.stem}".encode()).digest()[:8]
    rng = np.random.default_rng(int.from_bytes(key, "little"))
    low, parameters = degrade(clean.astype(np.float32) / 255, rng)
    return clean, (low * 255).round().astype(np.uint8), parameters


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gt", nargs="?", type=Path, help="folder of clean faces (default: shipped)")
    parser.add_argument(
        "out", nargs="?", type=Path, help=f"folder for degraded faces ({PAIRS / 'lq'})"
    )
    parser.add_argument("--size", type=int, default=512, help="side in pixels (512)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gt-out", type=Path, help="folder for the clean faces, resized the same")
    args = parser.parse_args()
    if args.gt is None:
        args.gt, args.gt_out = SHIPPED, args.gt_out or PAIRS / "gt"
        args.out = PAIRS / "lq"
    elif args.out is None:
        parser.error("name the folder of the degraded faces, too")
    paths = sorted(p for p in args.gt.iterdir() if p.suffix.lower() in SUFFIXES)
    if not paths:
        parser.error(f"no images ({', '.join(sorted(SUFFIXES))}) in {args.gt}")
    rows = []
    for path in paths:
        clean, low, parameters = degrade_file(path, args.size, args.seed)
        for folder, picture in ((args.out, low), (args.gt_out, clean)):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(folder / f"{path.stem}.png"), picture)
        rows.append({"name": path.stem, **parameters})
    with open(args.out.with_name(args.out.name + ".csv"), "w", newline="") as handle:
        writer = csv.DictWriter(handle, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    print(f"{len(rows)} images -> {args.out}")


if __name__ == "__main__":
    main()
