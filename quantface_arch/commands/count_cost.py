"""Count what each layer costs: parameters, bytes, multiply-accumulates and bit-operations."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

import quantface_arch.register  # noqa: F401
from quantface_arch.archs.meta import count_on_meta, meta_network
from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.integration.options import read_options
from quantface_arch.integration.quantface_arch import checkpoint_arch
from quantface_arch.models.quantize_stage import read_quant_options
from quantface_arch.pretrained.names import resolve_model
from quantface_arch.quant import convert, read_metadata
from quantface_arch.quant.cost.cost import Entry, network_cost, total_cost
from quantface_arch.quant.cost.macs import LayerWork
from quantface_arch.quant.cost.planned import checkpoint_cost, recipe_cost, undecided
from quantface_arch.quant.ptq import check_plan
from quantface_arch.reports.cost_plot import draw_cost
from quantface_arch.reports.cost_report import (
    layer_table,
    part_costs,
    part_table,
    write_csv,
    write_json,
)
from quantface_arch.utils.cli import Parser

DESCRIPTION = """\
Count what the network of an options file costs once it is quantized: bytes of its checkpoint, and
work for one image. Nothing is run, no weights are needed, and a network of a billion weights takes
some seconds. The first table has, per part of the network and in total:

  operations       multiply-accumulates; one at 32 bits counts 1, one at w and a bits max(w, a)/32,
                   and those of branches, scales and rotations count as 16 bits
  bit-operations   multiply-accumulates times both bit widths, w*a
  products         multiply-accumulates outside layers, such as those inside attention: they stay in
                   floating point, and none of the sums includes them

Both kinds of operations are compared with the network at 32 bits. The layers with the most
operations follow.

examples:
  the setting of an options file, with a plot of the bytes and the operations of each part:
    python scripts/count_cost.py -opt options/osdface/quantface_w4.yml --picture cost.png
  a checkpoint, whose bytes are compared with the size of the file:
    python scripts/count_cost.py --checkpoint mini-w4a4
  every layer, for a spreadsheet:
    python scripts/count_cost.py -opt options/quantface_w4.yml --top 0 --csv layers.csv

If the options name a bit map, its bit widths count. With balance: kind: auto, calibration chooses
which layers are rotated; before that, the most expensive choice is counted, and a note says so.
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("-opt", type=Path, help="options file, see options/")
    add("--checkpoint", help="count this quantized .safetensors file or shipped model instead")
    add("--size", type=int, default=512, help="side of the network's input (default: %(default)s)")
    add("--top", type=int, default=10, help="layers to print (default: %(default)s)")
    add("--picture", type=Path, help="plot to write, .png")
    add("--csv", type=Path, help="table of all layers to write, .csv")
    add("--json", type=Path, help="file of all numbers to write, .json")
    return parser


def main(args: argparse.Namespace) -> int:
    """Count the cost, print it, and write the files."""
    _check(args)
    opt = None if args.opt is None else read_options(args.opt, ("network_g",))
    checkpoint = find_checkpoint(opt, args.checkpoint)
    arch = find_arch(opt, checkpoint)
    net = meta_network(arch)
    work, products = count_on_meta(net, args.size)
    if checkpoint is not None:
        entries = checkpoint_cost(checkpoint, net, work, products)
        note = f"{checkpoint.name} has {checkpoint.stat().st_size:,} with its header"
    elif opt is not None and "quant" in opt:
        entries, note = counted(net, opt, work, products)
    else:
        entries, note = network_cost(net, work, products), "not quantized: counted at 16 bits"
    cost = total_cost(entries)
    saved = (f"{name.replace('_', '-')} -{100 * v:.2f} %" for name, v in cost.reductions.items())
    print(part_table(entries))
    print(f"\n{args.size}x{args.size} pixels; against 32 bits: {', '.join(saved)}")
    print(f"{cost.bytes:,} bytes in tensors; {note}")
    if args.top:
        print(f"\n{layer_table(entries, args.top)}")
    write(args, entries, {"arch": arch, "size": args.size, "note": note})
    return 0


def _check(args: argparse.Namespace) -> None:
    if args.opt is None and args.checkpoint is None:
        raise UsageError("nothing to count: give -opt OPTIONS.yml or --checkpoint FILE")
    if args.size < 1 or args.top < 0:
        raise UsageError("--size: allowed are whole numbers from 1; --top: from 0")
    for name, suffix in (("picture", ".png"), ("csv", ".csv"), ("json", ".json")):
        path = getattr(args, name)
        if path is not None and path.suffix != suffix:
            raise UsageError(f"--{name} {path}: the file is written as {suffix}")


def find_checkpoint(opt: Mapping[str, Any] | None, given: str | None) -> Path | None:
    """Return the quantized checkpoint to count: the one given, else one that the options load."""
    if given is not None:
        path = resolve_model(given)
        if path.is_dir():
            raise QuantFaceError(f"--checkpoint {given}: a folder, expected a .safetensors file")
        return path
    if opt is None:
        return None
    named = [opt["network_g"].get("weights"), (opt.get("path") or {}).get("pretrain_network_g")]
    for name in named:
        path = _existing(name)
        if path is not None and read_metadata(path)["state"] == "quantized":
            return path
    return None


def _existing(name: str | None) -> Path | None:
    """Return the checkpoint of this project that a name means; None for weights of other kinds."""
    if name is None:
        return None
    try:
        path = resolve_model(name)
    except QuantFaceError:
        return None
    return path if path.suffix == ".safetensors" else None


def find_arch(opt: Mapping[str, Any] | None, checkpoint: Path | None) -> dict[str, Any]:
    """Return the type and options of the float network.

    Raises:
        QuantFaceError: the options name no architecture, or another than the checkpoint's.
    """
    network = {} if opt is None else dict(opt["network_g"])
    wrapped = network.get("type") == "QuantFaceArch"
    arch = dict(network.get("arch") or {}) if wrapped else network
    source = checkpoint or _existing(network.get("weights"))
    if source is not None:
        return checkpoint_arch(source, arch)
    if not arch and Path(network.get("weights") or "-").is_dir():
        return {"type": "OSDFace"}
    if not arch:
        raise QuantFaceError("network_g option arch: missing, and no weights exist that define it")
    return arch


def counted(
    net: nn.Module,
    opt: Mapping[str, Any],
    work: Mapping[str, LayerWork],
    products: Mapping[str, int],
) -> tuple[list[Entry], str]:
    """Return the cost of a network that the options will quantize, and a note on assumptions."""
    recipe, bits, plan = read_quant_options(opt["quant"], net)
    convert(net, recipe, bits)
    note = f"recipe {recipe.name}"
    train = opt.get("train") or {}
    learned = train.get("train_weights", train.get("weights")) == "scale"
    if plan is not None:
        check_plan(net, plan)
    elif not learned and (open_layers := undecided(net, recipe.balance)):
        note += (
            f"; calibration chooses how {len(open_layers)} layers are balanced: the most expensive "
            "choice is counted, --checkpoint FILE counts what was chosen"
        )
    return recipe_cost(net, recipe, work, products, plan, learned), note


def write(args: argparse.Namespace, entries: list[Entry], about: Mapping[str, Any]) -> None:
    """Write the files that were asked for."""
    if args.csv is not None:
        write_csv(args.csv, entries)
    if args.json is not None:
        write_json(args.json, entries, about)
    if args.picture is not None:
        cost = total_cost(entries)
        title = f"{args.checkpoint or args.opt}, {args.size}×{args.size}: "
        title += f"{cost.bytes / 1e6:,.1f} MB, {cost.operations / 1e9:,.1f} G operations"
        draw_cost(args.picture, part_costs(entries), title)
