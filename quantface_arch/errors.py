"""The exception types for input that a user can correct."""

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
    """Invalid input.

    The message names the file, layer or option, and says what was found and what is allowed.
    Commands print it as one line and exit with a status other than 0. They show a traceback only
    with ``--debug``.
    """


class UsageError(QuantFaceError):
    """An invalid command line.

    It is raised before any work begins, so nothing has been done. The exit status is 2.
    """


class WriteError(QuantFaceError):
    """A file that could not be written: the disk is full or read-only, or permission is missing.

    Writing other files there will fail too. The message names the file and the reason.
    """


def one_line(error: BaseException | str) -> str:
    """Return a message without line breaks and without terminal control characters."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def listed(names: Iterable[str], limit: int = 3) -> str:
    """Return the first few names and the number of the others, for a message."""
    names = list(names)
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def check_keys(what: str, options: Mapping[str, Any], allowed: Iterable[str]) -> None:
    """Raise QuantFaceError if ``options`` has a key that is not allowed.

    Args:
        what: what the message calls the options, such as ``train options``.
        options: the options to check.
        allowed: every key that exists.
    """
    known = sorted(allowed)
    unknown = sorted(str(key) for key in options if key not in known)
    if unknown:
        raise QuantFaceError(
            f"{what}: unknown key {', '.join(unknown)}; allowed are {', '.join(known)}"
        )


def check_choice(what: str, found: Any, allowed: Iterable[Any]) -> None:
    """Raise QuantFaceError unless ``found`` is allowed; the message calls it ``what``."""
    choices = list(allowed)
    if found not in choices:
        known = ", ".join("null" if choice is None else str(choice) for choice in choices)
        raise QuantFaceError(f"{what}: found {found!r}, allowed are {known}")


def check_patterns(
    what: str, patterns: Iterable[str], names: Collection[str], of: str = "layer"
) -> None:
    """Raise QuantFaceError if a shell glob matches none of the names.

    Args:
        what: what the message calls the option, such as ``recipe include``.
        of: what the message calls a single name, such as ``layer``.
    """
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise QuantFaceError(f"{what}: pattern {pattern!r} matches no {of}")
