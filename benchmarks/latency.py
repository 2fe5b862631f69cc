"""Measure the seconds per face of every runtime of a restorer, side by side in one run.

    python benchmarks/latency.py                                   # the mini and mini-w4a8
    python benchmarks/latency.py --float FILE --quantized FILE --chart latency.png
    python benchmarks/latency.py --preset osdface --recipe w4a8    # random weights, full size
    python benchmarks/latency.py --device cuda --batch 8           # on an NVIDIA GPU

On a CPU the rows are PyTorch in float32 and bfloat16, OpenVINO in both, OpenVINO with NNCF's 8-bit
quantization of the same network (if nncf is installed), the quantized checkpoints in the runtime
openvino, and the exported files of all in ONNX Runtime (if it is installed). On a GPU they are
PyTorch in float16, the same compiled by torch.compile and launched as CUDA graphs, and the
quantized checkpoints in the runtime cuda.

Every row runs in its own process and reuses the compiled files of an earlier one. The rows take
turns in --rounds, and the shortest time counts. "x" is the speed of all parts together relative to
the first kind. "peak GB" is the largest resident memory in 10⁹ bytes, or the GPU memory on a GPU.
"first peak GB" is the same for the first turn, which compiles the quantized checkpoints. A second
table has the time that every available detector takes to find the faces in --photo.
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
from latency_rows import KINDS, NNCF, ONNX, QUANTIZED, measure
from report import parser, report

from quantface_arch.archs.build import build_arch
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.pretrained.zoo import load_model
from quantface_arch.quant import quantize, read_metadata, save_checkpoint
from quantface_arch.utils.progress import progress_bar

# With this option, a child process measures a row and prints the result as its last line.
ROW = "--row"


def make_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser(description)
    add = made.add_argument
    add("--float", default="mini", dest="full", help="full-precision checkpoint (mini)")
    add("--preset", help="a preset with random weights instead of --float: osdface, mini")
    add("--quantized", nargs="*", default=["mini-w4a8"], help="checkpoints (mini-w4a8)")
    add("--recipe", help="round the full-precision network with this recipe, for timing only: w4a8")
    add("--device", choices=KINDS, default="cpu", help="device (cpu)")
    add("--kinds", nargs="+", choices=sorted({*chain(*KINDS.values())}), help="rows (all)")
    add(
        "--modes",
        "--ways",
        nargs="+",
        default=["auto"],
        help="modes of quantized layers: auto faithful folded",
    )
    add("--size", type=int, default=512, help="side of the image (512)")
    add("--batch", type=int, default=1, help="images per batch (1)")
    add("--repeats", type=int, default=5, help="timed runs per row and round (5)")
    add("--rounds", type=int, default=2, help="rounds over all rows (2)")
    add("--threads", type=int, default=os.cpu_count() or 1, help="threads (all cores)")
    add("--chart", type=Path, help="plot the times by part to this .png")
    add(ROW, help=argparse.SUPPRESS)
    return made


def rows_of(args: argparse.Namespace, full: Path) -> list[dict[str, Any]]:
    """Return the settings for the process of each row."""
    shared = {key: getattr(args, key) for key in ("size", "batch", "repeats", "threads", "device")}
    known = KINDS[args.device]
    kinds = [kind for kind in known if kind in (args.kinds or known)]
    if not kinds:
        sys.exit(f"error: --kinds: device {args.device} has only {', '.join(known)}")
    for package, extra, needed in (("nncf", "bench", (NNCF,)), ("onnxruntime", "export", ONNX)):
        absent = [kind for kind in needed if kind in kinds and find_spec(package) is None]
        hint = f"{package} is not installed; pip install -e '.[{extra}]'"
        if absent and args.kinds:
            sys.exit(f"error: --kinds {absent[0]!r}: {hint}")
        for kind in absent:
            print(f"skipping the row {kind}: {hint}", file=sys.stderr)
            kinds.remove(kind)
    rows = [{"kind": kind, "path": str(full)} for kind in kinds if kind not in QUANTIZED]
    rows += [
        {"kind": kind, "path": str(resolve_model(name)), "mode": mode}
        for kind in kinds
        if kind in QUANTIZED
        for name in args.quantized
        for mode in args.modes
    ]
    return [{**row, **shared} for row in rows]


def run_row(row: dict[str, Any]) -> dict[str, Any]:
    """Measure a row in its own process, or end the program if that fails."""
    result = subprocess.run(
        [sys.executable, str(Path(__file__).resolve()), ROW, json.dumps(row)],
        stdout=subprocess.PIPE,
        text=True,
    )
    if result.returncode:
        sys.exit(f"error: row {row['kind']} of {row['path']} failed")
    return json.loads(result.stdout.splitlines()[-1])


def best(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a row's shortest times and largest memory; the first turn is the compiling one."""
    found = dict(turns[-1])
    for key in turns[0]["parts"]:
        found["parts"][key] = min(turn["parts"][key] for turn in turns)
    warm = max(turn["peak GB"] for turn in turns[1:] or turns)
    return {**found, "peak GB": warm, "first peak GB": turns[0]["peak GB"]}


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one line per row, with "x" if the kind to compare with was measured."""
    sums = [sum(found["parts"].values()) for found in results]
    firsts = {kinds[0] for kinds in KINDS.values()}
    base = next(
        (total for total, found in zip(sums, results, strict=True) if found["kind"] in firsts), None
    )
    parts = parts_of(results)
    return [
        {
            "row": found["name"],
            **{f"{part} s": found["parts"].get(part, "") for part in parts},
            "sum s": total,
            "x": "" if base is None else base / total,
            "load s": found["load s"],
            "peak GB": found["peak GB"],
            "first peak GB": found["first peak GB"],
            **{key: found[key] for key in ("weights GB", "file MB") if key in found},
        }
        for found, total in zip(results, sums, strict=True)
    ]


def parts_of(results: list[dict[str, Any]]) -> list[str]:
    """Return the names of all parts; a file for ONNX Runtime has one, ``whole``."""
    return list(dict.fromkeys(part for found in results for part in found["parts"]))


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Plot a stacked bar per row with a colour per part."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 1 + 0.45 * len(results)))
    left = [0.0] * len(results)
    names = [found["name"] for found in results]
    for part in parts_of(results):
        seconds = [found["parts"].get(part, 0) for found in results]
        axes.barh(names, seconds, left=left, label=part)
        left = [a + b for a, b in zip(left, seconds, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("seconds per batch")
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def round_network(full: Path, args: argparse.Namespace, scratch: Path) -> Path:
    """Write a plainly rounded checkpoint with ranges from noise, as fast as a better one."""
    network = load_model(full, runtime="reference", device=args.device)
    plain = {"weights": {"range": "minmax"}, "balance": {"kind": "none"}, "branch": {"svd": 0}}
    noise = torch.rand(1, 3, args.size, args.size) * 2 - 1
    quantize(network, {"name": args.recipe, **plain}, noise)
    path = scratch / f"{full.stem}-{args.recipe}.safetensors"
    save_checkpoint(network, path, read_metadata(full)["arch"])
    return path


def run_rows(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure all rows in turns."""
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
        for _ in progress_bar(range(args.rounds), desc="rounds"):
            for row, found in zip(progress_bar(rows, desc="rows", leave=False), turns, strict=True):
                found.append(run_row(row))
    return [best(found) for found in turns]


def main() -> None:
    made = make_parser(__doc__)
    photo = Path(__file__).resolve().parents[1] / "inputs/astronaut.jpg"
    made.add_argument(
        "--photo", type=Path, default=photo, help="photograph to find faces in (the astronaut)"
    )
    made.add_argument("--weights-dir", type=Path, help="folder with the detectors' weights")
    args = made.parse_args()
    if args.row:
        print(json.dumps(measure(json.loads(args.row))))
        return
    if args.smoke:
        args.size, args.repeats, args.rounds = 64, 1, 1
        args.kinds = list(QUANTIZED)
    results = run_rows(args)
    report(table(results), args.json)
    # Import this here, so that it does not count in the memory of the rows.
    from detection_rows import detection

    report(detection(args.photo, args.weights_dir, args.repeats, args.threads), None)
    if args.chart:
        draw(results, args.chart)


if __name__ == "__main__":
    main()
