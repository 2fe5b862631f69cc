"""Measure time and memory of enlarging an image by 2 with Real-ESRGAN's network.

    python benchmarks/background.py                # float and quantized, one process each
    python benchmarks/background.py --rows float:reference w8a8:openvino --side 256

The weights are random, because neither time nor memory depends on them. Quantized networks have no
balancing and no branches, because OpenVINO folds both into the weights at no cost. "of first" is
the ratio to the seconds of the first row. The first tile, which compiles the network, is not timed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import parser, peak_gb, report

from quantface_arch.archs.build import build_arch
from quantface_arch.background.load import load_background
from quantface_arch.background.tiles import CONTEXT, TILE
from quantface_arch.quant import Recipe, quantize, save_checkpoint
from quantface_arch.utils.threads import set_thread_count

FULL = {"num_feat": 64, "num_block": 23, "num_grow_ch": 32}
REDUCED = {"num_feat": 16, "num_block": 1, "num_grow_ch": 8}
ROWS = ("float:reference", "float:openvino", "w8a8:openvino", "w4a8:openvino")


def write_network(recipe: str, size: dict[str, int], path: Path) -> None:
    """Write a random RRDBNet for x2, quantized on noise unless ``recipe`` is ``float``."""
    torch.manual_seed(0)
    arch = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "scale": 2, **size}
    network = build_arch(arch).eval()
    if recipe != "float":
        plain = {"name": recipe, "balance": {"kind": "none"}, "branch": {"svd": 0}}
        quantize(network, Recipe.from_dict(plain), torch.rand(2, 3, 64, 64), progress=False)
    save_checkpoint(network, path, arch)


def measure(name: str, path: Path, side: int, repeats: int) -> dict[str, Any]:
    """Load the network of a row, enlarge an image, and return time and peak memory."""
    recipe, _, runtime = name.partition(":")
    upsampler = load_background(str(path), runtime)
    picture = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    window = min(side, TILE + 2 * CONTEXT)
    upsampler(picture[:window, :window])
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = upsampler(picture)
        seconds.append(time.perf_counter() - start)
    assert result.shape == (2 * side, 2 * side, 3)
    megabytes = path.stat().st_size / 1e6
    row = {"network": recipe, "runtime": runtime, "picture": f"{side}x{side}", "s": min(seconds)}
    return {**row, "peak GB": peak_gb(), "file MB": megabytes}


def main() -> None:
    args_parser = parser(__doc__)
    args_parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    args_parser.add_argument(
        "--repeats", type=int, default=2, help="runs; the fastest counts (%(default)s)"
    )
    args_parser.add_argument(
        "--side", type=int, default=512, help="side of the image (%(default)s)"
    )
    args_parser.add_argument("--rows", nargs="+", metavar="NETWORK:RUNTIME", default=ROWS)
    args_parser.add_argument(
        "--weights", type=Path, help="weights of a single row, measured in this process"
    )
    args = args_parser.parse_args()
    set_thread_count(args.threads)
    size = REDUCED if args.smoke else FULL
    if args.smoke:
        args.rows, args.side = args.rows[:1], 64
    if args.weights:
        print(json.dumps(measure(args.rows[0], args.weights, args.side, args.repeats)))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name in args.rows:
            path = Path(folder) / f"{name.partition(':')[0]}.safetensors"
            write_network(path.stem, size, path)
            command = [sys.executable, __file__, "--rows", name, "--weights", str(path)]
            for option in ("threads", "repeats", "side"):
                command += [f"--{option}", str(getattr(args, option))]
            environment = {**os.environ, "QUANTFACE_CACHE": str(Path(folder) / "cache")}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
            rows.append(json.loads(done.stdout))
            print(rows[-1], file=sys.stderr)
    for row in rows:
        row["of first"] = row["s"] / rows[0]["s"]
    report(rows, args.json)


if __name__ == "__main__":
    main()
