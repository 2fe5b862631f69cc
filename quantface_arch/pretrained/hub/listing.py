"""Ask a hub which files a repository has, and choose those of a restorer."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.error import HTTPError

from quantface_arch.errors import QuantFaceError, WriteError, one_line
from quantface_arch.pretrained.hub.lock import Lock
from quantface_arch.pretrained.hub.sources import Mirror, Part

__all__ = ["HubError", "Remote", "list_files", "list_names", "persistently"]

_TIMEOUT_SECONDS = 15.0
_PAUSES_SECONDS = (0.5, 1.0)
# Answers that do not change when they are asked for again.
_FINAL = (401, 403, 404)
_REFUSALS = {
    401: "no such repository, or a login is needed (set HF_TOKEN)",
    403: "access is refused (agree to its terms on the hub, then set HF_TOKEN)",
    404: "no such repository, revision or file",
    429: "too many requests; try again later",
}
T = TypeVar("T")


class HubError(QuantFaceError):
    """A hub, or one of its repositories, that does not give what is asked of it.

    Attributes:
        status: HTTP status of the hub's answer, if it answered.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


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


def persistently(request: Callable[[], T], what: str) -> T:
    """Make a request a few times before giving up; a hub that refuses it is asked once.

    Raises:
        HubError: the request fails. The message names ``what`` and gives the reason.
        WriteError: there is no room on the disk for what it writes.
    """
    for pause in (*_PAUSES_SECONDS, None):
        try:
            return request()
        except Exception as error:  # The client raises what its HTTP library raises.
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise WriteError(f"{what}: cannot be written: {_reason(error)}") from error
            if pause is None or _status(error) in _FINAL:
                raise HubError(f"{what}: {_reason(error)}", _status(error)) from error
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _status(error: BaseException) -> int | None:
    """Return the HTTP status of the answer that an error is about, if any."""
    if isinstance(error, HTTPError):
        return error.code
    return getattr(getattr(error, "response", None), "status_code", None)


def _reason(error: BaseException) -> str:
    """Return why a request to a hub failed, in a few words."""
    status = _status(error)
    if status in _REFUSALS:
        return f"{_REFUSALS[status]} ({status})"
    if status is not None and status >= 500:
        return f"the hub does not work at the moment ({status})"
    return one_line(error) or type(error).__name__
