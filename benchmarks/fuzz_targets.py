"""Define the targets of benchmarks/robustness_fuzz.py: readers, and the inputs for each."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from fuzz_commands import command_lines
from fuzz_inputs import (
    Strategy,
    as_json,
    as_yaml,
    damaged,
    documents,
    pictures,
    png_fixed,
    tensor_files,
)
from fuzz_loops import loop_lines

__all__ = ["TARGETS"]

REPO = Path(__file__).resolve().parents[1]
ARCH = {"type": "RRDBNet", "num_in_ch": 3, "num_out_ch": 3, "num_feat": 4, "num_block": 1}
ARCH["num_grow_ch"] = 4
# Without these limits, a network so small has no room for branches.
ROOMY = {"cap": 1, "budget": 1}
RECIPES: tuple[dict[str, Any], ...] = (
    {
        "name": "w4a8",
        "balance": {"kind": "both", "alpha": 0.5, "block": 16},
        "branch": {"svd": 1, **ROOMY},
    },
    {"name": "w6a4", "weights": {"symmetric": False}, "branch": {"ranks": {"*": [1, 1]}, **ROOMY}},
    {"name": "w3a3", "balance": {"kind": "scale", "layers": {"body.*": "none"}}},
)

# A target has a strategy for file contents, the file suffix, and the reader.
Target = tuple[Strategy, str, Callable[[Path], Any]]


def _networks(folder: Path) -> list[Path]:
    """Write small checkpoints: a float one, and one for each recipe."""
    from quantface_arch.archs.build import build_arch
    from quantface_arch.quant import quantize, save_checkpoint

    torch.manual_seed(0)
    paths = []
    for index, recipe in enumerate((None, *RECIPES)):
        net = build_arch(ARCH).eval()
        if recipe is not None:
            quantize(net, recipe, torch.rand(2, 3, 8, 8), progress=False)
        paths.append(folder / f"{index}.safetensors")
        save_checkpoint(net, paths[-1], ARCH, extra={"note": "x"})
    return paths


def checkpoints(folder: Path) -> Target:
    from quantface_arch.archs.build import build_arch
    from quantface_arch.quant import load_checkpoint

    seeds = [path.read_bytes() for path in _networks(folder)]
    return tensor_files(seeds), ".safetensors", lambda path: load_checkpoint(path, build_arch)


def balances(folder: Path) -> Target:
    from quantface_arch.quant.checkpoint.balance_file import load_balance, save_balance
    from quantface_arch.quant.ops.balance import LayerBalance

    path = folder / "balance.safetensors"
    plan = {"a": LayerBalance(torch.ones(8), ((1, 8),), 3), "b": LayerBalance(None, ((2, 4),), 1)}
    save_balance(plan, path)
    return tensor_files([path.read_bytes()]), ".safetensors", load_balance


def pickles(folder: Path) -> Target:
    from quantface_arch.utils.state_dict import read_state

    state = {"params": {"a.weight": torch.rand(4, 4), "a.bias": torch.rand(4)}}
    seeds = []
    for plain in (True, False):
        file = io.BytesIO()
        torch.save(state, file, _use_new_zipfile_serialization=plain)
        seeds.append(file.getvalue())
    return damaged(seeds), ".pth", lambda path: read_state(path, ("params",))


def bit_maps(folder: Path) -> Target:
    from quantface_arch.quant.config.bitmap import load_bit_map, save_bit_map

    names = [f"unet.down.{index}.conv" for index in range(6)]
    path = folder / "map.json"
    save_bit_map(path, {name: (4, 2 + index) for index, name in enumerate(names)}, {"w": 4.0}, "x")
    seed = yaml.safe_load(path.read_text())
    return documents([seed], as_yaml), ".yml", lambda path: load_bit_map(path, names)


def sensitivities(folder: Path) -> Target:
    from quantface_arch.quant.allocation.sensitivity_file import LayerFacts, Sensitivities

    path = folder / "found.json"
    measured = {("a", "w", 4): [(0.1, 0.2)], ("a", "a", 8): [(0.3, 0.4)]}
    facts = {"a": LayerFacts(3, 4), "b": LayerFacts(5, 6, (8, 8))}
    Sensitivities("k", 1, facts, 7, measured=measured).save(path)
    seed = yaml.safe_load(path.read_text())
    return documents([seed], as_json), ".json", Sensitivities.load


def options(folder: Path) -> Target:
    from quantface_arch.archs.build import build_arch
    from quantface_arch.integration.options import read_options
    from quantface_arch.integration.patches import patch_options
    from quantface_arch.models.quantize_stage import read_quant_options

    patch_options()
    from basicsr.utils import options as basicsr_options

    net = build_arch(ARCH)

    def read(path: Path) -> None:
        with path.open() as file:
            yaml.load(file, Loader=basicsr_options.ordered_yaml()[0])
        read_quant_options(read_options(path)["quant"], net)

    files = sorted((REPO / "options").glob("quantface_*.yml"))
    files += sorted((REPO / "options/sr").glob("*.yml"))
    return documents([yaml.safe_load(path.read_text()) for path in files], as_yaml), ".yml", read


def recipes(folder: Path) -> Target:
    from quantface_arch.quant import Recipe
    from quantface_arch.utils.safe_yaml_json import read_yaml

    seeds = [Recipe.of(recipe).to_dict() for recipe in RECIPES] + list(RECIPES)
    return documents(seeds, as_yaml), ".yml", lambda path: Recipe.of(read_yaml(path))


def images(folder: Path) -> Target:
    from quantface_arch.utils.images import open_animation, read_image

    def read(path: Path) -> None:
        animation = open_animation(path)
        if animation is None:
            read_image(path)
        else:
            list(animation.frames())

    seeds = pictures()
    return damaged(seeds) | damaged(seeds, png_fixed), ".png", read


TARGETS: dict[str, Callable[[Path], Target]] = {
    "checkpoints": checkpoints,
    "balance files": balances,
    "pickled weights": pickles,
    "bit maps": bit_maps,
    "sensitivities": sensitivities,
    "options files": options,
    "recipes": recipes,
    "images": images,
    "command lines": command_lines,
    "loops": loop_lines,
}
