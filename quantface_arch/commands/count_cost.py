"""Count what each layer costs: parameters, bytes, multiply-accumulates and bit-operations."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quantface_arch.errors import UsageError
from quantface_arch.utils.cli import Parser, ending

if TYPE_CHECKING:
    from quantface_arch.quant.cost.cost import Entry

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
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending("QUANTFACE_CACHE"),
    )
    add = parser.add_argument
    add("-opt", type=Path, metavar="FILE", help="options file, see options/")
    counted = "count this quantized .safetensors file or shipped model instead"
    add("--checkpoint", metavar="NAME_OR_PATH", help=counted)
    side = "side of the network's input (default: %(default)s)"
    add("--size", type=int, default=512, metavar="N", help=side)
    add("--top", type=int, default=10, metavar="N", help="layers to print (default: %(default)s)")
    add("--picture", type=Path, metavar="FILE", help="plot to write, .png")
    add("--csv", type=Path, metavar="FILE", help="table of all layers to write, .csv")
    add("--json", type=Path, metavar="FILE", help="file of all numbers to write, .json")
    return parser


def main(args: argparse.Namespace) -> int:
    """Count the cost, print it, and write the files."""
    _check(args)
    import quantface_arch.register  # noqa: F401
    from quantface_arch.integration.counting import count
    from quantface_arch.quant.cost.cost import total_cost
    from quantface_arch.reports.cost_report import layer_table, part_table

    entries, about = count(args.opt, args.checkpoint, args.size)
    cost = total_cost(entries)
    saved = (f"{name.replace('_', '-')} -{100 * v:.2f} %" for name, v in cost.reductions.items())
    print(part_table(entries))
    print(f"\n{args.size}x{args.size} pixels; against 32 bits: {', '.join(saved)}")
    print(f"{cost.bytes:,} bytes in tensors; {about['note']}")
    if args.top:
        print(f"\n{layer_table(entries, args.top)}")
    write(args, entries, about)
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


def write(args: argparse.Namespace, entries: list[Entry], about: Mapping[str, Any]) -> None:
    """Write the files that were asked for."""
    from quantface_arch.quant.cost.cost import total_cost
    from quantface_arch.reports.cost_plot import draw_cost
    from quantface_arch.reports.cost_report import part_costs, write_csv, write_json

    if args.csv is not None:
        write_csv(args.csv, entries)
    if args.json is not None:
        write_json(args.json, entries, about)
    if args.picture is not None:
        cost = total_cost(entries)
        title = f"{args.checkpoint or args.opt}, {args.size}×{args.size}: "
        title += f"{cost.bytes / 1e6:,.1f} MB, {cost.operations / 1e9:,.1f} G operations"
        draw_cost(args.picture, part_costs(entries), title)
