"""The balancing of a network's layers in a ``.safetensors`` file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.balance import LayerBalance
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import parse_json
from quantface_arch.utils.safetensors_header import check_header

__all__ = ["load_balance", "save_balance"]

KEY = "quantface_balance"


def save_balance(
    plan: Mapping[str, LayerBalance],
    path: str | os.PathLike[str],
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write the balancing of a network's layers to one ``.safetensors`` file.

    Args:
        extra: plain data to keep with it.
    """
    layers = {name: balance.to_dict() for name, balance in plan.items()}
    header = {KEY: json.dumps({"layers": layers, "extra": dict(extra or {})})}
    scales = {
        name: balance.scale.contiguous()
        for name, balance in plan.items()
        if balance.scale is not None
    }
    with atomic_path(path) as temporary:
        save_file(scales, temporary, metadata=header)


def load_balance(path: str | os.PathLike[str]) -> dict[str, LayerBalance]:
    """Read what ``save_balance`` wrote.

    Raises:
        QuantFaceError: the file is missing or damaged, or it is no balance file.
    """
    source = Path(path)
    if not source.is_file():
        raise QuantFaceError(f"balance file {source}: no such file; quantface balance makes one")
    try:
        check_header(source)
        with safe_open(source, framework="pt", device="cpu") as file:
            layers = parse_json(f"metadata key {KEY!r}", (file.metadata() or {})[KEY])["layers"]
            names = set(file.keys())
            return {
                name: LayerBalance.from_dict(
                    name, options, file.get_tensor(name).float() if name in names else None
                )
                for name, options in layers.items()
            }
    except QuantFaceError as error:
        raise QuantFaceError(f"balance file {source}: {error}") from None
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError):
        raise QuantFaceError(f"balance file {source}: damaged, or of another kind") from None
