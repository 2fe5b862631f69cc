"""Measure the seam where restored faces meet their image.

    python benchmarks/paste.py                  # 16 portraits, about 4 minutes on 2 cores
    python benchmarks/paste.py --images 160 --images-to FOLDER

Whole portraits are degraded, restored by `--model` and pasted back with the head-shaped mask and,
for comparison, with a square one, in which the grain fades with everything else. "border" is the
mean gradient across the mask's border, where its weight lies between 0 and 1, divided by that of
the input at the same pixels; "worst" is the image farthest from 1. Outside the border the two are
equal. "jump" is the largest difference of that ratio between neighbouring rings, each 8 pixels of
the aligned face wide; a halo is a large jump. "changed" counts pixels outside the mask that differ
from the input in any bit, over all images, as 8 bits, 16 bits, grey and with alpha. "ms" is the
median processor time of pasting one face.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from detectors import portraits_folder
from report import data_root, parser, report

from quantface_arch.faces.align import FACE_SIZE, invert, transform, warp
from quantface_arch.faces.mask import HeadMask, head_mask, head_turn
from quantface_arch.faces.paste import paste_face
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.results import FoundFaces
from quantface_arch.utils.images import RGBImage, load_rgb

# Each entry has the blur in pixels, the reduction, the noise in levels and the JPEG quality. The
# image is not enlarged again.
DEGRADATIONS = {
    "noise": (1.0, 1.0, 15.0, 95),
    "noise, half size": (1.0, 2.0, 12.0, 80),
    "blur": (4.0, 1.0, 2.0, 90),
    "JPEG": (1.5, 1.5, 5.0, 40),
}
_RING = 8
_RINGS = 16
_EDGE, _FADE = 16, 48  # pixels of the square mask


def degrade(rgb: np.ndarray, name: str, seed: int) -> np.ndarray:
    """Blur an image, uint8 (H, W, 3), shrink it, add noise and compress it."""
    blur, reduction, noise, quality = DEGRADATIONS[name]
    image = cv2.GaussianBlur(rgb.astype(np.float32), (0, 0), blur)
    size = round(rgb.shape[1] / reduction), round(rgb.shape[0] / reduction)
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    image = image + np.random.default_rng(seed).normal(0, noise, image.shape)
    image = np.rint(np.clip(image, 0, 255)).astype(np.uint8)
    _, packed = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(packed, cv2.IMREAD_COLOR)[..., ::-1].copy()


def square_mask() -> HeadMask:
    """Return the whole frame with soft edges."""
    distance = np.minimum(np.arange(FACE_SIZE), np.arange(FACE_SIZE)[::-1])
    ramp = np.clip((distance - _EDGE) / _FADE, 0, 1)
    ramp = ramp * ramp * (3 - 2 * ramp)
    weight = np.outer(ramp, ramp).astype(np.float32)
    return HeadMask(weight, weight)


def mask_of(found: FoundFaces, kind: str) -> HeadMask:
    """Return the mask of the first face."""
    if kind == "square":
        return square_mask()
    return head_mask(head_turn(transform(found.faces[0].landmarks, found.matrices[0])))


def gradients(rgb: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the (H, W) magnitude of the luma's gradient, and of its part across a border."""
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    y, x = np.gradient(luma)
    down, right = np.gradient(cv2.GaussianBlur(weight, (0, 0), 3))
    across = np.abs(x * right + y * down) / np.maximum(np.hypot(right, down), 1e-9)
    return np.hypot(x, y), across


def seam(
    before: np.ndarray, after: np.ndarray, weight: np.ndarray, side: float
) -> dict[str, float]:
    """Compare gradients before and after at a mask's border.

    Args:
        before, after: (H, W, 3) uint8.
        weight: (H, W) of the restored face.
        side: pixels of the image along a pixel of the aligned face.
    """
    (old, old_across), (new, new_across) = (gradients(image, weight) for image in (before, after))
    border = (weight > 0) & (weight < 1)
    depth = cv2.distanceTransform((weight > 0).astype(np.uint8), cv2.DIST_L2, 5) / side
    rings = np.ceil(depth / _RING).astype(int)
    ratios = [new[rings == ring].mean() / old[rings == ring].mean() for ring in range(_RINGS)]
    return {
        "border": float(new_across[border].mean() / old_across[border].mean()),
        "jump": float(np.abs(np.diff(ratios)).max()),
    }


def changed(found: FoundFaces, face: np.ndarray, mask: HeadMask, weight: np.ndarray) -> int:
    """Count pixels outside the mask that pasting changes, in four kinds of image."""
    rgb = found.image.rgb
    grey = np.repeat(rgb[..., 1:2], 3, axis=2)
    restored_grey = np.repeat(face[..., 1:2], 3, axis=2)
    deep = [image.astype(np.uint16) * 257 for image in (rgb, face)]
    total = 0
    for image, new in ((rgb, face), deep, (grey, restored_grey)):
        canvas = image.copy()
        paste_face(canvas, new, found.matrices[0], mask=mask)
        total += int((canvas != image).any(axis=2)[weight <= 0].sum())
    return total


def alpha_changed(restorer: FaceRestorer, found: FoundFaces, face: np.ndarray) -> int:
    """Count the alpha values that pasting changes."""
    alpha = found.image.rgb[..., 0].copy()
    result = restorer.assemble(replace(found, image=RGBImage(found.image.rgb, alpha)), [face])
    return int((result.rgb_image.alpha != alpha).sum())


def first_face(restorer: FaceRestorer, rgb: np.ndarray) -> FoundFaces | None:
    """Return an image with only its first face, or None without faces."""
    found = restorer.find(rgb)
    alone = {name: getattr(found, name)[:1] for name in ("faces", "matrices", "crops")}
    return replace(found, **alone) if found.faces else None


def pasted(
    found: FoundFaces, face: np.ndarray, mask: HeadMask
) -> tuple[np.ndarray, dict[str, Any]]:
    """Paste a face; return the image and its measurements."""
    rgb = found.image.rgb.copy()
    start = time.process_time()
    paste_face(rgb, face, found.matrices[0], mask=mask)
    spent = (time.process_time() - start) * 1e3
    inverse = invert(found.matrices[0])
    weight = warp(mask.coarse, inverse, found.image.size, cv2.BORDER_CONSTANT).clip(0, 1)
    side = float(np.sqrt(abs(np.linalg.det(inverse[:, :2]))))
    figures = seam(found.image.rgb, rgb, weight, side)
    return rgb, {**figures, "ms": spent, "changed": changed(found, face, mask, weight)}


def measure(
    restorer: FaceRestorer, paths: Sequence[Path], name: str, folder: Path | None
) -> list[dict[str, Any]]:
    """Return the rows of one degradation, for the square and the head-shaped mask."""
    seen: dict[str, list[dict[str, Any]]] = {"square": [], "head": []}
    for seed, path in enumerate(paths):
        found = first_face(restorer, degrade(load_rgb(path), name, seed))
        if found is None:
            continue
        face = restorer.restore_aligned(found.crops)[0]
        panels = [found.image.rgb]
        for kind, rows in seen.items():
            rgb, figures = pasted(found, face, mask_of(found, kind))
            figures["changed"] += alpha_changed(restorer, found, face)
            rows.append(figures)
            panels.append(rgb)
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            sheet = np.hstack(panels)[..., ::-1]
            cv2.imwrite(str(folder / f"{path.stem} {name}.png"), sheet)
    return [summary(name, kind, rows) for kind, rows in seen.items()]


def summary(name: str, kind: str, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    border = np.array([row["border"] for row in rows])
    return {
        "degradation": name,
        "mask": kind,
        "images": len(rows),
        "border": float(border.mean()),
        "worst": float(border[np.abs(border - 1).argmax()]),
        "within 10 %": int((np.abs(border - 1) <= 0.1).sum()),
        "jump": float(np.mean([row["jump"] for row in rows])),
        "changed": sum(row["changed"] for row in rows),
        "ms": float(np.median([row["ms"] for row in rows])),
    }


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--model", default="mini-w4a8", help="(%(default)s)")
    args_parser.add_argument("--images", type=int, default=16, help="portraits (16)")
    where = "write images: input, square mask and head mask side by side"
    args_parser.add_argument("--images-to", type=Path, metavar="FOLDER", help=where)
    args = args_parser.parse_args()
    paths = sorted(portraits_folder().glob("*.jpg"))
    paths = paths[:: max(1, len(paths) // args.images)][: args.images]
    names = list(DEGRADATIONS)
    if args.smoke:
        paths, names = paths[:1], names[:1]
    weights = data_root() / "weights/facexlib"
    # One face is restored sooner than a model is compiled.
    runtime = "reference" if args.smoke else "auto"
    restorer = FaceRestorer.from_pretrained(args.model, runtime, weights_dir=weights, offline=True)
    rows = [row for name in names for row in measure(restorer, paths, name, args.images_to)]
    report(rows, args.json)


if __name__ == "__main__":
    main()
