"""Remember which base and revision a restorer in the cache was made of."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.pretrained.hub.options import FetchOptions
from quantface_arch.pretrained.hub.sources import Mirror, hub_folder, is_hub_id
from quantface_arch.utils.files import atomic_path
from quantface_arch.utils.safe_yaml_json import read_json

__all__ = ["Origin", "check_origin", "origin_file"]


@dataclass(frozen=True)
class Origin:
    """What was asked for when a restorer was fetched.

    Attributes:
        base: folder or ``USER/REPOSITORY@REVISION`` of the base; None for the mirrors.
        revision: branch, tag or commit of the restorer's own repository; None for the table's.
    """

    base: str | None = None
    revision: str | None = None

    @classmethod
    def of(cls, options: FetchOptions, base: str | None) -> Origin:
        """Return what options ask for, with ``base`` as their base."""
        if base is not None:
            is_id = is_hub_id(base.partition("@")[0]) and not Path(base).is_dir()
            base = str(Mirror.of(base)) if is_id else str(Path(base).resolve())
        return cls(base, options.revision)

    @classmethod
    def read(cls, name: str) -> Origin:
        """Return the origin of a restorer in the cache.

        Raises:
            QuantFaceError: its file is damaged.
        """
        path = origin_file(name)
        if not path.exists():
            return cls()
        try:
            return cls(**read_json(path))
        except TypeError as error:
            raise QuantFaceError(f"{path}: damaged; remove it") from error

    def write(self, name: str) -> None:
        """Keep the origin of a restorer, beside it."""
        path = origin_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(asdict(self)) + "\n")


def origin_file(name: str) -> Path:
    """Return the file that keeps the origin of a restorer."""
    folder = hub_folder(name)
    return folder.with_name(f"{folder.name}.origin.json")


def check_origin(name: str, options: FetchOptions) -> None:
    """Refuse options that ask for another restorer than the cache has under this name.

    Raises:
        UsageError: the base or the revision differs. The message gives both.
    """
    made, wanted = Origin.read(name), Origin.of(options, options.base)
    for option, found, asked in (
        ("base", made.base, wanted.base),
        ("revision", made.revision, wanted.revision),
    ):
        if asked not in (None, found):
            raise UsageError(
                f"--{option} {asked}: {name} is in the cache, made of "
                f"{found or f'the default {option}'}; to take another, remove {name} "
                "(quantface fetch --remove), what it is made of, and the lock file in "
                f"{origin_file(name).parent}"
            )
