"""Restore an animation frame by frame, with its faces tracked as in a video."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.options import RestoreOptions
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.results import cut_out
from quantface_arch.restore.strength import Strengths, blend, need_of
from quantface_arch.utils.images import MAX_OUTPUT_PIXELS, Animation, RGBImage, write_animation
from quantface_arch.video.tracking import track_faces

__all__ = ["AnimationRestorer"]


@dataclass(frozen=True)
class AnimationRestorer:
    """Restores animations and writes them as animated PNG files.

    Args:
        restorer: restores the faces.
        folders: output folders.
        options: options of the command.
    """

    restorer: FaceRestorer
    folders: OutputFolders
    options: RestoreOptions

    def restore(self, source: Source, animation: Animation) -> tuple[list[Path], Strengths]:
        """Restore and write one animation.

        Returns:
            the written files, ending with the one that marks the input as done; and the strengths
            of the faces in all frames.

        Raises:
            QuantFaceError: a frame is damaged, no frame has a face, or the result is too large.
            WriteError: the output cannot be written.
        """
        results, pairs, strengths = [], [], Strengths()
        outputs = self.options.outputs
        self._check_size(animation, outputs.factor)
        restored = self._aligned if self.options.inputs.aligned else self._whole
        frames, durations = zip(*animation.frames(), strict=True)
        for before, after, found in restored(frames):
            strengths.add(found)
            results.append(after if outputs.keep_metadata else replace(after, metadata=()))
            if outputs.compare:
                pairs.append(side_by_side(before, after))
        if not strengths.count and not self.options.takes_faceless:
            raise QuantFaceError(
                f"no face found by {self.restorer.detector.name} in any of {animation.count} "
                "frames (--keep-unrestored writes such animations unchanged)"
            )
        written = []
        compared = self.folders.compared / f"{source.name}.png"
        for path, images in ((compared, pairs), (self.folders.final(source), results)):
            if images:
                timed = list(zip(images, durations, strict=True))
                write_animation(path, timed, animation.loops)
                written.append(path)
        return written, strengths

    def _check_size(self, animation: Animation, upscale: float) -> None:
        pixels = animation.pixels * upscale**2
        if pixels > MAX_OUTPUT_PIXELS:
            raise QuantFaceError(
                f"enlarging {animation.count} frames {upscale:g} times gives {pixels / 1e6:.0f} "
                f"megapixels together: at most {MAX_OUTPUT_PIXELS // 10**6} are allowed"
            )

    def _aligned(
        self, frames: Sequence[RGBImage]
    ) -> Iterator[tuple[RGBImage, RGBImage, list[float]]]:
        """Yield each frame of an aligned face, its result, and its strength."""
        blending = self.options.faces.blending
        for frame in frames:
            before = frame.resized(FACE_SIZE, FACE_SIZE)
            crops = [before.rgb]
            [face] = restored = self._restored(crops)
            strengths = self.restorer.strengths(crops, restored, **blending)
            yield before, replace(before, rgb=blend(before.rgb, face, strengths[0])), strengths

    def _whole(
        self, frames: Sequence[RGBImage]
    ) -> Iterator[tuple[RGBImage, RGBImage, list[float]]]:
        """Yield each frame, its result, and the strengths of its faces."""
        detect, blending = self.restorer.detector.detect, self.options.faces.blending
        upscale = self.options.outputs.factor
        visible = (frame.visible().rgb for frame in frames)
        seen = ((rgb, detect(rgb)) for rgb in visible)
        tracked = track_faces(seen, measure=need_of(blending["strength"]))
        for frame, one in zip(frames, tracked, strict=True):
            found = cut_out(frame, one.rgb, one.faces, one.matrices, one.measured)
            restored = self._restored(found.crops)
            result = self.restorer.assemble(found, restored, upscale=upscale, **blending)
            yield frame, result.rgb_image, [face.strength for face in result.faces]

    def _restored(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        faces = self.options.faces
        return self.restorer.restore_aligned(crops, sample=faces.sample, seed=faces.seed)
