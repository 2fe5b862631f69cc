"""Find the inputs of a restore command and name its outputs."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from quantface_arch.errors import UsageError, listed
from quantface_arch.utils.files import kind_of
from quantface_arch.utils.images import FORMAT_NAMES, SUFFIXES
from quantface_arch.video import SUFFIXES as VIDEO_SUFFIXES

__all__ = ["MANIFESTS", "OutputFolders", "Source", "find_sources", "left_out_line", "output_names"]

# Manifests in the output folder match this pattern, see ``restore.manifest``.
MANIFESTS = "manifest-*.jsonl"

_KINDS = f"images ({FORMAT_NAMES}) and videos ({', '.join(sorted(VIDEO_SUFFIXES))})"
_MOST_NAMED = 5
# File systems allow 255 bytes. The rest is for the number of a face and a suffix.
_MAX_NAME_BYTES = 240


@dataclass(frozen=True)
class Source:
    """An image or video to restore, and the NAME of its outputs."""

    path: Path
    name: str

    @property
    def is_video(self) -> bool:
        """Whether the file is a video, by its suffix."""
        return self.path.suffix.lower() in VIDEO_SUFFIXES


@dataclass(frozen=True)
class OutputFolders:
    """The folders that a command writes into.

    Attributes:
        root: the output folder, which holds the others.
        aligned: whether the inputs are aligned faces.
        compare: whether the input and the result are also written side by side.
        whole: whether the inputs are restored without looking for faces.
    """

    root: Path
    aligned: bool
    compare: bool
    whole: bool = False

    @property
    def restored(self) -> Path:
        return self.root / "restored"

    @property
    def crops(self) -> Path:
        return self.root / "cropped_faces"

    @property
    def faces(self) -> Path:
        return self.root / "restored_faces"

    @property
    def compared(self) -> Path:
        return self.root / "compare"

    def all(self) -> list[Path]:
        """Return every folder that any command with this root may write into."""
        return [self.restored, self.crops, self.faces, self.compared]

    def used(self) -> list[Path]:
        """Return the folders that this command writes into."""
        if self.whole:
            own = [self.restored]
        elif self.aligned:
            own = [self.faces]
        else:
            own = [self.restored, self.crops, self.faces]
        return [*own, *([self.compared] if self.compare else [])]

    def final(self, source: Source) -> Path:
        """Return the output that is written last: if it exists, the input is done."""
        folder = self.faces if self.aligned else self.restored
        return folder / f"{source.name}{'.mp4' if source.is_video else '.png'}"

    def check(self, sources: list[Source]) -> None:
        """Check, without creating anything, that this command may write here.

        Raises:
            UsageError: a folder cannot be written or holds one of the inputs, or a link in the
                root leads out of it.
        """
        used = {folder.resolve(): folder for folder in self.used()}
        for source in sources:
            if source.path.resolve().parent in used:
                raise UsageError(
                    f"{source.path} is in a folder that this command writes into: "
                    "choose another output folder with -o"
                )
        self._check_links(self.root.glob(MANIFESTS))
        for folder in self.used():
            self._check_links([folder])
            inside = list(os.scandir(folder)) if folder.is_dir() else []
            self._check_links(Path(entry) for entry in inside if entry.is_symlink())
            existing = next(path for path in [folder, *folder.absolute().parents] if path.exists())
            if not existing.is_dir():
                raise UsageError(f"cannot write to {folder}: {existing} is not a folder")
            if not os.access(existing, os.W_OK | os.X_OK):
                raise UsageError(f"cannot write to {folder}: no permission in {existing}")

    def _check_links(self, paths: Iterable[Path]) -> None:
        """Raise UsageError if a path is a link to a place outside the root."""
        for path in paths:
            if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                raise UsageError(
                    f"cannot write to {path}: it is a link to {path.resolve()}, "
                    f"which is outside {self.root}"
                )

    def make(self) -> None:
        """Create the folders and try to write into each.

        Raises:
            UsageError: a folder cannot be created or written.
        """
        for folder in self.used():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error


def find_sources(
    inputs: Sequence[str], recursive: bool, folders: OutputFolders
) -> tuple[list[Source], list[Path]]:
    """Find the images and videos that files, folders and globs name; each appears once.

    Hidden files and files with another suffix are left out. If the output folder is inside an
    input folder, the results of earlier commands are left out as well.

    Returns:
        the images and videos, and the other files, both sorted by path.

    Raises:
        UsageError: a path does not exist, a glob matches nothing, or there is no image or video.
    """
    found: dict[Path, Path] = {}
    skipped: set[Path] = set()
    own = {folder.resolve() for folder in folders.all()}
    for text in inputs:
        for path in _expand(text, recursive, own):
            if path.suffix.lower() in SUFFIXES | VIDEO_SUFFIXES:
                found.setdefault(path.resolve(), path)
            else:
                skipped.add(path.resolve())
    if not found:
        raise UsageError(
            f"no images or videos in {', '.join(inputs)} ({len(skipped)} other files; "
            f"supported are {_KINDS}"
            f"{'' if recursive else '; --recursive looks into subfolders'})"
        )
    paths = sorted(found.values())
    return [Source(*pair) for pair in zip(paths, output_names(paths), strict=True)], sorted(skipped)


def left_out_line(paths: Sequence[Path]) -> str:
    """Return one line that names the files that are not supported images or videos."""
    named = listed((path.name for path in paths), _MOST_NAMED)
    return f"left out, because they are not among the supported {_KINDS}: {named}"


def _expand(text: str, recursive: bool, own: set[Path]) -> Iterator[Path]:
    """Yield the files that one argument names; an existing file is never taken for a glob."""
    path = Path(text).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from _walk(path, recursive, own)
    elif glob.has_magic(text):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            hint = "; [ab] matches a or b, and [[] a bracket" if "[" in text else ""
            raise UsageError(f"nothing matches {text}{hint}")
        for match in matches:
            if match.is_file():
                yield match
            elif recursive:
                yield from _walk(match, recursive, own)
    elif path.exists():
        raise UsageError(f"{text} is {kind_of(path.stat().st_mode)}, expected a file or a folder")
    else:
        raise UsageError(f"{text} does not exist")


def _walk(root: Path, recursive: bool, own: set[Path]) -> Iterator[Path]:
    """Yield the files of a folder, except hidden ones and those in folders of ``own``."""
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        yield from (here / name for name in files if not name.startswith("."))
        subfolders[:] = [
            name
            for name in subfolders
            if recursive and not name.startswith(".") and (here / name).resolve() not in own
        ]


def output_names(paths: list[Path]) -> list[str]:
    """Return a unique NAME for each file: its stem, unless another file has the same stem.

    Files that share a stem get a longer name: the first of stem_suffix, folder_stem,
    folder_stem_suffix and so on up the path that tells them apart. So ``a.png`` and ``a.jpg``
    become ``a_png`` and ``a_jpg``; ``x/a.png`` and ``y/a.png`` become ``x_a`` and ``y_a``. Names
    that differ in case only count as equal, because some file systems do not distinguish them.
    Paths that differ in nothing else get a digest, and so do names that are too long for a suffix.
    """
    levels = [0] * len(paths)
    deepest = 2 * max((len(path.resolve().parts) for path in paths), default=0)
    while True:
        names = [
            _name(path, level) if level <= deepest else _digest_name(path)
            for path, level in zip(paths, levels, strict=True)
        ]
        groups: dict[str, list[int]] = defaultdict(list)
        for index, name in enumerate(names):
            groups[name.casefold()].append(index)
        clashing = [i for group in groups.values() if len(group) > 1 for i in group]
        if not clashing:
            return names
        for i in clashing:
            levels[i] += 1


def _name(path: Path, level: int) -> str:
    # An odd level adds the suffix, and every second level adds one more parent folder.
    parents, with_suffix = divmod(level, 2)
    folders = path.resolve().parent.parts[1:]
    parts = [*folders[max(0, len(folders) - parents) :], path.stem]
    name = "_".join([*parts, path.suffix[1:]] if with_suffix else parts)
    return name if len(os.fsencode(name)) <= _MAX_NAME_BYTES else _digest_name(path)


def _digest_name(path: Path) -> str:
    digest = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:12]
    stem = os.fsencode(path.stem)[: _MAX_NAME_BYTES - len(digest) - 1]
    return f"{stem.decode(errors='ignore')}_{digest}"
