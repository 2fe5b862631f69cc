"""Compare QuantFace and its peers on the same restorer, faces and bits.

    python benchmarks/quality.py --train-faces FACES                   # all methods, W4A4 and W4A6
    python benchmarks/quality.py --settings W4A4 --methods svdquant maxmin --limit 50
    python benchmarks/quality.py --own --settings W4A4                 # each at its own granularity
    python benchmarks/quality.py --settings W4A4 --steps 0             # nothing is trained

Methods are the recipes in options/peers and options/quantface_*.yml. All are calibrated on the same
images; those that train take the same --steps in BasicSR's own loop. Methods that do not learn all
of their ranges have two rows: with their own ranges, as published, and with searched ranges, those
that QuantFace gets, zero points of channels included. MP means 4-bit weights and inputs of 4 bits
on average, from --bit-map; MixDQ has its own map, measured without balancing (--mixdq-map).

Every metric is measured against the clean faces and ("_fp") against full precision's images. SSIM
is BasicSR's (Gaussian window, RGB), LPIPS uses SqueezeNet, and identity is the cosine of
MobileFaceNet's embeddings. Bytes are those of the file. The second table has the mean difference of
a method to QuantFace over the faces, with its 95 % interval from 10,000 bootstrap samples. The
third has the share of each peer's gap to full precision that QuantFace closes, with an interval of
the same kind. The fourth names, for every metric, the best peer whose file is no larger than
QuantFace's. With --seeds N, methods that train are trained N times, and the fifth table has the
spread. A learning rate that is the largest or smallest that was tried is named at the end.
--csv writes the first table, and --sheet an image of crops with the methods side by side. Finished
cells are kept in --cache and not computed again; a killed run resumes.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cells import FULL, REPO, Cells, add_arguments, faces_of, identified, save
from quality_rows import OURS, PEERS, RANGES, SETTINGS, Row, edge_notes, options_of, rows_of
from quality_tables import (
    Scorer,
    best_rows,
    column,
    gap_rows,
    mean_rows,
    paired_rows,
    seed_rows,
    verdict,
)
from report import parser, report
from sheet import write_sheet

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.meta import count_on_meta, meta_network
from quantface_arch.quant import read_metadata
from quantface_arch.quant.cost.cost import total_cost
from quantface_arch.quant.cost.planned import checkpoint_cost
from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.threads import set_thread_count


def run_cell(cells: Cells[Scorer], row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return a cell's scores by face, bytes, operations and steps, from the cache if possible."""
    opt = options_of(row, args)
    words = [row.method, row.setting.lower(), row.ranges, *(["granularity"] if args.own else [])]
    words += [f"seed{row.seed}"] if row.seed else []
    opt = identified("-".join(words), opt, cells.faces, cells.scorer.names)
    found = cells.run(opt)
    if "operations" not in found:
        found.update(cost(cells.checkpoint(opt["name"])))
        save(cells.cache / f"{opt['name']}.json", found)
    return {**found, "name": opt["name"], "steps": opt["train"]["total_iter"]}


def cost(path: Path) -> dict[str, float]:
    """Return bytes in tensors and operations, counted as in scripts/count_cost.py."""
    net = meta_network(read_metadata(path)["arch"])
    total = total_cost(checkpoint_cost(path, net, *count_on_meta(net, 512)))
    return {"tensor_bytes": total.bytes, "operations": total.operations}


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser(__doc__)
    add = made.add_argument
    add("--methods", nargs="+", choices=(OURS, *PEERS), default=(*PEERS, OURS), help="rows (all)")
    add("--settings", nargs="+", choices=SETTINGS, default=("W4A4", "W4A6"), help="W4A4 W4A6")
    add("--ranges", nargs="+", choices=RANGES, default=RANGES, help="of methods with two rows")
    add("--own", action="store_true", help="each method at its own granularity")
    add("--steps", type=int, default=300, help="training steps of methods that train (300)")
    add("--calibration", type=int, metavar="N", help="calibrate on N faces (32)")
    add(
        "--bit-map",
        type=Path,
        default=REPO / "options/maps/mini_mp.yml",
        help="QuantFace's bit widths",
    )
    add("--mixdq-map", type=Path, default=REPO / "options/maps/mini_mixdq.yml", help="MixDQ's")
    add("--seeds", type=int, default=1, metavar="N", help="train methods that train N times (1)")
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
            args.settings, args.methods, args.ranges = ("W4A4",), ("maxmin", OURS), ("searched",)
        faces, scorer = faces_of(args.faces, args.limit), Scorer()
        cells = Cells(faces, args.cache.resolve(), "mini", args.threads, scorer, 4)
        full = cells.run_teacher(*scorer.names)
        rows = rows_of(args)
        results = {
            row: run_cell(cells, row, args) for row in progress_bar(rows, desc="cells", unit="cell")
        }
        write(args, cells, results, full)


def write(
    args: argparse.Namespace,
    cells: Cells[Scorer],
    results: Mapping[Row, Mapping[str, Any]],
    full: Mapping[str, Any],
) -> None:
    """Print the tables and write the requested files."""
    names = cells.scorer.names
    top = {name: float(column(full, name).mean()) for name in names}
    print("full precision: " + ", ".join(f"{name} {value:.4f}" for name, value in top.items()))
    first = {row: found for row, found in results.items() if not row.seed}
    tables = {
        "rows": mean_rows(results, names),
        "paired": paired_rows(first, names),
        "shares": gap_rows(first, full, names),
        "best": best_rows(first, names),
        "seeds": seed_rows(results, names),
    }
    for table in filter(None, tables.values()):
        report(table, None)
    if tables["best"]:
        print(verdict(tables["best"]))
    for note in edge_notes(dict.fromkeys(row.method for row in results)):
        print(note)
    if args.json:
        save(args.json, {"full precision": top, **tables})
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(tables["rows"][0]))
            writer.writeheader()
            writer.writerows(tables["rows"])
    if args.sheet:
        images = {f"{row.label} {row.setting}": found["name"] for row, found in results.items()}
        write_sheet(args.sheet, cells, {"full precision": FULL, **images})


if __name__ == "__main__":
    main()
