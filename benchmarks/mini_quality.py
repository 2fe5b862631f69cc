"""Measure restorers on degraded faces, against the clean faces and full precision.

    python benchmarks/mini_quality.py                       # mini and mini-w4a8 on val512
    python benchmarks/mini_quality.py --models mini PATH --faces tune512 --out FOLDER
    python benchmarks/mini_quality.py --models mini-w4a8 mini-w4a8@openvino

    python benchmarks/mini_quality.py --faces diverse512 --groups   # the faces kept out of training

Models run in the runtime reference; NAME@RUNTIME selects another one.
Faces are degraded as in make_lq.py (seed 0). Of diverse512, only the faces that
options/train_mini.yml holds out are used. LPIPS uses SqueezeNet, identity is the cosine of
MobileFaceNet's embeddings, and the worst peak is that of a regular pattern in the images, in dB.
The columns "vs_first" compare a model's images with those of the first model: mean PSNR, and edge
PSNR. Against clean faces, noise raises the edge PSNR of a restorer that blurs; against full
precision it does not. --groups adds a table of PSNR, LPIPS and identity, each minus the input's
own, by skin tone (measured at the cheeks) and by age, sex and glasses (from
benchmarks/diverse512_groups.csv). --color-fix structure takes tones and a share of the
shapes from the input, as inference/restore.py does.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from face_metrics import FaceMetrics, PatternMeter
from make_lq import degrade_file
from report import faces_folder, parser, report, table
from score import psnr, score

from quantface_arch import load_model
from quantface_arch.data.face_dataset import held_out
from quantface_arch.faces.choices import COLOR_FIXES
from quantface_arch.faces.color import fix_color
from quantface_arch.faces.skin_tone import skin_tone
from quantface_arch.metrics.sharpness import calculate_quantface_edge_psnr
from quantface_arch.runtime import RUNTIMES
from quantface_arch.utils.progress import progress_bar

GROUPS = Path(__file__).with_name("diverse512_groups.csv")


@torch.inference_mode()
def restore(model: torch.nn.Module, image: np.ndarray, color_fix: str = "none") -> np.ndarray:
    """Restore a face, take colours from the input (see ``fix_color``) and return uint8 BGR."""
    x = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = ((model(x)[0] + 1) * 127.5).round().clamp(0, 255).byte()
    return fix_color(y.permute(1, 2, 0).numpy()[:, :, ::-1], image, color_fix)


def load(name: str) -> torch.nn.Module:
    """Load a model by NAME or NAME@RUNTIME."""
    model, _, runtime = name.rpartition("@")
    if runtime in RUNTIMES:
        return load_model(model, runtime=runtime)
    return load_model(name, runtime="reference")


def find_faces(folder: str) -> list[Path]:
    """Return the clean faces of a folder; of diverse512 only those kept out of training."""
    paths = sorted(faces_folder(folder).glob("*.jpg"))
    return [p for p in paths if folder != "diverse512" or held_out(p.stem, 5)]


def group_of(clean: np.ndarray, labels: Mapping[str, str]) -> dict[str, str]:
    """Return the groups that a face belongs to, by the kind of group."""
    return {"skin": skin_tone(clean.astype(np.float32) / 255), **labels}


def group_table(
    scores: Mapping[str, Sequence[Mapping[str, float]]], groups: Sequence[Mapping[str, str]]
) -> list[dict[str, object]]:
    """Return the mean gains over the input, one row per model and group.

    Args:
        scores: ``input`` and each model → its scores, face by face.
        groups: the groups of each face, in the same order.
    """
    rows: list[dict[str, object]] = []
    kinds = sorted({(kind, value) for group in groups for kind, value in group.items()})
    for name in list(scores)[1:]:
        for kind, value in kinds:
            chosen = [i for i, group in enumerate(groups) if group.get(kind) == value]
            gains = {
                key: float(
                    np.mean([scores[name][i][key] - scores["input"][i][key] for i in chosen])
                )
                for key in ("psnr", "lpips", "identity")
                if key in scores[name][0]
            }
            rows.append({"model": name, "group": f"{kind}: {value}", "faces": len(chosen), **gains})
    return rows


def read_labels() -> dict[str, dict[str, str]]:
    """Return age, sex and glasses of the held-out faces, by name."""
    with GROUPS.open() as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


def parse() -> argparse.Namespace:
    """Return the parsed command line."""
    args_parser = parser(__doc__)
    args_parser.add_argument("--models", nargs="+", default=["mini", "mini-w4a8"])
    args_parser.add_argument("--faces", default="val512", help="subfolder of faces/ (val512)")
    args_parser.add_argument("--limit", type=int, default=None, help="use the first LIMIT faces")
    args_parser.add_argument("--out", type=Path, help="folder for PNGs of input | models… | clean")
    args_parser.add_argument(
        "--color-fix", choices=COLOR_FIXES, default="none", help="(%(default)s)"
    )
    args_parser.add_argument("--groups", action="store_true", help="add a table by groups")
    args = args_parser.parse_args()
    args.paths = find_faces(args.faces)[: 2 if args.smoke else args.limit]
    if not args.paths:
        args_parser.error(f"no faces in {args.faces}; set QUANTFACE_DATA")
    return args


class Scores:
    """The scores of the input and of every model, face by face."""

    def __init__(self, names: Sequence[str]) -> None:
        self.rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
        self.patterns = {name: PatternMeter() for name in names}
        self.measure = FaceMetrics()

    def add(self, images: Mapping[str, np.ndarray], clean: np.ndarray, first: str) -> None:
        """Score the images of one face against the clean one and against a model's."""
        for name, image in images.items():
            self.patterns[name].add(image)
            row = {
                **score(image, clean),
                **self.measure(image, clean),
                "psnr_vs_first": psnr(image.astype(np.float32), images[first].astype(np.float32)),
                "edge_vs_first": calculate_quantface_edge_psnr(image, images[first]),
            }
            self.rows[name].append(row)

    def means(self, name: str) -> dict[str, float]:
        """Return the mean scores of a model, and the worst peak of its patterns."""
        rows = self.rows[name]
        means = {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}
        if means["psnr_vs_first"] > 100:
            means["psnr_vs_first"] = means["edge_vs_first"] = math.inf
        return {**means, "worst_peak": self.patterns[name].worst_peak()}


def main() -> None:
    args = parse()
    models = {name: load(name) for name in args.models}
    scores = Scores(["input", *models])
    labels, groups = read_labels(), []
    for path in progress_bar(args.paths, desc="faces", unit="face"):
        clean, low, _ = degrade_file(path)
        restored = {name: restore(m, low, args.color_fix) for name, m in models.items()}
        images = {"input": low, **restored}
        groups.append(group_of(clean, labels.get(path.stem, {})))
        scores.add(images, clean, args.models[0])
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            sheet = np.concatenate([*images.values(), clean], axis=1)
            cv2.imwrite(str(args.out / f"{path.stem}.png"), sheet)
    if args.groups:
        table(group_table(scores.rows, groups))
    rows = [
        {"model": Path(name).name, "faces": len(args.paths), **scores.means(name)}
        for name in scores.rows
    ]
    report(rows, args.json)


if __name__ == "__main__":
    main()
