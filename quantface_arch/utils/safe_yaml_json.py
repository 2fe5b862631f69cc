"""YAML and JSON that are not trusted: plain data whose size is known before any of it is made.

An alias counts as often as it is used, so that a few lines cannot stand for gigabytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from typing import Any

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.utils.files import read_bytes

__all__ = [
    "MAX_DEPTH",
    "MAX_JSON_BYTES",
    "MAX_VALUES",
    "MAX_YAML_BYTES",
    "check_yaml",
    "parse_json",
    "parse_yaml",
    "read_json",
    "read_yaml",
]

MAX_JSON_BYTES = 16 << 20
MAX_YAML_BYTES = 1 << 20
# Of a YAML file: mappings, lists, keys and values, aliases written out.
MAX_VALUES = 100_000
# Of lists and mappings in one another.
MAX_DEPTH = 32


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """What a YAML file holds.

    Raises:
        QuantFaceError: missing, no regular file, too large or too deep, or not YAML of plain data.
    """
    return parse_yaml(str(path), read_bytes(path, MAX_YAML_BYTES))


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        QuantFaceError: missing, no regular file, too large or too deep, or not JSON.
    """
    return parse_json(str(path), read_bytes(path, MAX_JSON_BYTES))


def parse_json(where: str, text: str | bytes) -> Any:
    """Plain data out of JSON in which no mapping has a key twice.

    Args:
        where: names the text in messages.

    Raises:
        QuantFaceError: too large, deeper than ``MAX_DEPTH``, a key twice, or not JSON.
    """
    if len(text) > MAX_JSON_BYTES:
        raise QuantFaceError(
            f"{where}: found {len(text):,} bytes of JSON, at most {MAX_JSON_BYTES:,} are allowed"
        )
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise QuantFaceError(_too_deep(where)) from error
    except ValueError as error:
        raise QuantFaceError(f"{where}: not JSON: {one_line(error)}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item for value in level for item in _items(value)]
    if any(isinstance(item, (dict, list)) for item in level):
        raise QuantFaceError(_too_deep(where))
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"key {twice!r} is there twice")
    return made


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep(where: str) -> str:
    return f"{where}: nested deeper than the {MAX_DEPTH} levels that are allowed"


def parse_yaml(where: str, text: bytes) -> Any:
    """Plain data out of YAML; tags that would make other objects are refused.

    Raises:
        QuantFaceError: see ``check_yaml``.
    """
    import yaml

    check_yaml(where, text)
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        # Scalars such as a 13th month fail in the library's own conversion.
        raise QuantFaceError(f"{where}: not YAML: {one_line(error)}") from error


def check_yaml(where: str, text: bytes) -> None:
    """Find out from its events alone, before any object is made, how large a YAML file is.

    Raises:
        QuantFaceError: more than ``MAX_YAML_BYTES``, deeper than ``MAX_DEPTH``, more than
            ``MAX_VALUES`` values with aliases written out, an alias of what it is part of, or no
            YAML.
    """
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise QuantFaceError(
            f"{where}: found {len(text):,} bytes of YAML, at most {MAX_YAML_BYTES:,} are allowed"
        )
    total = 0
    begun: list[tuple[str | None, int]] = []
    sizes: dict[str | None, int] = {}
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent):
                if event.anchor not in sizes:
                    raise QuantFaceError(
                        f"{where}: alias {event.anchor!r} of nothing that is complete before it"
                    )
                total += sizes[event.anchor]
            elif isinstance(event, yaml.ScalarEvent):
                total += 1
                sizes[event.anchor] = 1
            elif isinstance(event, yaml.CollectionStartEvent):
                begun.append((event.anchor, total))
                # An anchor that is set anew names nothing until its value is complete.
                sizes.pop(event.anchor, None)
                total += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                anchor, start = begun.pop()
                sizes[anchor] = total - start
            if len(begun) > MAX_DEPTH:
                raise QuantFaceError(_too_deep(where))
            if total > MAX_VALUES:
                raise QuantFaceError(
                    f"{where}: found more than the {MAX_VALUES:,} values that are allowed "
                    "(aliases written out)"
                )
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, QuantFaceError):
            raise
        raise QuantFaceError(f"{where}: not YAML: {one_line(error)}") from error
