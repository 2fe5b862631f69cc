"""Restore an animation frame by frame, with its faces tracked as in a video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from quantface_arch.errors import QuantFaceError
from quantface_arch.faces.align import FACE_SIZE, warp_face
from quantface_arch.restore.compare import side_by_side
from quantface_arch.restore.files import OutputFolders, Source
from quantface_arch.restore.options import RestoreOptions
from quantface_arch.restore.restorer import FaceRestorer, blend
from quantface_arch.restore.results import FoundFaces
from quantface_arch.utils.images import (
    MAX_OUTPUT_PIXELS,
    Animation,
    RGBImage,
    write_animation,
)
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

    def restore(self, source: Source, animation: Animation) -> tuple[list[Path], int]:
        """Restore and write one animation.

        Returns:
            the files, last the one that marks the input as done, and the faces of all frames.

        Raises:
            QuantFaceError: a frame is damaged, no frame has a face, or the result is too large.
            WriteError: the output cannot be written.
        """
        results, pairs, faces = [], [], 0
        durations = [duration for _, duration in animation.frames()]
        outputs = self.options.outputs
        self._check_size(animation, outputs.upscale)
        restored = self._aligned if self.options.inputs.aligned else self._whole
        for before, after, count in restored(animation):
            faces += count
            results.append(after if outputs.keep_metadata else replace(after, metadata=()))
            if outputs.compare:
                pairs.append(side_by_side(before, after))
        if not faces and not outputs.keep_unrestored:
            raise QuantFaceError(
                f"no face found by {self.restorer.detector.name} in any of {animation.count} "
                "frames (--keep-unrestored writes such animations unchanged)"
            )
        written = []
        compared = self.folders.compared / f"{source.name}.png"
        for path, frames in ((compared, pairs), (self.folders.final(source), results)):
            if frames:
                timed = list(zip(frames, durations, strict=True))
                write_animation(path, timed, animation.loops)
                written.append(path)
        return written, faces

    def _check_size(self, animation: Animation, upscale: float) -> None:
        pixels = animation.pixels * upscale**2
        if pixels > MAX_OUTPUT_PIXELS:
            raise QuantFaceError(
                f"enlarging {animation.count} frames {upscale:g} times gives {pixels / 1e6:.0f} "
                f"megapixels together: at most {MAX_OUTPUT_PIXELS // 10**6} are allowed"
            )

    def _aligned(self, animation: Animation) -> Iterator[tuple[RGBImage, RGBImage, int]]:
        """Yield each frame of an aligned face, its result, and 1."""
        for frame, _ in animation.frames():
            before = frame.resized(FACE_SIZE, FACE_SIZE)
            [face] = self._restored([before.rgb])
            yield (
                before,
                replace(before, rgb=blend(before.rgb, face, self.options.faces.strength)),
                1,
            )

    def _whole(self, animation: Animation) -> Iterator[tuple[RGBImage, RGBImage, int]]:
        """Yield each frame, its result, and the number of its faces."""
        detect = self.restorer.detector.detect
        upscale = self.options.outputs.upscale
        frames = [frame for frame, _ in animation.frames()]
        visible = [frame.visible().rgb for frame in frames]
        seen = ((rgb, [face for face in detect(rgb) if face.plausible]) for rgb in visible)
        for frame, tracked in zip(frames, track_faces(seen), strict=True):
            crops = [warp_face(tracked.rgb, matrix) for matrix in tracked.matrices]
            found = FoundFaces(frame, tracked.faces, tracked.matrices, crops)
            result = self.restorer.assemble(
                found, self._restored(crops), upscale=upscale, strength=self.options.faces.strength
            )
            yield frame, result.rgb_image, len(crops)

    def _restored(self, crops: list[np.ndarray]) -> list[np.ndarray]:
        faces = self.options.faces
        return self.restorer.restore_aligned(crops, sample=faces.sample, seed=faces.seed)
