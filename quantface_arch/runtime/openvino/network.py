"""A network whose parts OpenVINO executes."""

from __future__ import annotations

import platform
import warnings
from functools import partial
from pathlib import Path

import openvino
from torch import nn

from quantface_arch import __version__
from quantface_arch.quant.checkpoint.builder import Builder
from quantface_arch.quant.checkpoint.save_load import build_skeleton
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import FULL, SPARE, Lowering
from quantface_arch.runtime.openvino.compiled import CompiledPart
from quantface_arch.runtime.openvino.memory import return_freed
from quantface_arch.runtime.openvino.one_size import OneSizePart
from quantface_arch.runtime.openvino.trace import trace_checkpoint, trace_part
from quantface_arch.utils.disk_cache import cached
from quantface_arch.utils.files import file_digest

__all__ = ["has_vnni", "load_network"]

# Raise this number when the traced graph changes, so that older files are not used.
VERSION = 5
# A network with more bytes of weights than this holds nothing but them between two runs of a part.
LARGE = 2**28


def has_vnni() -> bool:
    """Return whether the CPU sums int8 products in 32 bits; True if this cannot be determined."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return True
    try:
        return "vnni" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return True


def load_network(path: Path, builder: Builder, mode: str) -> nn.Module:
    """Load a network; see ``quantface_arch.runtime.openvino.load``."""
    network = build_skeleton(path, builder.shell)
    lowering = Lowering(mode, FULL if has_vnni() else SPARE)
    if lowering.largest == SPARE:
        warnings.warn(
            "this processor has no VNNI: weights are rounded to 7 bits, and the gain is smaller",
            stacklevel=2,
        )
    key = {
        "checkpoint": file_digest(path),
        "mode": mode,
        "largest": lowering.largest,
        "versions": [VERSION, __version__, openvino.__version__],
    }
    folder, kept = cached(
        "openvino", key, lambda scratch: trace_checkpoint(path, builder.full, lowering, scratch)
    )
    return_freed()
    # The compiled parts hold the weights.
    for module in network.modules():
        module._parameters.clear()
        module._buffers.clear()
    graphs = {name: folder / f"{name}.xml" for name in traits_of(network).parts}
    sizes = [it.with_suffix(".bin").stat().st_size for it in graphs.values() if it.exists()]
    for name, graph in graphs.items():
        # An instance attribute takes precedence over the method of the class.
        if name in kept["one_size"]:
            trace = partial(trace_part, path, builder.full, lowering, name)
            digest = f"{folder.name}-{name}"
            vars(network)[name] = OneSizePart(name, digest, trace, kept["exact"])
        else:
            vars(network)[name] = CompiledPart(graph, kept["exact"], frugal=sum(sizes) > LARGE)
    return network
