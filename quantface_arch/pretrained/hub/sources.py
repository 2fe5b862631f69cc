"""What the names of restorers on the hub stand for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from quantface_arch.utils.disk_cache import cache_root
from quantface_arch.utils.safe_yaml_json import read_yaml

__all__ = [
    "QUANTIZED",
    "Mirror",
    "Part",
    "Source",
    "fetchable",
    "has_form_of_id",
    "hub_folder",
    "is_hub_id",
    "source_of",
    "sources",
]

# Recipes of the restorers that are made of fetched ones, by the end of their names; mp has a bit
# width for every layer.
QUANTIZED = ("w8a8", "w4a8", "w4a4", "mp")
_SUFFIXES = (".bin", ".ckpt", ".onnx", ".pt", ".pth", ".safetensors", ".xml")
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Mirror:
    """A repository of the hub, at a branch, tag or commit."""

    repo: str
    revision: str

    @classmethod
    def of(cls, text: str) -> Mirror:
        """Return the mirror ``USER/REPOSITORY`` or ``USER/REPOSITORY@REVISION``."""
        repo, _, revision = text.partition("@")
        return cls(repo, revision or "main")

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class Part:
    """Files that come from one repository.

    Attributes:
        folder: where they are kept below the restorer's folder.
        mirrors: the repositories that have them, tried in turn.
        files: alternatives for each file, relative to ``folder``; the first that exists is taken.
    """

    folder: str
    mirrors: tuple[Mirror, ...]
    files: tuple[tuple[str, ...], ...]

    def kept(self, name: str) -> str:
        """Return where a file is kept, relative to the restorer's folder."""
        return name if self.folder == "." else f"{self.folder}/{name}"


@dataclass(frozen=True)
class Source:
    """A restorer on the hub."""

    name: str
    terms: str
    parts: tuple[Part, ...]

    @property
    def folder(self) -> Path:
        """The folder in the cache that holds its files."""
        return hub_folder(self.name)

    def quantized(self, recipe: str) -> Path:
        """Return the checkpoint in the cache that is made by a recipe."""
        return self.folder.with_name(f"{self.name}-{recipe}.safetensors")


@cache
def sources() -> dict[str, Source]:
    """Return all restorers that can be fetched, by name."""
    found = read_yaml(Path(__file__).with_name("sources.yml"))
    return {
        name: Source(name, entry["terms"], tuple(_part(part) for part in entry["parts"]))
        for name, entry in found.items()
    }


def _part(entry: dict[str, Iterable[str] | str]) -> Part:
    files = tuple(tuple(word.strip() for word in line.split("|")) for line in entry["files"])
    return Part(str(entry["folder"]), tuple(map(Mirror.of, entry["mirrors"])), files)


def source_of(name: str) -> tuple[Source, str | None] | None:
    """Return the source that a restorer's name stands for, and the recipe in the name, if any.

    None if the name is not in the table.
    """
    base, _, recipe = name.rpartition("-")
    if name in sources():
        return sources()[name], None
    return (sources()[base], recipe) if base in sources() and recipe in QUANTIZED else None


def fetchable(name: str) -> bool:
    """Return whether a name is in the table or is an id of the hub, ``USER/REPOSITORY``."""
    return source_of(name) is not None or is_hub_id(name)


def is_hub_id(name: str) -> bool:
    """Return whether a name is an id of the hub.

    A mistyped path is none: its parent folder exists, or it ends like a file of weights.
    """
    return has_form_of_id(name) and not name.lower().endswith(_SUFFIXES)


def has_form_of_id(name: str) -> bool:
    """Return whether a name looks like ``USER/REPOSITORY``, and no folder ``USER`` is here."""
    return bool(_HUB_ID.fullmatch(name)) and not Path(name).parent.is_dir()


def hub_folder(name: str) -> Path:
    """Return the folder in the cache that holds a restorer, by its name or its id of the hub."""
    return cache_root() / "models" / name.replace("/", "--")
