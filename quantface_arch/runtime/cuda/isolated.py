"""A single lowered layer, timed on a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from quantface_arch.quant.config.bitmap import LayerChoice
from quantface_arch.runtime.cuda.network import with_kernels
from quantface_arch.runtime.lowering import LoweredLayer, work
from quantface_arch.runtime.timing import LayerTimer, elapsed

__all__ = ["layer_timer"]


def layer_timer() -> LayerTimer:
    """Return how the current GPU times a layer, as a CUDA graph of its own."""
    return LayerTimer((torch.__version__, torch.cuda.get_device_name()), _isolated, _work)


def _work(choice: LayerChoice) -> tuple[int, ...]:
    # Weights whose integers fit into four bits are stored in four bits.
    return (*work(choice), int(choice.weight_bits > 4))


def _isolated(layer: LoweredLayer, x: Tensor) -> Callable[[], float]:
    network, x = nn.Sequential(layer), x.cuda()
    with_kernels(network, x.device, torch.bfloat16)

    @torch.no_grad()
    def run() -> None:
        network(x)
        torch.cuda.synchronize()

    return lambda: elapsed(run)
