"""Checkpoints of this package in programs that load networks by spandrel, such as chaiNNer.

``install()`` adds them to what spandrel recognizes. A quantized network is loaded in floating
point, with the weights that its integers stand for.
"""

from __future__ import annotations

import json
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from spandrel import (
    MAIN_REGISTRY,
    Architecture,
    ArchRegistry,
    ArchSupport,
    ImageModelDescriptor,
    ModelLoader,
    SizeRequirements,
)
from torch import Tensor, nn

from quantface_arch.archs.build import ARCH_BUILDER, build_arch, scale_of
from quantface_arch.archs.meta import meta_network
from quantface_arch.quant.checkpoint.metadata import KEY
from quantface_arch.quant.checkpoint.save_load import load_checkpoint
from quantface_arch.quant.nn.layers import quant_layers
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.runtime.lowering import folded_weight

__all__ = ["float_state", "install"]

# spandrel hands an architecture tensors alone, so this one holds the architecture's options.
OPTIONS = "quantface_options"


class QuantFaceArchitecture(Architecture[nn.Module]):
    """The networks of this package, as one architecture of spandrel."""

    def __init__(self) -> None:
        super().__init__(id="QuantFace", detect=lambda state: OPTIONS in state)

    def load(self, state_dict: dict[str, Tensor]) -> ImageModelDescriptor[nn.Module]:
        """Build the network of a state dict that ``float_state`` returned."""
        state = dict(state_dict)
        arch = json.loads(bytes(state.pop(OPTIONS).cpu().tolist()))
        network = build_arch(arch).eval()
        network.load_state_dict(state)
        traits = traits_of(network)
        low, high = traits.input_range

        def restored(module: nn.Module, image: Tensor) -> Tensor:
            return (module(image * (high - low) + low) - low) / (high - low)

        faces = traits.input_range == (-1.0, 1.0)
        scale = scale_of(arch)
        return ImageModelDescriptor(
            network,
            state,
            architecture=self,
            purpose="SR" if scale > 1 else "FaceSR" if faces else "Restoration",
            tags=[str(arch.get("preset", arch.get("type")))],
            supports_half=False,
            supports_bfloat16=True,
            scale=scale,
            input_channels=3,
            output_channels=3,
            size_requirements=SizeRequirements(multiple_of=traits.side_step),
            call_fn=restored,
        )


def float_state(path: str | Path) -> dict[str, Tensor]:
    """Return the state dict of a checkpoint's network in floating point.

    Args:
        path: a checkpoint of this package, quantized or not.

    Returns:
        float32 tensors by the names of the float network, and its options under ``OPTIONS``.

    Raises:
        QuantFaceError: see ``load_checkpoint``.
    """
    model = load_checkpoint(path, ARCH_BUILDER)
    arch = dict(traits_of(model).arch_options)
    weights = {}
    for layer in quant_layers(model):
        weights[f"{layer.name}.weight"] = folded_weight(layer)
    names = meta_network(arch).state_dict()
    state = {name: value for name, value in model.state_dict().items() if name in names}
    options = torch.tensor(list(json.dumps(arch).encode()), dtype=torch.uint8)
    return {**state, **weights, OPTIONS: options}


def install(registry: ArchRegistry = MAIN_REGISTRY) -> None:
    """Make spandrel's loaders recognize checkpoints of this package; may be called again.

    Args:
        registry: spandrel's registry of architectures.
    """
    if "QuantFace" not in registry:
        others = tuple(found.architecture.id for found in registry)
        registry.add(ArchSupport.from_architecture(QuantFaceArchitecture(), before=others))
    if not hasattr(ModelLoader._load_safetensors, "__wrapped__"):
        ModelLoader._load_safetensors = _recognizing(ModelLoader._load_safetensors)


def _recognizing(load: Any) -> Any:
    """Return spandrel's method, which hands files of this package to ``float_state``."""

    @wraps(load)
    def loaded(self: ModelLoader, path: str | Path) -> dict[str, Tensor]:
        with safe_open(path, "pt") as file:
            ours = KEY in (file.metadata() or {})
        if not ours:
            return load(self, path)
        return {name: value.to(self.device) for name, value in float_state(path).items()}

    return loaded
