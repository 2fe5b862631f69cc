"""Check blocks of options that are declared once, as frozen dataclasses.

A field made by ``option`` describes an option completely: its type, its default, what it does,
which values it allows, and its old name. ``parse_options`` checks a block of an options file
against these fields, and ``scripts/write_reference.py`` prints them as a table.
"""

from __future__ import annotations

import types
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, TypeVar, Union, get_args, get_origin, get_type_hints

from quantface_arch.errors import QuantFaceError, check_choice, check_keys

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["Limits", "key_of", "option", "parse_options", "split_options"]

T = TypeVar("T", bound="DataclassInstance")
WORDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    str: "a string",
    type(None): "null",
}


@dataclass(frozen=True)
class Limits:
    """Limits of a number; None is no limit.

    Attributes:
        least, most: the smallest and the largest number allowed.
        above, below: bounds that the number may not reach.
    """

    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.least is None or value >= self.least)
            and (self.most is None or value <= self.most)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = (
            ("from", self.least),
            ("above", self.above),
            ("to", self.most),
            ("below", self.below),
        )
        return ", ".join(f"{word} {value:g}" for word, value in words if value is not None)


def option(
    text: str,
    default: Any = MISSING,
    *,
    allowed: Collection[Any] | None = None,
    limits: Limits | None = None,
    old_name: str | None = None,
    key: str | None = None,
    shown: str | None = None,
) -> Any:
    """Declare an option as the field of a frozen, keyword-only dataclass.

    Args:
        text: what the option does.
        default: without one, the option is required.
        allowed: the values that it may take; None allows any of its type.
        limits: limits of a number; None is no limit.
        old_name: a name that options files of earlier versions use.
        key: the option's name in options files, if it differs from the field's.
        shown: how the reference shows the default, if the value does not explain itself.
    """
    metadata = {
        "help": text,
        "allowed": allowed,
        "limits": limits,
        "old_name": old_name,
        "key": key,
        "shown": shown,
    }
    if isinstance(default, (dict, list)):
        return field(default_factory=default.copy, metadata=metadata)
    return field(default=default, metadata=metadata)


def parse_options(kind: type[T], block: str, given: Mapping[str, Any] | None) -> T:
    """Build a dataclass of options from a block of an options file.

    A null stands for the default if the option is a mapping or a list.

    Args:
        kind: a dataclass whose fields ``option`` made.
        block: what messages call the block, such as ``train``.
        given: the block; None is an empty one.

    Raises:
        QuantFaceError: an option is unknown or missing, or its value is not allowed. The message
            names the option, what was found and what is allowed.
    """
    if given is not None and not isinstance(given, Mapping):
        raise QuantFaceError(f"{block}: found {given!r}, allowed is a mapping of options")
    options = _renamed(kind, block, given or {})
    is_nested = " option " in block
    check_keys(block if is_nested else f"{block} options", options, map(key_of, fields(kind)))
    hints = get_type_hints(kind)
    values: dict[str, Any] = {}
    for item in fields(kind):
        place = f"{block}{': ' if is_nested else ' option '}{key_of(item)}"
        found = options.get(key_of(item), MISSING)
        if found is None and (_is_required(item) or _is_block(hints[item.name])):
            found = MISSING
        if found is not MISSING:
            values[item.name] = _checked(place, found, hints[item.name], item)
        elif _is_required(item):
            raise QuantFaceError(f"{place}: missing; expected {item.metadata['help'].rstrip('.')}")
    return kind(**values)


def key_of(item: Field[Any]) -> str:
    """Return the name of a field's option in options files."""
    return item.metadata["key"] or item.name


def split_options(
    kind: type[Any], given: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the options that a dataclass declares, old names included, and the rest."""
    names = {name for item in fields(kind) for name in (key_of(item), item.metadata["old_name"])}
    own = {key: value for key, value in given.items() if key in names}
    return own, {key: value for key, value in given.items() if key not in names}


def _renamed(kind: type[Any], block: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options under their present names.

    Raises:
        QuantFaceError: an option is given under both of its names.
    """
    options = dict(given)
    for item in fields(kind):
        old = item.metadata["old_name"]
        if old in options:
            if key_of(item) in options:
                raise QuantFaceError(
                    f"{block}: found {key_of(item)} and its old name {old}, allowed is one of them"
                )
            options[key_of(item)] = options.pop(old)
    return options


def _kinds(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_block(hint: Any) -> bool:
    """Return whether a type is a mapping or a list, and nothing else."""
    return not {get_origin(kind) or kind for kind in _kinds(hint)} & set(WORDS)


def _is_required(item: Field[Any]) -> bool:
    return item.default is MISSING and item.default_factory is MISSING


def _checked(place: str, value: Any, hint: Any, item: Field[Any]) -> Any:
    """Return a value in its field's type, or raise QuantFaceError."""
    allowed, limits = item.metadata["allowed"], item.metadata["limits"]
    if allowed is not None:
        check_choice(place, value, allowed)
        return value
    if value is None and type(None) in _kinds(hint):
        return None
    for kind in _kinds(hint):
        fits, converted = _converted(place, value, kind)
        if fits and (limits is None or converted in limits):
            return converted
    words = " or ".join(dict.fromkeys(_words(kind) for kind in _kinds(hint)))
    limited = f" {limits}" if limits is not None else ""
    raise QuantFaceError(f"{place}: found {value!r}, allowed is {words}{limited}")


def _converted(place: str, value: Any, kind: Any) -> tuple[bool, Any]:
    """Return whether a value is of a type, and the value in that type."""
    base = get_origin(kind) or kind
    if isinstance(base, type) and is_dataclass(base):
        return True, parse_options(base, place, value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if base is float:
        return number, float(value) if number else None
    if base is int:
        # YAML reads 1e3 as a string and !!float 1e3 as 1000.0.
        whole = number and value == value // 1
        return whole, int(value) if whole else None
    if base is bool:
        return value in (True, False) and isinstance(value, (bool, int)), bool(value)
    if base is tuple and isinstance(value, (list, tuple)):
        return _converted_pair(place, value, get_args(kind))
    if base is Sequence:
        fits = isinstance(value, (list, tuple))
        return fits, tuple(value) if fits else None
    return isinstance(value, base), value


def _converted_pair(place: str, value: Sequence[Any], kinds: Sequence[Any]) -> tuple[bool, Any]:
    """Return whether a list holds one value of each type, and the values as a tuple."""
    if len(value) != len(kinds):
        return False, None
    pairs = [_converted(place, part, kind) for part, kind in zip(value, kinds, strict=True)]
    return all(fits for fits, _ in pairs), tuple(part for _, part in pairs)


def _words(kind: Any) -> str:
    """Return what messages call a type."""
    base = get_origin(kind) or kind
    if base is tuple:
        return f"a list of {len(get_args(kind))} numbers"
    if base is Sequence:
        return "a list"
    return WORDS.get(base, "a mapping of options")
