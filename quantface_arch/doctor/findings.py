"""All that the doctor finds, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Findings", "Package"]


@dataclass
class Package:
    """One package that ``pyproject.toml`` asks for.

    Attributes:
        wanted: its requirement, such as ``torch>=2.4``.
        extra: None where it is always needed, else the extra that brings it.
        version: None: not installed.
        fits: whether the version is within what is wanted; None: could not be checked.
        error: why it cannot be imported, one line.
        cause: the module to blame for that, if it is another one.
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
    """All that the doctor found; plain data."""

    version: str
    python: str
    system: str
    packages: list[Package]
    cpu: dict[str, Any]
    models: dict[str, int]
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
