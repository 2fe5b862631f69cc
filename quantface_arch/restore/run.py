"""Restore a list of images, with the faces of several images in one batch."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.restore.animation_run import AnimationRestorer
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.counts import Counts
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.manifest import Manifest
from quantface_arch.restore.options import RestoreOptions
from quantface_arch.restore.progress import report_failure, shard_progress
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.results import FoundFaces
from quantface_arch.restore.strength import Strengths, blend
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.images import RGBImage, open_animation, read_image, write_image

__all__ = ["ImageRun", "Run"]

# Images are pending until their faces fill a batch or they have this many pixels together.
_MAX_PENDING_PIXELS = 32_000_000


@dataclass(frozen=True)
class _PendingImage:
    """An image whose faces have not been restored yet.

    Attributes:
        source: the input.
        image: the decoded image.
        crops: its aligned faces.
        found: its faces and their places; None if the whole image is an aligned face.
        digest: SHA-256 of the file.
        started: time when reading began.
    """

    source: Source
    image: RGBImage
    crops: list[np.ndarray]
    found: FoundFaces | None
    digest: str
    started: float


@dataclass
class Run:
    """A run of the restore command on inputs of one kind.

    Args:
        restorer: restores the faces.
        folders: output folders.
        options: options of the command.
        manifest: records every input.
        shard: this process.
    """

    restorer: FaceRestorer
    folders: OutputFolders
    options: RestoreOptions
    manifest: Manifest
    shard: Shard = field(default_factory=Shard)


@dataclass
class ImageRun(Run):
    """Restores images, adds each to the manifest, and counts them.

    Memory does not grow with the number of images, because an image is written before many more
    are read. A failed image is reported in one line and does not stop the others. Only an output
    that cannot be written, such as a full disk, ends the run. See ``Run`` for the arguments.
    """

    counts: Counts = field(default_factory=Counts)
    _pending: list[_PendingImage] = field(default_factory=list)
    _bar: tqdm | None = None

    def process(self, sources: list[Source]) -> None:
        """Restore the images.

        Raises:
            WriteError: the output cannot be written.
        """
        start = time.perf_counter()
        try:
            with shard_progress(len(sources), self.shard) as bar:
                self._bar = bar
                for source in sources:
                    try:
                        self._start(source)
                    except WriteError:
                        raise
                    except Exception as error:
                        self._fail([source], error)
                    if self._is_full():
                        self._flush()
                self._flush()
        except WriteError as error:
            raise WriteError(
                f"{error}; {self.counts.done} of {len(sources)} images are done; "
                "repeat the command with --resume to continue"
            ) from error
        self.counts.seconds = time.perf_counter() - start

    def _start(self, source: Source) -> None:
        """Read an image and find its faces, or restore a whole animation."""
        started = time.perf_counter()
        animation = open_animation(source.path)
        if animation is None:
            self._pending.append(self._read(source, started))
            return
        worker = AnimationRestorer(self.restorer, self.folders, self.options)
        written, strengths = worker.restore(source, animation)
        digest = file_digest(source.path)
        self._count(source, digest, written, started, strengths, strengths.summary())

    def _read(self, source: Source, started: float) -> _PendingImage:
        image = read_image(source.path)
        digest = file_digest(source.path)
        if self.options.inputs.aligned:
            image = image.resized(FACE_SIZE, FACE_SIZE)
            return _PendingImage(source, image, [image.rgb], None, digest, started)
        found = self.restorer.find(image)
        if not found.faces and not self.options.takes_faceless:
            only = " with plausible landmarks" if found.implausible else ""
            raise QuantFaceError(
                f"no face{only} found by {self.restorer.detector.name} "
                "(--keep-unrestored writes such images unchanged)"
            )
        return _PendingImage(source, image, found.crops, found, digest, started)

    def _is_full(self) -> bool:
        faces = sum(len(item.crops) for item in self._pending)
        pixels = sum(item.image.size[0] * item.image.size[1] for item in self._pending)
        return faces >= self.restorer.batch_size or pixels >= _MAX_PENDING_PIXELS

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        faces = self.options.faces
        crops = [crop for item in pending for crop in item.crops]
        try:
            restored = iter(
                self.restorer.restore_aligned(crops, sample=faces.sample, seed=faces.seed)
            )
        except Exception as error:
            self._fail([item.source for item in pending], error)
            return
        for item in pending:
            own = [next(restored) for _ in item.crops]
            try:
                written, strengths = self._write(item, own)
            except WriteError:
                raise
            except Exception as error:
                self._fail([item.source], error)
            else:
                found = Strengths()
                found.add(strengths)
                self._count(item.source, item.digest, written, item.started, found, strengths)
                self.counts.left_alone += len(item.found.implausible) if item.found else 0

    def _write(
        self, item: _PendingImage, restored: list[np.ndarray]
    ) -> tuple[list[Path], list[float]]:
        """Write the outputs of one image, and last the one that marks it as done.

        Returns:
            the written files, and the strength of each face.
        """
        written, blending = [], self.options.faces.blending

        def write(path: Path, image: RGBImage) -> None:
            write_image(path, image)
            written.append(path)

        if item.found is None:
            strengths = self.restorer.strengths(item.crops, restored, **blending)
            face = blend(item.crops[0], restored[0], strengths[0])
            image = replace(item.image, rgb=face)
        else:
            upscale = self.options.outputs.factor
            result = self.restorer.assemble(item.found, restored, upscale=upscale, **blending)
            strengths, image = [face.strength for face in result.faces], result.rgb_image
            for index, face in enumerate(result.faces):
                name = f"{item.source.name}_{index:02d}.png"
                write(self.folders.crops / name, item.image.with_pixels(face.crop))
                write(self.folders.faces / name, item.image.with_pixels(face.restored))
        if self.options.outputs.compare:
            path = self.folders.compared / f"{item.source.name}.png"
            write(path, side_by_side(item.image, image))
        if not self.options.outputs.keep_metadata:
            image = replace(image, metadata=())
        write(self.folders.final(item.source), image)
        return written, strengths

    def _count(
        self,
        source: Source,
        digest: str,
        written: list[Path],
        started: float,
        strengths: Strengths,
        recorded: list[float] | dict[str, float],
    ) -> None:
        seconds, faces = time.perf_counter() - started, strengths.count
        self.manifest.add(source, digest, written, faces, seconds, recorded)
        self.counts.done += 1
        self.counts.add_faces(strengths, self.options.faces.strength)
        self.counts.unrestored += not faces and not self.options.inputs.whole
        self._advance(1)

    def _fail(self, sources: Iterable[Source], error: Exception) -> None:
        for source in sources:
            text = report_failure(source, error, self.options.debug)
            self.manifest.add(source, None, error=text)
            self.counts.failed += 1
            self._advance(1)

    def _advance(self, images: int) -> None:
        if self._bar is not None:
            self._bar.update(images)
