"""Remember which files a restorer was fetched as, so that a later fetch gives the same ones."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from quantface_arch.errors import QuantFaceError
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json

__all__ = ["Lock", "Locked"]


@dataclass(frozen=True)
class Locked:
    """A file as it was fetched first.

    Attributes:
        sha256: digest of its bytes.
        size: length in bytes.
        repo: the repository that it came from.
        commit: the commit of that repository.
    """

    sha256: str
    size: int
    repo: str
    commit: str


class Lock:
    """The lock file of a restorer's folder: it lies beside it and outlives it.

    Raises:
        QuantFaceError: the lock file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder.with_name(f"{folder.name}.lock.json")
        self.files = self._read() if self.path.exists() else {}

    def _read(self) -> dict[str, Locked]:
        found: Any = read_json(self.path)
        try:
            return {str(name): Locked(**entry) for name, entry in found.items()}
        except (AttributeError, TypeError) as error:
            raise QuantFaceError(
                f"{self.path}: damaged; remove it to trust what is fetched next"
            ) from error

    def holds(self, name: str) -> bool:
        """Return whether a file was fetched and still has its length."""
        path, locked = self.folder / name, self.files.get(name)
        return locked is not None and path.is_file() and path.stat().st_size == locked.size

    def check(self, name: str, sha256: str, where: str) -> None:
        """Refuse a file that differs from the one that was fetched first.

        Raises:
            QuantFaceError: the digest differs. The message names both.
        """
        locked = self.files.get(name)
        if locked is not None and locked.sha256 != sha256:
            raise QuantFaceError(
                f"{name}: {where} has SHA-256 {sha256}, but {locked.repo} had {locked.sha256} when "
                f"it was fetched first; remove {self.path} if you trust the new file"
            )

    def add(self, name: str, locked: Locked) -> None:
        """Keep what a file was fetched as."""
        self.files[name] = locked
        self.path.parent.mkdir(parents=True, exist_ok=True)
        entries = {key: asdict(value) for key, value in sorted(self.files.items())}
        with atomic_path(self.path) as temporary:
            temporary.write_text(json.dumps(entries, indent=1) + "\n")
