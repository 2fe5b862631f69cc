"""Choose bit widths, rank and balancing of every layer within budgets; write them as a bit map."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.errors import UsageError
from quantface_arch.quant.allocation.budget import LIMITS
from quantface_arch.quant.config.bitmap import SUFFIXES, save_bit_map
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending
from quantface_arch.utils.devices import check_device
from quantface_arch.utils.distributed import Shard

if TYPE_CHECKING:
    from quantface_arch.integration.allocate import AllocationRun
    from quantface_arch.quant.allocation.allocation import Allocation

DESCRIPTION = """\
Choose the bit widths of every layer, and with a budget of megabytes or milliseconds its rank and
its balancing too: measure how much the network's images suffer if one layer alone is quantized,
then find the cheapest plan within the budgets (an integer program). The results are a bit map,
which 'quant: bit_map:' of an options file can name, a plot of it (MAP.png), and the sensitivities
(MAP.sensitivities.json).

examples:
  the shipped restorer, activations of at most 4 bits on average:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml --out mini_mp.yml
  another budget from the same measurements, in a second and without the network:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml --out mini_a5.yml \\
        --sensitivities mini_mp.sensitivities.json --activation-bits 5
  4 bits in all layers, so that only ranks and balancing are chosen:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml --out mini_w4a4.yml \\
        --sensitivities mini_mp.sensitivities.json --activations 4 --activation-bits 5
  a checkpoint of at most 5 megabytes, with a plot of other sizes:
    python scripts/allocate_bits.py -opt options/allocate_budget.yml --out small.yml \\
        --megabytes 5 --pareto sizes.png
  the same, and at most 150 milliseconds for an image of 512 x 512 in OpenVINO on this CPU:
    python scripts/allocate_bits.py -opt options/allocate_budget.yml --out fast.yml \\
        --milliseconds 150
  measured on degraded faces of your own:
    python scripts/allocate_bits.py -opt options/allocate_mini.yml -i datasets/faces_val/lq \\
        --out mini_mp.yml

After a kill, the same command continues where it stopped. Under torchrun the calibration images
and the layers to measure are divided among its processes:
  torchrun --nproc-per-node 2 scripts/allocate_bits.py -opt options/allocate_mini.yml --out map.yml
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(*HUB_VARIABLES, "OMP_NUM_THREADS"),
    )
    add = parser.add_argument_group("input and output").add_argument
    options = "options file, see options/allocate_mini.yml"
    add("-opt", required=True, type=Path, metavar="FILE", help=options)
    written = f"bit map to write, {', '.join(SUFFIXES)}"
    add("--out", required=True, type=Path, metavar="FILE", help=written)
    plot = "also solve for ranges of budgets, and plot them to this .png"
    add("--pareto", type=Path, metavar="FILE", help=plot)
    add = parser.add_argument_group("measurement").add_argument
    known = "solve from this file; nothing is measured"
    add("--sensitivities", type=Path, metavar="FILE", help=known)
    faces = "folder of degraded faces (default: from the options)"
    add("-i", "--input", type=Path, metavar="DIR", help=faces)
    count = "images to measure on (default: from the options)"
    add("--num-images", type=int, metavar="N", help=count)
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    add = parser.add_argument_group("choices (default: from the options)").add_argument
    widths = "bit widths that layers' inputs may have; a single one gives it to all"
    add("--activations", type=int, nargs="+", metavar="BITS", help=widths)
    add = parser.add_argument_group("budgets (default: from the options)").add_argument
    add("--activation-bits", type=float, metavar="BITS", help="mean bits of layers' inputs")
    add("--weight-bits", type=float, metavar="BITS", help="mean bits of weights")
    add("--megabytes", type=float, metavar="MB", help="size of the checkpoint")
    add("--milliseconds", type=float, metavar="MS", help="time of an image")
    add("--bytes", type=float, help=argparse.SUPPRESS)
    return parser


def main(args: argparse.Namespace) -> int:
    """Measure, solve, write the bit map, and print a summary."""
    if args.out.suffix not in SUFFIXES:
        raise UsageError(f"{args.out}: bit maps end in {', '.join(SUFFIXES)}")
    if args.pareto is not None and args.pareto.suffix != ".png":
        raise UsageError(f"{args.pareto}: the plot ends in .png")
    if args.pareto == args.out.with_suffix(".png"):
        raise UsageError(f"{args.pareto}: the bit map's own plot has this name; choose another one")
    if args.input is not None and not args.input.is_dir():
        raise UsageError(f"{args.input}: no such folder of faces")
    from quantface_arch.integration.allocate import allocate_from_options
    from quantface_arch.reports.allocation_plot import draw_curves

    shard = Shard.here()
    with shard.joined():
        allocation = allocate_from_options(run_of(args), shard)
        if allocation is not None:
            note = f"made by scripts/allocate_bits.py from {args.opt.name}"
            write(args.out, allocation, note)
            if args.pareto is not None:
                draw_curves(args.pareto, allocation.curves)
            print(allocation.summary(args.out))
    return 0


def run_of(args: argparse.Namespace) -> AllocationRun:
    """Return the run that the command line asks for."""
    from quantface_arch.integration.allocate import AllocationRun

    budget = {name: getattr(args, name) for name in (*LIMITS, "bytes")}
    return AllocationRun(
        options=args.opt,
        out=args.out,
        sensitivities=args.sensitivities,
        input=args.input,
        num_images=args.num_images,
        activations=args.activations,
        budget={name: limit for name, limit in budget.items() if limit is not None},
        curves=args.pareto is not None,
        device=check_device(args.device),
    )


def write(path: Path, allocation: Allocation, note: str) -> None:
    """Write the bit map, and its plot beside it."""
    from quantface_arch.reports.allocation_plot import draw_allocation

    averages = allocation.averages
    save_bit_map(path, allocation.choices, averages, note)
    title = f"{path.name}: {averages['weight_bits']:g} weight bits, "
    title += f"{averages['activation_bits']:g} activation bits on average"
    draw_allocation(path.with_suffix(".png"), allocation.layers, allocation.choices, title)
