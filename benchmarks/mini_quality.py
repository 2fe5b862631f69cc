"""Measure restorers on degraded faces, against the clean faces and full precision.

    python benchmarks/mini_quality.py                       # mini and mini-w4a8 on val512
    python benchmarks/mini_quality.py --models mini PATH --faces tune512 --out FOLDER
    python benchmarks/mini_quality.py --models mini-w4a8 mini-w4a8@openvino

    python benchmarks/mini_quality.py --faces diverse512 --groups   # the faces kept out of training

Models run in the runtime reference; NAME@RUNTIME selects another one.
Faces are degraded as make_lq.py does (seed 0). Of diverse512 only the faces are used that
options/train_mini.yml holds out. LPIPS is SqueezeNet's, identity the cosine of MobileFaceNet's
embeddings, the worst peak that of a pattern woven into the images, in dB. The columns "vs_first"
compare a model's images with those of the first model named: mean PSNR, and edge PSNR. Against
clean faces noise raises edge PSNR where the restorer blurs; against full precision it does not.
--groups adds a table of PSNR, LPIPS and identity, each less the input's own, by skin tone (measured
at the cheeks) and by what benchmarks/diverse512_groups.csv says of age, sex and glasses.
"""

from __future__ import annotations

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
from tqdm import tqdm

from quantface_arch import load_model
from quantface_arch.data.face_dataset import held_out
from quantface_arch.faces.skin_tone import skin_tone
from quantface_arch.metrics import calculate_quantface_edge_psnr
from quantface_arch.runtime import RUNTIMES

GROUPS = Path(__file__).with_name("diverse512_groups.csv")


@torch.inference_mode()
def restore(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Restore a face and return it as uint8 BGR."""
    x = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = ((model(x)[0] + 1) * 127.5).round().clamp(0, 255).byte()
    return y.permute(1, 2, 0).numpy()[:, :, ::-1]


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
    """Return gains over the input, one row per model and group.

    Args:
        scores: scores of the input and every model by face.
        groups: groups of the faces, in the same order.
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
            }
            rows.append({"model": name, "group": f"{kind}: {value}", "faces": len(chosen), **gains})
    return rows


def read_labels() -> dict[str, dict[str, str]]:
    """Return age, sex and glasses of the held-out faces, by name."""
    with GROUPS.open() as file:
        return {row.pop("name"): row for row in csv.DictReader(file)}


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--models", nargs="+", default=["mini", "mini-w4a8"])
    args_parser.add_argument("--faces", default="val512", help="subfolder of faces/ (val512)")
    args_parser.add_argument("--limit", type=int, default=None, help="use the first LIMIT faces")
    args_parser.add_argument("--out", type=Path, help="folder for PNGs of input | models… | clean")
    args_parser.add_argument("--groups", action="store_true", help="add a table by groups")
    args = args_parser.parse_args()
    paths = find_faces(args.faces)[: 2 if args.smoke else args.limit]
    if not paths:
        args_parser.error(f"no faces in {args.faces}; set QUANTFACE_DATA")
    models = {name: load(name) for name in args.models}
    names = ["input", *models]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    patterns = {name: PatternMeter() for name in names}
    measure, labels = FaceMetrics(), read_labels()
    groups: list[dict[str, str]] = []
    for path in tqdm(paths, desc="faces", unit="face"):
        clean, low, _ = degrade_file(path)
        pictures = {"input": low, **{name: restore(m, low) for name, m in models.items()}}
        first = pictures[args.models[0]]
        groups.append(group_of(clean, labels.get(path.stem, {})))
        for name, picture in pictures.items():
            against = psnr(picture.astype(np.float32), first.astype(np.float32))
            edges = calculate_quantface_edge_psnr(picture, first)
            patterns[name].add(picture)
            row = {
                **score(picture, clean),
                **measure(picture, clean),
                "psnr_vs_first": against,
                "edge_vs_first": edges,
            }
            scores[name].append(row)
        if args.out:
            args.out.mkdir(parents=True, exist_ok=True)
            sheet = np.concatenate([*pictures.values(), clean], axis=1)
            cv2.imwrite(str(args.out / f"{path.stem}.png"), sheet)
    rows = []
    for name in names:
        means = {k: float(np.mean([s[k] for s in scores[name]])) for k in scores[name][0]}
        if means["psnr_vs_first"] > 100:
            means["psnr_vs_first"] = means["edge_vs_first"] = math.inf
        means["worst_peak"] = patterns[name].worst_peak()
        rows.append({"model": Path(name).name, "faces": len(paths), **means})
    if args.groups:
        table(group_table(scores, groups))
    report(rows, args.json)


if __name__ == "__main__":
    main()
