"""Block-wise reconstruction: train each block of a network alone to give the teacher's output.

As in BRECQ (Li et al., 2021), we store the inputs of the student's block, which come from blocks
already trained, and the outputs of the teacher's block. Then we train the block's branch factors,
or other parameters that ``trainable`` offers (such as AdaRound's), on the squared error of the
output. Gradients and optimizer state exist for one block at a time, so this works for networks that
are too large to be distilled whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.run import batches
from quantface_arch.quant.finetune.block_calls import (
    BlockCall,
    Networks,
    converter,
    execution_order,
    floats,
    mapped,
    record,
)
from quantface_arch.quant.finetune.trainable import fold_trained, trainable
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.utils.progress import progress_bar

__all__ = ["reconstruct"]

# A block's error is measured about this many times while it is trained.
LOOKS = 5


def reconstruct(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor | Iterable[Tensor],
    blocks: Sequence[str],
    steps: int,
    lr: float,
    batch_size: int = 4,
    bounds: bool | str = False,
    weights: str | None = None,
    progress: bool = True,
) -> dict[str, tuple[float, float]]:
    """Train a quantized network's branches block by block, in place, in the order of execution.

    Each block keeps its best state, so none becomes worse on these images. A block that runs
    several times is trained on its first run. Afterwards the blocks require no gradient.

    Args:
        student: quantized network, see ``prepare``; its ``forward`` takes only images.
        teacher: the full-precision network; its modules have the same names as the student's.
        images: see ``quantize``; float (3, H, W) or (n, 3, H, W). All are held in memory.
        blocks: shell globs on module names; of nested matches, the outermost is the block.
        steps: steps of Adam per block; the learning rate falls to 0 by a cosine schedule.
        lr: learning rate at the start.
        batch_size: number of images per step.
        bounds, weights: what else is trained, see ``trainable``.
        progress: show a progress bar on stderr.

    Returns:
        block → mean squared error of its output before and after, for blocks that can be trained.

    Raises:
        QuantFaceError: a glob matches no module that runs, the teacher lacks a block, no block
            holds anything to train, or a value becomes NaN or infinite.
    """
    training = _Training(steps, lr, bounds, weights)
    networks = Networks(student, teacher, _batches(images, batch_size))
    with _evaluating(student, teacher):
        return _reconstruct_blocks(networks, blocks, training, progress)


@dataclass(frozen=True)
class _Training:
    """How a block is trained, see ``reconstruct``."""

    steps: int
    lr: float
    bounds: bool | str
    weights: str | None

    def __post_init__(self) -> None:
        if self.steps < 1 or self.lr <= 0:
            raise QuantFaceError(
                f"reconstruct: found {self.steps} steps at lr {self.lr}, both must be above 0"
            )


def _reconstruct_blocks(
    networks: Networks, patterns: Sequence[str], training: _Training, progress: bool
) -> dict[str, tuple[float, float]]:
    """Train the matching blocks, and return their errors before and after."""
    bounds, weights = training.bounds, training.weights
    errors = {}
    order = execution_order(networks.student, networks.batches[0], patterns)
    with progress_bar(order, disable=not progress) as bar:
        for name in bar:
            bar.set_description(f"reconstructing {name}")
            block = networks.student.get_submodule(name)
            if not any(bounds or weights or layer.rank for layer in quant_layers(block)):
                continue
            parameters = trainable(block, bounds, weights, networks.teacher)
            calls = record(networks, name)
            tuning = _Tuning(name, block, parameters, calls)
            errors[name] = tuning.run(training.steps, training.lr)
            fold_trained(block)
            block.requires_grad_(False)
    if not errors:
        raise QuantFaceError("reconstruct: no block has a branch or a bound that can be trained")
    return errors


def _batches(images: Tensor | Iterable[Tensor], batch_size: int) -> list[Tensor]:
    """Return the images in batches, or raise QuantFaceError if there are none."""
    found = list(batches(images, batch_size))
    if not found:
        raise QuantFaceError("reconstruct: no images, at least one is needed")
    return found


@contextmanager
def _evaluating(*nets: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, and restore every module's own mode at the end."""
    modes = [(module, module.training) for net in nets for module in net.modules()]
    for net in nets:
        net.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _Tuning:
    """The training of one block on its recorded calls."""

    def __init__(
        self, name: str, block: nn.Module, parameters: list[nn.Parameter], calls: list[BlockCall]
    ) -> None:
        self.name = name
        self.block = block
        self.parameters = parameters
        self.calls = calls
        self.restore = converter(parameters[0].device, parameters[0].dtype)

    def run(self, steps: int, lr: float) -> tuple[float, float]:
        """Train, keep the best state, and return the errors before and after."""
        before = least = self._error()
        best = [parameter.detach().clone() for parameter in self.parameters]
        optimizer = torch.optim.Adam(self.parameters, lr)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        try:
            for step, index in enumerate(self._order(steps), start=1):
                optimizer.zero_grad(set_to_none=True)
                (self._loss(self.calls[index]) + self._penalty(step / steps)).backward()
                optimizer.step()
                scheduler.step()
                if step % max(1, steps // LOOKS) == 0 or step == steps:
                    error = self._error()
                    if error < least:
                        least = error
                        best = [parameter.detach().clone() for parameter in self.parameters]
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, best, strict=True):
                    parameter.copy_(value)
                    parameter.grad = None
        return before, least

    def _order(self, steps: int) -> Iterator[int]:
        """Yield the batch of each step: all batches in turn, shuffled anew each time."""
        generator = torch.Generator().manual_seed(0)
        order: list[int] = []
        for _ in range(steps):
            order = order or torch.randperm(len(self.calls), generator=generator).tolist()
            yield order.pop()

    def _loss(self, call: BlockCall) -> Tensor:
        found = floats(self.block(*mapped(call.args, self.restore), **self._kwargs(call)))
        targets = [self.restore(target) for target in call.targets]
        squares = [
            (value.float() - target.float()).square().sum()
            for value, target in zip(found, targets, strict=True)
        ]
        loss = torch.stack(squares).sum() / sum(target.numel() for target in targets)
        if not bool(loss.isfinite()):
            raise QuantFaceError(
                f"block {self.name}: its error became {float(loss)}; take a smaller learning rate"
            )
        return loss

    def _penalty(self, progress: float) -> Tensor | float:
        tuners = [layer.tuner for layer in quant_layers(self.block) if layer.tuner is not None]
        return sum(tuner.penalty(progress) for tuner in tuners)

    def _kwargs(self, call: BlockCall) -> dict[str, Any]:
        return mapped(call.kwargs, self.restore)

    @torch.no_grad()
    def _error(self) -> float:
        return sum(float(self._loss(call)) for call in self.calls) / len(self.calls)
