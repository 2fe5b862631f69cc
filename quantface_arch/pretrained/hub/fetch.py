"""Fetch the files of a restorer, each complete and checked, or none of them."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from quantface_arch.errors import QuantFaceError
from quantface_arch.pretrained.hub.cache import held, is_complete
from quantface_arch.pretrained.hub.listing import Remote, list_files
from quantface_arch.pretrained.hub.lock import Lock, Locked
from quantface_arch.pretrained.hub.options import FetchOptions, ask
from quantface_arch.pretrained.hub.origin import Origin, check_origin
from quantface_arch.pretrained.hub.requests import HubError, persistently
from quantface_arch.pretrained.hub.sources import Mirror, Part, Source, is_hub_id
from quantface_arch.pretrained.hub.transfer import transfer
from quantface_arch.utils.files import file_digest

__all__ = ["fetch"]

# A file that arrives altered is fetched this often.
_TRIES = 3
_STAGING = ".fetching"
_GONE = 404


def fetch(source: Source, options: FetchOptions, notify: Callable[[str], None]) -> Path:
    """Return the folder of a restorer's files, fetched from the hub where they are missing.

    Args:
        source: the restorer.
        options: how it is fetched.
        notify: receives a line for every mirror that fails, and one with what the next one has.

    Raises:
        UsageError: the user does not agree, or asks for another base or revision than that of the
            files that are here.
        QuantFaceError: files are missing and ``options`` forbid fetching, no mirror gives them,
            they differ from those that were fetched first, or the disk has no room.
    """
    with held(source.folder, notify):
        lock = Lock(source.folder)
        origin = _settled(source, options, lock)
        own, *others = _parts(source, options)
        missing = [part for part in (own, *others) if not is_complete(part, lock)]
        if not missing:
            return source.folder
        base = _own_base(source, others, options.base_place)
        fetched = [part for part in missing if part is own or base is None]
        plans = _agreed(source, options, lock, fetched, notify)
        _link([source.folder / part.folder for part in missing if part is not own], base)
        origin.write(source.name)
        for plan in plans:
            plan.run()
        shutil.rmtree(source.folder / _STAGING, ignore_errors=True)
    return source.folder


def _settled(source: Source, options: FetchOptions, lock: Lock) -> Origin:
    """Refuse options that the files which are here do not follow; return what all are made of."""
    before, now = Origin.read(source.name), Origin.of(options, options.base_place)
    own, *others = source.parts
    if is_complete(own, lock):
        check_origin(source.name, replace(options, base=None))
        now = replace(now, revision=before.revision)
    if all(is_complete(part, lock) for part in others):
        check_origin(source.name, replace(options, revision=None))
        now = replace(now, base=before.base)
    return now


def _own_base(source: Source, parts: Sequence[Part], place: str | None) -> Path | None:
    """Return the user's own folder of the base, if there is one.

    Raises:
        QuantFaceError: it lacks a configuration, or lies where a link to it would be put.
    """
    if place is None or not Path(place).is_dir():
        return None
    for part in parts:
        configs = [names[0] for names in part.files if names[0].endswith(".json")]
        for name in configs:
            if not (Path(place) / name).is_file():
                raise QuantFaceError(
                    f"base {place}: no file {name}; expected a folder with {', '.join(configs)}"
                )
    own, cache = Path(place).resolve(), source.folder.resolve()
    if own.is_relative_to(cache):
        raise QuantFaceError(f"base {place}: it lies in {cache}, where the fetched base belongs")
    return own


def _agreed(
    source: Source,
    options: FetchOptions,
    lock: Lock,
    parts: Sequence[Part],
    notify: Callable[[str], None],
) -> list[_Plan]:
    """List the files of parts and ask whether they may be fetched.

    Raises:
        UsageError, QuantFaceError: see ``fetch``.
    """
    if parts and options.offline:
        raise QuantFaceError(
            f"{source.name} is not in {source.folder}, and nothing may be fetched offline"
        )
    plans = [_Plan(part, lock, options.hub, notify) for part in parts]
    remotes = [remote for plan in plans for remote in plan.missing]
    if remotes:
        _check_room(source.folder, remotes)
        ask(_description(source, remotes), options.yes)
    return plans


def _link(places: Sequence[Path], base: Path | None) -> None:
    """Put links to the user's own base into the places of fetched ones; drop broken links."""
    for place in places:
        if place.is_symlink():
            place.unlink()
        if base is not None:
            if place.exists():
                shutil.rmtree(place)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(base)


def _parts(source: Source, options: FetchOptions) -> list[Part]:
    """Return a restorer's parts from the repositories that the options name."""
    own, *others = source.parts
    if options.revision:
        own = replace(own, mirrors=tuple(Mirror(m.repo, options.revision) for m in own.mirrors))
    base = options.base_place
    if base and not Path(base).is_dir():
        if not is_hub_id(base.partition("@")[0]):
            raise QuantFaceError(f"base {base}: neither a folder nor an id of the hub")
        others = [replace(part, mirrors=(Mirror.of(base),)) for part in others]
    return [own, *others]


def _check_room(folder: Path, remotes: Sequence[Remote]) -> None:
    wanted, free = sum(remote.size for remote in remotes), shutil.disk_usage(folder.parent).free
    if wanted > free:
        raise QuantFaceError(
            f"{folder}: {wanted / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free; "
            "QUANTFACE_CACHE names another folder"
        )


def _description(source: Source, remotes: Sequence[Remote]) -> str:
    lines = [f"{source.name} is fetched from the hub into {source.folder}:"]
    lines += [f"  {line}" for line in _counted(remotes)]
    return "\n".join([*lines, f"  {_megabytes(remotes)} in all; terms: {source.terms}"])


def _counted(remotes: Sequence[Remote]) -> list[str]:
    """Return a line for each mirror, with the number and the size of its files."""
    found = []
    for mirror in dict.fromkeys(remote.mirror for remote in remotes):
        own = [remote for remote in remotes if remote.mirror == mirror]
        found.append(f"{len(own)} files, {_megabytes(own)}, from {mirror.repo}")
    return found


def _megabytes(remotes: Sequence[Remote]) -> str:
    return f"{sum(remote.size for remote in remotes) / 1e6:,.1f} MB"


class _Plan:
    """The files of a part that are to be fetched, from the first mirror that lists them."""

    def __init__(
        self, part: Part, lock: Lock, endpoint: str | None, notify: Callable[[str], None]
    ) -> None:
        self.part, self.lock, self.endpoint, self.notify = part, lock, endpoint, notify
        self.mirrors = list(part.mirrors)
        self.failures: list[str] = []
        self.missing = self._next()

    def _next(self) -> list[Remote]:
        """List the files of the next mirror that has them all."""
        while self.mirrors:
            mirror = self.mirrors.pop(0)
            try:
                return self._listed(mirror)
            except HubError as error:
                self._failed(str(error))
        raise QuantFaceError("; ".join(self.failures))

    def _listed(self, mirror: Mirror) -> list[Remote]:
        """List the missing files of a mirror.

        A branch may have moved since the first fetch, so the commit in the lock file is asked for
        first.
        """
        locked = self.lock.files.values()
        commits = [file.commit for file in locked if file.repo == mirror.repo]
        for commit in dict.fromkeys(commits) if mirror.revision == "main" else ():
            try:
                found = self._list(replace(mirror, revision=commit))
                break
            except HubError as error:
                if error.status != _GONE:
                    raise
        else:
            found = self._list(mirror)
        return [remote for remote in found if not self.lock.holds(remote.name)]

    def _list(self, mirror: Mirror) -> list[Remote]:
        return list_files(self.part, mirror, self.endpoint, self.lock)

    def _failed(self, line: str) -> None:
        self.failures.append(line)
        if self.mirrors:
            self.notify(f"{line}; trying {self.mirrors[0].repo}")

    def run(self) -> None:
        """Fetch the files, from the next mirror if one fails."""
        while True:
            try:
                for remote in self.missing:
                    self._fetch(remote)
                return
            except HubError as error:
                self._failed(str(error))
                self.missing = self._next()
                _check_room(self.lock.folder, self.missing)
                # The user agreed to the size of another mirror's files.
                self.notify("; ".join(_counted(self.missing)))

    def _fetch(self, remote: Remote) -> None:
        path = _download(remote, self.lock.folder / _STAGING, self.endpoint)
        # A large file has just been compared with the hub's digest.
        digest = remote.sha256 or file_digest(path)
        self.lock.check(remote.name, digest, str(remote.mirror))
        target = self.lock.folder / remote.name
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
        self.lock.add(remote.name, Locked(digest, remote.size, remote.mirror.repo, remote.commit))


def _download(remote: Remote, staging: Path, endpoint: str | None) -> Path:
    """Download a file below ``staging`` until its digest is the hub's.

    Raises:
        HubError: it cannot be downloaded, or is not the file that the hub lists.
        WriteError: it cannot be written.
    """
    name = f"{remote.mirror.repo}: {remote.path}"
    path = staging / f"{remote.mirror.repo.replace('/', '--')}--{remote.commit}" / remote.path
    problem = ""
    for _ in range(_TRIES):
        persistently(lambda: transfer(remote, path, endpoint), name)
        problem = _difference(path, remote)
        if not problem:
            return path
        path.unlink()
    raise HubError(f"{name}: {problem}")


def _difference(path: Path, remote: Remote) -> str:
    """Return what distinguishes a downloaded file from the one that the hub lists, if anything."""
    size = path.stat().st_size
    if size != remote.size:
        return f"found {size} bytes, expected {remote.size}"
    if remote.sha256:
        kind, wanted, found = "SHA-256", remote.sha256, file_digest(path)
    else:
        data = path.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False)
        kind, wanted, found = "git digest", remote.blob, git.hexdigest()
    return "" if found == wanted else f"found {kind} {found}, expected {wanted}"
