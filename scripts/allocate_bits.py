"""One width for every layer, within budgets: measured, solved, and written as a bit map."""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.integration.allocate_options import WIDTHS, AllocateOptions
from quantface_arch.integration.options import read_options
from quantface_arch.quant import (
    CalibrationData,
    Recipe,
    balance_stage,
    calibration_stage,
    convert,
    quant_layers,
)
from quantface_arch.quant.allocation.distance import ssim_distance
from quantface_arch.quant.allocation.sensitivity import measure
from quantface_arch.quant.allocation.sensitivity_file import LayerFacts, Sensitivities, part_of
from quantface_arch.quant.allocation.solve import (
    Budget,
    LayerCosts,
    allocate,
    average_bits,
)
from quantface_arch.quant.calibration.store import digest
from quantface_arch.quant.config.bitmap import SUFFIXES, save_bit_map
from quantface_arch.quant.config.specs import is_width
from quantface_arch.quant.cost.macs import count_macs
from quantface_arch.quant.cost.planned import fixed_bytes
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.quant.ptq import apply_plan
from quantface_arch.reports.allocation_plot import draw_allocation
from quantface_arch.utils.cli import Parser, run
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.option_fields import parse_options

DESCRIPTION = """\
Choose the width of every layer: measure how much the network's pictures suffer from each layer and
width alone, then find the cheapest plan within the budgets (an integer program). Writes the bit map
that 'quant: bit_map:' of an options file names, a picture of it (MAP.png), and the sensitivities
(MAP.sensitivities.json).

examples:
  the shipped restorer, activations of at most 4 bits on average:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml --out mini_mp.yml
  another budget from the same measurements, in a second and without the network:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml --out mini_a5.yml \\
        --sensitivities mini_mp.sensitivities.json --activation-bits 5
  measured on degraded faces of your own:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml -i datasets/faces_val/lq \\
        --out mini_mp.yml

Killed half-way, the same command goes on where it was. Under torchrun the pictures of calibration
and the layers to measure are shared out among its processes:
  torchrun --nproc-per-node 2 scripts/allocate_bits.py -opt options/allocate_mini.yml --out map.yml
"""


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-opt", required=True, type=Path, help="options file, see options/allocate_mini.yml")
    add("--out", required=True, type=Path, help=f"bit map to write, {', '.join(SUFFIXES)}")
    add("--sensitivities", type=Path, help="solve from this file; nothing is measured")
    add("-i", "--input", type=Path, help="folder of degraded faces, instead of the options' ones")
    add("--num-images", type=int, help="pictures to measure on (default: as the options say)")
    add("--activation-bits", type=float, help="budget, instead of the options' one")
    add("--weight-bits", type=float, help="budget, instead of the options' one")
    add("--bytes", type=float, help="budget, instead of the options' one")
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, solve, write, print the summary."""
    if args.out.suffix not in SUFFIXES:
        raise UsageError(f"{args.out}: bit maps end in {', '.join(SUFFIXES)}")
    if args.input is not None and not args.input.is_dir():
        raise UsageError(f"{args.input}: no such folder of faces")
    opt = read_options(args.opt)
    settings = Settings(opt.get("allocate") or {}, args)
    if args.input is not None:
        calibration = opt["quant"].get("calibration") or {}
        opt["quant"]["calibration"] = {**calibration, "dataroot_lq": str(args.input)}
    shard = Shard.here()
    with shard.joined():
        known = args.sensitivities
        found = Sensitivities.load(known) if known else measured(opt, settings, args, shard)
        if shard.is_first:
            _allocate(found, settings, args)
    return 0


def _allocate(found: Sensitivities, settings: Settings, args: argparse.Namespace) -> None:
    """Solve, write, print the summary."""
    layers = settings.costs(found)
    bits = allocate(layers, settings.budget, found.fixed_bytes)
    average = {
        "weight_bits": round(average_bits(layers, bits, "w"), 4),
        "activation_bits": round(average_bits(layers, bits, "a"), 4),
    }
    note = f"made by scripts/allocate_bits.py from {args.opt.name}"
    save_bit_map(args.out, bits, average, note)
    title = f"{args.out.name}: {average['weight_bits']:g} weight bits, "
    title += f"{average['activation_bits']:g} activation bits on average"
    draw_allocation(args.out.with_suffix(".png"), layers, bits, title)
    print(summary(args.out, layers, bits, average, found.fixed_bytes))


class Settings:
    """The block ``allocate`` of an options file, checked; the command line's budgets go before.

    Raises:
        QuantFaceError: an unknown option, or a value that is not allowed.
    """

    def __init__(self, given: Mapping[str, Any], args: argparse.Namespace) -> None:
        options = parse_options(AllocateOptions, "allocate", given)
        self.widths = {
            "w": _widths("weight_bits", options.weight_bits),
            "a": _widths("activations", options.activations),
        }
        names = ("activation_bits", "weight_bits", "bytes")
        budgets = {name: getattr(args, name) for name in names}
        budgets = {name: value for name, value in budgets.items() if value is not None}
        self.budget = replace(Budget.from_dict(options.budget), **budgets)
        self.weight = options.lambda_
        self.perceptual = options.perceptual
        self.protect = dict(options.protect)
        for pattern, bits in self.protect.items():
            _widths(f"protect {pattern}", [bits])
        self.count = list(options.count) or ["*"]
        self.macs_size = options.macs_size

    def costs(self, found: Sensitivities) -> dict[str, LayerCosts]:
        """See ``Sensitivities.costs``."""
        return found.costs(self.widths, self.weight, self.protect, self.count)

    def check(self, found: Sensitivities) -> None:
        """Raise QuantFaceError for budgets or patterns that no measurement can save."""
        free = found.costs(self.widths, None, self.protect, self.count)
        allocate(free, self.budget, found.fixed_bytes)


def _widths(what: str, value: Sequence[Any]) -> tuple[int, ...]:
    if not value or not all(is_width(bits) for bits in value):
        raise QuantFaceError(
            f"allocate option {what}: found {list(value)!r}, allowed are whole numbers {WIDTHS}"
        )
    return tuple(sorted(set(value)))


def measured(
    opt: Mapping[str, Any], settings: Settings, args: argparse.Namespace, shard: Shard
) -> Sensitivities:
    """Sensitivities of the options' network; what the file beside the bit map holds is kept."""
    import quantface_arch.register  # noqa: F401
    from quantface_arch.archs.build import build_arch
    from quantface_arch.models.quantize_stage import calibration_pictures, read_quant_options

    torch.manual_seed(opt["manual_seed"])
    net = build_arch(opt["network_g"]).eval().to(args.device)
    if next(quant_layers(net), None) is not None:
        raise QuantFaceError(f"{args.opt}: network_g is quantized already, a float one is wanted")
    quant = {key: value for key, value in opt["quant"].items() if key != "bit_map"}
    recipe, _, plan = read_quant_options(quant, net)
    distance = perceptual_distance(settings.perceptual, net, args.device)
    pictures = calibration_pictures(opt, net, args.num_images)
    batch_size = int((quant.get("calibration") or {}).get("batch_size", 4))
    path = args.out.with_suffix(".sensitivities.json")
    key = fingerprint(net, pictures, [quant, settings.perceptual, settings.macs_size])
    found = Sensitivities.earlier(path, key) if shard.is_first else None
    found = shard.agree(found) or prepared(net, recipe, key, len(pictures), settings.macs_size)
    settings.check(found)
    probes = found.probes(settings.widths, settings.protect)
    if not any(found.missing(probes)):
        return found
    if next(quant_layers(net), None) is None:
        convert(net, recipe)
    data = CalibrationData(pictures, batch_size, shard.is_first, shard=shard)
    if plan is not None:
        apply_plan(net, plan)
    elif recipe.balance.wanted:
        balance_stage(net, recipe, data)
    calibration = calibration_stage(net, data)
    measure(
        net,
        calibration,
        [picture[None] for picture in pictures],
        # Layer by layer: one that is at hand is measured at all its widths.
        [probe for name in shard.share(list(found.layers)) for probe in probes if probe[0] == name],
        distance,
        found.measured,
        lambda _: found.save(part_of(path, shard)),
        progress=shard.is_first,
    )
    found.collect(probes, path, shard)
    return found


def prepared(
    net: nn.Module, recipe: Recipe, key: str, batches: int, macs_size: int
) -> Sensitivities:
    """Convert a network and look at its layers; nothing is measured yet."""
    side = torch.zeros(1, 3, macs_size, macs_size, device=next(net.parameters()).device)
    macs = count_macs(net, side)
    convert(net, recipe)
    layers = {layer.name: layer for layer in quant_layers(net)}
    idle = layers.keys() - macs.keys()
    if idle:
        raise QuantFaceError(f"layer {min(idle)}: the network does not use it; exclude it")
    facts = {}
    for name in macs:
        if name in layers:
            layer = layers[name]
            widths = (layer.weight_spec.bits, layer.activation_spec.bits)
            kept = any(fnmatchcase(name, pattern) for pattern in recipe.eight_bit)
            facts[name] = LayerFacts(layer.weight.numel(), macs[name], widths if kept else None)
    return Sensitivities(key, batches, facts, fixed_bytes(net, recipe))


def fingerprint(net: nn.Module, pictures: list[Tensor], options: Any) -> str:
    """Hash of what sensitivities depend on."""
    state = hashlib.sha256((digest(net) + json.dumps(options, default=str)).encode())
    for picture in pictures:
        state.update(picture.contiguous().numpy().tobytes())
    return state.hexdigest()


def perceptual_distance(
    options: Mapping[str, Any] | None, net: nn.Module, device: str
) -> Callable[[Tensor, Tensor], Tensor]:
    """1 - SSIM in the network's range of values, or a loss of BasicSR's registry."""
    if options is None:
        low, high = traits_of(net).input_range
        return partial(ssim_distance, data_range=high - low)
    from basicsr.losses import build_loss
    from basicsr.utils.registry import LOSS_REGISTRY

    if not isinstance(options, Mapping) or options.get("type") not in LOSS_REGISTRY:
        known = ", ".join(sorted(name for name, _ in LOSS_REGISTRY))
        raise QuantFaceError(
            f"allocate option perceptual: found {options!r}, wanted is {{type: NAME, ...}} "
            f"with NAME one of {known}"
        )
    return build_loss(dict(options)).to(device)


def summary(
    path: Path,
    layers: Mapping[str, LayerCosts],
    bits: Mapping[str, tuple[int, int]],
    average: Mapping[str, float],
    fixed: int,
) -> str:
    """Averages, layers per width, and the size of the file to come."""
    lines = [f"{path}: {len(bits)} layers"]
    for place, (kind, name) in enumerate((("weight", "weight_bits"), ("input", "activation_bits"))):
        counts = sorted(Counter(widths[place] for widths in bits.values()).items())
        listed = ", ".join(f"{count} at {width}" for width, count in counts)
        lines.append(f"{kind}s: {average[name]:.4f} bits on average ({listed})")
    size = fixed + sum(layers[name].parameters * weight for name, (weight, _) in bits.items()) / 8
    lines.append(f"checkpoint: about {round(size):,} bytes")
    return "\n".join(lines)


if __name__ == "__main__":
    run(main, make_parser())
