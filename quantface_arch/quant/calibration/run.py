"""Run the calibration images once through a converted model while its layers are observed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.quant.calibration.merge import check_mergeable
from quantface_arch.quant.calibration.store import CalibrationStore
from quantface_arch.quant.nn.convert import restore_float
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.quant.nn.own_macs import own_macs
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.progress import progress_bar

__all__ = ["CalibrationData", "Images", "batches", "watch"]

# A call holds the positional and the keyword arguments of one forward pass.
Call = tuple[tuple[Any, ...], dict[str, Any]]
Images = Tensor | Iterable[Tensor | Call]


@dataclass(frozen=True)
class CalibrationData:
    """The calibration images, and how they are run through a network.

    Attributes:
        images: images as the network sees them in use: one tensor (N, 3, H, W), or an iterable of
            images (3, H, W) and batches (n, 3, H, W), read once per pass. For a network with other
            arguments, an iterable of its calls ``(args, kwargs)``.
        batch_size: number of images per forward pass.
        progress: show a progress bar on stderr; it has a total if the images have a ``len``.
        store: keeps the statistics on disk during calibration, so that a killed run can continue.
        shard: this process's share of the images, see ``Shard.joined``. All processes end with the
            same model; ``merge`` describes how it may differ from that of a single process.

    Raises:
        QuantFaceError: the batch size is below 1.
    """

    images: Images
    batch_size: int = 4
    progress: bool = True
    store: CalibrationStore | None = None
    shard: Shard | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise QuantFaceError(f"batch_size: found {self.batch_size}, allowed are numbers from 1")

    @classmethod
    def of(cls, value: CalibrationData | Images) -> CalibrationData:
        """Return calibration data as they are, or wrap images with the defaults above."""
        return value if isinstance(value, CalibrationData) else cls(value)

    def reusable(self) -> CalibrationData:
        """Return data that can be read several times; images from an iterator become a list."""
        return replace(self, images=list(self.images)) if self.read_once else self

    @property
    def read_once(self) -> bool:
        """Return whether the images are an iterator, which can be read only once."""
        return isinstance(self.images, Iterator)

    def stage(self, name: str) -> CalibrationData:
        """Return the same data, with a store of its own for another pass."""
        return replace(self, store=self.store.stage(name)) if self.store else self


def watch(
    model: nn.Module,
    watched: AbstractContextManager[Calibration],
    data: CalibrationData,
    what: str,
) -> Calibration:
    """Run a converted model on all images, in evaluation mode, and return the statistics.

    Layers that saw no input become float layers again, unless they are balanced.

    Args:
        watched: a fresh ``calibrating(model)``.
        what: caption of the progress bar.

    Raises:
        QuantFaceError: there are no images, no layer sees them, the network cannot run on them, one
            of their channels is constant, or several processes cannot share this calibration.
    """
    shard, store = data.shard or Shard(), data.store
    if shard.count > 1:
        check_mergeable(quant_layers(model))
        if store:
            store = store.stage(f"part{shard.rank + 1}of{shard.count}")
    was_training = model.training
    model.eval()
    try:
        with watched as calibration:
            bar = progress_bar(data.images, desc=what, unit="image", disable=not data.progress)
            _run(model, calibration, replace(data, images=bar, store=store, shard=shard))
            calibration.merge(shard)
    finally:
        model.train(was_training)
    for layer in calibration.release_idle():
        restore_float(model, layer)
    return calibration


@torch.no_grad()
def _run(model: nn.Module, calibration: Calibration, data: CalibrationData) -> None:
    shard, store = data.shard or Shard(), data.store
    done = store.load(calibration) if store else 0
    seen, ends, found = 0, [], False
    for index, batch in enumerate(calls(data.images, data.batch_size)):
        found = True
        if isinstance(batch, Tensor):
            _check_dtype(batch, model)
            ends.append(batch.movedim(1, 0).flatten(1).aminmax(dim=1))
        if index == 0 and not done and not shard.is_first:
            _forward(model, batch, calibration)
            calibration.forget()
        if index % shard.count != shard.rank:
            continue
        seen += 1
        if seen > done:
            if shard.count > 1:
                calibration.seek(index)
            _forward(model, batch, calibration)
            if store:
                store.save(calibration, seen)
    if not found:
        raise QuantFaceError("calibration_images: found none, at least one is needed")
    if ends:
        _check_contrast(ends)


def _check_dtype(batch: Tensor, model: nn.Module) -> None:
    wanted = dict.fromkeys((torch.float32, next(model.parameters()).dtype))
    if batch.dtype not in wanted:
        raise QuantFaceError(
            f"calibration_images: found {_named(batch.dtype)}, expected images of "
            f"{' or '.join(map(_named, wanted))} as the network sees them in use"
        )


def _forward(model: nn.Module, batch: Tensor | Call, calibration: Calibration) -> None:
    """Run the model, and count the multiply-accumulates of the first batch.

    The counting must not use hooks, because they turn off torch's fast path of attention. Encoders
    without quantized layers take that path, so it is the one to count.
    """
    call: Call = ((batch,), {}) if isinstance(batch, Tensor) else batch
    device = next(model.parameters()).device
    args, kwargs = tree_map_only(Tensor, lambda tensor: tensor.to(device), call)
    try:
        if calibration.macs:
            model(*args, **kwargs)
            return
        with FlopCounterMode(display=False) as counter:
            model(*args, **kwargs)
        calibration.macs = own_macs(model, counter)
    except (torch.OutOfMemoryError, QuantFaceError):
        raise
    except Exception as error:
        # A network may raise any exception for images that it does not support.
        raise QuantFaceError(
            f"calibration_images: {type(model).__name__} cannot run on {_described(call)}; "
            "expected images (N, 3, H, W), or calls (args, kwargs), as it sees them in use "
            f"({one_line(error)})"
        ) from error


def _described(call: Call) -> str:
    """Return the dtypes and shapes of all tensors in a call."""
    tensors = [leaf for leaf in tree_leaves(call) if isinstance(leaf, Tensor)]
    return ", ".join(f"{_named(tensor.dtype)} {tuple(tensor.shape)}" for tensor in tensors)


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _check_contrast(ends: list[torch.return_types.aminmax]) -> None:
    low = torch.stack([end.min for end in ends]).amin(0)
    flat = torch.stack([end.max for end in ends]).amax(0) == low
    if bool(flat.any()):
        channel = int(flat.nonzero()[0])
        raise QuantFaceError(
            f"calibration_images: channel {channel} is constant ({float(low[channel]):g}) in all "
            "images; give real degraded faces"
        )


def calls(images: Iterable[Tensor | Call], batch_size: int) -> Iterator[Tensor | Call]:
    """Yield calls of a network unchanged, and images in batches.

    Raises:
        QuantFaceError: see ``batches``; or calls and images are mixed.
    """
    images = iter(images)
    first = next(images, None)
    if first is None:
        return
    if not _is_call(first):
        yield from batches(chain([first], images), batch_size)
        return
    for call in chain([first], images):
        if not _is_call(call):
            raise QuantFaceError(
                f"calibration_images: found {type(call).__name__} after calls (args, kwargs)"
            )
        yield call


def _is_call(item: Any) -> TypeGuard[Call]:
    return (
        isinstance(item, tuple)
        and len(item) == 2
        and isinstance(item[0], tuple)
        and isinstance(item[1], dict)
    )


def batches(images: Iterable[Any], batch_size: int) -> Iterator[Tensor]:
    """Yield batches of at most ``batch_size`` images; an image of another size begins a new one.

    Raises:
        QuantFaceError: an item is not a tensor (3, H, W) or (n, 3, H, W).
    """
    pending: list[Tensor] = []
    for item in images:
        if not isinstance(item, Tensor) or item.ndim not in (3, 4):
            found = tuple(item.shape) if isinstance(item, Tensor) else type(item).__name__
            raise QuantFaceError(
                f"calibration_images: found {found}, expected (3, H, W) or (n, 3, H, W)"
            )
        for image in item.unsqueeze(0) if item.ndim == 3 else item:
            if pending and (image.shape, image.dtype) != (pending[0].shape, pending[0].dtype):
                yield torch.stack(pending)
                pending = []
            pending.append(image)
            if len(pending) == batch_size:
                yield torch.stack(pending)
                pending = []
    if pending:
        yield torch.stack(pending)
