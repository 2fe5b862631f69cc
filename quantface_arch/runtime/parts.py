"""A checkpoint's lowered network and its parts, from which compilers and exporters start."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from quantface_arch.quant.checkpoint.builder import Build
from quantface_arch.quant.checkpoint.save_load import load_checkpoint
from quantface_arch.quant.nn.convert import replace_module
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import Lowering

__all__ = [
    "SIZE",
    "Part",
    "Whole",
    "example_image",
    "lowered_network",
    "only",
    "other_image",
    "record",
]

# Networks are traced on a square image of this side, rounded up to a multiple of their
# ``side_step``. The trace holds for other sizes.
SIZE = 128


class Constant(nn.Module):
    """A module that returns the same tensor for any input."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self, *_: Any) -> Tensor:
        return self.value


class Part(nn.Module):
    """A method of a network as a module, since only modules can be traced."""

    def __init__(self, network: nn.Module, name: str) -> None:
        super().__init__()
        self.network, self.name = network, name

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.network, self.name)(*inputs)


def rounded_up(side: int, step: int) -> int:
    """Return ``side`` rounded up to a multiple of ``step``; a traced side gives a traced result."""
    return (side + step - 1) // step * step


class Multiples(nn.Module):
    """A module that returns images unchanged, and fails if a side is not a multiple of ``step``.

    It also fails inside an exported program, which cannot raise errors of its own: reshaping an
    image to its sides rounded up is impossible if that makes them larger. Compilers keep the
    reshape, because they cannot know that it changes nothing. We do not round down, because a side
    of 0 means an unchanged side in ONNX.
    """

    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step

    def forward(self, image: Tensor) -> Tensor:
        """Return the image (N, 3, H, W), or raise RuntimeError."""
        height, width = (rounded_up(side, self.step) for side in image.shape[-2:])
        return image.reshape(image.shape[0], image.shape[1], height, width)


class Whole(Part):
    """A whole network as a module that refuses the sizes that the network refuses.

    Runtimes show the name of the operator that fails, so the name says what is allowed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__(network, "forward")
        step = traits_of(network).side_step
        self.check = f"both_sides_must_be_multiples_of_{step}"
        self.add_module(self.check, Multiples(step) if step > 1 else nn.Identity())

    def forward(self, *inputs: Tensor) -> Any:
        """Run the network on images (N, 3, H, W)."""
        return super().forward(self.get_submodule(self.check)(*inputs))


def example_image(network: nn.Module) -> Tensor:
    """Return a black image (1, 3, H, W) in float32 on which a network can be traced."""
    side = rounded_up(SIZE, traits_of(network).side_step)
    return torch.zeros(1, 3, side, side)


def other_image(network: nn.Module) -> Tensor:
    """Return a noise image (1, 3, H, W) in float32 with sides unlike those of ``example_image``."""
    step = traits_of(network).side_step
    height, width = (rounded_up(SIZE * n // 4, step) for n in (5, 6))
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def lowered_network(path: Path, build: Build, lowering: Lowering) -> nn.Module:
    """Load a checkpoint's network with lowered layers.

    Submodules whose output does not depend on the image, the network's ``constant_layers``, become
    constants.

    Raises:
        QuantFaceError: see ``load_checkpoint`` and ``Lowering``.
    """
    network = load_checkpoint(path, build, lowering)
    for name, value in traits_of(network).constant_layers().items():
        replace_module(network, network.get_submodule(name), Constant(value))
    return network


@torch.no_grad()
def record(
    network: nn.Module, image: Tensor | None = None
) -> dict[str, tuple[tuple[Tensor, ...], set[nn.Module]]]:
    """Run a network once and return the inputs of every part and the modules that it calls.

    Args:
        image: float (N, 3, H, W), on the network's device. None takes
            ``example_image``, on the CPU.
    """
    found: dict[str, tuple[tuple[Tensor, ...], set[nn.Module]]] = {}
    calls: list[nn.Module] = []

    def recording(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def record(*inputs: Tensor) -> Any:
            before = len(calls)
            outputs = method(*inputs)
            found[name] = inputs, set(calls[before:])
            return outputs

        return record

    hooks = [
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
        for module in network.modules()
    ]
    methods = {name: vars(network).get(name) for name in traits_of(network).parts}
    for name in methods:
        vars(network)[name] = recording(name, getattr(network, name))
    try:
        network(example_image(network) if image is None else image)
    finally:
        for name, method in methods.items():
            del vars(network)[name]
            if method is not None:
                vars(network)[name] = method
        for hook in hooks:
            hook.remove()
    return found


@contextmanager
def only(network: nn.Module, called: set[nn.Module]) -> Iterator[None]:
    """Hide the branches of a network that a part does not reach, since tracing visits all modules.

    A module that is not called may still lend its tensors to its parent. It stays if the parent is
    called.
    """
    hidden = [
        (parent, name, child)
        for parent in network.modules()
        if parent not in called
        for name, child in parent._modules.items()
        if child is not None and child._modules and called.isdisjoint(child.modules())
    ]
    for parent, name, _ in hidden:
        parent._modules[name] = None
    try:
        yield
    finally:
        for parent, name, child in hidden:
            parent._modules[name] = child
