"""Calibration: watch the inputs of quantized layers, then fix their ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.merge import merged
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers
from quantface_arch.quant.ops.channel_grid import channel_grid
from quantface_arch.quant.ops.gptq import MAX_COLUMNS, check_memory, hessian_bytes, system_memory
from quantface_arch.utils.distributed import Shard

__all__ = [
    "Calibration",
    "calibrating",
    "check_hessians_fit",
    "fix_input_grid",
    "gptq_fits",
    "unmet_rounding",
]


class Calibration:
    """Statistics of the inputs of a model's quantized layers.

    Attributes:
        observers: the statistics so far, by layer name.
        macs: multiply-accumulates of each module's own code in one batch; empty until one has run.
    """

    def __init__(
        self, model: nn.Module, keep_samples: bool = False, keep_hessians: bool = False
    ) -> None:
        self.macs: dict[str, int] = {}
        self._layers = {layer.name: layer for layer in quant_layers(model)}
        if not self._layers:
            raise QuantFaceError("calibration: the model has no quantized layer; convert it first")
        self.observers = {
            name: ActivationObserver(
                name,
                layer.channel_axis,
                keep_samples,
                layer.columns if keep_hessians and _wants_hessian(layer) else None,
                layer.activation_spec.zero_points == "channel",
            )
            for name, layer in self._layers.items()
        }

    def attach(self) -> None:
        """Attach an observer to every layer; observed layers compute in floating point."""
        for name, layer in self._layers.items():
            layer.observer = self.observers[name]

    def detach(self) -> None:
        """Undo ``attach``."""
        for layer in self._layers.values():
            layer.observer = None

    def check(self) -> None:
        """Raise QuantFaceError if a layer has seen no input, or its weight is not finite."""
        for name, layer in self._layers.items():
            if not self.observers[name].calls:
                raise QuantFaceError(
                    f"layer {name}: saw no input during calibration; exclude it or feed it"
                )
            if not bool(layer.weight.isfinite().all()):
                raise QuantFaceError(f"layer {name}: its weight holds NaN or infinity")

    def release_idle(self) -> list[QuantLayer]:
        """Stop watching the layers that saw no input, and return them.

        Balanced layers are kept, because the float layer that they replace cannot be restored.

        Raises:
            QuantFaceError: no layer saw any input.
        """
        idle = [
            name
            for name, layer in self._layers.items()
            if not self.observers[name].calls and layer.balance.kind == "none"
        ]
        if len(idle) == len(self._layers):
            raise QuantFaceError(
                f"layer {idle[0]}: saw no input during calibration, nor did any other layer"
            )
        for name in idle:
            del self.observers[name]
        return [self._layers.pop(name) for name in idle]

    def forget(self) -> None:
        """See ``ActivationObserver.forget``."""
        for observer in self.observers.values():
            observer.forget()

    def seek(self, batch: int) -> None:
        """See ``ActivationObserver.seek``."""
        for observer in self.observers.values():
            observer.seek(batch)

    def merge(self, shard: Shard) -> None:
        """Merge the statistics of all processes, so that each process has them all.

        Raises:
            QuantFaceError: see ``merged``; or another process has ended.
        """
        if shard.count == 1:
            return
        for name, observer in self.observers.items():
            observer.load_state_dict(merged(name, shard.gather(observer.state_dict())))

    def apply(self) -> None:
        """Fix the ranges and round the weights, which makes every layer a quantized one.

        Weights that are rounded already are not changed.

        Raises:
            QuantFaceError: see ``check``; the layers are then unchanged.
        """
        self.check()
        for name, layer in self._layers.items():
            _apply_to(layer, self.observers[name])

    def state_dict(self) -> dict[str, Tensor]:
        """Return all statistics as tensors, keyed ``LAYER:STATISTIC``, for ``load_state_dict``."""
        return {
            f"{name}:{key}": value
            for name, observer in self.observers.items()
            for key, value in observer.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the saved statistics of the same model.

        Raises:
            QuantFaceError: the statistics are of other layers or incomplete.
        """
        parts: dict[str, dict[str, Tensor]] = {name: {} for name in self.observers}
        for key, value in state.items():
            name, _, statistic = key.rpartition(":")
            if name not in parts:
                raise QuantFaceError(f"calibration statistics: the model has no layer {name!r}")
            parts[name][statistic] = value
        wanted = next(iter(self.observers.values())).state_dict().keys()
        for name, part in parts.items():
            if part.keys() != wanted:
                raise QuantFaceError(f"calibration statistics: layer {name!r} is not complete")
            self.observers[name].load_state_dict(part)


def fix_input_grid(layer: QuantLayer, observer: ActivationObserver) -> None:
    """Fix the grid of a layer's balanced input by the statistics of it."""
    spec = layer.activation_spec
    layer.set_activation_range(*observer.range(spec))
    if spec.has_channel_zero_points and spec.range == "mse":
        counts, energy = observer.channel_counts, layer.column_energy()
        layer.set_input_grid(*channel_grid(counts, observer.reach, spec, energy))


def _apply_to(layer: QuantLayer, observer: ActivationObserver) -> None:
    fix_input_grid(layer, observer)
    if layer.state is not State.QUANTIZED:
        hessian = observer.hessian if observer.hessian.numel() else None
        layer.quantize_weight(observer.mean_square, hessian=hessian)
    layer.state = State.QUANTIZED


def _wants_hessian(layer: QuantLayer) -> bool:
    """Return whether GPTQ rounds the layer's weight."""
    fits = layer.groups == 1 and layer.weight[0].numel() <= MAX_COLUMNS
    return layer.weight_spec.rounding == "gptq" and fits


def unmet_rounding(layers: Iterable[QuantLayer]) -> list[str]:
    """Return a line for every layer whose weight GPTQ cannot round, though its spec says so."""
    return [
        f"{layer.name}: found {layer.groups} groups of {layer.weight[0].numel()} columns, rounding "
        f"gptq allows 1 group of at most {MAX_COLUMNS}; it is rounded to nearest"
        for layer in layers
        if layer.weight_spec.rounding == "gptq" and not _wants_hessian(layer)
    ]


def gptq_fits(model: nn.Module, share: float = 0.25) -> bool:
    """Return whether GPTQ can round all layers of a float model in a share of all memory.

    The answer is the same whenever it is asked, so that a killed run goes on as it began. Two
    copies of the Hessians are counted, since statistics are also written to disk.
    """
    columns = [
        module.weight[0].numel()
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]
    memory = system_memory("MemTotal")
    needed = hessian_bytes(columns, copies=2)
    return max(columns, default=0) <= MAX_COLUMNS and (memory is None or needed <= share * memory)


def check_hessians_fit(model: nn.Module, copies: int = 1) -> None:
    """Raise QuantFaceError if the Hessians that a converted model needs do not fit into memory.

    Args:
        copies: how many copies of all Hessians are held at a time.
    """
    wanted = [layer.weight[0].numel() for layer in quant_layers(model) if _wants_hessian(layer)]
    if wanted:
        check_memory(wanted, copies)


@contextmanager
def calibrating(
    model: nn.Module, keep_samples: bool = False, keep_hessians: bool = False
) -> Iterator[Calibration]:
    """Observe a converted model while it runs; ``apply()`` then quantizes it.

    Inside the block, the model computes in floating point. The observers are detached at the end of
    the block, even after an exception::

        with calibrating(model) as calibration:
            for batch in faces:
                model(batch)
        calibration.apply()

    Args:
        keep_samples: keep crops of every layer's input, for ``balance_layers``.
        keep_hessians: keep the Hessians of layers whose weights GPTQ is to round.

    Raises:
        QuantFaceError: the model has no quantized layer, or the input of one holds NaN or infinity.
    """
    calibration = Calibration(model, keep_samples, keep_hessians)
    calibration.attach()
    try:
        yield calibration
    finally:
        calibration.detach()
