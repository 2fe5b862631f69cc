"""The rows of the tables in quality.py: a method at some bit widths, with whose ranges."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import yaml
from cells import REPO, set_steps, shrink

from quantface_arch.quant import Recipe

__all__ = [
    "BASE",
    "OURS",
    "OWN",
    "PEERS",
    "RANGES",
    "SEARCHED",
    "SETTINGS",
    "SWEEPS",
    "Row",
    "edge_notes",
    "is_edge",
    "learning_rate",
    "options_of",
    "rows_of",
    "set_learning_rate",
]

OURS = "quantface"
PEERS = (
    "maxmin",
    "smoothquant",
    "quarot",
    "q_diffusion",
    "efficientdm",
    "passionsr",
    "svdquant",
    "svdquant_gptq",
    "mixdq",
    "sdnq",
    "convrot",
    "loraq",
)
RANGES = ("own", "searched")
# Each setting has the name of its bit widths in the options, and QuantFace's own options file.
SETTINGS = {
    "W6A6": ("w6a6", "w6"),
    "W4A6": ("w4a6", "w4a6"),
    "W4A4": ("w4a4", "w4"),
    "MP": ("w4a4", "mp"),
    "W4A8": ("w4a8", "w4a8"),
}
# Not every method has mixed bit widths; they are compared with uniform ones.
MIXED = (OURS, "mixdq")
BASE = {setting: "W4A4" if setting == "MP" else setting for setting in SETTINGS}
# These are the methods' original granularities, if they differ from the main table's.
DYNAMIC = {"granularity": "token", "symmetric": True, "zero_points": "tensor"}
GROUPED = {"granularity": "group", "group": 64}
GROUPED_INPUTS = {**GROUPED, "symmetric": True, "zero_points": "tensor"}
OWN: dict[str, dict[str, dict[str, Any]]] = {
    OURS: {"weights": GROUPED, "activations": GROUPED_INPUTS},
    "smoothquant": {"activations": DYNAMIC},
    "quarot": {"activations": DYNAMIC},
    "svdquant": {"weights": GROUPED, "activations": GROUPED_INPUTS},
    "svdquant_gptq": {"weights": GROUPED, "activations": GROUPED_INPUTS},
    "sdnq": {"weights": GROUPED, "activations": DYNAMIC},
    "convrot": {"activations": DYNAMIC},
}
# The learning rates that were tried for each method that trains; the recipe has the best one.
SWEEPS = {
    "efficientdm": (0.0003, 0.001, 0.003, 0.01),
    "passionsr": (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1),
    "q_diffusion": (0.001, 0.003, 0.01, 0.03, 0.1),
}
# PassionSR learns all of its ranges. The other methods get a second row with the ranges that
# QuantFace gets.
SEARCHED = tuple(method for method in PEERS if method != "passionsr")


@dataclass(frozen=True)
class Row:
    """One cell of the table.

    Attributes:
        setting: one of ``SETTINGS``.
        method: ``OURS`` or one of ``PEERS``.
        ranges: ``own``, those of the method's recipe, or ``searched``, those of QuantFace.
        seed: seed of the calibration images and of the training.
    """

    setting: str
    method: str
    ranges: str = "own"
    seed: int = 0

    @property
    def label(self) -> str:
        """Return the name in the tables: the method, whose ranges it has, and which seed."""
        named = f"{self.method}, {self.ranges} ranges" if self.method in SEARCHED else self.method
        return f"{named}, seed {self.seed}" if self.seed else named


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Return all requested cells, in the order of settings and methods."""
    rows = [
        Row(setting, method, ranges, seed)
        for setting in args.settings
        for method in args.methods
        for ranges in (args.ranges if method in SEARCHED else ("own",))
        for seed in (range(args.seeds) if method in (OURS, *SWEEPS) else (0,))
    ]
    rows = [row for row in rows if row.setting != "MP" or row.method in MIXED]
    return [row for row in rows if row.method in OWN] if args.own else rows


def read_recipe(name: str) -> dict[str, Any]:
    """Return the options file of a name such as ``peers/maxmin`` or ``quantface_w4``."""
    return yaml.safe_load((REPO / f"options/{name}.yml").read_text())


def options_of(row: Row, args: argparse.Namespace) -> dict[str, Any]:
    """Return a cell's options: the recipe at its bit widths, reduced for a smoke run."""
    widths, own = SETTINGS[row.setting]
    opt = read_recipe(f"quantface_{own}" if row.method == OURS else f"peers/{row.method}")
    quant = opt["quant"]
    quant["name"] = widths
    if row.setting == "MP":
        quant["bit_map"] = str(args.bit_map if row.method == OURS else args.mixdq_map)
    if row.ranges == "searched":
        _update(quant, searched_ranges())
    if args.own:
        _update(quant, OWN.get(row.method, {}))
    if args.calibration:
        quant["calibration"]["num_images"] = args.calibration
    if args.train_faces:
        opt["datasets"]["train"]["dataroot_gt"] = str(args.train_faces)
    opt["manual_seed"] += row.seed
    opt["datasets"]["train"]["seed"] += row.seed
    if args.smoke:
        shrink_search(opt)
    if not args.steps:
        _merge_ranks(quant["branch"])
    set_steps(opt, args.steps if opt["train"]["total_iter"] else 0)
    return opt


def _update(quant: dict[str, Any], parts: dict[str, dict[str, Any]]) -> None:
    for part, options in parts.items():
        quant[part] = {**(quant.get(part) or {}), **deepcopy(options)}


def searched_ranges() -> dict[str, dict[str, Any]]:
    """Return the options of the searches for ranges that QuantFace's W4A4 recipe has."""
    recipe = Recipe.from_name("w4a4")
    names = ("range", "power", "weighted")
    found = {
        part: {name: getattr(getattr(recipe, part), name) for name in names}
        for part in ("weights", "activations")
    }
    found["activations"] |= read_recipe("quantface_w4")["quant"]["activations"]
    return found


def _merge_ranks(branch: dict[str, Any]) -> None:
    """Give branch 1 the rank of branch 2, which stays zero without training."""
    branch["svd"] += branch.pop("distill", 0)


def shrink_search(opt: dict[str, Any]) -> None:
    """Reduce the search, so that a cell takes seconds."""
    shrink(opt)
    quant = opt["quant"]
    quant["branch"].update({"iterations": 2} if "iterations" in quant["branch"] else {})
    quant["balance"].update({"alpha": 0.5} if "alpha" in quant["balance"] else {})


def learning_rate(opt: dict[str, Any]) -> float:
    """Return the learning rate of a method that trains."""
    return _trainer(opt["train"])["lr"]


def set_learning_rate(opt: dict[str, Any], rate: float) -> None:
    """Set the learning rate of a method that trains."""
    _trainer(opt["train"])["lr"] = rate


def _trainer(train: dict[str, Any]) -> dict[str, Any]:
    return train["reconstruction"] if "reconstruction" in train else train["optim_g"]


def is_edge(rate: float, tried: Iterable[float]) -> bool:
    """Return whether a learning rate is the smallest or the largest of those that were tried."""
    tried = tuple(tried)
    return not min(tried) < rate < max(tried)


def edge_notes(methods: Iterable[str]) -> list[str]:
    """Return a line for every method whose learning rate is the first or last that was tried."""
    lines = []
    for method in methods:
        tried = SWEEPS.get(method, ())
        rate = learning_rate(read_recipe(f"peers/{method}")) if tried else None
        if rate is not None and is_edge(rate, tried):
            end, next_one = ("largest", "larger") if rate >= max(tried) else ("smallest", "smaller")
            lines.append(
                f"{method}: its learning rate, {rate:g}, is the {end} of the {len(tried)} that "
                f"were tried, so a {next_one} one may be better"
            )
    return lines
