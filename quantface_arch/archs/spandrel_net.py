"""Networks of spandrel's architectures, rebuilt from plain options.

spandrel recognizes about forty restoration architectures by their state dicts alone. It is an
optional package: ``pip install "quantface[models]"``.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, one_line

__all__ = [
    "FACE_NETWORKS",
    "FIDELITY",
    "SIGNED_CALLS",
    "TYPE",
    "SpandrelNet",
    "describe",
    "registry",
]

TYPE = "SpandrelNet"
# These restore aligned faces.
FACE_NETWORKS = ("CodeFormer", "GFPGAN", "RestoreFormer")
# spandrel hands an image to these networks as it is. They take and give values in [-1, 1], as their
# authors' programs do; GFPGAN's noise is the one that is stored with its weights.
SIGNED_CALLS: dict[str, Callable[[Any, Tensor, float], Tensor]] = {
    "GFPGAN": lambda net, x, fidelity: net(x, return_rgb=False, randomize_noise=False)[0],
    "CodeFormer": lambda net, x, fidelity: net(x, weight=fidelity)[0],
}
FIDELITY = 0.5
# These take one image at a time.
_SINGLE = ("DRUNet", "IPT", "SeemoRe")
_INSTALL = 'pip install "quantface[models]", or pip install spandrel'


class SpandrelNet(nn.Module):
    """A network of one of spandrel's architectures.

    ``net`` is spandrel's own module. Images that have to be of certain sides are not padded here:
    see the trait ``side_step``.

    Args:
        id: spandrel's name of the architecture.
        cls: the network's class, by its path below the architecture's package.
        options: the arguments of the class that differ from its defaults.
        scale: how much the network enlarges.
        multiple: both sides of an image must be multiples of it.
        minimum: both sides of an image must be at least this.
        square: images must be square.
        signed: whether images are in [-1, 1], as for face restorers, instead of in [0, 1].
        fidelity: CodeFormer's weight of the input's features, 0 to 1.

    Raises:
        QuantFaceError: spandrel is not installed, it has no such architecture or class, the class
            does not take the options, or ``fidelity`` is out of range.
    """

    call: Callable[[nn.Module, Tensor], Tensor]

    def __init__(
        self,
        id: str,
        cls: str,
        options: Mapping[str, Any] | None = None,
        scale: int = 1,
        multiple: int = 1,
        minimum: int = 0,
        square: bool = False,
        signed: bool = False,
        fidelity: float = FIDELITY,
    ) -> None:
        super().__init__()
        if not (isinstance(fidelity, (int, float)) and 0 <= fidelity <= 1):
            raise QuantFaceError(f"network {TYPE} fidelity: found {fidelity!r}, allowed is 0 to 1")
        architecture = _architecture(id)
        try:
            self.net = _class(architecture, cls)(**dict(options or {}))
            descriptor = architecture.load(self.net.state_dict())
        except QuantFaceError:
            raise
        except Exception as error:
            # The architectures check no options.
            raise QuantFaceError(f"network {TYPE} {id}: {one_line(error)}") from error
        for module in self.net.modules():
            if hasattr(module, "update_params"):
                # See train: a quantized layer's weight must not be computed anew.
                vars(module)["update_params"] = _nothing
        self.call, self.signed_call = descriptor._call_fn, SIGNED_CALLS.get(id)
        self.single = id in _SINGLE
        self.fidelity = fidelity
        self.scale, self.side_step, self.signed = scale, multiple, signed
        self.input_range = (-1.0, 1.0) if signed else (0.0, 1.0)

    def train(self, mode: bool = True) -> SpandrelNet:
        """Set the mode. SPAN's blocks make weights of others, once, when evaluation begins."""
        if self.training and not mode:
            for module in self.net.modules():
                update = getattr(type(module), "update_params", None)
                if update is not None and type(module.eval_conv) is nn.Conv2d:
                    update(module)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """Restore images (N, 3, H, W), which become (N, 3, ``scale`` H, ``scale`` W)."""
        if self.single and x.shape[0] > 1:
            return torch.cat([self(image) for image in x.split(1)])
        if self.signed and self.signed_call:
            return self.signed_call(self.net, x, self.fidelity)
        if not self.signed:
            # Some networks change their input.
            return self.call(self.net, x.clone())
        return self.call(self.net, (x + 1) / 2) * 2 - 1


def _nothing() -> None:
    """Do nothing."""


def describe(descriptor: Any) -> dict[str, Any]:
    """Return the ``type`` and options from which a network of spandrel's is rebuilt.

    Args:
        descriptor: spandrel's description of a loaded model.

    Raises:
        QuantFaceError: the network takes no RGB image alone, or it cannot be rebuilt.
    """
    id = descriptor.architecture.id
    channels = descriptor.input_channels, descriptor.output_channels
    if descriptor.purpose == "Inpainting" or channels != (3, 3):
        raise QuantFaceError(
            f"{id}: found {channels[0]} channels to {channels[1]} ({descriptor.purpose}), expected "
            "a network from one RGB image to another"
        )
    package = type(descriptor.architecture).__module__
    cls = type(descriptor.model)
    name = f"{cls.__module__}.{cls.__qualname__}"
    if not name.startswith(f"{package}."):
        raise QuantFaceError(f"{id}: its class {name} lies outside of {package}")
    sizes = descriptor.size_requirements
    # Networks for faces take one size alone, which spandrel calls a multiple or a minimum.
    whole = max(sizes.minimum, 1) if descriptor.architecture.id in FACE_NETWORKS else 1
    return {
        "type": TYPE,
        "id": str(id),
        "cls": name.removeprefix(f"{package}."),
        "options": _options(descriptor.model),
        "scale": descriptor.scale,
        "multiple": math.lcm(sizes.multiple_of, whole),
        "minimum": sizes.minimum,
        "square": sizes.square,
        # Networks that enlarge take the place of interpolation, and others that of a restorer.
        "signed": descriptor.scale == 1,
    }


@cache
def registry() -> Any:
    """Return spandrel's architectures, with those of spandrel_extra_arches if it is installed.

    Raises:
        QuantFaceError: spandrel is not installed.
    """
    if find_spec("spandrel") is None:
        raise QuantFaceError(f"this network needs spandrel: {_INSTALL}")
    import spandrel  # pyright: ignore[reportMissingImports]  (the extra models)

    if find_spec("spandrel_extra_arches") is not None:
        import spandrel_extra_arches  # pyright: ignore[reportMissingImports]  (the extra models)

        spandrel_extra_arches.install(ignore_duplicates=True)
    return spandrel.MAIN_REGISTRY


def _architecture(id: str) -> Any:
    found = next((entry.architecture for entry in registry() if entry.architecture.id == id), None)
    if found is None:
        known = ", ".join(sorted(str(entry.architecture.id) for entry in registry()))
        raise QuantFaceError(f"network {TYPE} id: found {id!r}, allowed is one of {known}")
    return found


def _class(architecture: Any, name: str) -> type[nn.Module]:
    """Return a class of an architecture's own package; nothing else may be named."""
    module, _, cls = f"{type(architecture).__module__}.{name}".rpartition(".")
    parts = name.split(".")
    if all(part.isidentifier() for part in parts) and len(parts) > 1:
        try:
            found = getattr(importlib.import_module(module), cls)
        except (ImportError, AttributeError):
            found = None
        own = getattr(found, "__module__", None) == module
        if own and isinstance(found, type) and issubclass(found, nn.Module):
            return cast("type[nn.Module]", found)
    raise QuantFaceError(f"network {TYPE} {architecture.id}: it has no class {name!r}")


def _options(net: Any) -> dict[str, Any]:
    """Return the arguments of a network that differ from the defaults of its class."""
    parameters = inspect.signature(type(net).__init__).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    return {
        key: _plain(value)
        for key, value in net.hyperparameters.items()
        if key not in defaults or value != defaults[key]
    }


def _plain(value: Any) -> Any:
    """Return an option as JSON holds it."""
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return value
