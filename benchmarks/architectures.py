"""Quantize a small network of each of spandrel's architectures, and the trained networks at hand.

    python benchmarks/architectures.py                       # all
    python benchmarks/architectures.py --networks ESRGAN RealESRGAN_x4plus --recipe w4a8

Columns: "loaded" says whether spandrel recognizes the saved state dict and the network gives
spandrel's own image; "quantized %" is the share of multiply-accumulates in quantized layers;
"same" says whether a saved checkpoint gives the same image to the last bit without the original
file; "OpenVINO dB" is the distance of the compiled network from the reference, and "dB" that of the
quantized network from full precision, both as PSNR at a side that the network was neither
calibrated nor traced at. "x float32" and "x bf16" say how much faster the quantized network runs
than the same network in full precision in PyTorch and in OpenVINO, whose floats have 16 bits where
the processor supports that; each time is the fastest of several, taken in turns. Networks with
random weights say nothing about quality.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from architecture_networks import NETWORKS, descriptor
from report import data_root, parser, report
from torch import Tensor, nn

from quantface_arch import load_model, quantize, save_checkpoint
from quantface_arch.data.degradation import seeded
from quantface_arch.errors import one_line
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.parts import rounded_up
from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.threads import set_thread_count

SIDE, OTHER = 64, 96
# The only sides that these networks take.
FIXED = {"GFPGAN": 512, "RestoreFormer": 512}
SMOKE = ("Compact",)
# Trained networks are timed at this side, small ones at ``OTHER``.
TRAINED_SIDE = 192
TURNS = 5


def psnr(wanted: Tensor, found: Tensor, span: float) -> float:
    """Return the PSNR in dB of an image whose values span a range; infinite for equal ones."""
    error = float((wanted - found).square().mean())
    return 10 * math.log10(span**2 / error) if error else math.inf


def images(net: nn.Module, count: int, side: int) -> Tensor:
    """Return smooth random images (count, 3, side, side) in the range that a network takes."""
    low, high = traits_of(net).input_range
    with seeded(side):
        torch.manual_seed(side)
        small = torch.rand(count, 3, 8, 8)
    large = nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 1)
    return large * (high - low) + low


def speeds(calls: dict[str, Callable[[Tensor], Tensor]], x: Tensor, turns: int) -> dict[str, float]:
    """Return the fastest time in seconds of each network on ``x``, with the networks in turns."""
    found = dict.fromkeys(calls, math.inf)
    for turn in range(turns + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(x)
            if turn:
                found[name] = min(found[name], time.perf_counter() - start)
    return found


@torch.no_grad()
def row(name: str, path: Path, recipe: str, folder: Path, other: int = OTHER) -> dict[str, Any]:
    """Return a row of the table; what fails is said in its last column."""
    found: dict[str, Any] = {"network": name, "loaded": "", "quantized %": "", "same": ""}
    found |= {"OpenVINO dB": "", "dB": "", "x float32": "", "x bf16": "", "reason": ""}
    try:
        net = load_model(path)
        found["loaded"] = "yes"
        low, high = traits_of(net).input_range
        step = traits_of(net).side_step
        x = images(net, 1, FIXED.get(name, rounded_up(other, step)))
        full = net(x)
        calibration = images(net, 2, FIXED.get(name, rounded_up(SIDE, step)))
        options = {"name": recipe, "weights": {"rounding": "gptq"}}
        report = quantize(net, options, calibration, progress=False)
        shares, layers = report.macs or {}, report.bits
        found["quantized %"] = round(100 * sum(shares.get(layer, 0) for layer in layers), 1)
        file = folder / "quantized.safetensors"
        save_checkpoint(net, file, net.arch_options)
        reference = net(x)
        found["dB"] = psnr(full, reference, high - low)
        found["same"] = "yes" if torch.equal(load_model(file)(x), reference) else "NO"
        compiled = load_model(file, "openvino")
        found["OpenVINO dB"] = psnr(reference, compiled(x), high - low)
        plain = {"float32": load_model(path), "bf16": load_model(path, "openvino")}
        times = speeds({**plain, "quantized": compiled}, x, TURNS)
        found |= {f"x {kind}": times[kind] / times["quantized"] for kind in plain}
    except Exception as error:
        # What a network does not do is a result.
        found["reason"] = one_line(error).replace(str(folder), "")[:160]
    return found


def main() -> None:
    args_parser = parser(__doc__)
    add = args_parser.add_argument
    add("--networks", nargs="+", metavar="NAME", help="small ones, or files by stem (all)")
    add("--recipe", default="w8a8", help="wXaY (%(default)s)")
    add("--threads", type=int, default=1, help="(%(default)s)")
    args = args_parser.parse_args()
    set_thread_count(args.threads)
    files = {path.stem: path for path in sorted(data_root().glob("weights/sr/*.pth"))}
    wanted = args.networks or (SMOKE if args.smoke else (*NETWORKS, *files))
    if unknown := set(wanted) - {*NETWORKS, *files}:
        args_parser.error(
            f"--networks: no {min(unknown)}; there are {', '.join((*NETWORKS, *files))}"
        )
    names = [name for name in wanted if name in NETWORKS]
    trained = [files[name] for name in wanted if name in files]
    rows = []
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        for name in progress_bar(names, desc="architectures", unit="network"):
            path = folder / f"{name}.pth"
            torch.save(descriptor(name).model.state_dict(), path)
            rows.append(row(name, path, args.recipe, folder))
        for path in progress_bar(trained, desc="trained", unit="network"):
            rows.append(row(path.stem, path, args.recipe, folder, TRAINED_SIDE))
    report(rows, args.json)


if __name__ == "__main__":
    main()
