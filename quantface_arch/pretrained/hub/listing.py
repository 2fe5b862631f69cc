"""Ask a hub which files a repository has, and choose those of a restorer."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from quantface_arch.pretrained.hub.lock import Lock
from quantface_arch.pretrained.hub.requests import HubError, persistently
from quantface_arch.pretrained.hub.sources import Mirror, Part

__all__ = ["Remote", "list_files", "list_names"]

_TIMEOUT_SECONDS = 15.0


@dataclass(frozen=True)
class Remote:
    """A file of a repository.

    Attributes:
        name: where it is kept, relative to the restorer's folder.
        path: where it is in the repository.
        size: length in bytes.
        sha256: digest of its bytes, if the hub knows it. It does of large files.
        blob: git's digest of the file, which the hub knows of small ones.
    """

    name: str
    mirror: Mirror
    commit: str
    path: str
    size: int
    sha256: str | None
    blob: str | None


def list_files(part: Part, mirror: Mirror, endpoint: str | None, lock: Lock) -> list[Remote]:
    """Return the files of a part that a mirror has.

    Raises:
        HubError: the repository cannot be listed, or lacks a file.
        QuantFaceError: a file differs from the one that was fetched first.
    """
    commit, found = _ask(mirror, endpoint)
    chosen = [_choose(part, alternatives, found, mirror, lock) for alternatives in part.files]
    remotes = [_remote(part, name, found[path], mirror, commit) for name, path in chosen]
    for remote in remotes:
        if remote.sha256:
            lock.check(remote.name, remote.sha256, str(remote.mirror))
    return remotes


def list_names(mirror: Mirror, endpoint: str | None) -> list[str]:
    """Return the paths of all files of a repository.

    Raises:
        HubError: the repository cannot be listed.
    """
    return list(_ask(mirror, endpoint)[1])


def _ask(mirror: Mirror, endpoint: str | None) -> tuple[str, dict[str, Any]]:
    """Return a repository's commit, and what the hub knows of its files, by path."""
    from huggingface_hub import HfApi

    def ask() -> Any:
        return HfApi(endpoint=endpoint).model_info(
            mirror.repo,
            revision=mirror.revision,
            files_metadata=True,
            timeout=_TIMEOUT_SECONDS,
        )

    info = persistently(ask, str(mirror))
    found = {entry.rfilename: entry for entry in info.siblings or ()}
    if not info.sha:
        raise HubError(f"{mirror}: the hub names no commit")
    return info.sha, found


def _choose(
    part: Part, alternatives: tuple[str, ...], paths: Iterable[str], mirror: Mirror, lock: Lock
) -> tuple[str, str]:
    """Return the first alternative that a repository has in some folder, and its path there.

    What was fetched before is the only alternative.
    """
    before = [name for name in alternatives if part.kept(name) in lock.files]
    for name in before or alternatives:
        same = [path for path in paths if path == name or path.endswith(f"/{name}")]
        if same:
            return name, min(same, key=len)
    raise HubError(f"{mirror}: no file {' or '.join(before or alternatives)}")


def _remote(part: Part, name: str, entry: Any, mirror: Mirror, commit: str) -> Remote:
    sha256 = entry.lfs.sha256 if entry.lfs else None
    if entry.size is None or not (sha256 or entry.blob_id):
        raise HubError(f"{mirror}: {entry.rfilename}: the hub names no size or digest")
    return Remote(
        part.kept(name), mirror, commit, entry.rfilename, entry.size, sha256, entry.blob_id
    )
