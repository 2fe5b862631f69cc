"""Count the multiply-accumulates of each module from one forward pass of a network."""

from __future__ import annotations

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["own_macs"]


def own_macs(model: nn.Module, counter: FlopCounterMode) -> dict[str, int]:
    """Return the multiply-accumulates of each module's own code, which excludes its submodules.

    Modules that multiply nothing are left out.

    Args:
        counter: the counter of one forward pass of the model.
    """
    root = type(model).__name__
    flops = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    paths = {name: f"{root}.{name}" if name else root for name, _ in model.named_modules()}
    # Only modules that ran are counted. Those that merely hold others, such as lists, did not run.
    own = {name: flops[path] for name, path in paths.items() if path in flops}
    for name, path in paths.items():
        outer = name
        while outer and path in flops:
            outer = outer.rpartition(".")[0]
            if outer in own:
                own[outer] -= flops[path]
                break
    return {name: macs for name, macs in own.items() if macs}
