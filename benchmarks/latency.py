"""Seconds per face of every way to run a restorer, side by side in one run.

    python benchmarks/latency.py                                   # the mini, and mini-w4a8
    python benchmarks/latency.py --float FILE --quantized FILE --chart latency.png
    python benchmarks/latency.py --preset osdface --recipe w4a8    # random weights, full size
    python benchmarks/latency.py --device cuda --batch 8           # on an NVIDIA GPU

Rows are PyTorch in float32 and bfloat16, OpenVINO in both, OpenVINO with NNCF's 8-bit quantization
of the same network (where nncf is installed), and the quantized checkpoints as the runtime openvino
executes them. On a GPU they are PyTorch in float16, the same compiled by torch.compile and launched
as CUDA graphs, and the quantized checkpoints as the runtime cuda executes them.

Every row runs in a process of its own, with the compiled files of an earlier one; rows take turns
in --rounds, and the least time counts. "x" is how many times as fast as the first kind a row is,
all parts together. "peak GB" is the largest resident memory in 10⁹ bytes, on a GPU its own; "first
peak GB" that of the first turn, in which the quantized checkpoints are compiled. A second table has
the seconds in which every detector whose weights are there finds the faces of --photo.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from latency_rows import KINDS, NNCF, measure
from report import parser, report
from tqdm import tqdm

from quantface_arch.archs.build import build_arch
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import quantize, read_metadata, save_checkpoint

# Measured in this process's child, and printed as the last line.
ROW = "--row"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """The command line."""
    made = parser(description)
    add = made.add_argument
    add("--float", default="mini", dest="full", help="full-precision checkpoint (mini)")
    add("--preset", help="a preset with random weights instead of --float: osdface, mini")
    add("--quantized", nargs="*", default=["mini-w4a8"], help="checkpoints (mini-w4a8)")
    add("--recipe", help="round the full-precision network so, for its time alone, instead: w4a8")
    add("--device", choices=KINDS, default="cpu", help="what runs them (cpu)")
    add("--kinds", nargs="+", choices=sorted({*chain(*KINDS.values())}), help="rows (all)")
    add(
        "--modes",
        "--ways",
        nargs="+",
        default=["auto"],
        help="of quantized layers: auto faithful folded",
    )
    add("--size", type=int, default=512, help="side of the picture (512)")
    add("--batch", type=int, default=1, help="pictures at once (1)")
    add("--repeats", type=int, default=5, help="timed runs of a row and round (5)")
    add("--rounds", type=int, default=2, help="turns of all rows (2)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="(all cores)")
    add("--chart", type=Path, help="draw the times by part there, .png")
    add(ROW, help=argparse.SUPPRESS)
    return made


def rows_of(args: argparse.Namespace, full: Path) -> list[dict[str, Any]]:
    """What each row's process is told."""
    shared = {key: getattr(args, key) for key in ("size", "batch", "repeats", "threads", "device")}
    known = KINDS[args.device]
    kinds = [kind for kind in known if kind in (args.kinds or known)]
    if not kinds:
        sys.exit(f"error: --kinds: none is of device {args.device}: {', '.join(known)}")
    if NNCF in kinds and find_spec("nncf") is None:
        if args.kinds:
            sys.exit(f"error: --kinds {NNCF!r}: nncf is not installed; pip install -e '.[bench]'")
        print("without NNCF's row: pip install -e '.[bench]'", file=sys.stderr)
        kinds.remove(NNCF)
    rows = [{"kind": kind, "path": str(full)} for kind in kinds if kind != "quantized"]
    if "quantized" in kinds:
        paths = [resolve_model(name) for name in args.quantized]
        rows += [
            {"kind": "quantized", "path": str(path), "mode": mode}
            for path in paths
            for mode in args.modes
        ]
    return [{**row, **shared} for row in rows]


def run_row(row: dict[str, Any]) -> dict[str, Any]:
    """Measure in a process of its own; ends the program where that fails."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), ROW, json.dumps(row)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        sys.exit(f"error: row {row['kind']} of {row['path']} failed")
    return json.loads(result.stdout.splitlines()[-1])


def best(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """The least times and the largest memory of a row's turns; what compiled first is the first."""
    found = dict(turns[-1])
    for key in turns[0]["parts"]:
        found["parts"][key] = min(turn["parts"][key] for turn in turns)
    warm = max(turn["peak GB"] for turn in turns[1:] or turns)
    return {**found, "peak GB": warm, "first peak GB": turns[0]["peak GB"]}


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line per row; "x" where the kind to compare with was measured."""
    sums = [sum(found["parts"].values()) for found in results]
    firsts = {kinds[0] for kinds in KINDS.values()}
    base = next(
        (total for total, found in zip(sums, results, strict=True) if found["kind"] in firsts), None
    )
    return [
        {
            "row": found["name"],
            **{f"{part} s": seconds for part, seconds in found["parts"].items()},
            "sum s": total,
            "x": "" if base is None else base / total,
            "load s": found["load s"],
            "peak GB": found["peak GB"],
            "first peak GB": found["first peak GB"],
            **{key: found[key] for key in ("weights GB", "file MB") if key in found},
        }
        for found, total in zip(results, sums, strict=True)
    ]


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """A stacked bar per row, a colour per part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(results)))
    left = [0.0] * len(results)
    names = [found["name"] for found in results]
    for part in results[0]["parts"]:
        seconds = [found["parts"][part] for found in results]
        axes.barh(names, seconds, left=left, label=part)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds per batch")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def round_network(full: Path, args: argparse.Namespace, scratch: Path) -> Path:
    """A checkpoint of plainly rounded weights, its ranges from noise: as fast as a better one."""
    network = load_model(full, runtime="reference", device=args.device)
    plain = {"weights": {"range": "minmax"}, "balance": {"kind": "none"}, "branch": {"svd": 0}}
    noise = torch.rand(1, 3, args.size, args.size) * 2 - 1
    quantize(network, {"name": args.recipe, **plain}, noise)
    path = scratch / f"{full.stem}-{args.recipe}.safetensors"
    save_checkpoint(network, path, read_metadata(full)["arch"])
    return path


def run_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all rows, in turns."""
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("QUANTFACE_CACHE", str(Path(scratch) / "cache"))
        full = resolve_model(args.full)
        if args.preset:
            torch.manual_seed(0)
            arch = {"type": "OSDFace", "preset": args.preset}
            full = Path(scratch) / f"{args.preset}.safetensors"
            save_checkpoint(build_arch(arch), full, arch)
        if args.recipe:
            args.quantized = [str(round_network(full, args, Path(scratch)))]
        rows = rows_of(args, full)
        turns: list[list[dict[str, Any]]] = [[] for _ in rows]
        for _ in tqdm(range(args.rounds), desc="rounds"):
            for row, found in zip(tqdm(rows, desc="rows", leave=False), turns, strict=True):
                found.append(run_row(row))
    return [best(found) for found in turns]


def main() -> None:
    made = make_parser(__doc__)
    photo = Path(__file__).resolve().parents[1] / "inputs/astronaut.jpg"
    made.add_argument("--photo", type=Path, default=photo, help="find its faces (the astronaut's)")
    made.add_argument("--weights-dir", type=Path, help="folder of the detectors' weights")
    args = made.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    if args.smoke:
        args.size, args.repeats, args.rounds = 64, 1, 1
        args.kinds = ["quantized"]
    results = run_rows(args)
    report(table(results), args.json)
    # Not loaded where rows' memory is measured.
    from detection_rows import detection

    report(detection(args.photo, args.weights_dir, args.repeats, args.threads), None)
    if args.chart:
        draw(results, args.chart)


if __name__ == "__main__":
    main()
