"""Choose how a network's channels are balanced, and write the choice to a file."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from quantface_arch.errors import UsageError
from quantface_arch.utils.cli import HUB_VARIABLES, Parser, ending
from quantface_arch.utils.devices import check_device
from quantface_arch.utils.files import atomic_path

DESCRIPTION = """\
Choose how the input channels of every layer are balanced (not at all, scaled, rotated or both),
and write it to a file that options can name. Nothing is quantized or trained.

The network is network_g of the options file, in full precision; quant holds the bit widths that
errors are measured at and the balance block, for example

  quant:
    name: w4a4
    balance: {kind: auto}           # or none, scale, rotate, both: the same for every layer

The images are those that training would calibrate on, or those of -i.

examples:
  choose for the shipped restorer:
    python scripts/balance.py -opt options/quantface_w4.yml --out balance.safetensors
  on degraded faces of your own:
    python scripts/balance.py -opt options/quantface_w4.yml -i datasets/faces_val/lq \\
        --out balance.safetensors
  then train or test with it: in the options file
    quant:
      balance: {file: balance.safetensors}
"""


def make_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        description=DESCRIPTION,
        epilog=ending(*HUB_VARIABLES, "OMP_NUM_THREADS"),
    )
    add = parser.add_argument
    add("-opt", required=True, type=Path, metavar="FILE", help="options file, see options/")
    add("--out", required=True, type=Path, metavar="FILE", help="file to write, .safetensors")
    faces = "folder of degraded faces (default: from the options)"
    add("-i", "--input", type=Path, metavar="DIR", help=faces)
    count = "images to use (default: from the options, else 32)"
    add("--num-images", type=int, metavar="N", help=count)
    add("--device", default="cpu", help="torch device (default: %(default)s)")
    report = "write the table of layers to this file, not to the screen"
    add("--report", type=Path, metavar="FILE", help=report)
    return parser


def main(args: argparse.Namespace) -> int:
    """Choose the balancing, save it, and print the table."""
    if args.out.suffix != ".safetensors":
        raise UsageError(f"{args.out}: the balancing is written as .safetensors")
    if args.input is not None and not args.input.is_dir():
        raise UsageError(f"{args.input}: no such folder of faces")
    device = check_device(args.device)
    import quantface_arch.register  # noqa: F401
    from quantface_arch.integration.balancing import choose_balance, table

    plan, ratios = choose_balance(args.opt, args.out, args.input, args.num_images, device)
    _show(table(plan, ratios), args.report)
    kinds = Counter(balance.kind for balance in plan.values())
    print(f"{args.out}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()))
    return 0


def _show(text: str, path: Path | None) -> None:
    if path is None:
        print(text)
        return
    with atomic_path(path) as temporary:
        temporary.write_text(f"{text}\n")
