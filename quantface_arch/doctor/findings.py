"""Hold the doctor's findings as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Findings", "Package"]


@dataclass
class Package:
    """A package that ``pyproject.toml`` requires.

    Attributes:
        wanted: the requirement, such as ``torch>=2.4``.
        extra: the extra that requires it, or None if it is always required.
        version: the installed version, or None if it is not installed.
        fits: whether the version meets the requirement, or None if that could not be checked.
        error: one line on why it cannot be imported.
        cause: the module that causes the error, if it is another one.
    """

    name: str
    wanted: str
    extra: str | None
    version: str | None = None
    fits: bool | None = None
    error: str | None = None
    cause: str | None = None


@dataclass
class Findings:
    """Everything that the doctor found, as plain data."""

    version: str
    python: str
    system: str
    packages: list[Package]
    cpu: dict[str, Any]
    models: dict[str, int]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
