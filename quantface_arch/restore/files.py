"""Which files ``inference/restore.py`` reads and writes."""

from __future__ import annotations

import glob
import hashlib
import os
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from quantface_arch.errors import UsageError
from quantface_arch.utils.files import kind_of
from quantface_arch.utils.images import SUFFIXES
from quantface_arch.video import SUFFIXES as CLIP_SUFFIXES

__all__ = ["MANIFESTS", "OutputFolders", "Source", "find_sources", "output_names"]

# In the output folder, see ``Manifest``.
MANIFESTS = "manifest-*.jsonl"


@dataclass(frozen=True)
class Source:
    """One picture or clip to restore and the NAME that its outputs get."""

    path: Path
    name: str

    @property
    def is_clip(self) -> bool:
        return self.path.suffix.lower() in CLIP_SUFFIXES


@dataclass(frozen=True)
class OutputFolders:
    """Where a run writes: ``restored/``, ``cropped_faces/``, ``restored_faces/``, ``compare/``."""

    root: Path
    aligned: bool
    compare: bool

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
        """Every folder that any run with this root writes into."""
        return [self.restored, self.crops, self.faces, self.compared]

    def used(self) -> list[Path]:
        """The folders that this run writes into."""
        whole = [] if self.aligned else [self.restored, self.crops]
        return [*whole, self.faces, *([self.compared] if self.compare else [])]

    def final(self, source: Source) -> Path:
        """The file that is written last, so that an input is done where it exists."""
        folder = self.faces if self.aligned else self.restored
        return folder / f"{source.name}{'.mp4' if source.is_clip else '.png'}"

    def check(self, sources: list[Source]) -> None:
        """Find out, without making anything, whether this run may write here.

        Raises:
            UsageError: a folder cannot be written, holds one of the inputs, or is, or holds, a link
                that leads out of the root.
        """
        used = {folder.resolve(): folder for folder in self.used()}
        for source in sources:
            if source.path.resolve().parent in used:
                raise UsageError(
                    f"{source.path} lies in a folder that this run writes into: "
                    "choose another output with -o"
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
        """Refuse what is a link to somewhere outside of the root."""
        for path in paths:
            if path.is_symlink() and not path.resolve().is_relative_to(self.root.resolve()):
                raise UsageError(
                    f"cannot write to {path}: it is a link to {path.resolve()}, "
                    f"which lies outside of {self.root}"
                )

    def make(self) -> None:
        """Make the folders and try them out.

        Raises:
            UsageError: one of them cannot be made or written.
        """
        for folder in self.used():
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder):
                    pass
            except OSError as error:
                raise UsageError(f"cannot write to {folder}: {error.strerror or error}") from error


def find_sources(
    inputs: list[str], recursive: bool, folders: OutputFolders
) -> tuple[list[Source], int]:
    """The pictures and clips that files, folders and globs name, sorted, each once.

    Files whose suffix is neither's, and hidden ones, are left out; so is what an earlier run
    wrote, where the output lies inside an input folder.

    Returns:
        the pictures and clips, and how many other files were left out.

    Raises:
        UsageError: a path does not exist, a glob matches nothing, or nothing is left.
    """
    found: dict[Path, Path] = {}
    skipped: set[Path] = set()
    own = {folder.resolve() for folder in folders.all()}
    for text in inputs:
        for path in _expand(text, recursive, own):
            if path.suffix.lower() in SUFFIXES | CLIP_SUFFIXES:
                found.setdefault(path.resolve(), path)
            else:
                skipped.add(path.resolve())
    if not found:
        raise UsageError(
            f"no pictures or clips in {', '.join(inputs)} ({len(skipped)} other files; "
            f"allowed are {', '.join([*sorted(SUFFIXES), *sorted(CLIP_SUFFIXES)])}"
            f"{'' if recursive else '; --recursive looks into subfolders'})"
        )
    paths = sorted(found.values())
    return [Source(*pair) for pair in zip(paths, output_names(paths), strict=True)], len(skipped)


def _expand(text: str, recursive: bool, own: set[Path]) -> Iterator[Path]:
    path = Path(text).expanduser()
    if path.is_file():
        yield path
    elif path.is_dir():
        yield from _walk(path, recursive, own)
    elif glob.has_magic(text):
        matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
        if not matches:
            raise UsageError(f"nothing matches {text}")
        for match in matches:
            if match.is_file():
                yield match
            elif recursive:
                yield from _walk(match, recursive, own)
    elif path.exists():
        raise UsageError(f"{text} is {kind_of(path.stat().st_mode)}, a file or folder is wanted")
    else:
        raise UsageError(f"{text} does not exist")


def _walk(root: Path, recursive: bool, own: set[Path]) -> Iterator[Path]:
    for folder, subfolders, files in os.walk(root):
        here = Path(folder)
        yield from (here / name for name in files if not name.startswith("."))
        subfolders[:] = [
            name
            for name in subfolders
            if recursive and not name.startswith(".") and (here / name).resolve() not in own
        ]


def output_names(paths: list[Path]) -> list[str]:
    """A different NAME for each of these files: its stem wherever no other file has it too.

    Files that share a stem get, all of them, the first that tells them apart of: stem_suffix,
    folder_stem, folder_stem_suffix, and so on up the path. So ``a.png`` and ``a.jpg`` become
    ``a_png`` and ``a_jpg``; ``x/a.png`` and ``y/a.png`` become ``x_a`` and ``y_a``. Upper and
    lower case count as equal, since some file systems hold them so; paths that differ in nothing
    else get a digest.
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
    parents, with_suffix = divmod(level, 2)
    folders = path.resolve().parent.parts[1:]
    parts = [*folders[max(0, len(folders) - parents) :], path.stem]
    return "_".join([*parts, path.suffix[1:]] if with_suffix else parts)


def _digest_name(path: Path) -> str:
    return f"{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
