"""Compare lowered layers with the reference, layer by layer.

    python benchmarks/folding.py                                  # mini-w4a8, folded and faithful
    python benchmarks/folding.py --model mini-w4a4 --modes faithful --all

Every layer gets the input that it has in the reference. The numbers are SQNR in dB: the power of
the reference's output over the power of the difference. "rounding" is the difference to the
full-precision layer, which is the cost of quantization itself; the other columns are the difference
to the lowered layer. Lowering is harmless if its number is well above that of rounding.
"""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from make_lq import degrade_file
from mini_quality import restore
from report import faces_folder, parser, report
from torch import Tensor, nn

from quantface_arch import load_model
from quantface_arch.quant import quant_layers
from quantface_arch.runtime.lowering import Lowering
from quantface_arch.utils.progress import progress_bar
from quantface_arch.utils.runtime_names import MODES

# A noise power this low stands for exact equality.
LEAST = 1e-30
# This many layers are printed without --all.
SHOWN = 8

Powers = dict[str, dict[str, float]]


def compare(model: nn.Module, full: nn.Module, modes: list[str]) -> Powers:
    """Hook a quantized model and return the powers of all runs by layer and comparison."""
    powers: Powers = defaultdict(lambda: defaultdict(float))
    for layer in quant_layers(model):
        others = {"rounding": full.get_submodule(layer.name)}
        others |= {mode: Lowering(mode)(layer) for mode in modes}

        def add(
            _: nn.Module,
            inputs: tuple[Tensor, ...],
            output: Tensor,
            name: str = layer.name,
            others: dict[str, nn.Module] = others,
        ) -> None:
            powers[name]["signal"] += float(output.double().square().sum())
            for key, other in others.items():
                difference = (other(inputs[0]) - output).double()
                powers[name][key] += float(difference.square().sum())

        layer.register_forward_hook(add)
    return powers


def rows_of(powers: Powers) -> list[dict[str, Any]]:
    """Return the SQNR of every layer in dB, sorted by the first mode, worst first."""
    rows = []
    for name, found in powers.items():
        signal = found.pop("signal")
        numbers = {key: 10 * math.log10(signal / max(noise, LEAST)) for key, noise in found.items()}
        rows.append({"layer": name, **numbers})
    first = list(rows[0])[2]
    return sorted(rows, key=lambda row: row[first])


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return minimum and median of each column, and its least distance to rounding."""
    names = [key for key in rows[0] if key != "layer"]
    columns = {name: sorted(row[name] for row in rows) for name in names}
    return [
        {"layer": "least of all", **{name: column[0] for name, column in columns.items()}},
        {"layer": "median", **{name: column[len(column) // 2] for name, column in columns.items()}},
        {
            "layer": "least distance to rounding",
            **{name: min(row[name] - row["rounding"] for row in rows) for name in names},
        },
    ]


def main() -> None:
    args_parser = parser(__doc__)
    add = args_parser.add_argument
    add("--model", default="mini-w4a8", help="a quantized checkpoint (mini-w4a8)")
    add("--float", default="mini", dest="full", help="the same network in full precision (mini)")
    add(
        "--modes", "--ways", nargs="+", choices=MODES, default=["folded", "faithful"], help="(both)"
    )
    add("--faces", default="tune512", help="subfolder of faces/ (tune512)")
    add("--limit", type=int, default=4, help="use the first LIMIT faces (4)")
    add(
        "--all", action="store_true", help="print every layer, not only the worst of the first mode"
    )
    args = args_parser.parse_args()
    folder = faces_folder(args.faces)
    paths = sorted(folder.glob("*.jpg"))
    paths = paths[: 1 if args.smoke else args.limit]
    if not paths:
        args_parser.error(f"no faces in {folder}; set QUANTFACE_DATA")
    model = load_model(args.model)
    with torch.inference_mode():
        powers = compare(model, load_model(args.full), args.modes)
    for path in progress_bar(paths, desc="faces", unit="face"):
        restore(model, degrade_file(path, 128 if args.smoke else 512)[1])
    rows = rows_of(powers)
    report([*(rows if args.all else rows[:SHOWN]), *summary(rows)], args.json)


if __name__ == "__main__":
    main()
