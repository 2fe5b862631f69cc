"""Try learning rates for the peers that train, and widen the range while an end of it is best.

    python benchmarks/sweep.py --train-faces FACES            # all methods that train
    python benchmarks/sweep.py --methods q_diffusion --rates 0.1 0.3 1 --widen 4

Each method is trained at W4A4 with every rate of --rates (default: those tried before, see
quality_rows.py) and scored by its PSNR against the clean faces. While the best rate is the smallest
or the largest, the next one beyond it is tried too, at most --widen of them; rates are 1 or 3 times
a power of ten. The column "best" says which rate is best, and whether it is still at the edge.
Finished cells are kept in --cache and not computed again; a killed run resumes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from cells import Cells, add_arguments, faces_of, identified
from quality_rows import SWEEPS, Row, is_edge, options_of, set_learning_rate
from report import parser, report
from score import psnr

from quantface_arch.utils.threads import set_thread_count

SETTING = "W4A4"
# ``options_of`` reads these options of quality.py's command line, which a sweep does not have.
FIXED = {"own": False, "calibration": None, "bit_map": None, "mixdq_map": None}


def beyond(rate: float, up: bool) -> float:
    """Return the next rate above or below; rates are 1 or 3 times a power of ten."""
    half_decades = round(2 * math.log10(rate)) + (1 if up else -1)
    return float(f"{10 ** (half_decades / 2):.0e}")


def sweep(
    rates: Iterable[float], widen: int, scored: Callable[[float], float]
) -> dict[float, float]:
    """Return the score of every rate, with further rates while the best one is at an edge.

    Args:
        rates: the first rates to try.
        widen: the largest number of further rates.
        scored: returns the score of a rate; higher is better.
    """
    found = {rate: scored(rate) for rate in rates}
    for _ in range(widen):
        best = max(found, key=lambda rate: found[rate])
        if not is_edge(best, found):
            break
        rate = beyond(best, up=best == max(found))
        found[rate] = scored(rate)
    return dict(sorted(found.items()))


def table_of(method: str, found: dict[float, float]) -> list[dict[str, Any]]:
    """Return a row per rate, which says whether it is the best and whether it is at the edge."""
    best = max(found, key=lambda rate: found[rate])
    mark = "best, at the edge" if is_edge(best, found) else "best"
    return [
        {"method": method, "rate": f"{rate:g}", "PSNR": score, "best": mark if rate == best else ""}
        for rate, score in found.items()
    ]


def figures(image: np.ndarray, clean: np.ndarray, _first: np.ndarray) -> dict[str, float]:
    """Score one image against the clean one."""
    return {"psnr": psnr(image.astype(np.float32), clean.astype(np.float32))}


def score_of(cells: Cells, args: argparse.Namespace, method: str, rate: float) -> float:
    """Return the mean PSNR of a method that was trained with a learning rate."""
    opt = options_of(Row(SETTING, method), args)
    set_learning_rate(opt, rate)
    if "reconstruction" in opt["train"]:
        opt["train"]["reconstruction"]["steps"] = args.block_steps
    opt = identified(f"{method}-{rate:g}", opt, cells.faces)
    return float(np.mean([face["psnr"] for face in cells.run(opt)["faces"].values()]))


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = parser(__doc__)
    add = made.add_argument
    add("--methods", nargs="+", choices=SWEEPS, default=tuple(SWEEPS), help="methods (all)")
    add("--rates", nargs="+", type=float, help="the first rates (those tried before)")
    add("--widen", type=int, default=2, help="try at most WIDEN rates beyond the first ones (2)")
    add("--steps", type=int, default=100, help="training steps (100)")
    add("--block-steps", type=int, default=200, help="steps per block of Q-Diffusion (200)")
    add("--limit", type=int, default=24, help="use the first LIMIT faces (24)")
    add_arguments(made, "sweep")
    made.set_defaults(faces="tune512", **FIXED)
    return made


def main() -> None:
    args = make_parser().parse_args()
    set_thread_count(args.threads)
    with tempfile.TemporaryDirectory() as scratch:
        if args.smoke:
            args.cache, args.steps, args.limit, args.widen = Path(scratch), 1, 1, 0
            args.methods, args.rates = ("passionsr",), (0.001, 0.003)
        faces = faces_of(args.faces, args.limit)
        cells = Cells(faces, args.cache.resolve(), "mini", args.threads, figures)
        rows = []
        for method in args.methods:
            rates = args.rates or SWEEPS[method]
            found = sweep(rates, args.widen, lambda rate, m=method: score_of(cells, args, m, rate))
            rows += table_of(method, found)
        report(rows, args.json)


if __name__ == "__main__":
    main()
