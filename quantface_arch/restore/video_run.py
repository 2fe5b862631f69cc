"""The work of ``inference/restore.py`` on clips: one after the other, a few frames in memory."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.faces.align import warp_face
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.manifest import Manifest
from quantface_arch.restore.restorer import FaceRestorer, FoundFaces, RestoredPicture
from quantface_arch.restore.run import Counts, complain, progress_bar
from quantface_arch.utils.distributed import Shard
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.images import RGBImage
from quantface_arch.video.ffmpeg import ENCODER, find_ffmpeg
from quantface_arch.video.reader import VideoReader
from quantface_arch.video.tracking import FollowedFrame, follow
from quantface_arch.video.writer import written

__all__ = ["ClipRun"]

# Frames wait until their faces fill a batch, but not more of them than this many pixels.
_MAX_WAITING_PIXELS = 32_000_000


@dataclass
class ClipCounts(Counts):
    """What became of clips; ``faces`` and ``unrestored`` are counted in frames."""

    frames: int = 0

    def results(self) -> list[str]:
        """See ``Counts.results``."""
        found = [
            f"{self.done} clips",
            f"{self.frames} frames",
            f"{self.faces} faces restored",
            f"{self.failed} failed",
        ]
        if self.unrestored:
            found.append(f"{self.unrestored} frames written unrestored (no face found)")
        return found

    def pace(self) -> str | None:
        """See ``Counts.pace``."""
        return f"{self.seconds / self.frames:.2f} seconds per frame" if self.frames else None


@dataclass
class ClipRun:
    """Restores clips, notes each in the manifest, and counts what became of them.

    Memory does not grow with a clip's length. A clip that fails leaves nothing behind, is reported
    in one line, and the others go on; only a disk that takes no more ends the run.
    """

    restorer: FaceRestorer
    folders: OutputFolders
    args: argparse.Namespace
    manifest: Manifest
    shard: Shard = field(default_factory=Shard)
    counts: ClipCounts = field(default_factory=ClipCounts)

    def process(self, sources: list[Source]) -> None:
        """Restore all of these.

        Raises:
            WriteError: nothing more can be written.
        """
        if find_ffmpeg() is None and self.shard.is_first:
            print(
                f"note: no ffmpeg with {ENCODER} on the PATH: clips are written by OpenCV, "
                "as MPEG-4 (mp4v) and without sound",
                file=sys.stderr,
            )
        for source in sources:
            try:
                self._restore(source)
            except WriteError:
                raise
            except Exception as error:
                text = complain(source, error, self.args.debug)
                self.manifest.add(source, None, error=text)
                self.counts.failed += 1

    def _restore(self, source: Source) -> None:
        frames = faces = unrestored = 0
        start = time.perf_counter()
        outputs = [self.folders.final(source)]
        with ExitStack() as stack:
            reader = stack.enter_context(VideoReader(source.path))
            digest = file_digest(source.path)
            # Renamed in the reverse order, that by which the clip counts as done at last.
            write = stack.enter_context(written(outputs[0], reader))
            if self.args.compare:
                outputs.append(self.folders.compared / f"{source.name}.mp4")
                write_pair = stack.enter_context(written(outputs[1], reader))
            bar = stack.enter_context(progress_bar(reader.frames, self.shard, "frame"))
            for found, result in self._restored(self._found(reader)):
                write(result.image)
                if self.args.compare:
                    write_pair(side_by_side(found.picture, result.picture).rgb)
                frames += 1
                faces += len(found.faces)
                unrestored += not found.faces
                bar.update()
            if not faces and not self.args.keep_unrestored:
                raise QuantFaceError(
                    f"no face found by {self.restorer.detector.name} in any of {frames} frames "
                    "(--keep-unrestored writes such clips unrestored)"
                )
        seconds = time.perf_counter() - start
        self.manifest.add(source, digest, outputs, faces, seconds)
        self.counts.done += 1
        self.counts.frames += frames
        self.counts.faces += faces
        self.counts.unrestored += unrestored
        self.counts.seconds += seconds

    def _found(self, reader: VideoReader) -> Iterator[FoundFaces]:
        detect = self.restorer.detector.detect
        for frame in follow((rgb, detect(rgb)) for rgb in reader):
            yield _cut_out(frame)

    def _restored(
        self, frames: Iterable[FoundFaces]
    ) -> Iterator[tuple[FoundFaces, RestoredPicture]]:
        """Frames and their results in order, faces of several frames in one batch."""
        waiting: list[FoundFaces] = []
        for found in frames:
            waiting.append(found)
            faces = sum(len(item.crops) for item in waiting)
            pixels = sum(item.picture.size[0] * item.picture.size[1] for item in waiting)
            if not faces or faces >= self.restorer.batch_size or pixels >= _MAX_WAITING_PIXELS:
                yield from self._flushed(waiting)
                waiting = []
        yield from self._flushed(waiting)

    def _flushed(self, waiting: list[FoundFaces]) -> Iterator[tuple[FoundFaces, RestoredPicture]]:
        crops = [crop for found in waiting for crop in found.crops]
        restored = iter(self.restorer.restore_aligned(crops))
        for found in waiting:
            own = [next(restored) for _ in found.crops]
            options = {"upscale": self.args.upscale, "strength": self.args.strength}
            yield found, self.restorer.assemble(found, own, **options)


def _cut_out(frame: FollowedFrame) -> FoundFaces:
    crops = [warp_face(frame.rgb, matrix) for matrix in frame.matrices]
    return FoundFaces(RGBImage(frame.rgb), frame.faces, frame.matrices, crops)
