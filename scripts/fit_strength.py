"""Fit the measure of how strongly a face should be restored, for --strength auto."""

from __future__ import annotations

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from quantface_arch.data.degradation import Degradation, seeded
from quantface_arch.data.face_dataset import held_out
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.faces.degraded import FITTED, MEASURES, degradation_measures
from quantface_arch.integration.options import read_options
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.images import find_images, load_rgb
from quantface_arch.utils.option_fields import parse_options
from quantface_arch.utils.progress import progress_bar

DESCRIPTION = """\
Fit a logistic regression that tells degraded faces from clean ones, and write its coefficients.

Every face is measured clean, and degraded as in the options file (two draws). Both classes weigh
the same. Faces that the options file holds out are not used. The faces must be sharp at 512x512.

example:
  python scripts/fit_strength.py ../shared/faces/train512 ../shared/faces/diverse512
"""
OPTIONS = Path(__file__).resolve().parents[1] / "options/train_mini.yml"
DRAWS = 2
# Penalty on the squared weights of standardized measures; the data decide nearly alone.
RIDGE = 1e-3


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="FOLDER", help="clean, aligned faces of 512x512")
    where = "options file with the degradation and the holdout (default: options/train_mini.yml)"
    add("--options", type=Path, default=OPTIONS, metavar="FILE", help=where)
    add("-o", "--output", type=Path, default=FITTED, help="file to write (default: the package's)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure the faces, fit, write the coefficients, and print how well they separate."""
    train = read_options(args.options, ("datasets",))["datasets"].get("train", {})
    holdout = train.get("holdout") or {}
    degradation = parse_options(Degradation, "degradation", train.get("degradation"))
    paths = [path for folder in args.folders for path in usable(folder, holdout)]
    measures, labels = measure(paths, degradation)
    weights, bias = fit(measures, labels)
    rounded = {name: round(float(w), 4) for name, w in zip(MEASURES, weights, strict=True)}
    words = [*map(str, args.folders)]
    if args.options != OPTIONS:
        words += ["--options", str(args.options)]
    fitted = {
        "command": shlex.join(["python", "scripts/fit_strength.py", *words]),
        "faces": len(paths),
        "weights": rounded,
        "bias": round(bias, 4),
    }
    with atomic_path(args.output) as temporary:
        temporary.write_text(json.dumps(fitted, indent=2) + "\n", encoding="utf-8")
    right = (measures @ weights + bias > 0) == labels
    clean, degraded = right[~labels].mean(), right[labels].mean()
    print(f"{args.output}: {len(paths)} faces; {clean:.1%} clean and {degraded:.1%} degraded right")
    return 0


def usable(folder: Path, holdout: dict[str, int]) -> list[Path]:
    """Return the faces of a folder that are not held out for evaluation.

    Raises:
        UsageError: there is none.
    """
    parts = holdout.get(folder.name)
    found = [p for p in find_images(folder) if parts is None or not held_out(p.stem, parts)]
    if not found:
        raise UsageError(f"no images to fit on in {folder}")
    return found


def measure(paths: Sequence[Path], degradation: Degradation) -> tuple[np.ndarray, np.ndarray]:
    """Return the measures of every face, clean and degraded, and which of them are degraded.

    Raises:
        QuantFaceError: a face cannot be read or has another size.
    """
    rows, labels = [], []
    for index, path in enumerate(progress_bar(paths, desc="faces", unit="face")):
        clean = load_rgb(path)
        if clean.shape[:2] != (FACE_SIZE, FACE_SIZE):
            found = f"{clean.shape[1]}x{clean.shape[0]}"
            raise QuantFaceError(
                f"{path}: found {found} pixels, {FACE_SIZE}x{FACE_SIZE} are needed"
            )
        faces = [clean]
        for draw in range(DRAWS):
            with seeded(draw, index):
                low = degradation(clean[..., ::-1].astype(np.float32) / 255, FACE_SIZE)
            faces.append(np.rint(low[..., ::-1] * 255).astype(np.uint8))
        rows += [degradation_measures(face) for face in faces]
        labels += [False] + [True] * DRAWS
    return np.array(rows), np.array(labels)


def fit(measures: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return the weights (M,) and the bias of a logistic regression, with classes of equal weight.

    Args:
        measures: (N, M).
        labels: (N,) bool, whether each is degraded.
    """
    mean, deviation = measures.mean(axis=0), measures.std(axis=0)
    inputs = np.column_stack([(measures - mean) / deviation, np.ones(len(measures))])
    share = np.where(labels, 0.5 / labels.sum(), 0.5 / (~labels).sum())

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        logits = inputs @ values
        penalized = np.append(values[:-1], 0)
        errors = share * (1 / (1 + np.exp(-logits)) - labels)
        value = share @ (np.logaddexp(0, logits) - labels * logits)
        return (
            float(value + RIDGE / 2 * penalized @ penalized),
            inputs.T @ errors + RIDGE * penalized,
        )

    values = minimize(loss, np.zeros(inputs.shape[1]), jac=True, method="L-BFGS-B").x
    weights = values[:-1] / deviation
    return weights, float(values[-1] - weights @ mean)


if __name__ == "__main__":
    run(main, make_parser())
