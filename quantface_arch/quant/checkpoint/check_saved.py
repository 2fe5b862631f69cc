"""Check a checkpoint that was just written against the network that it was made from."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.checkpoint.save_load import Build, load_checkpoint

__all__ = ["check_saved"]


@torch.inference_mode()
def check_saved(
    model: nn.Module, path: str | os.PathLike[str], build: Build, images: Tensor
) -> None:
    """Check that a loaded checkpoint computes exactly what the saved network computes.

    Args:
        model: the network that was saved, with float parts rounded like those in the file; see
            ``round_float_parts``.
        path: the checkpoint.
        build: see ``load_checkpoint``.
        images: float (N, C, H, W), an input of the network on its device.

    Raises:
        QuantFaceError: the file cannot be loaded, or the results differ.
    """
    loaded = load_checkpoint(path, build).to(images.device)
    # Without these flags, a GPU may choose different kernels, which round differently.
    with torch.backends.cudnn.flags(deterministic=True, benchmark=False):
        wanted, found = model.eval()(images), loaded(images)
    if not torch.equal(wanted, found):
        error = float((wanted.double() - found.double()).abs().max())
        raise QuantFaceError(
            f"{path}: the loaded checkpoint computes something else (largest difference "
            f"{error:g}); it is not kept"
        )
