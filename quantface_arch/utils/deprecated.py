"""Keep the old names of arguments and options working."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from quantface_arch.errors import QuantFaceError

__all__ = ["renamed_argument", "renamed_key"]

P = ParamSpec("P")
R = TypeVar("R")


def renamed_argument(old: str, new: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Return a decorator that accepts the keyword ``old`` for ``new``, with a DeprecationWarning.

    The decorated function raises TypeError if it is given both.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if old in kwargs:
                if new in kwargs:
                    raise TypeError(f"{function.__name__}() got both {new} and its old name {old}")
                message = f"{function.__name__}({old}=...) is deprecated: use {new}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return call

    return decorate


def renamed_key(
    what: str, options: Mapping[str, Any], old: str, new: str, factor: float
) -> dict[str, Any]:
    """Return options in which ``new`` has ``factor`` times the number that ``old`` had.

    Raises:
        QuantFaceError: both are given; the message begins with ``what``.
    """
    given = dict(options)
    value = given.pop(old, None)
    if value is None:
        return given
    if given.get(new) is not None:
        raise QuantFaceError(f"{what}: found {new} and its old name {old}, allowed is one of them")
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return {**given, new: value * factor if is_number else value}
