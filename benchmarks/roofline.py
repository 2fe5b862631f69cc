"""Compare the speed of every part of a restorer with the processor's peak.

    python benchmarks/roofline.py                          # mini and mini-w4a8
    python benchmarks/roofline.py --preset osdface --quantized FILE

The peaks are measured: the rate of OpenVINO's wide 3×3 convolutions in float32, bfloat16 and int8.
A part's rate is all its multiply-accumulates, including those inside attention, divided by its
total time; "of peak" is its share of the peak of its number format. Layers are quantized, but
products of two activations are not, so "of peaks" compares those of attention in an int8 network
with bfloat16's peak. The options are those of latency.py, which measures the times.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from latency import make_parser, run_rows
from report import report
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from quantface_arch.archs.meta import meta_network
from quantface_arch.quant import Recipe, quantize, save_checkpoint
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime import openvino
from quantface_arch.runtime.parts import record
from quantface_arch.utils.threads import set_thread_count

# Each kind of latency.py's rows has products in this number format.
WIDTHS = {"openvino fp32": "fp32", "openvino bf16": "bf16", "quantized": "int8"}
# If layers have the first format, all else has the second, including attention's products.
WITHIN = {"fp32": "fp32", "bf16": "bf16", "int8": "bf16"}
# OpenVINO has its own names for the latter formats.
PRECISIONS = {"fp32": "f32", "bf16": "bf16"}
# The peak is the rate of DEPTH convolutions with WIDE channels on an image of this SIDE.
WIDE, SIDE, DEPTH = 512, 64, 4


def macs_of_parts(arch: Mapping[str, Any], size: int, batch: int) -> dict[str, tuple[int, int]]:
    """Count the multiply-accumulates of every part's layers and attention, without weights."""
    network = meta_network(arch)
    inputs = record(network, torch.zeros(batch, 3, size, size, device="meta"))
    found = {}
    for name in traits_of(network).parts:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            getattr(network, name)(*inputs[name][0])
        attention = counter.get_flop_counts()["Global"].get(torch.ops.aten.bmm, 0)
        found[name] = (counter.get_total_flops() - attention) // 2, attention // 2
    return found


def convolutions(channels: int) -> nn.Module:
    """Build wide convolutions after a narrow one that takes an image."""
    wide = [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(DEPTH)]
    return nn.Sequential(nn.Conv2d(3, channels, 1), *wide).eval()


@torch.inference_mode()
def peak(width: str, threads: int, repeats: int, channels: int = WIDE) -> float:
    """Measure the multiply-accumulates per second of wide convolutions."""
    set_thread_count(threads)
    net, x = convolutions(channels), torch.rand(1, 3, SIDE, SIDE)
    if width == "int8":
        plain = {"balance": {"kind": "none"}, "branch": {"svd": 0}}
        quantize(net, Recipe.from_dict({"name": "w8a8", **plain}), x, progress=False)
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / f"{width}.safetensors"
        save_checkpoint(net, path, {})
        model = openvino.load(path, lambda _: convolutions(channels))
        vars(model)["forward"].part.options["INFERENCE_PRECISION_HINT"] = PRECISIONS[WITHIN[width]]
        model(x)
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            model(x)
            seconds.append(time.perf_counter() - start)
    return DEPTH * channels**2 * 9 * SIDE**2 / min(seconds)


def shares(
    found: dict[str, Any], peaks: Mapping[str, float], args: argparse.Namespace
) -> list[dict[str, Any]]:
    """Return a line per part, and one for all, from latency.py's result for one row."""
    width = WIDTHS[found["kind"]]
    macs, seconds = macs_of_parts(found["arch"], args.size, args.batch), dict(found["parts"])
    macs["all"] = sum(of[0] for of in macs.values()), sum(of[1] for of in macs.values())
    seconds["all"] = sum(seconds.values())
    return [
        {
            "row": found["name"],
            "part": part,
            "GMAC": (layers + attention) / 1e9,
            "in attention": attention / 1e9,
            "ms": 1e3 * seconds[part],
            "GMAC/s": (layers + attention) / seconds[part] / 1e9,
            "peak GMAC/s": peaks[width] / 1e9,
            "of peak": (layers + attention) / seconds[part] / peaks[width],
            "of peaks": (layers / peaks[width] + attention / peaks[WITHIN[width]]) / seconds[part],
        }
        for part, (layers, attention) in macs.items()
    ]


def main() -> None:
    made = make_parser(__doc__)
    made.set_defaults(kinds=list(WIDTHS))
    args = made.parse_args()
    if args.smoke:
        args.size, args.repeats, args.rounds, args.kinds = 64, 1, 1, ["quantized"]
    results = [found for found in run_rows(args) if found["kind"] in WIDTHS]
    widths = {WIDTHS[found["kind"]] for found in results}
    widths |= {WITHIN[width] for width in widths}
    tries = (1, 32) if args.smoke else (20, WIDE)
    peaks = {width: peak(width, args.threads, *tries) for width in widths}
    rows = [row for found in results for row in shares(found, peaks, args)]
    report(rows, args.json)


if __name__ == "__main__":
    main()
