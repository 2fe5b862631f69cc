"""Multiply-accumulates by module, from one counted pass of a network."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["own_macs"]


def own_macs(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Return the multiply-accumulates of each module's own code, layers included.

    Args:
        counter: what counted one pass of the model; modules that multiply nothing are left out.
    """
    root = type(model).__name__
    flops = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    paths = {name: f"{root}.{name}" if name else root for name, _ in model.named_modules()}
    # Of modules that ran; those that only hold others, such as lists, did not.
    own = {name: flops[path] for name, path in paths.items() if path in flops}
    for name, path in paths.items():
        outer = name
        while outer and path in flops:
            outer = outer.rpartition(".")[0]
            if outer in own:
                own[outer] -= flops[path]
                break
    return {name: macs for name, macs in own.items() if macs}
