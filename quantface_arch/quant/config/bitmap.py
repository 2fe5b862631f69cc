"""Bit maps: small YAML or JSON files that give the bit widths of each layer.

A person can read and edit them::

    format_version: 1
    note: at most 4.0 activation bits
    average: {weight_bits: 4.1, activation_bits: 3.9993}
    layers:
      unet.conv_in: {w: 8, a: 8}
      unet.mid_block.resnets.0.conv1: {w: 4, a: 5}

``average`` and ``note`` are for the reader; only ``layers`` has an effect.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError, check_keys
from quantface_arch.quant.config.specs import MAX_BITS, MIN_BITS, is_width
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json, read_yaml

__all__ = ["SUFFIXES", "in_order", "load_bit_map", "save_bit_map"]

FORMAT_VERSION = 1
SUFFIXES = (".yml", ".yaml", ".json")


def save_bit_map(
    path: str | os.PathLike[str],
    bits: Mapping[str, tuple[int, int]],
    average: Mapping[str, float] | None = None,
    note: str = "",
) -> None:
    """Write a bit map atomically.

    Args:
        path: a path that ends in ``.yml``, ``.yaml`` or ``.json``.
        bits: layer → (bits of the weight, bits of the input).
        average: average bit widths, for the reader.
        note: a description of the map, for the reader.

    Raises:
        QuantFaceError: the path has another suffix, or the file cannot be written.
    """
    path = Path(path)
    document = {
        "format_version": FORMAT_VERSION,
        "note": note,
        "average": dict(average or {}),
        "layers": {name: {"w": weight, "a": act} for name, (weight, act) in bits.items()},
    }
    text = _dumped(path, document)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _dumped(path: Path, document: Mapping[str, Any]) -> str:
    _check_suffix(path)
    if path.suffix == ".json":
        return json.dumps(document, indent=1) + "\n"
    import yaml

    # With these options, each layer takes one line: the innermost mappings stand in braces, and no
    # line is wrapped.
    return yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=10**6)


def load_bit_map(
    path: str | os.PathLike[str], names: Iterable[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Read and check a bit map.

    Args:
        names: the layers that the map has to name, all of them and no others; None skips the check.

    Returns:
        layer → (bits of the weight, bits of the input), in the order of ``names`` or of the file.

    Raises:
        QuantFaceError: the file does not exist or is no bit map, a layer is unknown or missing, or
            a bit width is not a whole number from 2 to 8. The message names the file and the layer.
    """
    path = Path(path)
    document = _read(path)
    if not isinstance(document, Mapping) or not isinstance(document.get("layers"), Mapping):
        raise QuantFaceError(f"{path}: no bit map: 'layers: {{NAME: {{w: 4, a: 4}}}}' is wanted")
    check_keys(f"{path}: bit map", document, ("format_version", "note", "average", "layers"))
    version = document.get("format_version")
    if version != FORMAT_VERSION:
        raise QuantFaceError(f"{path}: format_version: found {version!r}, known is 1")
    bits = {str(name): _widths(path, name, entry) for name, entry in document["layers"].items()}
    if names is None:
        return bits
    return in_order(
        bits,
        names,
        str(path),
        unknown=": the model has no such quantizable layer",
        missing=" of the model is missing in the bit map",
    )


def in_order(
    bits: Mapping[str, tuple[int, int]],
    names: Iterable[str],
    where: str,
    unknown: str,
    missing: str,
) -> dict[str, tuple[int, int]]:
    """Return a bit map in the order of ``names``.

    Args:
        where: how error messages begin, before the layer's name.
        unknown, missing: how they end for an unknown and for a missing layer.

    Raises:
        QuantFaceError: the map does not name exactly the layers of ``names``.
    """
    wanted = dict.fromkeys(names)
    for first, second, end in ((bits, wanted, unknown), (wanted, bits, missing)):
        for name in first:
            if name not in second:
                raise QuantFaceError(f"{where}: layer {name!r}{end}")
    return {name: bits[name] for name in wanted}


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise QuantFaceError(f"{path}: bit maps end in {', '.join(SUFFIXES)}")


def _read(path: Path) -> Any:
    _check_suffix(path)
    try:
        return read_json(path) if path.suffix == ".json" else read_yaml(path)
    except QuantFaceError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise QuantFaceError(f"{path}: no bit map: {reason}") from error


def _widths(path: Path, name: Any, entry: Any) -> tuple[int, int]:
    what = f"{path}: layer {name!r}"
    if not isinstance(entry, Mapping) or set(entry) != {"w", "a"}:
        raise QuantFaceError(f"{what}: found {entry!r}, {{w: 4, a: 4}} is wanted")
    for key, width in (("w", entry["w"]), ("a", entry["a"])):
        if not is_width(width):
            raise QuantFaceError(
                f"{what}: {key}: found {width!r}, "
                f"allowed are whole numbers {MIN_BITS} to {MAX_BITS}"
            )
    return entry["w"], entry["a"]
