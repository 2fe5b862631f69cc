"""Networks, recipes and measures that the tests of the account share."""

from __future__ import annotations

import torch
from quant_helpers import TinyNet
from safetensors import safe_open
from torch import nn

from quantface_arch.quant import Recipe, convert
from quantface_arch.quant.cost.macs import count_work


class Attention(nn.Module):
    """Self-attention in two heads over the positions of an image, below a list of modules."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Conv2d(3, 8, 1)])
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        h = self.blocks[0](x).flatten(2).transpose(1, 2).unflatten(2, (2, 4)).transpose(1, 2)
        h = nn.functional.scaled_dot_product_attention(h, h, h)
        return self.last(h.transpose(1, 2).flatten(2))


class Wide(TinyNet):
    """TinyNet at 48 channels: a Paley order, blocks of 24 in groups, and a norm between."""

    def __init__(self) -> None:
        super().__init__(48)


def build(_):
    """Return the network of every checkpoint."""
    return Wide()


def converted(recipe, bits=None, net=Wide):
    """Return a converted model on the meta device, its work as a float one, and its recipe."""
    model = net().to("meta")
    work = count_work(model, torch.zeros(1, 3, 16, 16, device="meta"))
    recipe = Recipe.of(recipe)
    convert(model, recipe, bits)
    return model, work, recipe


def recipe_of(kind="both", weights=4, activations=4, rank=(3, 1), **weight_options):
    """Return a recipe's options, with balancing of one kind and a branch."""
    return {
        "name": f"w{weights}a{activations}",
        "weights": weight_options,
        "balance": {"kind": kind},
        "branch": {"svd": rank[0], "distill": rank[1], "budget": 1},
    }


def by_name(entries):
    """Return the entries of an account by their names."""
    return {entry.name: entry for entry in entries}


def stored_bytes(path):
    """Return the bytes of the tensors of a safetensors file."""
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(key) for key in set(file.keys())]
    return sum(value.numel() * value.element_size() for value in tensors)
