"""Restore videos one after the other, with a few frames in memory at a time."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

import numpy as np

from quantface_arch.errors import QuantFaceError, WriteError
from quantface_arch.faces.face import Face
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.counts import Counts
from quantface_arch.restore.files import Source
from quantface_arch.restore.progress import report_failure, shard_progress
from quantface_arch.restore.results import FoundFaces, RestoredImage, cut_out
from quantface_arch.restore.run import Run
from quantface_arch.restore.strength import Strengths, gentle_line, need_of
from quantface_arch.utils.files import file_digest
from quantface_arch.utils.images import RGBImage
from quantface_arch.video.reader import Span, VideoReader
from quantface_arch.video.tracking import track_faces
from quantface_arch.video.tracks import unkept
from quantface_arch.video.writer import Write, video_writer

__all__ = ["VideoRun"]

# Frames are pending until their faces fill a batch or they have this many pixels together.
_MAX_PENDING_PIXELS = 32_000_000


@dataclass
class VideoCounts(Counts):
    """The counts of videos; ``faces`` and ``unrestored`` are summed over frames.

    Attributes:
        frames: frames of the videos that were written.
    """

    frames: int = 0

    def results(self) -> list[str]:
        """Return the counts as the parts of a sentence."""
        faces = [f"{self.faces} faces restored"] if self._sought_faces else []
        found = [
            f"{self.done} videos",
            f"{self.frames} frames",
            *faces,
            f"{self.failed} failed",
        ]
        if self.gentle:
            found.append(gentle_line(self.gentle))
        if self.unrestored:
            found.append(f"{self.unrestored} frames written unrestored (no face found)")
        return found

    def pace(self) -> str | None:
        """Return the speed; None if nothing was done."""
        return f"{self.seconds / self.frames:.2f} seconds per frame" if self.frames else None


@dataclass
class VideoRun(Run):
    """Restores videos, adds each to the manifest, and counts them.

    Memory does not grow with a video's length. A failed video leaves no output, is reported in one
    line and does not stop the others. Only an output that cannot be written, such as a full disk,
    ends the run. See ``Run`` for the arguments.
    """

    counts: VideoCounts = field(default_factory=VideoCounts)

    def process(self, sources: list[Source]) -> None:
        """Restore the videos.

        Raises:
            WriteError: the output cannot be written.
        """
        for source in sources:
            try:
                self._restore(source)
            except WriteError:
                raise
            except Exception as error:
                text = report_failure(source, error, self.options.debug)
                self.manifest.add(source, None, error=text)
                self.counts.failed += 1

    def _restore(self, source: Source) -> None:
        frames = unrestored = 0
        strengths = Strengths()
        start = time.perf_counter()
        outputs = [self.folders.final(source)]
        with ExitStack() as stack:
            reader = stack.enter_context(VideoReader(source.path))
            digest = file_digest(source.path)
            if lost := unkept(reader):
                print(f"note: {source.path}: not kept: {lost}", file=sys.stderr)
            # The stack closes in reverse order: the file that marks the video as done comes last.
            write = stack.enter_context(video_writer(outputs[0], reader))
            write_pair: Write | None = None
            if self.options.outputs.compare:
                outputs.append(self.folders.compared / f"{source.name}.mp4")
                write_pair = stack.enter_context(video_writer(outputs[1], reader))
            bar = stack.enter_context(shard_progress(reader.frames, self.shard, "frame"))
            spans: deque[Span] = deque()
            for found, result in self._restored(self._found(reader, spans)):
                span = spans.popleft()
                write(result.image, span)
                if write_pair is not None:
                    write_pair(side_by_side(found.image, result.rgb_image).rgb, span)
                frames += 1
                strengths.add(face.strength for face in result.faces)
                unrestored += not found.faces and not self.options.inputs.whole
                bar.update()
            if not strengths.count and not self.options.takes_faceless:
                raise QuantFaceError(
                    f"no face found by {self.restorer.detector.name} in any of {frames} frames "
                    "(--keep-unrestored writes such videos unchanged)"
                )
        seconds = time.perf_counter() - start
        recorded = strengths.summary()
        self.manifest.add(source, digest, outputs, strengths.count, seconds, recorded)
        self.counts.done += 1
        self.counts.frames += frames
        self.counts.add_faces(strengths, self.options.faces.strength)
        self.counts.unrestored += unrestored
        self.counts.seconds += seconds

    def _found(self, reader: VideoReader, spans: deque[Span]) -> Iterator[FoundFaces]:
        """Yield the frames of a video with their smoothed faces, and add their spans to a queue."""
        measure = need_of(self.options.faces.strength)
        for frame in track_faces(self._seen(reader, spans), measure=measure):
            image = RGBImage(frame.rgb)
            yield cut_out(image, frame.rgb, frame.faces, frame.matrices, frame.measured)

    def _seen(
        self, reader: VideoReader, spans: deque[Span]
    ) -> Iterator[tuple[np.ndarray, list[Face]]]:
        """Yield the frames of a video with the faces that were detected in them."""
        for rgb, span in reader:
            spans.append(span)
            yield rgb, self.restorer.detector.detect(rgb)

    def _restored(self, frames: Iterable[FoundFaces]) -> Iterator[tuple[FoundFaces, RestoredImage]]:
        """Yield frames and their results in order; several frames share a batch of faces."""
        pending: list[FoundFaces] = []
        for found in frames:
            pending.append(found)
            faces = sum(len(item.crops) for item in pending)
            pixels = sum(item.image.size[0] * item.image.size[1] for item in pending)
            if not faces or faces >= self.restorer.batch_size or pixels >= _MAX_PENDING_PIXELS:
                yield from self._flushed(pending)
                pending = []
        yield from self._flushed(pending)

    def _flushed(self, pending: list[FoundFaces]) -> Iterator[tuple[FoundFaces, RestoredImage]]:
        """Restore the faces of the pending frames and yield the results."""
        crops = [crop for found in pending for crop in found.crops]
        upscale, blending = self.options.outputs.factor, self.options.faces.blending
        restored = iter(self.restorer.restore_aligned(crops))
        for found in pending:
            own = [next(restored) for _ in found.crops]
            yield found, self.restorer.assemble(found, own, upscale=upscale, **blending)
