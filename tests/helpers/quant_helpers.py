"""Small networks and measures that several quantization tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from quantface_arch.quant import (
    CalibrationData,
    QuantLayer,
    Recipe,
    convert,
    quant_layers,
    quantize,
)


class TinyNet(nn.Module):
    """Convolutions of several kinds, a norm and a linear layer; (N, 3, H, W) to the same."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(4, width)
        self.body = nn.Conv2d(width, width, 3, padding=1, groups=2, padding_mode="reflect")
        self.linear = nn.Linear(width, width)
        self.line = nn.Conv1d(width, width, 1)
        self.conv_out = nn.Conv2d(width, 3, 3, padding="same", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm(self.conv_in(x)))
        h = h + self.body(h)
        h = h + self.linear(h.movedim(1, -1)).movedim(-1, 1)
        h = h + self.line(h.flatten(2)).view_as(h)
        return self.conv_out(h)


def pictures(count: int = 6, side: int = 16) -> Tensor:
    """Return random images (count, 3, side, side) in [-1, 1]."""
    return torch.rand(count, 3, side, side) * 2 - 1


def converted_net(name: str) -> TinyNet:
    """Return a TinyNet converted to a setting, not calibrated yet."""
    net = TinyNet()
    convert(net, Recipe.from_name(name))
    return net


def quantized_layers(
    net: nn.Module, shape: tuple[int, int, int], kind: str, name: str, **options: object
) -> list[tuple[QuantLayer, Tensor]]:
    """Return a network's layers, quantized with branches, each with an input that it has met.

    ``shape`` is that of the network's images, ``kind`` the balancing.
    """
    branch = {"svd": 1, "distill": 1, "budget": 1}
    recipe = {"name": name, "balance": {"kind": kind}, "branch": branch, **options}
    seen: dict[str, Tensor] = {}
    quantize(net.eval(), Recipe.from_dict(recipe), torch.randn(4, *shape), progress=False)
    for layer in quant_layers(net):
        layer.register_forward_pre_hook(lambda layer, x: seen.__setitem__(layer.name, x[0]))
    with torch.no_grad():
        net(torch.randn(2, *shape))
    return [(layer, seen[layer.name]) for layer in quant_layers(net)]


def far_from_zero() -> tuple[QuantLayer, Tensor]:
    """Return a padded convolution whose input channels have no level near zero, and an input."""
    net = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1))
    x = torch.rand(2, 16, 9, 9) + torch.arange(5.0, 21.0).view(-1, 1, 1)
    options = {"name": "w4a4", "balance": {"kind": "none"}, "branch": {"svd": 0}}
    recipe = {**options, "activations": {"zero_points": "channel"}}
    quantize(net, recipe, CalibrationData([((x,), {})], progress=False))
    layer = next(quant_layers(net))
    assert bool((layer.quantize_input(torch.zeros_like(x)) > 3).all())
    return layer, x


def sqnr(reference: Tensor, quantized: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB."""
    reference, quantized = reference.detach(), quantized.detach()
    noise = (quantized - reference).double().square().mean()
    return float(10 * torch.log10(reference.double().square().mean() / noise))


class Tokens(nn.Module):
    """Some module on the positions of an image, between two convolutions."""

    def __init__(self, body: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = body
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x):
        h = self.head(x)
        tokens = self.body(h.flatten(2).transpose(1, 2))
        return self.tail(tokens.transpose(1, 2).reshape(h.shape))
