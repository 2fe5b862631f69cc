"""Networks on the meta device, which have shapes but no weights, and their work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn

from quantface_arch.archs.build import build_arch
from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.quant.cost.macs import LayerWork, count_products, count_work

__all__ = ["count_on_meta", "meta_network"]


def meta_network(arch: Mapping[str, Any]) -> nn.Module:
    """Build the float network on the meta device, where shapes take no memory."""
    with init_empty_weights():
        net = build_arch(arch)
    return net.to("meta").eval()


def count_on_meta(net: nn.Module, size: int) -> tuple[dict[str, LayerWork], dict[str, int]]:
    """Count, for one image, the work of the layers and the products outside layers.

    Raises:
        QuantFaceError: the network does not take images of this size.
    """
    image = torch.zeros(1, 3, size, size, device="meta")
    try:
        return count_work(net, image), count_products(net, image)
    except (RuntimeError, AssertionError) as error:
        what = f"{type(net).__name__} cannot be counted on a 3x{size}x{size} image"
        raise QuantFaceError(f"{what}: {one_line(error)}") from error
