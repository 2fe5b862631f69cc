"""Time the layers of a network, each alone, and the whole network, before it is quantized."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from quantface_arch.archs.build import ARCH_BUILDER
from quantface_arch.archs.meta import count_on_meta, meta_network
from quantface_arch.quant import QuantLayer, Recipe, convert, quant_layers
from quantface_arch.quant.allocation.solve import Amounts
from quantface_arch.quant.calibration.selection import kinds_for
from quantface_arch.quant.config.bitmap import LayerChoice, bits_of
from quantface_arch.quant.config.specs import ROTATED
from quantface_arch.quant.cost.stand_in import StandIn, stand_in_layer
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.runtime import RUNTIMES, load
from quantface_arch.runtime.lowering import LoweredLayer, Lowering
from quantface_arch.runtime.timing import LayerTimer, elapsed, median_time
from quantface_arch.utils.disk_cache import temporary_cache
from quantface_arch.utils.progress import progress_bar

__all__ = ["NetworkClock"]


class NetworkClock:
    """A ``Clock`` of a network on this machine.

    Times of layers are kept in the cache, see ``LayerTimer.cached``.

    Args:
        arch: type and options of the float network.
        recipe: how it will be quantized.
        size: side in pixels of the image.
        runtime, device: what is timed, see ``Budget``.

    Raises:
        QuantFaceError: the network cannot be built or does not take such an image.
    """

    def __init__(
        self, arch: Mapping[str, Any], recipe: Recipe, size: int, runtime: str, device: str
    ) -> None:
        timer = RUNTIMES[runtime].timer
        assert timer is not None
        self.timer: LayerTimer = timer()
        self.arch, self.recipe, self.size = arch, recipe, size
        self.runtime, self.device = runtime, device
        net = meta_network(arch)
        self.runs = {name: work.shapes for name, work in count_on_meta(net, size)[0].items()}
        convert(net, recipe)
        self.sources = traits_of(net).input_sources()
        self.converted = {layer.name: layer for layer in quant_layers(net)}

    def work(self, choice: LayerChoice) -> tuple[int, ...]:
        """See ``Clock.work``."""
        return self.timer.work(choice)

    def layers(self, offered: Mapping[str, Sequence[LayerChoice]]) -> Amounts:
        """Return layer → choice → milliseconds of all runs of the layer."""
        runs = {
            (name, choice): list(self._runs(name, choice))
            for name, choices in offered.items()
            for choice in choices
        }
        distinct = {key: (*pair, shape) for pair, found in runs.items() for key, shape in found}
        times = {
            key: self._time(key, *what)
            for key, what in progress_bar(distinct.items(), desc="timing", unit="layer")
        }
        return {
            name: {x: sum(times[key] for key, _ in runs[name, x]) for x in choices}
            for name, choices in offered.items()
        }

    def network(self, plan: Mapping[str, LayerChoice]) -> float:
        """Return the milliseconds of the whole network for one image."""
        net, recipe = meta_network(self.arch), self.recipe.with_choices(plan)
        convert(net, recipe, bits_of(plan))
        image = torch.zeros(1, 3, self.size, self.size, device=self.device)
        with temporary_cache() as folder, torch.no_grad():
            path = folder / "network.safetensors"
            StandIn.of(net, recipe, self.arch).save(path)
            compiled = load(path, ARCH_BUILDER, self.runtime, self.device)
            # Copying the image to the CPU waits for a GPU.
            return median_time(lambda: elapsed(lambda: compiled(image).cpu()))

    def _runs(self, name: str, choice: LayerChoice) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield a text that identifies what is computed, and the input's shape, for every run."""
        layer, work = self.converted[name], self.work(choice)
        rotation = self._rotation(layer)
        facts = {
            "kind": type(layer).__name__,
            "geometry": layer.geometry(layer),
            "work": work,
            "rotation": rotation.to_dict() if choice.balance in ROTATED else None,
        }
        for shape in self.runs[name]:
            yield json.dumps({**facts, "input": shape}), shape

    def _rotation(self, layer: QuantLayer) -> LayerBalance:
        """Return the layer's rotation, which does nothing if none fits."""
        spec = self.recipe.balance
        sources = self.sources.get(layer.name, (layer.channels,))
        _, segments = kinds_for(layer, spec.offering("rotate"), sources)
        return LayerBalance(None, segments, regular=spec.regular)

    def _time(self, key: str, name: str, choice: LayerChoice, shape: tuple[int, ...]) -> float:
        def make() -> tuple[LoweredLayer, Tensor]:
            layer = self.converted[name]
            made = stand_in_layer(layer, choice, self._rotation(layer))
            return Lowering()(made).eval(), torch.ones(shape)

        return self.timer.cached(key, make)
