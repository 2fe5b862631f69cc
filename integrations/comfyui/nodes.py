"""Two nodes: load a face restorer, and restore the faces of images."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from quantface_arch import FaceRestorer, QuantFaceError
from quantface_arch.faces.choices import COLOR_FIXES
from quantface_arch.pretrained.names import DEFAULT_MODEL, shipped_models
from quantface_arch.utils.limits import MAX_UPSCALE
from quantface_arch.utils.runtime_names import RUNTIME_NAMES

__all__ = ["LoadRestorer", "RestoreFaces"]

RESTORER = "QUANTFACE_RESTORER"
CATEGORY = "image/restoration"
# Images are handed over in 16 bits, so that pixels outside of the faces keep their values.
PEAK = 65535
OWN = "the model's own"


class LoadRestorer:
    """Loads a shipped restorer, or a file of weights."""

    CATEGORY = CATEGORY
    FUNCTION = "load"
    RETURN_TYPES = (RESTORER,)
    RETURN_NAMES = ("restorer",)

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI wants them."""
        models = shipped_models()
        return {
            "required": {
                "model": (models, {"default": DEFAULT_MODEL}),
                "runtime": (["auto", *RUNTIME_NAMES], {"default": "auto"}),
                "color_fix": ([OWN, *COLOR_FIXES], {"default": OWN}),
            },
            "optional": {
                "file": ("STRING", {"default": "", "tooltip": "weights in place of the model"}),
            },
        }

    def load(
        self, model: str, runtime: str, color_fix: str = OWN, file: str = ""
    ) -> tuple[FaceRestorer]:
        """Return the restorer.

        Args:
            model: name of a shipped model.
            runtime: ``auto`` or a name of ``quantface_arch.runtime``.
            color_fix: what a face takes over from the input.
            file: checkpoint or weights of others; takes the place of ``model`` unless it is empty.

        Raises:
            QuantFaceError: there is no such model or file, or the runtime is not available.
        """
        device = "cuda" if runtime in ("cuda", "reference") and torch.cuda.is_available() else "cpu"
        fix = None if color_fix == OWN else color_fix
        return (FaceRestorer.from_pretrained(file or model, runtime, device, color_fix=fix),)


class RestoreFaces:
    """Restores all faces of every image of a batch."""

    CATEGORY = CATEGORY
    FUNCTION = "restore"
    RETURN_TYPES = ("IMAGE", "INT")
    RETURN_NAMES = ("images", "faces")
    DESCRIPTION: ClassVar[str] = (
        "Finds, restores and pastes back the faces; the rest stays as it is."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the node's inputs, as ComfyUI wants them."""
        strength = {"default": 1.0, "min": 0.0, "max": 1.0, "step": 0.05}
        upscale = {"default": 1.0, "min": 1.0, "max": float(MAX_UPSCALE), "step": 0.5}
        return {
            "required": {
                "restorer": (RESTORER,),
                "images": ("IMAGE",),
                "strength": ("FLOAT", strength),
                "upscale": ("FLOAT", upscale),
            }
        }

    def restore(
        self, restorer: FaceRestorer, images: Any, strength: float = 1.0, upscale: float = 1.0
    ) -> tuple[torch.Tensor, int]:
        """Return the restored images and the number of their faces.

        Args:
            restorer: from ``LoadRestorer``.
            images: float (B, H, W, 3) in [0, 1], RGB.
            strength: 0 leaves the faces unchanged, 1 replaces them.
            upscale: factor by which images are enlarged.

        Returns:
            images, float (B, ``upscale`` H, ``upscale`` W, 3) in [0, 1], and how many faces they
            have together. An image without a face is only enlarged.

        Raises:
            QuantFaceError: ``images`` are no images.
        """
        check_images(images)
        results, faces = [], 0
        for image in images:
            pixels = (image.clamp(0, 1) * PEAK).round().to(torch.int32).cpu().numpy()
            found = restorer.restore(pixels.astype("uint16"), strength=strength, upscale=upscale)
            results.append(torch.from_numpy(found.image.astype("float32") / PEAK))
            faces += len(found.faces)
        return torch.stack(results).to(images.device), faces


def check_images(images: Any) -> None:
    """Raise QuantFaceError unless the argument is a batch of RGB images, as ComfyUI has them."""
    wanted = "expected images: float (B, H, W, 3) in [0, 1]"
    if isinstance(images, dict):
        raise QuantFaceError(f"images: found latents ({', '.join(images)}); {wanted}")
    if not isinstance(images, torch.Tensor):
        raise QuantFaceError(f"images: found {type(images).__name__}; {wanted}")
    if images.ndim != 4 or images.shape[3] != 3 or not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise QuantFaceError(f"images: found {kind} {tuple(images.shape)}; {wanted}")
