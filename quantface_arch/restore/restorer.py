"""Restoring the faces of photographs: detect, align, restore, paste back."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.faces.align import FACE_SIZE, similarity, transform, warp_face
from quantface_arch.faces.color import COLOR_FIXES, default_color_fix, fix_color
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Detector, Face
from quantface_arch.faces.mask import head_mask, head_turn
from quantface_arch.faces.paste import paste_face
from quantface_arch.faces.tensors import face_to_tensor, tensor_to_face
from quantface_arch.pretrained.names import DEFAULT_MODEL
from quantface_arch.quant.nn.traits import traits_of
from quantface_arch.utils.images import MAX_OUTPUT_PIXELS, RGBImage, resize

__all__ = ["DEFAULT_MODEL", "FaceRestorer", "FoundFaces", "RestoredFace", "RestoredPicture"]


@dataclass(frozen=True)
class FoundFaces:
    """A picture and the faces found in it, cut out: what waits for the network.

    Attributes:
        picture: the photograph.
        faces: from left to right.
        matrices: of each face, (2, 3), from the photograph to its aligned frame.
        crops: of each face, (512, 512, 3) in the picture's dtype.
    """

    picture: RGBImage
    faces: list[Face]
    matrices: list[np.ndarray]
    crops: list[np.ndarray]


@dataclass(frozen=True)
class RestoredFace:
    """One face of a restored picture.

    Attributes:
        box: (4,) left, top, right, bottom in pixels of the input.
        landmarks: (5, 2) eyes, nose, mouth corners, or (2, 2) eyes; in pixels of the input.
        crop: (512, 512, 3) the aligned face before restoration, in the picture's dtype.
        restored: the same after restoration.
    """

    box: np.ndarray
    landmarks: np.ndarray
    crop: np.ndarray
    restored: np.ndarray


@dataclass(frozen=True)
class RestoredPicture:
    """A photograph whose faces are restored; without faces it is the (enlarged) input."""

    picture: RGBImage
    faces: list[RestoredFace]

    @property
    def image(self) -> np.ndarray:
        """(H, W, 3) RGB in the input's dtype."""
        return self.picture.rgb


class FaceRestorer:
    """Restores the faces of whole photographs, or faces that are already aligned.

    Args:
        model: maps float (N, 3, 512, 512) in [-1, 1] to restored faces alike; to sample, also with
            a keyword ``noise``, standard normal of shape ``model.latent_shape(N, 512, 512)``.
        device: where the model and the detector run.
        detector: one of :data:`quantface_arch.faces.detect.DETECTORS`, or a detector; loaded when
            the first photograph comes.
        weights_dir: folder that directly holds the detector's ``.pth``.
        offline: never download detector weights.
        batch_size: faces that go through the model at once; None is 8 on a GPU, and 1 on a CPU,
            which gains nothing from more but memory use. It does not change the result.
        background: enlarges the photograph around the faces: (H, W, 3) RGB of either dtype to
            (s * H, s * W, 3), which is then resized to the size wanted; None is interpolation.
        color_fix: one of :data:`quantface_arch.faces.color.COLOR_FIXES`, what a face takes over
            from its original; None is the model's own: ``lowres`` for ``mini`` models, else
            ``none``.
        notify: told about downloads and fallbacks, one line each.

    Raises:
        QuantFaceError: unknown ``color_fix``.
    """

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device = "cpu",
        *,
        detector: str | Detector = "auto",
        weights_dir: str | os.PathLike[str] | None = None,
        offline: bool = False,
        batch_size: int | None = None,
        background: Callable[[np.ndarray], np.ndarray] | None = None,
        color_fix: str | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.device = torch.device(device)
        self.model = model.eval()
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 8)
        self.background = background
        self.color_fix = color_fix or default_color_fix(traits_of(model).arch_options)
        check_choice("color_fix", self.color_fix, COLOR_FIXES)
        self._detector = detector
        self._detector_options = {"weights_dir": weights_dir, "offline": offline, "notify": notify}

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
        runtime: str = "auto",
        device: str | torch.device = "cpu",
        **options: object,
    ) -> FaceRestorer:
        """Load a shipped model by name, or any checkpoint by path.

        Args:
            name_or_path: see :func:`quantface_arch.pretrained.zoo.resolve_model`.
            runtime: ``auto``, ``reference``, ``openvino`` or ``cuda``.
            device: where it runs.
            options: what the constructor takes.

        Raises:
            QuantFaceError: unknown name, damaged checkpoint, or a runtime that is not available.
        """
        from quantface_arch.pretrained.zoo import load_model

        offline = bool(options.get("offline", False))
        model = load_model(name_or_path, runtime=runtime, device=device, offline=offline)
        return cls(model, device, **options)

    @functools.cached_property
    def detector(self) -> Detector:
        """The face detector, loaded on first use.

        Raises:
            QuantFaceError: see :func:`quantface_arch.faces.detect.build_detector`.
        """
        if isinstance(self._detector, str):
            return build_detector(self._detector, device=self.device, **self._detector_options)
        return self._detector

    def restore(
        self,
        picture: RGBImage | np.ndarray,
        *,
        upscale: float = 1.0,
        strength: float = 1.0,
        sample: bool = False,
        seed: int = 0,
    ) -> RestoredPicture:
        """Restore every face of a photograph.

        Args:
            picture: upright RGB, (H, W, 3) uint8 or uint16, or what ``read_image`` gave.
            upscale: enlarge the photograph by this factor; faces gain detail, the rest is
                interpolated.
            strength: 0 leaves the faces as they are, 1 replaces them.
            sample: draw the latent from its posterior rather than taking the mean.
            seed: of that draw, together with the face's own pixels.

        Raises:
            QuantFaceError: an array of another shape or dtype, or a result of too many pixels.
        """
        found = self.find(picture)
        faces = self.restore_aligned(found.crops, sample=sample, seed=seed)
        return self.assemble(found, faces, upscale=upscale, strength=strength)

    def find(self, picture: RGBImage | np.ndarray) -> FoundFaces:
        """Detect and cut out the faces of a photograph, the first third of :meth:`restore`."""
        if not isinstance(picture, RGBImage):
            picture = RGBImage(_checked(picture))
        faces = self.detector.detect(picture.rgb)
        matrices = [similarity(face.landmarks) for face in faces]
        crops = [warp_face(picture.rgb, matrix) for matrix in matrices]
        return FoundFaces(picture, faces, matrices, crops)

    def assemble(
        self,
        found: FoundFaces,
        restored: Sequence[np.ndarray],
        *,
        upscale: float = 1.0,
        strength: float = 1.0,
    ) -> RestoredPicture:
        """Paste restored faces into their photograph, the last third of :meth:`restore`."""
        source = found.picture
        width, height = (round(side * upscale) for side in source.size)
        if width * height > MAX_OUTPUT_PIXELS:
            raise QuantFaceError(
                f"enlarging {source.size[0]}x{source.size[1]} pixels {upscale:g} times gives "
                f"{width}x{height}: at most {MAX_OUTPUT_PIXELS // 10**6} megapixels are allowed"
            )
        canvas = source.resized(width, height)
        if self.background is None:
            canvas = replace(canvas, rgb=canvas.rgb.copy())
        else:
            canvas = replace(canvas, rgb=resize(self.background(source.rgb), width, height))
        scale = width / source.size[0], height / source.size[1]
        for new, face, matrix in zip(restored, found.faces, found.matrices, strict=True):
            mask = head_mask(head_turn(transform(face.landmarks, matrix)))
            paste_face(canvas.rgb, new, matrix, scale, strength, mask)
        faces = [
            RestoredFace(face.box, face.landmarks, crop, blend(crop, new, strength))
            for face, crop, new in zip(found.faces, found.crops, restored, strict=True)
        ]
        return RestoredPicture(canvas, faces)

    def restore_aligned(
        self,
        faces: Sequence[np.ndarray],
        *,
        sample: bool = False,
        seed: int = 0,
        color_fix: str | None = None,
    ) -> list[np.ndarray]:
        """Restore faces that are aligned already.

        Args:
            faces: each (512, 512, 3) uint8 or uint16 RGB.
            sample, seed: as in :meth:`restore`.
            color_fix: replaces the restorer's own; None keeps it.

        Returns:
            restored faces of the same shapes and dtypes, in the same order. Neither order nor
            company changes a face, and a face without colour stays without.

        Raises:
            QuantFaceError: a face of another shape or dtype, or an unknown ``color_fix``.
        """
        for face in faces:
            if _checked(face).shape[:2] != (FACE_SIZE, FACE_SIZE):
                raise QuantFaceError(
                    f"aligned face of {face.shape[1]}x{face.shape[0]} pixels: "
                    f"{FACE_SIZE}x{FACE_SIZE} is needed"
                )
        fix = color_fix or self.color_fix
        check_choice("color_fix", fix, COLOR_FIXES)
        restored = [
            face for batch in self._batches(faces) for face in self._run(batch, sample, seed)
        ]
        return [fix_color(new, old, fix) for new, old in zip(restored, faces, strict=True)]

    def _batches(self, faces: Sequence[np.ndarray]) -> Iterator[Sequence[np.ndarray]]:
        for start in range(0, len(faces), self.batch_size):
            yield faces[start : start + self.batch_size]

    @torch.inference_mode()
    def _run(self, faces: Sequence[np.ndarray], sample: bool, seed: int) -> list[np.ndarray]:
        lq = torch.stack([face_to_tensor(face) for face in faces]).to(self.device)
        # Only a network that samples has to know the keyword.
        options = {"noise": self._noise(faces, seed).to(self.device)} if sample else {}
        restored = self.model(lq, **options)
        if not torch.isfinite(restored).all():
            raise QuantFaceError("the model gave values that are not finite numbers")
        pairs = zip(restored.cpu(), faces, strict=True)
        return [tensor_to_face(out, like=face) for out, face in pairs]

    def _noise(self, faces: Sequence[np.ndarray], seed: int) -> Tensor:
        shape = self.model.latent_shape(1, FACE_SIZE, FACE_SIZE)
        draws = []
        for face in faces:
            digest = hashlib.sha256(f"{seed}:".encode() + np.ascontiguousarray(face).tobytes())
            generator = torch.Generator().manual_seed(int.from_bytes(digest.digest()[:8], "big"))
            draws.append(torch.randn(shape, generator=generator))
        return torch.cat(draws)


def blend(before: np.ndarray, after: np.ndarray, strength: float) -> np.ndarray:
    """``before`` at strength 0, ``after`` at 1, rounded; (H, W, 3) of one dtype."""
    if strength == 1:
        return after
    mixed = before + np.float32(strength) * (after.astype(np.float32) - before)
    return np.rint(mixed).astype(before.dtype)


def _checked(rgb: np.ndarray) -> np.ndarray:
    if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype not in (np.uint8, np.uint16):
        raise QuantFaceError(
            f"picture of shape {rgb.shape} and dtype {rgb.dtype}: "
            "(H, W, 3) RGB in uint8 or uint16 is needed"
        )
    return rgb
