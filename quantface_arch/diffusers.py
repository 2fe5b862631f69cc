"""Quantized models of diffusers, which its own ``save_pretrained`` and ``from_pretrained`` handle.

Importing this module registers the quantizer in diffusers. The folder of a quantized model has a
checkpoint of this package in the place of its weights, and ``quantization_config`` in its
``config.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from diffusers.models.modeling_utils import ModelMixin
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.quant.calibration.run import CalibrationData, Images
from quantface_arch.quant.checkpoint.save_load import checkpoint_tensors, load_checkpoint
from quantface_arch.quant.config.recipe import Recipe
from quantface_arch.quant.nn.convert import ConversionReport
from quantface_arch.quant.nn.layers import QuantLayer
from quantface_arch.quant.nn.traits import set_traits, traits_of
from quantface_arch.quant.ptq import quantize

__all__ = ["QuantFaceConfig", "QuantFaceQuantizer", "quantize_model"]

# These layers of UNets and VAEs keep 8 bits when a recipe asks for fewer.
EIGHT_BITS = (
    *("conv_in", "conv_out", "time_embedding.*", "add_embedding.*"),
    *("encoder.conv_in", "encoder.conv_out", "decoder.conv_in", "decoder.conv_out"),
)


class Method(str, Enum):
    """The name of this method, as diffusers expects it."""

    QUANTFACE = "quantface"


class QuantFaceConfig(QuantizationConfigMixin):
    """The entry ``quantization_config`` of a model's configuration.

    Args:
        recipe: the recipe, as plain data; the checkpoint has it, too.
    """

    def __init__(self, recipe: Mapping[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = Method.QUANTFACE  # pyright: ignore[reportAttributeAccessIssue]
        self.recipe = dict(recipe or {})

    def to_diff_dict(self) -> dict[str, Any]:
        """Return plain data, which diffusers prints."""
        return self.to_dict()


class QuantFaceQuantizer(DiffusersQuantizer):
    """Loads and saves models that were quantized before, by ``quantize_model``."""

    requires_calibration = True

    def __init__(self, quantization_config: QuantFaceConfig, **options: Any) -> None:
        super().__init__(quantization_config, **options)
        self.model: nn.Module | None = None
        self.files: list[str] = []

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype:
        """Return float32, in which quantized layers compute.

        Raises:
            UsageError: another one is asked for.
        """
        if torch_dtype not in (None, torch.float32):
            raise UsageError(f"torch_dtype: found {torch_dtype}, a quantized model is in float32")
        return torch.float32

    def maybe_update_loaded_keys(
        self, loaded_keys: list[str], checkpoint_files: list[str]
    ) -> list[str]:
        """Keep the file, from which ``_process_model_after_weight_loading`` loads everything."""
        self.files = checkpoint_files
        return loaded_keys

    def check_if_quantized_param(self, *_: Any, **__: Any) -> bool:
        """Return True: a packed weight has another shape than the model's."""
        return True

    def create_quantized_param(self, *_: Any, **__: Any) -> Any:
        """Leave a packed weight for later."""

    def update_missing_keys(self, model: Any, missing_keys: list[str], prefix: str) -> list[str]:
        """Return no key: a checkpoint is complete, or refused."""
        return []

    def _process_model_before_weight_loading(self, model: ModelMixin, **_: Any) -> None:
        pass

    def _process_model_after_weight_loading(self, model: ModelMixin, **_: Any) -> None:
        """Replace the model's contents by those of the checkpoint.

        Raises:
            QuantFaceError: the file is damaged, or does not fit the model.
        """
        if len(self.files) != 1:
            raise QuantFaceError(f"found {len(self.files)} files of weights, expected one")
        config = {key: value for key, value in model.config.items() if not key.startswith("_")}
        config.pop("quantization_config", None)
        loaded = load_checkpoint(Path(self.files[0]), lambda _: type(model)(**config))
        for part in ("_modules", "_parameters", "_buffers"):
            vars(model)[part] = vars(loaded)[part]
        set_traits(model, quant_recipe=traits_of(loaded).quant_recipe)
        _allow_saving(model, self)

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Return the tensors and the metadata of a checkpoint.

        Raises:
            QuantFaceError: the file would be a pickle.
        """
        if not safe_serialization:
            raise QuantFaceError("safe_serialization: found False, quantized models need True")
        assert self.model is not None
        return checkpoint_tensors(self.model, {"type": type(self.model).__name__})

    # diffusers' annotation of these two says None.
    @property
    def is_serializable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether a model can be saved."""
        return self.model is not None

    @property
    def is_trainable(self) -> bool:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Whether diffusers may train a model."""
        return False


def quantize_model(
    model: ModelMixin,
    recipe: str | Mapping[str, Any] | Recipe,
    calls: Images | CalibrationData,
    progress: bool = True,
) -> ConversionReport:
    """Quantize a model of diffusers in place; its ``save_pretrained`` then writes the integers.

    Args:
        model: for example ``pipeline.unet`` or ``pipeline.vae``, in float32 and evaluation mode.
        recipe: a name such as ``w4a8``, or see ``quantize``.
        calls: calls ``(args, kwargs)`` of the model, as the pipeline makes them.
        progress: show a progress bar.

    Returns:
        the layers that were quantized, with their bit widths, and the others.

    Raises:
        QuantFaceError: see ``quantize``.
    """
    if not traits_of(model).eight_bit_patterns:
        set_traits(model, eight_bit_patterns=EIGHT_BITS)
    report = quantize(model, recipe, calls, progress=progress)
    found = traits_of(model).quant_recipe
    config = QuantFaceConfig(None if found is None else found.to_dict())
    model.register_to_config(quantization_config=config)
    quantizer = QuantFaceQuantizer(config)
    vars(model)["hf_quantizer"] = quantizer
    _allow_saving(model, quantizer)
    return report


def _allow_saving(model: ModelMixin, quantizer: QuantFaceQuantizer) -> None:
    """Undo what keeps other models with quantized layers from being saved by diffusers."""
    assert any(isinstance(module, QuantLayer) for module in model.modules())
    vars(model).pop("save_pretrained", None)
    quantizer.model = model


auto.AUTO_QUANTIZER_MAPPING[Method.QUANTFACE.value] = QuantFaceQuantizer
auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.QUANTFACE.value] = QuantFaceConfig
