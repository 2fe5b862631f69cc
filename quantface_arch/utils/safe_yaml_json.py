"""Read plain data from untrusted YAML and JSON, and check its size before it is built.

An alias counts every time it is used, so a few lines cannot stand for gigabytes.
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
# The limit counts the mappings, lists, keys and values of a YAML file, with aliases written out.
MAX_VALUES = 100_000
# Lists and mappings may be nested this deep.
MAX_DEPTH = 32


def read_yaml(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a YAML file.

    Raises:
        QuantFaceError: the file is missing, not regular, too large, too deep, or not YAML of plain
            data.
    """
    return parse_yaml(str(path), read_bytes(path, MAX_YAML_BYTES))


def read_json(path: str | os.PathLike[str]) -> Any:
    """Return the contents of a JSON file.

    Raises:
        QuantFaceError: the file is missing, not regular, too large, too deep, or not JSON.
    """
    return parse_json(str(path), read_bytes(path, MAX_JSON_BYTES))


def parse_json(where: str, text: str | bytes) -> Any:
    """Return the plain data of JSON text in which no mapping repeats a key.

    Args:
        where: what messages call the text.

    Raises:
        QuantFaceError: the text is too large, deeper than ``MAX_DEPTH``, repeats a key, or is not
            JSON.
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
        raise ValueError(f"key {twice!r} occurs twice")
    return made


def _items(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _too_deep(where: str) -> str:
    return f"{where}: nested deeper than the allowed {MAX_DEPTH} levels"


def parse_yaml(where: str, text: bytes) -> Any:
    """Return the plain data of YAML text; tags that would build other objects are refused.

    Raises:
        QuantFaceError: see ``check_yaml``.
    """
    import yaml

    check_yaml(where, text)
    try:
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        # Scalars such as a date in a 13th month fail when the library converts them.
        raise QuantFaceError(f"{where}: not YAML: {one_line(error)}") from error


def check_yaml(where: str, text: bytes) -> None:
    """Check the size of YAML text by its events alone, before any object is built.

    Raises:
        QuantFaceError: the text has more than ``MAX_YAML_BYTES``, is deeper than ``MAX_DEPTH``, has
            more than ``MAX_VALUES`` values with aliases written out, has an alias of a value that
            contains it, or is not YAML.
    """
    import yaml

    if len(text) > MAX_YAML_BYTES:
        raise QuantFaceError(
            f"{where}: found {len(text):,} bytes of YAML, at most {MAX_YAML_BYTES:,} are allowed"
        )
    counter = _YamlCounter(where)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            counter.count(event)
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, QuantFaceError):
            raise
        raise QuantFaceError(f"{where}: not YAML: {one_line(error)}") from error


class _YamlCounter:
    """Count the values of YAML event by event, with aliases written out."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.total = 0
        self.begun: list[tuple[str | None, int]] = []
        self.sizes: dict[str | None, int] = {}

    def count(self, event: Any) -> None:
        """Count one event.

        Raises:
            QuantFaceError: a limit is exceeded, or an alias refers to nothing complete.
        """
        import yaml

        if isinstance(event, yaml.AliasEvent):
            if event.anchor not in self.sizes:
                raise QuantFaceError(
                    f"{self.where}: alias {event.anchor!r} refers to nothing complete before it"
                )
            self.total += self.sizes[event.anchor]
        elif isinstance(event, yaml.ScalarEvent):
            self.total += 1
            self.sizes[event.anchor] = 1
        elif isinstance(event, yaml.CollectionStartEvent):
            self.begun.append((event.anchor, self.total))
            # A reused anchor refers to nothing until its new value is complete.
            self.sizes.pop(event.anchor, None)
            self.total += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, start = self.begun.pop()
            self.sizes[anchor] = self.total - start
        if len(self.begun) > MAX_DEPTH:
            raise QuantFaceError(_too_deep(self.where))
        if self.total > MAX_VALUES:
            raise QuantFaceError(
                f"{self.where}: found more than the allowed {MAX_VALUES:,} values "
                "(aliases written out)"
            )
