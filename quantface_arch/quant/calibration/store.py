"""Calibration statistics on disk, so that a killed run can continue."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from quantface_arch.quant.calibration.calibrate import Calibration
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safetensors_header import check_header

__all__ = ["CalibrationStore", "digest"]

# This number grows when the statistics change, so that older files are not used.
FORMAT = "2"


def digest(net: nn.Module) -> str:
    """Return a hash of a network's weights, which tells what a file was made from."""
    state = hashlib.sha256()
    for name, value in net.state_dict().items():
        state.update(name.encode())
        state.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return state.hexdigest()


class CalibrationStore:
    """A file with the statistics of a calibration in progress.

    Args:
        path: path of the file.
        key: names everything the statistics depend on (model, recipe, images, batch size); a file
            with another key is not used.
        every: save after this many batches.
    """

    def __init__(self, path: str | os.PathLike[str], key: str, every: int = 4) -> None:
        self.path = Path(path)
        self.key = key
        self.every = every

    def stage(self, name: str) -> CalibrationStore:
        """Return the store of another pass over the same images, in a file beside this one."""
        path = self.path.with_name(f"{self.path.stem}-{name}{self.path.suffix}")
        return CalibrationStore(path, self.key, self.every)

    def load(self, calibration: Calibration) -> int:
        """Fill ``calibration`` and return how many batches it has seen.

        If the file is missing, damaged or has another key, return 0 and fill nothing.
        """
        try:
            check_header(self.path)
            with safe_open(self.path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("key") != self.key or header.get("format") != FORMAT:
                    return 0
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                batches = int(json.loads(header["batches"]))
        except (SafetensorError, OSError, KeyError, ValueError):
            return 0
        calibration.load_state_dict(state)
        return batches

    def save(self, calibration: Calibration, batches: int) -> None:
        """Write the statistics if ``batches``, the number seen, is a multiple of ``every``."""
        if batches % self.every:
            return
        # We clone, because safetensors refuses tensors that share memory, as the empty ones of
        # layers without input may, and tensors that are not contiguous.
        state = {
            name: value.clone(memory_format=torch.contiguous_format)
            for name, value in calibration.state_dict().items()
        }
        header = {"format": FORMAT, "key": self.key, "batches": str(batches)}
        with atomic_path(self.path) as temporary:
            save_file(state, temporary, metadata=header)

    def remove(self) -> None:
        """Delete the file and the files of other passes beside it."""
        for path in (self.path, *self.path.parent.glob(f"{self.path.stem}-*{self.path.suffix}")):
            path.unlink(missing_ok=True)
