"""Read options files outside BasicSR's loop, with the same result as inside it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.safe_yaml_json import read_yaml

__all__ = ["read_options"]


def read_options(
    path: str | Path, blocks: Iterable[str] = ("network_g", "quant")
) -> dict[str, Any]:
    """Read an options file, and add what BasicSR adds to the entries of ``datasets``.

    Args:
        blocks: the blocks that the file must have.

    Raises:
        QuantFaceError: the file is missing or not YAML, or it lacks a block.
    """
    try:
        opt = read_yaml(path)
    except QuantFaceError as error:
        raise QuantFaceError(f"options file {error}") from error
    if not isinstance(opt, dict):
        raise QuantFaceError(f"options file {path}: found {opt!r}, expected a mapping")
    for key in blocks:
        if not isinstance(opt.get(key), dict):
            raise QuantFaceError(f"options file {path}: the block {key} is missing")
    opt.setdefault("manual_seed", 0)
    datasets = opt.get("datasets") or {}
    entries = datasets.values() if isinstance(datasets, dict) else [datasets]
    if not all(isinstance(entry, dict) for entry in entries):
        raise QuantFaceError(
            f"options file {path}: datasets: found {datasets!r}, expected "
            "{train: {dataroot_gt: FOLDER, ...}}"
        )
    for phase, dataset in datasets.items():
        phase = str(phase)
        dataset.setdefault("name", phase)
        dataset["phase"] = phase.split("_")[0]
        dataset["scale"] = opt.get("scale", 1)
    return opt
