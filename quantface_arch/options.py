"""Options files outside BasicSR's loop, read as it reads them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from quantface_arch.errors import QuantFaceError

__all__ = ["read_options"]


def read_options(
    path: str | Path, blocks: Iterable[str] = ("network_g", "quant")
) -> dict[str, Any]:
    """An options file, with what BasicSR adds to the entries of ``datasets``.

    Args:
        blocks: that it has to have.

    Raises:
        QuantFaceError: no such file, no YAML, or a block is missing.
    """
    try:
        opt = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise QuantFaceError(f"options file {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise QuantFaceError(f"options file {path}: not YAML: {error}") from error
    for key in blocks:
        if not isinstance(opt, dict) or not isinstance(opt.get(key), dict):
            raise QuantFaceError(f"options file {path}: the block {key} is missing")
    opt.setdefault("manual_seed", 0)
    for phase, dataset in (opt.get("datasets") or {}).items():
        dataset.setdefault("name", phase)
        dataset["phase"] = phase.split("_")[0]
        dataset["scale"] = opt.get("scale", 1)
    return opt
