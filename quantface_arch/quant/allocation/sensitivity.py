"""How much the picture suffers from each layer and width alone, the rest in floating point."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.prefix_cache import PrefixCache
from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers

__all__ = ["Measured", "Probe", "measure"]

# A layer's name, "w" (its weight) or "a" (its input), and a width.
Probe = tuple[str, str, int]
# By probe, for every batch so far: quantization error and perceptual distance.
Measured = dict[Probe, list[tuple[float, float]]]

SAVE_SECONDS = 20.0


def measure(
    model: nn.Module,
    calibration: Calibration,
    batches: Sequence[Tensor],
    probes: Sequence[Probe],
    distance: Callable[[Tensor, Tensor], Tensor],
    measured: Measured | None = None,
    save: Callable[[Measured], None] | None = None,
    progress: bool = True,
) -> Measured:
    """Quantize one layer at a time, its weight or its input, and compare pictures (Sec. 3).

    A layer is given the range that suits the width. Layers before it are not computed again, see
    ``PrefixCache``; the network's outputs are the same as if they were.

    Args:
        model: converted, balanced if it is to be, not quantized yet, in evaluation mode; it is left
            as it was. Its output is one tensor of pictures.
        calibration: of the same model.
        batches: pictures as the network sees them, float (n, 3, H, W) each. One recorded batch is
            held in memory at a time.
        probes: what to measure; quickest in the order in which the layers run.
        distance: perceptual distance of two batches of pictures (pred, target), a scalar.
        measured: results of an earlier run on the same batches, which are continued.
        save: called with all results every so often, and at the end, also after an exception.
        progress: show a bar on stderr.

    Returns:
        for every probe and batch the squared error relative to the output's power, and the
        distance.

    Raises:
        QuantFaceError: a layer that the model does not have or never uses, or a result that is not
            finite; the message names the layer.
    """
    layers = {layer.name: layer for layer in quant_layers(model)}
    for name, _, _ in probes:
        if name not in layers:
            raise QuantFaceError(f"sensitivity: the model has no quantizable layer {name!r}")
    measured = {} if measured is None else measured
    trials = _Trials(layers, calibration.observers)
    device = next(model.parameters()).device
    bar = tqdm(
        total=len(batches) * len(probes), desc="measuring", unit="probe", disable=not progress
    )
    saved = time.monotonic()
    try:
        with bar, _computing_in_float(layers.values()):
            for index, batch in enumerate(batches):
                todo = [probe for probe in probes if len(measured.get(probe, ())) == index]
                bar.update(len(probes) - len(todo))
                for probe, result in _compare(
                    model, batch.to(device), layers, todo, trials, distance
                ):
                    measured.setdefault(probe, []).append(result)
                    bar.update()
                    if save and time.monotonic() - saved > SAVE_SECONDS:
                        save(measured)
                        saved = time.monotonic()
    finally:
        if save:
            save(measured)
    return measured


def _compare(
    model: nn.Module,
    batch: Tensor,
    layers: Mapping[str, QuantLayer],
    probes: Sequence[Probe],
    trials: _Trials,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Iterator[tuple[Probe, tuple[float, float]]]:
    if not probes:
        return
    cache = PrefixCache(model, batch)
    target = cache.output
    power = float(target.double().square().mean()) or 1.0
    for probe in probes:
        output = cache.run(layers[probe[0]], trials.make(probe))
        error = float((output - target).double().square().mean()) / power
        with torch.no_grad():
            far = float(distance(output, target))
        if not (math.isfinite(error) and math.isfinite(far)):
            name, kind, bits = probe
            what = "weight" if kind == "w" else "input"
            raise QuantFaceError(
                f"layer {name}: with its {bits}-bit {what} the network's output is not finite"
            )
        yield probe, (error, far)


class _Trials:
    """Copies of layers with one quantizer at work."""

    def __init__(
        self, layers: Mapping[str, QuantLayer], observers: Mapping[str, ActivationObserver]
    ) -> None:
        self.layers = layers
        self.observers = observers
        self.ranges: dict[Probe, tuple[float, float]] = {}

    def make(self, probe: Probe) -> QuantLayer:
        name, kind, bits = probe
        trial, observer = copy.deepcopy(self.layers[name]), self.observers[name]
        if kind == "w":
            trial.weight_spec = trial.weight_spec.with_bits(bits)
            trial.quantize_weight(observer.mean_square)
            return trial
        trial.activation_spec = trial.activation_spec.with_bits(bits)
        if probe not in self.ranges:
            self.ranges[probe] = observer.range(trial.activation_spec)
        trial.set_activation_range(*self.ranges[probe])
        # The weight is in floating point still: only the input is rounded.
        trial.state = State.QUANTIZED
        return trial


@contextmanager
def _computing_in_float(layers: Iterable[QuantLayer]) -> Iterator[None]:
    states = {layer: layer.state for layer in layers}
    for layer, state in states.items():
        if state is State.QUANTIZED:
            raise QuantFaceError(f"layer {layer.name}: quantized already; measure before that")
    try:
        for layer in states:
            layer.state = State.FLOAT
        yield
    finally:
        for layer, state in states.items():
            layer.state = state
