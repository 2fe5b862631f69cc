"""Read images as others distribute them: in a folder or .zip file, at any depth, with any name."""

from __future__ import annotations

import os
import shutil
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from quantface_arch.errors import QuantFaceError, UsageError
from quantface_arch.utils.images import FORMAT_NAMES, SUFFIXES

__all__ = ["MAX_BYTES", "MAX_IMAGE_BYTES", "ImageSource", "open_source"]

# An unpacked .zip file and each image in it may have this size. The largest published test set has
# 1.2 GB, and a 512×512 face has 1 MB.
MAX_BYTES = 8 << 30
MAX_IMAGE_BYTES = 64 << 20


class ImageSource(ABC):
    """The images of one folder, which may lie anywhere below ``path``.

    Hidden files, such as those that macOS adds to archives, and files of other types are ignored.

    Attributes:
        path: the folder or file that the user named.
        images: stem → path below ``path``, sorted.
    """

    def __init__(self, path: Path, names: Iterable[PurePosixPath]) -> None:
        self.path = path
        self.images = self._only_folder(names)

    def _only_folder(self, names: Iterable[PurePosixPath]) -> dict[str, PurePosixPath]:
        folders: defaultdict[PurePosixPath, dict[str, PurePosixPath]] = defaultdict(dict)
        for name in sorted(names):
            hidden = any(part.startswith(".") for part in name.parts)
            if hidden or name.suffix.lower() not in SUFFIXES:
                continue
            other = folders[name.parent].setdefault(name.stem, name)
            if other is not name:
                raise QuantFaceError(f"{self.path}: {other} and {name} differ only in the suffix")
        if not folders:
            raise QuantFaceError(f"{self.path}: it contains no image ({FORMAT_NAMES})")
        if len(folders) > 1:
            found = ", ".join(f"{folder} ({len(files)})" for folder, files in folders.items())
            raise QuantFaceError(
                f"{self.path}: found images in several folders: {found}; "
                "name one of them (unpack a .zip file first)"
            )
        return next(iter(folders.values()))

    def origin(self, stem: str) -> str:
        """Return what messages call an image."""
        return f"{self.path}/{self.images[stem]}"

    @abstractmethod
    def copy(self, stem: str, target: Path) -> None:
        """Copy an image's file unchanged.

        Raises:
            QuantFaceError: the file cannot be read or written.
        """

    def link(self, stem: str, target: Path) -> None:
        """Make ``target`` a hard link to an image's file.

        Raises:
            UsageError: the source is not a folder.
            QuantFaceError: the file lies on another file system.
        """
        raise UsageError(f"{self.path}: a packed image cannot be linked; leave out --link")


class Folder(ImageSource):
    """The images of a folder, or of a folder below it."""

    def __init__(self, path: Path) -> None:
        files = (file for file in path.rglob("*") if file.is_file())
        super().__init__(path, [PurePosixPath(file.relative_to(path)) for file in files])

    def copy(self, stem: str, target: Path) -> None:
        try:
            shutil.copyfile(self.path / self.images[stem], target)
        except OSError as error:
            raise QuantFaceError(f"{self.origin(stem)}: cannot be copied: {error}") from error

    def link(self, stem: str, target: Path) -> None:
        try:
            os.link((self.path / self.images[stem]).resolve(), target)
        except OSError as error:
            raise QuantFaceError(
                f"{self.origin(stem)}: cannot be linked: {error.strerror}; leave out --link"
            ) from error


class Zip(ImageSource):
    """The images of a .zip file.

    The whole file is refused if an entry would leave the target folder, is a link or a device, or
    is encrypted, or if the images are too large.
    """

    def __init__(self, path: Path) -> None:
        try:
            self.archive = zipfile.ZipFile(path)
        except (OSError, zipfile.BadZipFile) as error:
            raise QuantFaceError(f"{path}: cannot be read as a .zip file: {error}") from error
        entries = self.archive.infolist()
        for entry in entries:
            self._check(path, entry)
        named = [(PurePosixPath(entry.filename), entry) for entry in entries if not entry.is_dir()]
        super().__init__(path, [name for name, _ in named])
        self.entries = dict(named)
        total = sum(self.entries[name].file_size for name in self.images.values())
        if total > MAX_BYTES:
            raise QuantFaceError(
                f"{path}: unpacks to {total:,} bytes of images, at most {MAX_BYTES:,} are allowed"
            )

    @staticmethod
    def _check(path: Path, entry: zipfile.ZipInfo) -> None:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if name.startswith("/") or "\\" in name or ".." in PurePosixPath(name).parts:
            reason = "points outside its folder"
        elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            reason = "is a link or another special file"
        elif entry.flag_bits & 1:
            reason = "is encrypted"
        elif entry.file_size > MAX_IMAGE_BYTES:
            reason = f"has {entry.file_size:,} bytes, at most {MAX_IMAGE_BYTES:,} are allowed"
        else:
            return
        raise QuantFaceError(f"{path}: entry {name!r} {reason}; the archive is not unpacked")

    def copy(self, stem: str, target: Path) -> None:
        # No more is read than the entry's stated size, which was checked.
        entry = self.entries[self.images[stem]]
        try:
            with self.archive.open(entry) as packed, target.open("wb") as file:
                shutil.copyfileobj(packed, file)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise QuantFaceError(f"{self.origin(stem)}: cannot be unpacked: {error}") from error


def open_source(path: Path) -> ImageSource:
    """Return the images of a folder or a .zip file.

    Raises:
        UsageError: there is no such folder or file.
        QuantFaceError: there are no images, images lie in several folders, two images have the same
            stem, or a .zip file is damaged or refused (see ``Zip``).
    """
    if path.is_dir():
        return Folder(path)
    if path.is_file():
        return Zip(path)
    raise UsageError(f"{path}: no such folder or .zip file")
