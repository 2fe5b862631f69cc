"""Compare ways to quantize trained networks that enlarge images, without training them again.

    python benchmarks/trained_networks.py                             # 4 networks, W8A8 to W4A4
    python benchmarks/trained_networks.py --networks realesr-general-x4v3 --widths w4a8

The networks are the files of weights/sr in the data folder. Crops of faces are reduced and enlarged
again. Every method calibrates on the same 16 crops of tune512; SVDQuant and QuantFace both search
the ranges of inputs and weights and round weights by GPTQ. The first and last layers have 8 bits.
Columns: "dB" is the PSNR to the network in full precision, "OpenVINO dB" the same for the compiled
network, "truth dB" the PSNR to the crops, "full truth dB" that of full precision, each as the mean
over the images; "MB" is the size of the checkpoint. Finished cells are kept in --cache, so that a
killed run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import product
from pathlib import Path
from statistics import mean
from typing import Any

import torch
import yaml
from architectures import psnr
from cells import REPO, faces_of, identified, save
from report import data_root, parser, report
from torch import Tensor
from torch.nn.functional import interpolate

from quantface_arch import load_model, quantize, save_checkpoint
from quantface_arch.archs.spandrel_net import SpandrelNet
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.images import load_rgb
from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.threads import set_thread_count

WIDTHS = ("w8a8", "w4a8", "w4a6", "w4a4")
CALIBRATION = 16
SEARCHED = {
    "weights": {"range": "mse", "rounding": "gptq"},
    "activations": {"range": "mse", "zero_points": "channel"},
}


def methods() -> dict[str, dict[str, Any]]:
    """Return the recipe of each method, without its bits."""
    plain: dict[str, Any] = {"balance": {"kind": "none"}, "branch": {"svd": 0}}
    for tensor in ("weights", "activations"):
        plain[tensor] = {"range": "minmax"}
    peer = yaml.safe_load((REPO / "options/peers/svdquant.yml").read_text())["quant"]
    peer = {key: peer[key] for key in ("balance", "branch")}
    own = {"balance": {"kind": "auto"}, "branch": {"svd": "auto"}}
    return {
        "plain rounding": plain,
        "SVDQuant": {**SEARCHED, **peer},
        "QuantFace": {**SEARCHED, **own},
    }


def crop(path: Path, side: int) -> Tensor:
    """Return the middle of an image, (1, 3, side, side) in [0, 1]."""
    rgb = torch.tensor(load_rgb(path)).permute(2, 0, 1)[None].float() / 255
    top, left = ((length - side) // 2 for length in rgb.shape[-2:])
    return rgb[..., top : top + side, left : left + side]


def reduced(image: Tensor, scale: int) -> Tensor:
    """Return an image reduced by a network's scale, (1, 3, H, W) in [0, 1]."""
    small = interpolate(image, scale_factor=1 / scale, mode="bicubic", antialias=True)
    return (small * 255).round().clamp(0, 255) / 255


class Trained:
    """A network in full precision, with the images that it makes of reduced crops."""

    def __init__(self, file: Path, clean: Sequence[Path], side: int) -> None:
        self.file, self.clean, self.side = file, clean, side

    def load(self) -> SpandrelNet:
        """Return the network, loaded anew."""
        net = load_model(self.file)
        assert isinstance(net, SpandrelNet)
        return net

    @cached_property
    def crops(self) -> list[Tensor]:
        """Return the crops of the clean images."""
        return [crop(path, self.side) for path in self.clean]

    @cached_property
    def images(self) -> list[Tensor]:
        """Return what the network makes of the crops after they were reduced."""
        net = self.load()
        return self.enlarged(net, net.scale)

    @torch.no_grad()
    def enlarged(self, network: Callable[[Tensor], Tensor], scale: int) -> list[Tensor]:
        """Return what a network makes of the crops after they were reduced by a scale."""
        crops = progress_bar(self.crops, desc="images", leave=False)
        return [network(reduced(image, scale)).clamp(0, 1) for image in crops]


def mean_psnr(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Return the mean PSNR of images in dB."""
    return mean(psnr(*pair, 1) for pair in zip(wanted, found, strict=True))


def cell(network: Trained, recipe: dict[str, Any], args: argparse.Namespace) -> Any:
    """Quantize and score a network by one recipe, unless that was done before."""
    stem = f"{network.file.stem}-{recipe['name']}"
    named = identified(stem, recipe, network.clean, args.side)["name"]
    kept = args.cache / f"{named}.json"
    if kept.exists():
        return json.loads(kept.read_text())
    args.cache.mkdir(parents=True, exist_ok=True)
    net = network.load()
    calibration = [crop(path, args.side) for path in faces_of("tune512", args.calibration)]
    batch = torch.cat([reduced(image, net.scale) for image in calibration])
    patterns = list(traits_of(net).eight_bit_patterns)
    quantize(net, {**recipe, "eight_bit": patterns}, batch, progress=False)
    checkpoint = args.cache / f"{named}.safetensors"
    save_checkpoint(net, checkpoint, traits_of(net).arch_options or {})
    own = network.enlarged(net, net.scale)
    compiled = network.enlarged(load_model(checkpoint, "openvino"), net.scale)
    found = {
        "dB": mean_psnr(network.images, own),
        "OpenVINO dB": mean_psnr(network.images, compiled),
        "truth dB": mean_psnr(network.crops, own),
        "full truth dB": mean_psnr(network.crops, network.images),
        "MB": checkpoint.stat().st_size / 1e6,
    }
    checkpoint.unlink()
    save(kept, found)
    return found


def main() -> None:
    args_parser = parser(__doc__)
    add = args_parser.add_argument
    files = {path.stem: path for path in sorted(data_root().glob("weights/sr/*.pth"))}
    if not files:
        sys.exit(f"error: no networks in {data_root() / 'weights/sr'}; set QUANTFACE_DATA")
    add("--networks", nargs="+", metavar="NAME", choices=files, default=list(files), help="(all)")
    add("--widths", nargs="+", metavar="wXaY", default=WIDTHS, help=f"({' '.join(WIDTHS)})")
    add("--methods", nargs="+", choices=methods(), default=list(methods()), help="(all)")
    add("--faces", default="val512", help="subfolder of faces/ to score (%(default)s)")
    add("--limit", type=int, default=24, help="images to score (%(default)s)")
    add("--side", type=int, default=256, help="side of the crops (%(default)s)")
    add("--cache", type=Path, default=Path("results/trained"), help="folder of finished cells")
    add("--threads", type=int, default=1, help="(%(default)s)")
    args = args_parser.parse_args()
    args.calibration = CALIBRATION
    if args.smoke:
        args.networks, args.widths, args.limit = args.networks[-1:], ["w4a8"], 1
        args.side, args.calibration, args.methods = 64, 1, ["QuantFace"]
    set_thread_count(args.threads)
    clean, rows = faces_of(args.faces, args.limit), []
    cells = list(product(args.networks, args.widths, args.methods))
    with tempfile.TemporaryDirectory() as scratch:
        os.environ["QUANTFACE_CACHE"] = scratch
        networks = {name: Trained(files[name], clean, args.side) for name in args.networks}
        for name, width, method in progress_bar(cells, desc="cells"):
            found = cell(networks[name], {"name": width, **methods()[method]}, args)
            rows.append({"network": name, "width": width, "method": method, **found})
    report(rows, args.json)


if __name__ == "__main__":
    main()
