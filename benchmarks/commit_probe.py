"""Print the digests of images that the importable quantface_arch makes from a tree's files.

``compare_commits.py`` runs this file with the code of two commits, so it uses only names that both
have: the public ones of ``quantface_arch`` and BasicSR's registries.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import yaml
from torch import nn

import quantface_arch
import quantface_arch.register
from basicsr.archs import build_network

# These keys of the block ``quant`` are no part of a recipe, or name layers of its network.
NOT_RECIPE = ("calibration", "bit_map", "eight_bit", "include", "exclude")
SIDE = 64
WIDTH = 448


def digest(values: np.ndarray) -> str:
    """Return the SHA-256 of an array's bytes."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


class SmallNet(nn.Module):
    """Convolutions and linear layers of the kinds that recipes treat differently."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.middle = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.shortcut = nn.Conv2d(WIDTH, WIDTH, 1)
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)
        self.narrow = nn.Linear(2 * WIDTH, WIDTH)
        self.last = nn.Conv2d(WIDTH, 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 3, H, W) to the same shape."""
        x = torch.nn.functional.silu(self.first(x))
        x = self.shortcut(x) + torch.nn.functional.silu(self.middle(x))
        x = x + self.narrow(torch.nn.functional.gelu(self.mix(x.movedim(1, -1)))).movedim(-1, 1)
        return self.last(x)


def shipped(tree: Path, face: np.ndarray, pattern: str) -> dict[str, str]:
    """Return the digest of one face from every checkpoint of a name that the tree ships."""
    found = {}
    # The release 0.1.0 has no such option, and takes the tones of the input.
    fixes_color = "color_fix" in inspect.signature(quantface_arch.FaceRestorer).parameters
    options: dict[str, Any] = {"color_fix": "lowres"} if fixes_color else {}
    for path in sorted((tree / "quantface_arch/weights").glob(pattern)):
        restorer = quantface_arch.FaceRestorer.from_pretrained(path, runtime="reference", **options)
        found[path.name] = digest(restorer.restore_aligned([face])[0])
    return found


def network(options: dict[str, Any]) -> str | None:
    """Return the digest of a network's output from random weights.

    None stands for a network that is too large, or that needs files that are not shipped.
    """
    options = dict(options.get("arch", options))
    if options.get("preset") == "osdface" or "weights" in options:
        return None
    torch.manual_seed(0)
    net = build_network(options).eval()
    return digest(net(torch.rand(1, 3, SIDE, SIDE)).numpy())


def recipe(options: dict[str, Any]) -> str:
    """Return the digest of the small network's output after it is quantized by a recipe."""
    return _quantized(
        json.dumps({key: value for key, value in options.items() if key not in NOT_RECIPE})
    )


# Several options files share a recipe, so the digests are kept.
@functools.cache
def _quantized(recipe_json: str) -> str:
    torch.manual_seed(0)
    net = SmallNet().eval()
    images = [torch.rand(1, 3, SIDE // 4, SIDE // 4) * 2 - 1 for _ in range(4)]
    quantface_arch.quantize(
        net, quantface_arch.Recipe.from_dict(json.loads(recipe_json)), images, progress=False
    )
    return digest(net(images[0]).numpy())


@torch.no_grad()
def main(tree: Path, smoke: bool) -> int:
    """Print one JSON object that maps what each image is of to its digest."""
    face = cv2.imread(str(sorted((tree / "inputs").glob("astronaut*"))[0]))
    face = np.ascontiguousarray(cv2.resize(face[:512, :512], (512, 512))[..., ::-1])
    found: dict[str, str | None] = shipped(
        tree, face, "mini-w4a8.safetensors" if smoke else "mini*.safetensors"
    )
    for path in sorted((tree / "options").rglob("maxmin.yml" if smoke else "*.yml")):
        options = yaml.safe_load(path.read_text()) or {}
        name = str(path.relative_to(tree))
        if "network_g" in options:
            found[f"{name}: network_g"] = network(options["network_g"])
        if "quant" in options:
            found[f"{name}: quant"] = recipe(options["quant"])
    print(json.dumps({name: value for name, value in found.items() if value is not None}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "--smoke" in sys.argv))
