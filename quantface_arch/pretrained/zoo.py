"""Restorers by name or path: shipped checkpoints, a file of yours, a folder of OSDFace's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from quantface_arch.pretrained.names import resolve_model

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_into", "load_model"]


def load_model(
    name_or_path: str | Path,
    runtime: str = "reference",
    device: str = "cpu",
    base: str | None = None,
    offline: bool = False,
) -> nn.Module:
    """Load a restorer, ready to run.

    Args:
        name_or_path: see ``resolve_model``.
        runtime: how a checkpoint is executed, see ``quantface_arch.runtime``.
        device: a torch device.
        base: for a folder of OSDFace's files, where Stable Diffusion 2.1-base is.
        offline: take a base named by its hub id from the local cache alone.

    Returns:
        a module in evaluation mode: faces (N, 3, H, W) in [-1, 1] to restored ones. Its attribute
        ``arch_options`` is what ``save_checkpoint`` takes as its architecture.

    Raises:
        QuantFaceError: no such model, a file that is not a checkpoint or of another version, a
            runtime that is not installed.
    """
    path = resolve_model(name_or_path)
    if path.is_dir():
        from quantface_arch.pretrained.osdface_folder import load_osdface_folder

        model = load_osdface_folder(path, base=base, local_files_only=offline)
        return model.eval().to(device)
    from quantface_arch import runtime as runtimes
    from quantface_arch.archs.build import ARCH_BUILDER

    return runtimes.load(path, ARCH_BUILDER, runtime, device)


def load_into(net: nn.Module, name_or_path: str | Path) -> None:
    """Load a checkpoint into a network that is already built, quantizing it if the file is.

    Raises:
        QuantFaceError: as ``load_model``, or the checkpoint is of another architecture.
    """
    from quantface_arch.quant.checkpoint.save_load import load_checkpoint

    load_checkpoint(resolve_model(name_or_path), lambda _: net)
