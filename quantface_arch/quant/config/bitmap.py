"""Bit maps: small YAML or JSON files that give the bit widths of each layer.

A person can read and edit them::

    format_version: 2
    note: at most 5 megabytes
    average: {weight_bits: 4.1, activation_bits: 3.9993}
    layers:
      unet.conv_in: {w: 8, a: 8}
      unet.mid_block.resnets.0.conv1: {w: 4, a: 5, rank: 8, balance: scale}

``average`` and ``note`` are for the reader; only ``layers`` has an effect. ``rank`` is the rank of
the layer's two branches together, ``balance`` the kind of its balancing. A layer without them
follows the recipe. Files of ``format_version: 1`` have neither.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from quantface_arch.errors import QuantFaceError, check_choice, check_keys
from quantface_arch.quant.config.specs import MAX_BITS, MIN_BITS, PLAIN_KINDS, is_width
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json, read_yaml

__all__ = ["SUFFIXES", "LayerChoice", "bits_of", "in_order", "load_bit_map", "save_bit_map"]

Entry = TypeVar("Entry")

FORMAT_VERSION = 2
SUFFIXES = (".yml", ".yaml", ".json")
# These are the keys of a layer's entry, in the order of ``LayerChoice``.
KEYS = ("w", "a", "rank", "balance")


class LayerChoice(NamedTuple):
    """What a bit map says about a layer; the recipe decides what is None.

    Attributes:
        weight_bits, activation_bits: bit widths of the weight and of the input, 2 to 8.
        rank: rank of the two branches together, from 0.
        balance: kind of balancing, one of ``PLAIN_KINDS``.
    """

    weight_bits: int
    activation_bits: int
    rank: int | None = None
    balance: str | None = None

    @property
    def bits(self) -> tuple[int, int]:
        """Return the bit widths of the weight and of the input."""
        return self.weight_bits, self.activation_bits


def save_bit_map(
    path: str | os.PathLike[str],
    choices: Mapping[str, LayerChoice | tuple[int, int]],
    average: Mapping[str, float] | None = None,
    note: str = "",
) -> None:
    """Write a bit map atomically.

    Args:
        path: a path that ends in ``.yml``, ``.yaml`` or ``.json``.
        choices: layer → its choice, or only (bits of the weight, bits of the input).
        average: average bit widths, for the reader.
        note: a description of the map, for the reader.

    Raises:
        QuantFaceError: the path has another suffix, or the file cannot be written.
    """
    path = Path(path)
    layers = {
        name: {key: x for key, x in zip(KEYS, choice, strict=False) if x is not None}
        for name, choice in choices.items()
    }
    # Earlier releases can read a map of bit widths alone.
    only_bits = all(len(entry) == len(("w", "a")) for entry in layers.values())
    document = {
        "format_version": 1 if only_bits else FORMAT_VERSION,
        "note": note,
        "average": dict(average or {}),
        "layers": layers,
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
) -> dict[str, LayerChoice]:
    """Read and check a bit map.

    Args:
        names: the layers that the map has to name, all of them and no others; None skips the check.

    Returns:
        layer → its choice, in the order of ``names`` or of the file.

    Raises:
        QuantFaceError: the file does not exist or is no bit map, a layer is unknown or missing, or
            a value is not allowed. The message names the file and the layer.
    """
    path = Path(path)
    document = _read(path)
    if not isinstance(document, Mapping) or not isinstance(document.get("layers"), Mapping):
        raise QuantFaceError(f"{path}: no bit map: 'layers: {{NAME: {{w: 4, a: 4}}}}' is wanted")
    check_keys(f"{path}: bit map", document, ("format_version", "note", "average", "layers"))
    version = document.get("format_version")
    if version not in (1, FORMAT_VERSION):
        raise QuantFaceError(f"{path}: format_version: found {version!r}, known are 1 and 2")
    keys = KEYS if version == FORMAT_VERSION else ("w", "a")
    layers = document["layers"]
    choices = {str(name): _choice(path, name, entry, keys) for name, entry in layers.items()}
    if names is None:
        return choices
    return in_order(
        choices,
        names,
        str(path),
        unknown=": the model has no such quantizable layer",
        missing=" of the model is missing in the bit map",
    )


def bits_of(choices: Mapping[str, LayerChoice]) -> dict[str, tuple[int, int]]:
    """Return the bit widths of a bit map: layer → (bits of the weight, bits of the input)."""
    return {name: choice.bits for name, choice in choices.items()}


def in_order(
    layers: Mapping[str, Entry],
    names: Iterable[str],
    where: str,
    unknown: str,
    missing: str,
) -> dict[str, Entry]:
    """Return a bit map in the order of ``names``.

    Args:
        where: how error messages begin, before the layer's name.
        unknown, missing: how they end for an unknown and for a missing layer.

    Raises:
        QuantFaceError: the map does not name exactly the layers of ``names``.
    """
    wanted = dict.fromkeys(names)
    for first, second, end in ((layers, wanted, unknown), (wanted, layers, missing)):
        for name in first:
            if name not in second:
                raise QuantFaceError(f"{where}: layer {name!r}{end}")
    return {name: layers[name] for name in wanted}


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


def _choice(path: Path, name: Any, entry: Any, keys: tuple[str, ...]) -> LayerChoice:
    what = f"{path}: layer {name!r}"
    if not isinstance(entry, Mapping) or not {"w", "a"} <= entry.keys() <= {*keys}:
        more = ", with or without rank and balance" if keys == KEYS else ""
        raise QuantFaceError(f"{what}: found {entry!r}, {{w: 4, a: 4}} is wanted{more}")
    for key in ("w", "a"):
        if not is_width(entry[key]):
            raise QuantFaceError(
                f"{what}: {key}: found {entry[key]!r}, "
                f"allowed are whole numbers {MIN_BITS} to {MAX_BITS}"
            )
    rank = entry.get("rank", 0)
    if type(rank) is not int or rank < 0:
        raise QuantFaceError(f"{what}: rank: found {rank!r}, a whole number from 0 is wanted")
    check_choice(f"{what}: balance", entry.get("balance", "none"), PLAIN_KINDS)
    return LayerChoice(entry["w"], entry["a"], entry.get("rank"), entry.get("balance"))
