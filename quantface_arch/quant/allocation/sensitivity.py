"""Measure how much the image suffers if one layer is quantized and the rest is not."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.allocation.prefix_cache import PrefixCache
from quantface_arch.quant.calibration.calibrate import Calibration, fix_input_grid
from quantface_arch.quant.calibration.observer import ActivationObserver
from quantface_arch.quant.nn.layers import QuantLayer, State, quant_layers
from quantface_arch.utils.progress import progress_bar

__all__ = ["Measured", "Probe", "measure"]

# A probe is a layer's name, "w" (its weight) or "a" (its input), and a bit width.
Probe = tuple[str, str, int]
# Each probe has the quantization error and the perceptual distance of every batch so far.
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
    """Quantize one layer at a time, its weight or its input, and compare images (paper, Sec. 3).

    The range is found for each bit width. Layers before the quantized one are not computed again,
    see ``PrefixCache``; the outputs are the same as if they were.

    Args:
        model: a converted network in evaluation mode, balanced or not, not quantized yet; it is not
            changed. Its output is one tensor of images.
        calibration: statistics of the same model.
        batches: float (n, 3, H, W) each. One recorded batch is in memory at a time.
        probes: what to measure; it is fastest in the order in which the layers run.
        distance: perceptual distance of two batches of images (pred, target), a scalar.
        measured: results of an earlier run on the same batches, which are continued.
        save: called with all results from time to time and at the end, even after an exception.
        progress: show a progress bar on stderr.

    Returns:
        probe → per batch, the squared error relative to the output's power, and the distance.

    Raises:
        QuantFaceError: a layer is unknown or never runs, or a result is not finite.
    """
    measured = {} if measured is None else measured
    trials = _Trials(model, calibration.observers, distance)
    trials.check(probes)
    with _saving(measured, save) as save_sometimes, _computing_in_float(trials.layers.values()):
        for probe, result in trials.results(batches, probes, measured, progress):
            measured.setdefault(probe, []).append(result)
            save_sometimes()
    return measured


@contextmanager
def _saving(
    measured: Measured, save: Callable[[Measured], None] | None
) -> Iterator[Callable[[], None]]:
    """Yield a function that saves results if the last save is long ago; also save at the end."""
    saved = time.monotonic()

    def save_sometimes() -> None:
        nonlocal saved
        if save and time.monotonic() - saved > SAVE_SECONDS:
            save(measured)
            saved = time.monotonic()

    try:
        yield save_sometimes
    finally:
        if save:
            save(measured)


class _Trials:
    """Runs of a network with one active quantizer."""

    def __init__(
        self,
        model: nn.Module,
        observers: Mapping[str, ActivationObserver],
        distance: Callable[[Tensor, Tensor], Tensor],
    ) -> None:
        self.model = model
        self.layers = {layer.name: layer for layer in quant_layers(model)}
        self.observers = observers
        self.distance = distance
        self.grids: dict[Probe, tuple[Tensor, Tensor]] = {}

    def check(self, probes: Iterable[Probe]) -> None:
        """Raise QuantFaceError if a probe names a layer that the model does not have."""
        for name, _, _ in probes:
            if name not in self.layers:
                raise QuantFaceError(f"sensitivity: the model has no quantizable layer {name!r}")

    def results(
        self, batches: Sequence[Tensor], probes: Sequence[Probe], measured: Measured, progress: bool
    ) -> Iterator[tuple[Probe, tuple[float, float]]]:
        """Yield the results that ``measured`` lacks, batch by batch."""
        device = next(self.model.parameters()).device
        total = len(batches) * len(probes)
        with progress_bar(total=total, desc="measuring", unit="probe", disable=not progress) as bar:
            for index, batch in enumerate(batches):
                todo = [probe for probe in probes if len(measured.get(probe, ())) == index]
                bar.update(len(probes) - len(todo))
                for found in self._compare(batch.to(device), todo):
                    yield found
                    bar.update()

    def _compare(
        self, batch: Tensor, probes: Sequence[Probe]
    ) -> Iterator[tuple[Probe, tuple[float, float]]]:
        """Yield the error and the distance of each probe on one batch."""
        if not probes:
            return
        cache = PrefixCache(self.model, batch)
        target = cache.output
        power = float(target.double().square().mean()) or 1.0
        for probe in probes:
            output = cache.run(self.layers[probe[0]], self._make(probe))
            error = float((output - target).double().square().mean()) / power
            with torch.no_grad():
                far = float(self.distance(output, target))
            if not (math.isfinite(error) and math.isfinite(far)):
                name, kind, bits = probe
                what = "weight" if kind == "w" else "input"
                raise QuantFaceError(
                    f"layer {name}: with its {bits}-bit {what} the network's output is not finite"
                )
            yield probe, (error, far)

    def _make(self, probe: Probe) -> QuantLayer:
        """Return a copy of a layer with one active quantizer."""
        name, kind, bits = probe
        trial, observer = copy.deepcopy(self.layers[name]), self.observers[name]
        if kind == "w":
            trial.weight_spec = trial.weight_spec.with_bits(bits)
            trial.quantize_weight(observer.mean_square)
            return trial
        trial.activation_spec = trial.activation_spec.with_bits(bits)
        if probe not in self.grids:
            fix_input_grid(trial, observer)
            self.grids[probe] = trial.act_scale, trial.act_zero_point
        trial.set_input_grid(*self.grids[probe])
        # The weight is still in floating point, so only the input is rounded.
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
