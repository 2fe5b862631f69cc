"""Block-wise reconstruction: each block of a network is tuned alone to give the teacher's output.

As BRECQ (Li et al., 2021): what a block of the student receives (from blocks already tuned) and
what the teacher's gives are stored, then the block's branch factors, or what ``trainable`` offers
beside them (AdaRound among it), are trained on the squared error between the two. Gradients and
optimizer hold one block at a time, so that a network too large to be distilled whole can be
improved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.calibration.run import batches
from quantface_arch.quant.finetune.trainable import fold_trained, trainable
from quantface_arch.quant.nn.layers import quant_layers

__all__ = ["reconstruct"]

# Above this, what a block sees and should give is stored at 16 bits.
LARGE_BYTES = 2**30
# How often a block's error is measured while it is trained.
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
    """Tune a quantized network's branches block by block, in place, in the order of execution.

    A block keeps the best state that was met, the first included: no block becomes worse on these
    images. Inputs and outputs may be tensors or tuples, lists and mappings of them. A block that
    runs several times in a forward pass is tuned at its first run. Afterwards nothing of the
    student's blocks requires a gradient.

    Args:
        student: quantized network, see ``prepare``; its forward takes pictures alone.
        teacher: the full-precision network; its modules have the student's names.
        images: see ``quantize``; float (3, H, W) or (n, 3, H, W). All are held in memory.
        blocks: shell globs on module names; of nested matches the outermost is the block.
        steps: of Adam, per block; the learning rate falls to 0 by a cosine.
        lr: learning rate at the start.
        batch_size: pictures at a time.
        bounds, weights: what else is trained, see ``trainable``.
        progress: show a bar on stderr.

    Returns:
        block → mean squared error of its output, before and after. Blocks in which nothing can be
        trained are left out.

    Raises:
        QuantFaceError: a glob matches no module that runs, the teacher has no such block, no block
            holds anything to train, or a block's values become NaN or infinite.
    """
    if steps < 1 or lr <= 0:
        raise QuantFaceError(f"reconstruct: found {steps} steps at lr {lr}, both must be above 0")
    pictures = list(batches(images, batch_size))
    if not pictures:
        raise QuantFaceError("reconstruct: no images, at least one is needed")
    modes = [(module, module.training) for net in (student, teacher) for module in net.modules()]
    student.eval()
    teacher.eval()
    errors = {}
    try:
        with tqdm(_execution_order(student, pictures[0], blocks), disable=not progress) as bar:
            for name in bar:
                bar.set_description(f"reconstructing {name}")
                block = student.get_submodule(name)
                if not any(bounds or weights or layer.rank for layer in quant_layers(block)):
                    continue
                parameters = trainable(block, bounds, weights, teacher)
                calls = _record(student, teacher, name, pictures)
                errors[name] = _Tuning(name, block, parameters, calls).run(steps, lr)
                fold_trained(block)
                block.requires_grad_(False)
    finally:
        for module, training in modes:
            module.training = training
    if not errors:
        raise QuantFaceError("reconstruct: no block has a branch or a bound that can be trained")
    return errors


class _Reached(Exception):
    """Ends a forward pass at the block that was to be watched."""


@dataclass(frozen=True)
class _Call:
    """What one batch brings to a block, on the CPU, and what the block should give."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    targets: list[Tensor]


@torch.no_grad()
def _execution_order(net: nn.Module, batch: Tensor, patterns: Sequence[str]) -> list[str]:
    """Outermost matching modules that run, by their first run."""
    called: dict[str, None] = {}
    handles = [
        module.register_forward_pre_hook(lambda *_, name=name: called.setdefault(name))
        for name, module in net.named_modules()
        if name and any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    try:
        net(_moved(batch, net))
    finally:
        for handle in handles:
            handle.remove()
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in called):
            raise QuantFaceError(f"reconstruct: block {pattern!r} matches no module that runs")
    return [name for name in called if not any(name.startswith(f"{outer}.") for outer in called)]


@torch.no_grad()
def _record(
    student: nn.Module, teacher: nn.Module, name: str, pictures: Sequence[Tensor]
) -> list[_Call]:
    """Per batch, the student's inputs of a block and the teacher's outputs of it."""
    if name not in dict(teacher.named_modules()):
        raise QuantFaceError(f"reconstruct: the teacher has no block {name!r}")
    calls = []
    dtype = None
    for batch in pictures:
        args, kwargs = _watched(student, name, batch, "input")
        targets = _floats(_watched(teacher, name, batch, "output"))
        if not all(bool(value.isfinite().all()) for value in [*targets, *_floats((args, kwargs))]):
            raise QuantFaceError(f"block {name}: its input or the teacher's output is not finite")
        if dtype is None:
            size = sum(value.numel() for value in [*targets, *_floats((args, kwargs))])
            dtype = torch.bfloat16 if 4 * size * len(pictures) > LARGE_BYTES else torch.float32
        keep = _converter(torch.device("cpu"), dtype)
        calls.append(_Call(_mapped(args, keep), _mapped(kwargs, keep), _mapped(targets, keep)))
    return calls


def _watched(net: nn.Module, name: str, batch: Tensor, what: str) -> Any:
    """Run a network up to a block; return the block's (args, kwargs), or its output."""
    caught: list[Any] = []

    def reach(value: Any) -> None:
        caught.append(value)
        raise _Reached

    block = net.get_submodule(name)
    if what == "input":
        handle = block.register_forward_pre_hook(lambda _, *call: reach(call), with_kwargs=True)
    else:
        handle = block.register_forward_hook(lambda *call: reach(call[-1]))
    try:
        net(_moved(batch, net))
    except _Reached:
        return caught[0]
    finally:
        handle.remove()
    raise QuantFaceError(f"block {name}: it does not run in the teacher")


class _Tuning:
    """Training of one block on what was recorded of it."""

    def __init__(
        self, name: str, block: nn.Module, parameters: list[nn.Parameter], calls: list[_Call]
    ) -> None:
        self.name = name
        self.block = block
        self.parameters = parameters
        self.calls = calls
        self.restore = _converter(parameters[0].device, parameters[0].dtype)

    def run(self, steps: int, lr: float) -> tuple[float, float]:
        """Train, keep the best state; the errors before and after."""
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
        """Which batch each step takes: all of them in turn, shuffled anew every time."""
        generator = torch.Generator().manual_seed(0)
        order: list[int] = []
        for _ in range(steps):
            order = order or torch.randperm(len(self.calls), generator=generator).tolist()
            yield order.pop()

    def _loss(self, call: _Call) -> Tensor:
        found = _floats(self.block(*_mapped(call.args, self.restore), **self._kwargs(call)))
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

    def _kwargs(self, call: _Call) -> dict[str, Any]:
        return _mapped(call.kwargs, self.restore)

    @torch.no_grad()
    def _error(self) -> float:
        return sum(float(self._loss(call)) for call in self.calls) / len(self.calls)


def _converter(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Brings tensors to a device, floating-point ones also to a type."""

    def convert(value: Tensor) -> Tensor:
        return value.to(device, dtype if value.is_floating_point() else None)

    return convert


def _moved(batch: Tensor, net: nn.Module) -> Tensor:
    return batch.to(next(net.parameters()).device)


def _mapped(value: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """``value`` with every tensor in its tuples, lists and mappings changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(item, change) for item in value))
    if isinstance(value, (tuple, list)):
        return type(value)(_mapped(item, change) for item in value)
    if isinstance(value, dict):
        return {key: _mapped(item, change) for key, item in value.items()}
    return value


def _floats(value: Any) -> list[Tensor]:
    """Floating-point tensors in nested tuples, lists and mappings, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, Mapping):
        value = value.values()
    elif not isinstance(value, (tuple, list)):
        return []
    return [tensor for item in value for tensor in _floats(item)]
