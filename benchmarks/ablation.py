"""Measure the contribution of each part of the method at W4A4 on the shipped mini.

    python benchmarks/ablation.py --minutes 3                          # all 20 cells and more
    python benchmarks/ablation.py --bit-map mini-mp.yml                # also mixed bit widths
    python benchmarks/ablation.py --balance scale auto --branch both   # some of the cells

The cells are {none, scale, rotate, both, auto} × {none, svd, distill, both}: the balancing of the
channels, and the low-rank branches of a layer. A single branch has the rank of both together, so
all files have the same size. Branches with a distillation part are trained in BasicSR's own loop
with the given options. All of them take the same number of steps: --steps, or as many as fit into
--minutes on this machine, which a short pilot run measures. The others are not trained.

Faces are degraded as in make_lq.py (seed 0); psnr_vs_fp is the mean PSNR between a cell's images
and those of the full-precision network. Finished cells are kept in --cache and not computed again;
a killed run resumes, even in the middle of a training.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import tempfile
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cells import REPO, Cells, add_arguments, faces_of, identified, save, set_steps, shrink
from report import parser, report
from score import NAMES, psnr, score

from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.threads import set_thread_count

BALANCES = ("none", "scale", "rotate", "both", "auto")
BRANCHES = ("none", "svd", "distill", "both")
PILOT_STEPS = 8


@dataclass(frozen=True)
class Cell:
    """One row of the table: ``bits`` is W4A4 or MP."""

    balance: str
    branch: str
    bits: str = "W4A4"

    @property
    def trains(self) -> bool:
        """Return whether the cell has a branch that starts at zero."""
        return self.branch in ("distill", "both")

    def ranks(self, svd: int, distill: int) -> dict[str, int]:
        """Return the ranks: both as given, or one branch with the sum of both."""
        return {
            "none": {"svd": 0, "distill": 0},
            "svd": {"svd": svd + distill, "distill": 0},
            "distill": {"svd": 0, "distill": svd + distill},
            "both": {"svd": svd, "distill": distill},
        }[self.branch]


@dataclass
class Bench:
    """Settings that all cells share."""

    options: dict[str, Any]
    cells: Cells
    ranks: tuple[int, int]
    bit_map: Path | None

    def derive(self, cell: Cell, steps: int) -> dict[str, Any]:
        """Return a cell's options, with a name that hashes everything the scores depend on."""
        opt = deepcopy(self.options)
        quant = opt["quant"]
        quant["balance"] = {**(quant.get("balance") or {}), "kind": cell.balance}
        quant["branch"] = {**(quant.get("branch") or {}), **cell.ranks(*self.ranks)}
        quant["bit_map"] = str(self.bit_map) if cell.bits == "MP" else None
        set_steps(opt, steps)
        name = f"{cell.balance}-{cell.branch}-{cell.bits.lower()}"
        return identified(name, opt, self.cells.faces)

    def seconds_per_step(self) -> float:
        """Return the time of a step, measured once on the most expensive kind of cell."""
        opt = self.derive(Cell("auto", "both"), PILOT_STEPS)
        opt["name"] = opt["name"].replace("auto-both", "pilot")
        opt["logger"]["print_freq"] = 1
        opt["quant"]["calibration"]["num_images"] = 2
        kept = self.cells.cache / f"{opt['name']}.json"
        if not kept.exists():
            self.cells.train(opt)
            times = re.findall(r"time \(data\): ([\d.]+)", kept.with_suffix(".log").read_text())
            save(kept, {"seconds": float(np.median([float(t) for t in times]))})
        return json.loads(kept.read_text())["seconds"]

    def row(self, cell: Cell, steps: int) -> dict[str, Any]:
        """Return a row of the table, from the cache if possible."""
        steps = steps if cell.trains else 0
        found = self.cells.run(self.derive(cell, steps))
        return row(cell, steps, found["faces"], found["bytes"])

    def first_row(self) -> dict[str, Any]:
        """Return the row of the full-precision network."""
        found = self.cells.run_teacher(*NAMES)
        return row(None, 0, found["faces"], found["bytes"])


def figures(image: np.ndarray, clean: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Score one image against the clean one and against full precision's."""
    against = psnr(image.astype(np.float32), first.astype(np.float32))
    return {**score(image, clean), "psnr_vs_fp": against}


def row(
    cell: Cell | None, steps: int, faces: Mapping[str, Mapping[str, float]], size: int
) -> dict[str, Any]:
    """Return the names of the cell (None: full precision) and its mean scores."""
    names = (cell.bits, cell.balance, cell.branch) if cell else ("full precision", "", "")
    labels = dict(zip(("bits", "balance", "branch"), names, strict=True))
    means = {
        name: float(np.mean([figures[name] for figures in faces.values()]))
        for name in (*NAMES, "psnr_vs_fp")
    }
    if cell is None:
        means["psnr_vs_fp"] = math.inf
    return {**labels, "steps": steps, **means, "MB": size / 1e6}


def cells_of(args: argparse.Namespace) -> list[Cell]:
    """Return all requested cells, cheap ones first."""
    if args.smoke:
        return [Cell("none", "none"), Cell("scale", "both")]
    cells = [Cell(*names) for names in itertools.product(args.balance, args.branch)]
    if args.bit_map:
        cells += [Cell("auto", "svd", "MP"), Cell("auto", "both", "MP")]
    return sorted(cells, key=lambda cell: cell.trains)


def bench_of(args: argparse.Namespace) -> Bench:
    """Return the settings that all cells share, reduced for a smoke run."""
    options = yaml.safe_load(args.options.read_text())
    if args.train_faces:
        options["datasets"]["train"]["dataroot_gt"] = str(args.train_faces)
    if args.calibration:
        options["quant"]["calibration"]["num_images"] = args.calibration
    faces = faces_of(args.faces, args.limit)
    if args.smoke:
        faces = faces[:1]
        options["quant"]["branch"] = {"svd": 4, "distill": 4, "budget": 1.0}
        shrink(options)
    branch = options["quant"].get("branch") or {}
    ranks = args.ranks or (branch.get("svd"), branch.get("distill", 0))
    if not all(isinstance(rank, int) for rank in ranks):
        sys.exit(f"error: {args.options}: branch ranks {ranks} are not numbers; give --ranks")
    teacher = options["network_g"]["weights"]
    cells = Cells(faces, args.cache, teacher, args.threads, figures)
    return Bench(options, cells, tuple(ranks), args.bit_map)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser(__doc__)
    add = made.add_argument
    add("--balance", nargs="+", choices=BALANCES, default=BALANCES, help="rows (all)")
    add("--branch", nargs="+", choices=BRANCHES, default=BRANCHES, help="rows (all)")
    add("--bit-map", type=Path, help="add two rows with the bit widths of this file")
    add("--ranks", type=int, nargs=2, metavar=("SVD", "DISTILL"), help="default: from the options")
    add("--minutes", type=float, default=3, help="training minutes per cell, at most 10 (3)")
    add("--steps", type=int, help="training steps per cell, instead of --minutes")
    add(
        "--calibration",
        type=int,
        metavar="N",
        help="calibrate on N faces (default: from the options)",
    )
    add("--limit", type=int, default=50, help="use the first LIMIT faces (50)")
    add("--options", type=Path, default=REPO / "options/quantface_w4.yml")
    add_arguments(made, "ablation")
    return made


def main() -> None:
    made = make_parser()
    args = made.parse_args()
    if not 0 < args.minutes <= 10:
        made.error(f"--minutes: found {args.minutes:g}, allowed is up to 10")
    set_thread_count(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if args.smoke:
            args.cache, args.steps = Path(scratch), 2
        args.cache = args.cache.resolve()
        bench = bench_of(args)
        cells = cells_of(args)
        steps = args.steps
        if steps is None and any(cell.trains for cell in cells):
            steps = max(1, round(args.minutes * 60 / bench.seconds_per_step()))
        rows = [bench.first_row()]
        rows += [bench.row(cell, steps) for cell in progress_bar(cells, desc="cells", unit="cell")]
    report(rows, args.json)


if __name__ == "__main__":
    main()
