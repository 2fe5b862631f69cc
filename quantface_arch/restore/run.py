"""The work of ``inference/restore.py``: a stream of pictures, in batches of faces."""

from __future__ import annotations

import argparse
import io
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError, WriteError, one_line
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.manifest import Manifest
from quantface_arch.restore.restorer import FaceRestorer, FoundFaces, blend
from quantface_arch.utils.cli import describe
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.images import RGBImage, read_image, write_image

__all__ = ["Counts", "Run", "complain", "progress_bar"]

# Pictures wait until their faces fill a batch, but not more of them than this many pixels.
_MAX_WAITING_PIXELS = 32_000_000


class _LineByLine(io.TextIOBase):
    """A log in place of a terminal: each state of the progress bar becomes a line of its own."""

    def write(self, text: str) -> int:
        if text.strip():
            print(text.strip(), file=sys.stderr)
        return len(text)


def progress_bar(total: int, shard: Shard, unit: str = "image") -> tqdm:
    """A bar on stderr, the first process's; in a log it is a line of its own every few seconds."""
    options = {"total": total, "unit": unit, "disable": not shard.is_first}
    if shard.count > 1:
        options["desc"] = f"process 1 of {shard.count}"
    if sys.stderr.isatty():
        return tqdm(file=sys.stderr, **options)
    return tqdm(file=_LineByLine(), mininterval=5.0, **options)


def complain(source: Source, error: Exception, debug: bool) -> str:
    """Say in one line on stderr why an input failed, with ``debug`` also where; returns why."""
    if debug:
        tqdm.write("".join(traceback.format_exception(error)), file=sys.stderr)
    text, name = describe(error), one_line(str(source.path))
    named = text if text.startswith(f"{name}: ") else f"{name}: {text}"
    tqdm.write(f"error: {named}", file=sys.stderr)
    return text


@dataclass(frozen=True)
class _Waiting:
    source: Source
    picture: RGBImage
    crops: list[np.ndarray]
    found: FoundFaces | None  # None: the picture is an aligned face
    digest: str
    since: float


@dataclass
class Counts:
    """What became of pictures; ``seconds`` is the time that all of it took."""

    done: int = 0
    faces: int = 0
    failed: int = 0
    unrestored: int = 0
    seconds: float = 0.0

    @classmethod
    def of_all(cls, parts: Sequence[Counts]) -> Counts:
        """The counts of processes that ran side by side."""
        sums = {
            item.name: sum(getattr(part, item.name) for part in parts)
            for item in fields(cls)
            if item.name != "seconds"
        }
        return cls(**sums, seconds=max(part.seconds for part in parts))

    def results(self) -> list[str]:
        """What was done."""
        found = [f"{self.done} images", f"{self.faces} faces restored", f"{self.failed} failed"]
        if self.unrestored:
            found.append(f"{self.unrestored} written unrestored (no face found)")
        return found

    def pace(self) -> str | None:
        """How fast, if anything was done."""
        return f"{self.seconds / self.faces:.2f} seconds per face" if self.faces else None

    def summary(self, skipped: int, ignored: int, where: Path) -> str:
        """All of it in one line.

        Args:
            skipped: inputs that were done already.
            ignored: files that are none.
            where: the results are.
        """
        parts = self.results()
        if skipped:
            parts.append(f"{skipped} skipped (done already)")
        if ignored:
            parts.append(f"{ignored} other files ignored")
        pace = self.pace()
        return f"{', '.join([*parts, *([pace] if pace else [])])}; results in {where}"


@dataclass
class Run:
    """Restores pictures one after the other, notes each in the manifest, and counts them.

    Memory does not grow with the number of pictures: what is read is written before much more is
    read. A picture that fails is reported in one line and the others go on; only a disk that takes
    no more ends the run.
    """

    restorer: FaceRestorer
    folders: OutputFolders
    args: argparse.Namespace
    manifest: Manifest
    shard: Shard = field(default_factory=Shard)
    counts: Counts = field(default_factory=Counts)
    _waiting: list[_Waiting] = field(default_factory=list)
    _bar: tqdm | None = None

    def process(self, sources: list[Source]) -> None:
        """Restore all of these.

        Raises:
            WriteError: nothing more can be written.
        """
        start = time.perf_counter()
        try:
            with progress_bar(len(sources), self.shard) as bar:
                self._bar = bar
                for source in sources:
                    try:
                        self._waiting.append(self._read(source))
                    except Exception as error:
                        self._fail([source], error)
                    if self._is_full():
                        self._flush()
                self._flush()
        except WriteError as error:
            raise WriteError(
                f"{error}; {self.counts.done} of {len(sources)} images are done, the same command "
                "with --resume goes on"
            ) from error
        self.counts.seconds = time.perf_counter() - start

    def _read(self, source: Source) -> _Waiting:
        since = time.perf_counter()
        picture = read_image(source.path)
        digest = file_digest(source.path)
        if self.args.aligned:
            picture = picture.resized(FACE_SIZE, FACE_SIZE)
            return _Waiting(source, picture, [picture.rgb], None, digest, since)
        found = self.restorer.find(picture)
        if not found.faces and not self.args.keep_unrestored:
            raise QuantFaceError(
                f"no face found by {self.restorer.detector.name} "
                "(--keep-unrestored writes such pictures unrestored)"
            )
        return _Waiting(source, picture, found.crops, found, digest, since)

    def _is_full(self) -> bool:
        faces = sum(len(item.crops) for item in self._waiting)
        pixels = sum(item.picture.size[0] * item.picture.size[1] for item in self._waiting)
        return faces >= self.restorer.batch_size or pixels >= _MAX_WAITING_PIXELS

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        crops = [crop for item in waiting for crop in item.crops]
        try:
            restored = iter(
                self.restorer.restore_aligned(crops, sample=self.args.sample, seed=self.args.seed)
            )
        except Exception as error:
            self._fail([item.source for item in waiting], error)
            return
        for item in waiting:
            own = [next(restored) for _ in item.crops]
            try:
                written = self._write(item, own)
            except WriteError:
                raise
            except Exception as error:
                self._fail([item.source], error)
            else:
                self._count(item, written)

    def _write(self, item: _Waiting, restored: list[np.ndarray]) -> list[Path]:
        """Write everything about one picture, that by which it counts as done at last."""
        written = []

        def write(path: Path, picture: RGBImage) -> None:
            write_image(path, picture)
            written.append(path)

        if item.found is None:
            face = blend(item.crops[0], restored[0], self.args.strength)
            picture = replace(item.picture, rgb=face)
        else:
            result = self.restorer.assemble(
                item.found, restored, upscale=self.args.upscale, strength=self.args.strength
            )
            picture = result.picture
            for index, face in enumerate(result.faces):
                name = f"{item.source.name}_{index:02d}.png"
                profile = item.picture.icc_profile
                write(self.folders.crops / name, RGBImage(face.crop, icc_profile=profile))
                write(self.folders.faces / name, RGBImage(face.restored, icc_profile=profile))
        if self.args.compare:
            path = self.folders.compared / f"{item.source.name}.png"
            write(path, side_by_side(item.picture, picture))
        write(self.folders.final(item.source), picture)
        return written

    def _count(self, item: _Waiting, written: list[Path]) -> None:
        seconds = time.perf_counter() - item.since
        self.manifest.add(item.source, item.digest, written, len(item.crops), seconds)
        self.counts.done += 1
        self.counts.faces += len(item.crops)
        self.counts.unrestored += not item.crops
        self._advance(1)

    def _fail(self, sources: Iterable[Source], error: Exception) -> None:
        for source in sources:
            text = complain(source, error, self.args.debug)
            self.manifest.add(source, None, error=text)
            self.counts.failed += 1
            self._advance(1)

    def _advance(self, images: int) -> None:
        if self._bar is not None:
            self._bar.update(images)
