"""Compare QuantFace and its peers on the same restorer, faces and bits.

    python benchmarks/quality.py --train-faces FACES                   # all methods, W4A4 and W4A6
    python benchmarks/quality.py --settings W4A4 --methods svdquant maxmin --limit 50
    python benchmarks/quality.py --own --settings W4A4                 # each at its own granularity

Methods are the recipes in options/peers and options/quantface_*.yml. All are calibrated on the same
images; those that train take the same --steps in BasicSR's own loop. MP means 4-bit weights and
inputs of 4 bits on average, from --bit-map; MixDQ has its own map, measured without balancing
(--mixdq-map).

Every metric is measured against the clean faces and ("_fp") against full precision's images. The
second table has the mean difference of a method to QuantFace over the faces, with its 95 % interval
from 10,000 bootstrap samples. The third has the share of the gap between SVDQuant and full
precision that QuantFace closes. --csv writes the first table, and --sheet an image of crops with
the methods side by side. Finished cells are kept in --cache and not computed again; a killed run
resumes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from cells import FULL, REPO, Cells, add_arguments, faces_of, identified, save, set_steps, shrink
from report import parser, report
from sheet import write_sheet

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.meta import count_on_meta, meta_network
from quantface_arch.metrics.catalogue import METRICS
from quantface_arch.quant import read_metadata
from quantface_arch.quant.cost.cost import total_cost
from quantface_arch.quant.cost.planned import checkpoint_cost
from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.threads import set_thread_count

OURS = "quantface"
PEERS = (
    "maxmin",
    "smoothquant",
    "quarot",
    "q_diffusion",
    "efficientdm",
    "passionsr",
    "svdquant",
    "mixdq",
)
# Each setting has the name of its bit widths in the options, and QuantFace's own options file.
SETTINGS = {
    "W6A6": ("w6a6", "w6"),
    "W4A6": ("w4a6", "w4a6"),
    "W4A4": ("w4a4", "w4"),
    "MP": ("w4a4", "mp"),
    "W4A8": ("w4a8", "w4a8"),
}
MIXED = (OURS, "mixdq")
FIGURES = ("psnr", "ssim", "ms_ssim", "haarpsi", "vre")
# These are the methods' original granularities, if they differ from the main table's.
DYNAMIC = {"granularity": "token", "symmetric": True}
GROUPED = {"granularity": "group", "group": 64}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    OURS: {"weights": GROUPED, "activations": {**GROUPED, "symmetric": True}},
    "smoothquant": {"activations": DYNAMIC},
    "quarot": {"activations": DYNAMIC},
    "svdquant": {"weights": GROUPED, "activations": {**GROUPED, "symmetric": True}},
}
SAMPLES = 10_000


@dataclass(frozen=True)
class Row:
    """One cell of the table."""

    setting: str
    method: str


def figures(image: np.ndarray, clean: np.ndarray, first: np.ndarray) -> dict[str, float]:
    """Score one image against the clean face and (``_fp``) full precision's image."""
    found = {}
    for name in FIGURES:
        found[name] = METRICS[name](image, clean)
        found[f"{name}_fp"] = METRICS[name](image, first)
    return found


def options_of(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return a cell's options: the recipe at its bit widths, reduced for a smoke run."""
    widths, own = SETTINGS[row.setting]
    name = f"quantface_{own}" if row.method == OURS else f"peers/{row.method}"
    opt = yaml.safe_load((REPO / f"options/{name}.yml").read_text())
    quant = opt["quant"]
    quant["name"] = widths
    if row.setting == "MP":
        quant["bit_map"] = str(args.bit_map if row.method == OURS else args.mixdq_map)
    if args.own:
        for part, options in OWN.get(row.method, {}).items():
            quant[part] = {**(quant.get(part) or {}), **deepcopy(options)}
    if args.train_faces:
        opt["datasets"]["train"]["dataroot_gt"] = str(args.train_faces)
    if args.smoke:
        shrink_search(opt)
    set_steps(opt, args.steps if opt["train"]["total_iter"] else 0)
    return opt


def shrink_search(opt: dict[str, Any]) -> None:
    """Reduce the search, so that a cell takes seconds."""
    shrink(opt)
    quant = opt["quant"]
    quant["branch"].update({"iterations": 2} if "iterations" in quant["branch"] else {})
    quant["balance"].update({"alpha": 0.5} if "alpha" in quant["balance"] else {})


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Return all requested cells; not every method has mixed bit widths."""
    rows = [Row(setting, method) for setting in args.settings for method in args.methods]
    rows = [row for row in rows if row.setting != "MP" or row.method in MIXED]
    if args.own:
        rows = [row for row in rows if row.method in OWN]
    return rows


def run_cell(cells: Cells, row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return a cell's scores by face, bytes, operations and steps, from the cache if possible."""
    opt = options_of(row, args)
    kind = "-own" if args.own else ""
    opt = identified(f"{row.method}-{row.setting.lower()}{kind}", opt, cells.faces, FIGURES)
    found = cells.run(opt)
    if "operations" not in found:
        found.update(cost(cells.cache / "experiments" / opt["name"]))
        save(cells.cache / f"{opt['name']}.json", found)
    return {**found, "name": opt["name"], "steps": opt["train"]["total_iter"]}


def cost(experiment: Path) -> dict[str, float]:
    """Return bytes in tensors and operations, counted as in scripts/count_cost.py."""
    path = experiment / "models/net_g_latest.safetensors"
    net = meta_network(read_metadata(path)["arch"])
    total = total_cost(checkpoint_cost(path, net, *count_on_meta(net, 512)))
    return {"tensor_bytes": total.bytes, "operations": total.operations}


def interval(differences: np.ndarray) -> tuple[float, float, float]:
    """Return the mean of paired differences and its 95 % bootstrap interval."""
    rng = np.random.default_rng(0)
    places = rng.integers(0, len(differences), (SAMPLES, len(differences)))
    low, high = np.percentile(differences[places].mean(1), (2.5, 97.5))
    return float(differences.mean()), float(low), float(high)


def column(found: Mapping[str, Any], name: str) -> np.ndarray:
    """Return the scores of all faces in one metric, in order."""
    return np.array([values[name] for _, values in sorted(found["faces"].items())])


def mean_rows(results: Mapping[Row, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the first table: mean scores, size and operations."""
    names = [*FIGURES, *(f"{name}_fp" for name in FIGURES)]
    return [
        {
            "setting": row.setting,
            "method": row.method,
            "steps": found["steps"],
            **{name: float(column(found, name).mean()) for name in names},
            "MB": found["tensor_bytes"] / 1e6,
            "Gop": found["operations"] / 1e9,
        }
        for row, found in results.items()
    ]


def paired_rows(results: Mapping[Row, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the second table: differences to QuantFace at the same setting (MP: at W4A4)."""
    table = []
    for row, found in results.items():
        other = Row("W4A4" if row.setting == "MP" else row.setting, OURS)
        if row == other or other not in results:
            continue
        line: dict[str, Any] = {"setting": row.setting, "method": row.method, "less": other.method}
        for name in FIGURES:
            difference = column(found, name) - column(results[other], name)
            mean, low, high = interval(difference)
            line[name] = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        table.append(line)
    return table


def gap_rows(
    results: Mapping[Row, Mapping[str, Any]], full: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return the third table: (method - SVDQuant) / (full precision - SVDQuant), in percent."""
    table = []
    for row, found in results.items():
        worst = results.get(Row("W4A4" if row.setting == "MP" else row.setting, "svdquant"))
        if row.method != OURS or worst is None:
            continue
        line: dict[str, Any] = {"setting": row.setting, "method": row.method}
        for name in FIGURES:
            mine, base, top = (float(column(x, name).mean()) for x in (found, worst, full))
            line[name] = f"{100 * (mine - base) / (top - base):.0f} %" if top != base else ""
        table.append(line)
    return table


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser(__doc__)
    add = made.add_argument
    add("--methods", nargs="+", choices=(OURS, *PEERS), default=(*PEERS, OURS), help="rows (all)")
    add("--settings", nargs="+", choices=SETTINGS, default=("W4A4", "W4A6"), help="W4A4 W4A6")
    add("--own", action="store_true", help="each method at its own granularity")
    add("--steps", type=int, default=300, help="training steps of methods that train (300)")
    add(
        "--bit-map",
        type=Path,
        default=REPO / "options/maps/mini_mp.yml",
        help="QuantFace's bit widths",
    )
    add("--mixdq-map", type=Path, default=REPO / "options/maps/mini_mixdq.yml", help="MixDQ's")
    add("--limit", type=int, help="use the first LIMIT faces (all)")
    add("--csv", type=Path, help="write the first table to this file")
    add("--sheet", type=Path, help="write crops of the images to this .png")
    add_arguments(made, "quality")
    return made


def main() -> None:
    args = make_parser().parse_args()
    set_thread_count(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if args.smoke:
            args.cache, args.steps, args.limit = Path(scratch), 1, 2
            args.settings, args.methods = ("W4A4",), ("svdquant", OURS)
        cells = Cells(
            faces_of(args.faces, args.limit), args.cache.resolve(), "mini", args.threads, figures, 4
        )
        full = cells.run_teacher(*FIGURES)
        rows = rows_of(args)
        results = {
            row: run_cell(cells, row, args) for row in progress_bar(rows, desc="cells", unit="cell")
        }
        write(args, cells, results, full)


def write(
    args: argparse.Namespace,
    cells: Cells,
    results: Mapping[Row, Mapping[str, Any]],
    full: Mapping[str, Any],
) -> None:
    """Print the tables and write the requested files."""
    means = mean_rows(results)
    top = {name: float(column(full, name).mean()) for name in FIGURES}
    print("full precision: " + ", ".join(f"{name} {value:.4f}" for name, value in top.items()))
    tables: Sequence[list[dict[str, Any]]] = (means, paired_rows(results), gap_rows(results, full))
    for table in tables:
        if table:
            report(table, None)
    if args.json:
        save(args.json, {"full precision": top, "rows": means, "paired": tables[1]})
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(means[0]))
            writer.writeheader()
            writer.writerows(means)
    if args.sheet:
        names = {f"{row.method} {row.setting}": found["name"] for row, found in results.items()}
        write_sheet(args.sheet, cells, {"full precision": FULL, **names})


if __name__ == "__main__":
    main()
