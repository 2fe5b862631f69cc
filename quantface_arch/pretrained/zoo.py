"""Restorers by name or path: shipped checkpoints, other checkpoints, folders of OSDFace's files."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.names import resolve_model

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["load_into", "load_model"]


def load_model(
    name_or_path: str | os.PathLike[str],
    runtime: str = "reference",
    device: str | torch.device = "cpu",
    base: str | None = None,
    offline: bool = False,
) -> nn.Module:
    """Load a restorer that is ready to run.

    Args:
        name_or_path: see ``resolve_model``.
        runtime: the runtime that executes a checkpoint, see ``quantface_arch.runtime``.
        device: a torch device.
        base: where Stable Diffusion 2.1-base is. Only a folder of OSDFace's files needs it.
        offline: load a base that is a hub id from the local cache only.

    Returns:
        a module in evaluation mode that maps faces (N, 3, H, W) in [-1, 1] to restored ones. Its
        trait ``arch_options`` holds the architecture for ``save_checkpoint``.

    Raises:
        QuantFaceError: there is no such model, the file is not a checkpoint of this version, or the
            runtime is not installed.
    """
    path = resolve_model(name_or_path)
    if path.is_dir():
        from quantface_arch.pretrained.osdface_folder import load_osdface_folder

        model = load_osdface_folder(path, base=base, local_files_only=offline)
        return model.eval().to(device)
    from quantface_arch import runtime as runtimes
    from quantface_arch.archs.build import ARCH_BUILDER
    from quantface_arch.pretrained.foreign import as_checkpoint

    return runtimes.load(as_checkpoint(path), ARCH_BUILDER, runtime, device)


def load_into(net: nn.Module, name_or_path: str | os.PathLike[str]) -> None:
    """Load a checkpoint into an existing network, which is quantized if the checkpoint is.

    Raises:
        QuantFaceError: see ``load_model``; or the checkpoint is of another architecture, which the
            message gives.
    """
    from quantface_arch.quant.checkpoint.save_load import load_checkpoint, read_metadata

    path = resolve_model(name_or_path)
    try:
        load_checkpoint(path, lambda _: net)
    except QuantFaceError as error:
        arch = read_metadata(path)["arch"]
        raise QuantFaceError(f"{error}; the file's arch is {arch}") from error
