"""Run a tested network on images of any size, and correct the colours of its outputs."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.faces.color import fix_color
from quantface_arch.quant.nn.traits import traits_of

__all__ = ["color_fixed", "run_padded"]

_CHANNELS = (1, 3)


def run_padded(net: nn.Module, lq: Tensor) -> Tensor:
    """Run a network that works on windows, such as SwinIR, on images of any size.

    Raises:
        QuantFaceError: the network cannot run on the images, or its output is no image.
    """
    window = traits_of(net).arch_options.get("window_size", 1)
    height, width = lq.shape[-2:]
    padded = F.pad(lq, (0, -width % window, 0, -height % window), mode="reflect")
    try:
        output = net(padded)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        # A registered network may raise any exception for images that it does not support.
        raise QuantFaceError(
            f"{type(net).__name__} cannot run on images {tuple(padded.shape)}: {one_line(error)}"
        ) from error
    if output.ndim != 4 or output.shape[1] not in _CHANNELS:
        raise QuantFaceError(
            f"{type(net).__name__} makes {tuple(output.shape)} of images {tuple(padded.shape)}, "
            "expected images of 1 or 3 channels"
        )
    scale = output.shape[-1] // (width + -width % window)
    return output[..., : height * scale, : width * scale]


def color_fixed(output: Tensor, lq: Tensor, name: str) -> Tensor:
    """Return restored images (N, 3, H, W) in [-1, 1] with the colours of their inputs.

    Args:
        output, lq: the restored images and their inputs, both in [-1, 1].
        name: see ``fix_color``; ``none`` changes nothing.

    Raises:
        QuantFaceError: the sizes of the images differ.
    """
    if name == "none":
        return output
    if output.shape != lq.shape:
        raise QuantFaceError(
            f"val option color_fix {name}: found input {tuple(lq.shape)} and output "
            f"{tuple(output.shape)}; both must have the same size"
        )
    faces = (
        ((image.permute(0, 2, 3, 1) + 1) / 2).clamp(0, 1).float().cpu().numpy()
        for image in (output, lq)
    )
    fixed = [fix_color(new, old, name) for new, old in zip(*faces, strict=True)]
    return torch.from_numpy(np.stack(fixed)).permute(0, 3, 1, 2).to(output) * 2 - 1
