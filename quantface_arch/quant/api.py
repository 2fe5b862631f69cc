"""Post-training quantization of a network in one call."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibrate import Calibration, calibrating
from quantface_arch.quant.checkpoint import round_float_parts
from quantface_arch.quant.convert import ConversionReport, convert
from quantface_arch.quant.resume import CalibrationStore
from quantface_arch.quant.specs import Recipe

__all__ = ["quantize"]


def quantize(
    model: nn.Module,
    recipe: str | Mapping[str, Any] | Recipe,
    calibration_images: Tensor | Iterable[Tensor],
    batch_size: int = 4,
    progress: bool = True,
    store: CalibrationStore | None = None,
) -> ConversionReport:
    """Quantize a network in place: convert its layers, calibrate, fix ranges, round weights.

    The result runs as simulated ("reference") execution: low-bit values in floating point, no
    faster than before. What stays in floating point is rounded to float16, as checkpoints hold it.

    Args:
        model: any module whose ``forward`` takes one float tensor of pictures (N, 3, H, W).
        recipe: a setting's name such as ``w4a8``, a mapping (see ``Recipe.from_dict``) or a Recipe.
        calibration_images: pictures as the network sees them in use: one tensor (N, 3, H, W), or an
            iterable of pictures (3, H, W) and batches (n, 3, H, W). Read once, batch by batch.
        batch_size: pictures that go through the network at a time.
        progress: show a bar on stderr, with an end in sight if the pictures have a ``len``.
        store: where statistics are kept while calibrating, and picked up after a crash.

    Returns:
        which layers were quantized to which width, and which were not.

    Raises:
        QuantFaceError: a wrong recipe, no pictures, a layer that saw none of them, NaN or infinity.
    """
    if batch_size < 1:
        raise QuantFaceError(f"batch_size: found {batch_size}, allowed are numbers from 1")
    report = convert(model, Recipe.of(recipe))
    was_training = model.training
    model.eval()
    try:
        with calibrating(model) as calibration:
            _run(model, calibration, calibration_images, batch_size, progress, store)
    finally:
        model.train(was_training)
    calibration.apply()
    round_float_parts(model)
    return report


@torch.no_grad()
def _run(
    model: nn.Module,
    calibration: Calibration,
    images: Tensor | Iterable[Tensor],
    batch_size: int,
    progress: bool,
    store: CalibrationStore | None,
) -> None:
    done = store.load(calibration) if store else 0
    device = next(model.parameters()).device
    seen = 0
    bar = tqdm(images, desc="calibrating", unit="picture", disable=not progress)
    for seen, batch in enumerate(_batches(bar, batch_size), start=1):
        if seen > done:
            model(batch.to(device))
            if store:
                store.save(calibration, seen)
    if seen == 0:
        raise QuantFaceError("calibration_images: found none, at least one is needed")


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> Iterator[Tensor]:
    """Batches of at most ``batch_size`` pictures; a picture of another size begins a new one."""
    waiting: list[Tensor] = []
    for item in images:
        if not isinstance(item, Tensor) or item.ndim not in (3, 4):
            found = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
            raise QuantFaceError(
                f"calibration_images: found {found}, wanted are (3, H, W) or (n, 3, H, W)"
            )
        for picture in item.unsqueeze(0) if item.ndim == 3 else item:
            if waiting and picture.shape != waiting[0].shape:
                yield torch.stack(waiting)
                waiting = []
            waiting.append(picture)
            if len(waiting) == batch_size:
                yield torch.stack(waiting)
                waiting = []
    if waiting:
        yield torch.stack(waiting)
