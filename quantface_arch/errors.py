"""The exception types for input that a user can mend."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

__all__ = [
    "QuantFaceError",
    "UsageError",
    "WriteError",
    "check_choice",
    "check_keys",
    "check_patterns",
    "listed",
    "one_line",
]


class QuantFaceError(ValueError):
    """Bad input: the message names the file, layer or option, what was found and what is allowed.

    Commands print it as one line and exit with a status other than 0; a traceback is shown only
    with ``--debug``.
    """


class UsageError(QuantFaceError):
    """A command was typed wrong: found before any work began, so nothing was done (status 2)."""


class WriteError(QuantFaceError):
    """A file could not be written: disk full, read-only, no permission. Others will not be either.

    The message names the file and says why.
    """


def one_line(error: BaseException | str) -> str:
    """A message without line breaks, and without what would steer a terminal."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """The first few names and how many more there are, for messages."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def check_keys(what: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise QuantFaceError if ``options`` has a key that is not allowed.

    Args:
        what: names the options in the message, such as ``train options``.
        options: what was given.
        allowed: the keys that exist.
    """
    known = sorted(allowed)
    unknown = sorted(str(key) for key in options if key not in known)
    if unknown:
        raise QuantFaceError(
            f"{what}: unknown key {', '.join(unknown)}; allowed are {', '.join(known)}"
        )


def check_choice(what: str, found: Any, allowed: Iterable[Any]) -> None:
    """Raise QuantFaceError if a value is none of those allowed; ``what`` names it."""
    choices = list(allowed)
    if found not in choices:
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise QuantFaceError(f"{what}: found {found!r}, allowed are {known}")


def check_patterns(
    what: str, patterns: Iterable[str], names: Collection[str], of: str = "layer"
) -> None:
    """Raise QuantFaceError if a shell glob matches none of the names.

    Args:
        what: names the option in the message, such as ``recipe include``.
        of: what the names are of, as ends a sentence.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantFaceError(f"{what}: pattern {pattern!r} matches no {of}")
