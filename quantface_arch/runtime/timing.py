"""Time single layers and whole networks on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from quantface_arch.utils.disk_cache import cached
from quantface_arch.utils.threads import thread_count

if TYPE_CHECKING:
    from torch import Tensor

    from quantface_arch.quant.config.bitmap import LayerChoice
    from quantface_arch.runtime.lowering import LoweredLayer

__all__ = ["LayerTimer", "elapsed", "median_time"]

# A time is the median of this many runs, or of more if they are short: up to MOST, until they take
# so many milliseconds together.
RUNS, MOST, ENOUGH = 7, 50, 50.0


@dataclass(frozen=True)
class LayerTimer:
    """How a runtime times a single layer.

    Attributes:
        identity: what times depend on besides the layer and the number of threads: the processor
            and the versions of the runtime.
        isolate: compiles a lowered layer for an input, and returns a function that runs it once and
            returns the milliseconds.
        work: returns how much of each kind of work a choice adds to the product of a layer, see
            ``lowering.work``.
    """

    identity: tuple[str, ...]
    isolate: Callable[[LoweredLayer, Tensor], Callable[[], float]]
    work: Callable[[LayerChoice], tuple[int, ...]]

    def cached(self, layer: Any, make: Callable[[], tuple[LoweredLayer, Tensor]]) -> float:
        """Return the milliseconds of a layer, which are measured once and kept on disk.

        Args:
            layer: plain data that identify what is computed.
            make: returns the layer and its input.
        """

        def measure(_: object) -> dict[str, float]:
            return {"milliseconds": median_time(self.isolate(*make()))}

        key = {"layer": layer, "identity": self.identity, "threads": thread_count()}
        return cached("timings", key, measure)[1]["milliseconds"]


def elapsed(run: Callable[[], object]) -> float:
    """Run a function, and return the milliseconds that it took."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def median_time(run: Callable[[], float]) -> float:
    """Return the median of what a function returns, after a first call that does not count."""
    run()
    times: list[float] = []
    while len(times) < RUNS or (len(times) < MOST and sum(times) < ENOUGH):
        times.append(run())
    return statistics.median(times)
