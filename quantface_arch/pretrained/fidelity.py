"""CodeFormer's fidelity: how closely the restored face keeps to the degraded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from quantface_arch.archs.spandrel_net import FIDELITY
from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.foreign import as_checkpoint
from quantface_arch.quant.checkpoint.metadata import opened
from quantface_arch.quant.checkpoint.save_load import read_metadata
from quantface_arch.utils.disk_cache import cached, keep_latest
from quantface_arch.utils.files import file_digest

__all__ = ["with_fidelity"]

CODEFORMER = "CodeFormer"
# Copies of this many fidelities are kept.
KEPT = 3


def with_fidelity(path: Path, fidelity: float) -> Path:
    """Return a copy in the cache of a CodeFormer that has another fidelity.

    Args:
        path: a checkpoint, or the authors' weights.
        fidelity: 0 is the best quality, 1 is closest to the input.

    Raises:
        QuantFaceError: the file is unreadable, or holds another network.
    """
    if path.is_dir():
        raise QuantFaceError(f"--fidelity: {path} is no {CODEFORMER}; found a folder")
    checkpoint = as_checkpoint(path)
    arch = read_metadata(checkpoint)["arch"]
    if arch.get("id") != CODEFORMER:
        found = arch.get("id", arch.get("type"))
        raise QuantFaceError(f"--fidelity: {path} is no {CODEFORMER}; found {found}")
    if arch.get("fidelity", FIDELITY) == fidelity:
        return checkpoint

    def make(folder: Path) -> dict[str, Any]:
        with opened(checkpoint) as (file, metadata):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        changed = replace(metadata, arch={**arch, "fidelity": fidelity})
        save_file(tensors, folder / checkpoint.name, changed.to_header())
        return {}

    key = {"weights": file_digest(checkpoint), "fidelity": fidelity, "name": checkpoint.name}
    folder, _ = cached("fidelity", key, make)
    keep_latest(folder, KEPT)
    return folder / checkpoint.name
