"""Quality of restorers on degraded faces, against the clean faces and against full precision.

    python benchmarks/mini_quality.py                       # mini and mini-w4a8 on val512
    python benchmarks/mini_quality.py --models mini PATH --faces tune512 --out FOLDER
    python benchmarks/mini_quality.py --models mini-w4a8 mini-w4a8@openvino

Models run as reference, NAME@RUNTIME as another runtime executes them.
Faces are degraded as make_lq.py does (seed 0). The last two columns compare a model's pictures with
those of the first model named: mean PSNR, and edge PSNR. Against clean faces noise raises edge PSNR
where the restorer blurs; against full precision it does not.
"""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import numpy as np
import torch
from make_lq import degrade_file
from report import data_root, parser, report
from score import psnr, score
from tqdm import tqdm

from quantface_arch import load_model
from quantface_arch.metrics import calculate_quantface_edge_psnr
from quantface_arch.runtime import RUNTIMES


@torch.inference_mode()
def restore(model: torch.nn.Module, image: np.ndarray) -> np.ndarray:
    """Restored uint8 BGR picture."""
    x = torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    y = ((model(x)[0] + 1) * 127.5).round().clamp(0, 255).byte()
    return y.permute(1, 2, 0).numpy()[:, :, ::-1]


def load(name: str) -> torch.nn.Module:
    """A model by NAME or NAME@RUNTIME."""
    model, _, runtime = name.rpartition("@")
    if runtime in RUNTIMES:
        return load_model(model, runtime=runtime)
    return load_model(name, runtime="reference")


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--models", nargs="+", default=["mini", "mini-w4a8"])
    args_parser.add_argument("--faces", default="val512", help="subfolder of faces/ (val512)")
    args_parser.add_argument("--limit", type=int, default=None, help="use the first so many faces")
    args_parser.add_argument("--out", type=Path, help="write input | models… | clean here, as PNGs")
    args = args_parser.parse_args()
    paths = sorted((data_root() / "faces" / args.faces).glob("*.jpg"))
    paths = paths[: 2 if args.smoke else args.limit]
    if not paths:
        args_parser.error(f"no faces in {data_root() / 'faces' / args.faces}; set QUANTFACE_DATA")
    models = {name: load(name) for name in args.models}
    names = ["input", *models]
    scores: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for path in tqdm(paths, desc="faces", unit="face"):
        clean, low, _ = degrade_file(path)
        pictures = {"input": low, **{name: restore(m, low) for name, m in models.items()}}
        first = pictures[args.models[0]]
        for name, picture in pictures.items():
            against = psnr(picture.astype(np.float32), first.astype(np.float32))
            edges = calculate_quantface_edge_psnr(picture, first)
            row = {**score(picture, clean), "psnr_vs_first": against, "edge_vs_first": edges}
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
        rows.append({"model": Path(name).name, "faces": len(paths), **means})
    report(rows, args.json)


if __name__ == "__main__":
    main()
