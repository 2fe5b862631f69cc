"""Quantized checkpoints of small networks."""

from __future__ import annotations

from quantface_arch.quant import Recipe, quantize, save_checkpoint

BRANCH = {"svd": 1, "budget": 1}


def saved(path, build, x, arch, name="w4a8", **options):
    """Save a quantized network as a checkpoint; return its path."""
    net = build().eval()
    recipe = {"name": name, "balance": {"kind": "scale"}, "branch": BRANCH, **options}
    quantize(net, Recipe.from_dict(recipe), x, progress=False)
    save_checkpoint(net, path, arch)
    return path
