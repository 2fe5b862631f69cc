"""Measure what `--strength auto` and `--identity` do to clean and to degraded faces.

    python benchmarks/strength.py                        # 48 faces of val512 and of diverse512
    python benchmarks/strength.py --faces tune512 --identity 0.7 0.95 --limit 24

Aligned faces are restored clean, and degraded as in make_lq.py (seed 0), with strength 1, with
strength auto, and with limits on the change of identity. Of diverse512, only the faces that
options/train_mini.yml holds out are used. "strength" is the mean over the faces. "psnr" and "lpips"
(SqueezeNet) compare with the clean face: means, in which a PSNR above 60 dB counts as 60. "worst"
is the lowest PSNR, and "from 34 dB" counts the faces that reach 34 dB. "same person" is the mean
cosine of MobileFaceNet's embeddings of the result and the clean face, and "least kept" is the
lowest cosine of those of the result and the input, which `--identity` limits. "ms" is the median
processor time of choosing the strength.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from face_metrics import FaceMetrics
from make_lq import degrade_file
from mini_quality import find_faces
from report import data_root, parser, report
from score import psnr

from quantface_arch.faces.choices import AUTO_STRENGTH
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.strength import blend
from quantface_arch.utils.progress import progress_bar

WANTED = 34.0
MOST = 60.0

# A strength and a limit on the change of identity.
Setting = tuple[float | str, float | None]


class Meter:
    """Restores a face, and scores it at several strengths.

    Args:
        restorer: restores the faces.
        settings: strengths, and limits on the change of identity.
    """

    def __init__(self, restorer: FaceRestorer, settings: Sequence[Setting]) -> None:
        self.restorer, self.settings, self.metrics = restorer, settings, FaceMetrics()

    def __call__(self, path: Path) -> dict[tuple[str, Setting], dict[str, float]]:
        """Return the figures of a face for each kind of input and each setting."""
        clean, low, _ = degrade_file(path)
        found = {}
        for kind, image in (("clean", clean), ("degraded", low)):
            crop = np.ascontiguousarray(image[..., ::-1])
            [restored] = self.restorer.restore_aligned([crop])
            scores: dict[float, dict[str, float]] = {}
            for strength, least in self.settings:
                start = time.process_time()
                [chosen] = self.restorer.strengths([crop], [restored], strength, least)
                spent = (time.process_time() - start) * 1e3
                if chosen not in scores:
                    scores[chosen] = self._score(blend(crop, restored, chosen), clean, crop)
                found[kind, (strength, least)] = {
                    **scores[chosen],
                    "strength": chosen,
                    "ms": spent,
                }
        return found

    def _score(self, result: np.ndarray, clean: np.ndarray, crop: np.ndarray) -> dict[str, float]:
        """Score a result, RGB, against the clean face, BGR, and the input, RGB."""
        bgr = np.ascontiguousarray(result[..., ::-1])
        perceived = self.metrics(bgr, clean)
        embed = None if self.metrics.identity is None else self.restorer.embedder
        return {
            "psnr": psnr(bgr.astype(np.float32), clean.astype(np.float32)),
            "lpips": perceived.get("lpips", np.nan),
            "same person": perceived.get("identity", np.nan),
            "kept": np.nan if embed is None else float(embed(result) @ embed(crop)),
        }


def summary(
    folder: str, kind: str, setting: Setting, rows: Sequence[dict[str, float]]
) -> dict[str, Any]:
    """Return the row of a table over all faces."""
    strength, least = setting
    columns = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    means = {key: float(columns[key].mean()) for key in ("lpips", "same person")}
    return {
        "faces": folder,
        "input": kind,
        "--strength": str(strength),
        "--identity": "" if least is None else f"{least:g}",
        "number": len(rows),
        "strength": float(columns["strength"].mean()),
        "psnr": float(columns["psnr"].clip(max=MOST).mean()),
        "worst": float(columns["psnr"].min()),
        "from 34 dB": int((columns["psnr"] >= WANTED).sum()),
        **means,
        "least kept": float(columns["kept"].min()),
        "ms": float(np.median(columns["ms"])),
    }


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    args_parser = parser(__doc__)
    add = args_parser.add_argument
    add("--model", default="mini-w4a8", help="(%(default)s)")
    add("--faces", nargs="+", default=["val512", "diverse512"], help="subfolders of faces/")
    add("--limit", type=int, default=48, help="faces of each folder, evenly spaced (%(default)s)")
    limits = "limits on the change of identity (%(default)s)"
    add("--identity", nargs="*", type=float, default=[0.7, 0.9], metavar="T", help=limits)
    args = args_parser.parse_args()
    if args.smoke:
        args.faces, args.limit, args.identity = args.faces[:1], 2, args.identity[:1]
    return args


def main() -> None:
    args = parse()
    weights = data_root() / "weights/identity"
    # A few faces are restored sooner than a model is compiled.
    runtime = "reference" if args.smoke else "auto"
    restorer = FaceRestorer.from_pretrained(
        args.model, runtime, identity_weights=weights, offline=True
    )
    settings: list[Setting] = [(1.0, None), (AUTO_STRENGTH, None)]
    if weights.is_dir():
        settings += [(AUTO_STRENGTH, least) for least in args.identity]
    meter, rows = Meter(restorer, settings), []
    for folder in args.faces:
        paths = find_faces(folder)
        paths = paths[:: max(1, len(paths) // args.limit)][: args.limit]
        bar = progress_bar(paths, desc=folder, unit="face")
        found = [meter(path) for path in bar]
        rows += [
            summary(folder, kind, setting, [face[kind, setting] for face in found])
            for kind in ("clean", "degraded")
            for setting in settings
        ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
