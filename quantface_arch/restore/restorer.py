"""Restore the faces of an image: detect, align, restore, paste back."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.faces.align import FACE_SIZE, similarity
from quantface_arch.faces.arrays import array_to_face, face_to_array
from quantface_arch.faces.choices import AUTO_STRENGTH, COLOR_FIXES
from quantface_arch.faces.color import default_color_fix, fix_color
from quantface_arch.faces.detect import build_detector
from quantface_arch.faces.face import Detector
from quantface_arch.faces.identity import FaceEmbedder
from quantface_arch.faces.weights import find_embedder
from quantface_arch.pretrained.names import DEFAULT_MODEL
from quantface_arch.pretrained.on_arrays import as_array_network, load_on_arrays
from quantface_arch.restore.accepted import (
    ImageLike,
    RestorerOptions,
    as_rgb_image,
    check_range,
    checked_rgb,
)
from quantface_arch.restore.canvas import make_canvas, paste_faces
from quantface_arch.restore.results import FoundFaces, RestoredImage, cut_out
from quantface_arch.restore.strength import check_strength, face_strengths
from quantface_arch.utils.deprecated import renamed_argument
from quantface_arch.utils.limits import MAX_UPSCALE

if TYPE_CHECKING:
    import torch
    from torch import nn
    from typing_extensions import Unpack

    from quantface_arch.archs.array_network import ArrayNetwork

__all__ = ["FaceRestorer"]


class FaceRestorer:
    """Restores the faces of whole images, or faces that are already aligned.

    Threads may share a restorer. Its compiled network and detector serve one thread at a time.

    Args:
        model: maps float32 (N, 3, 512, 512) faces in [-1, 1] to restored faces of the same shape
            and range: a network on arrays, or a torch module. To sample, a module also takes a
            keyword ``noise``: standard normal values of shape ``model.latent_shape(N, 512, 512)``.
        device: device of the model and the detector.
        detector: a detector, or one of :data:`quantface_arch.faces.choices.DETECTORS`, which is
            loaded on first use.
        weights_dir: folder that directly holds the detector's ``.pth`` file.
        offline: never download detector weights.
        batch_size: faces that go through the model at once; it does not change the result. None is
            8 on a GPU, and 1 on a CPU, where larger batches need more memory but are no faster.
        background: function that enlarges the image behind the faces. It maps (H, W, 3) RGB in
            uint8 or uint16 to (s * H, s * W, 3); the result is resized to the requested size.
            None interpolates.
        color_fix: one of :data:`quantface_arch.faces.choices.COLOR_FIXES`, which selects what a
            face takes over from its original. None selects the model's own: ``structure`` for
            ``mini`` models, else ``none``.
        identity_weights: MobileFaceNet's file or the folder that holds it, for ``identity``; None
            is the cache, to which it is downloaded on first use.
        notify: receives one line about each download or fallback.

    Raises:
        QuantFaceError: ``color_fix`` is unknown.
    """

    def __init__(
        self,
        model: ArrayNetwork | nn.Module,
        device: str | torch.device = "cpu",
        *,
        detector: str | Detector = "auto",
        weights_dir: str | os.PathLike[str] | None = None,
        offline: bool = False,
        batch_size: int | None = None,
        background: Callable[[np.ndarray], np.ndarray] | None = None,
        color_fix: str | None = None,
        identity_weights: str | os.PathLike[str] | None = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.device = str(device)
        self.model = as_array_network(model, self.device)
        self.batch_size = batch_size or (1 if self.model.device_type == "cpu" else 8)
        self.background = background
        self.color_fix = color_fix or default_color_fix(self.model.arch_options)
        check_choice("color_fix", self.color_fix, COLOR_FIXES)
        self._detector = detector
        self._detector_options = {"weights_dir": weights_dir, "offline": offline, "notify": notify}
        self._embedder_options = (identity_weights, offline, notify)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str] = DEFAULT_MODEL,
        runtime: str = "auto",
        device: str | torch.device = "cpu",
        base: str | None = None,
        **options: Unpack[RestorerOptions],
    ) -> FaceRestorer:
        """Load a shipped model by name, or any checkpoint by path.

        Args:
            name_or_path: see :func:`quantface_arch.integration.obtain.obtain`.
            runtime: ``auto``, ``reference``, ``openvino`` or ``cuda``.
            device: device of the model and the detector.
            base: Stable Diffusion 2.1-base, for a folder of OSDFace's files.
            options: other arguments of the constructor.

        Raises:
            QuantFaceError: the name is unknown, the checkpoint is damaged, or the runtime is not
                available.
        """
        from quantface_arch.integration.obtain import obtain
        from quantface_arch.pretrained.hub.options import FetchOptions

        offline = options.get("offline", False)
        path = obtain(name_or_path, FetchOptions(offline=offline), options.get("notify", print))
        model = load_on_arrays(path, runtime, str(device), base, offline)
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

    @functools.cached_property
    def embedder(self) -> FaceEmbedder:
        """The network that tells whether two faces are the same person, loaded on first use.

        Raises:
            QuantFaceError: its file is missing, damaged or cannot be downloaded.
        """
        return FaceEmbedder(find_embedder(*self._embedder_options))

    @renamed_argument("picture", "image")
    def restore(
        self,
        image: ImageLike,
        *,
        upscale: float = 1.0,
        strength: float | str = AUTO_STRENGTH,
        identity: float | None = None,
        sample: bool = False,
        seed: int = 0,
    ) -> RestoredImage:
        """Restore every face of an image.

        Args:
            image: upright (H, W, 3) RGB in uint8 or uint16, a PIL image, the path of an image, or
                the result of ``read_image``.
            upscale: factor by which the image is enlarged. Faces gain detail; the background is
                enlarged by ``background``.
            strength: 0 leaves the faces unchanged, 1 replaces them, and ``auto`` takes for each
                face what it needs: sharp faces stay nearly as they are.
            identity: least cosine, 0 to 1, between the embeddings (MobileFaceNet) of a face before
                and after; a face's strength is lowered until it is reached. None has no limit.
            sample: sample the latent from its posterior instead of taking the mean.
            seed: seed of that sample, combined with the face's pixels.

        Raises:
            QuantFaceError: the image cannot be read, has another shape or dtype, or is below
                16 pixels wide or high; a number is out of range; the result has too many pixels;
                or ``embedder`` cannot be loaded.
        """
        check_range("upscale", upscale, 1 / FACE_SIZE, MAX_UPSCALE)
        check_strength(strength, identity)
        if identity is not None:
            _ = self.embedder
        found = self.find(image)
        faces = self.restore_aligned(found.crops, sample=sample, seed=seed)
        return self.assemble(found, faces, upscale=upscale, strength=strength, identity=identity)

    @renamed_argument("picture", "image")
    def find(self, image: ImageLike) -> FoundFaces:
        """Detect the faces of an image and cut them out; the first step of :meth:`restore`."""
        image = as_rgb_image(image)
        visible = image.visible().rgb
        detected = self.detector.detect(visible)
        faces = [face for face in detected if face.plausible]
        matrices = [similarity(face.landmarks) for face in faces]
        implausible = [face for face in detected if not face.plausible]
        return replace(cut_out(image, visible, faces, matrices), implausible=implausible)

    def assemble(
        self,
        found: FoundFaces,
        restored: Sequence[np.ndarray],
        *,
        upscale: float = 1.0,
        strength: float | str = AUTO_STRENGTH,
        identity: float | None = None,
    ) -> RestoredImage:
        """Paste restored faces into their image; the last step of :meth:`restore`.

        Args:
            found: the image and its faces.
            restored: restored crops, in the order of ``found.crops``.
            upscale, strength, identity: as in :meth:`restore`.

        Raises:
            QuantFaceError: the result has too many pixels.
        """
        canvas = make_canvas(found.image, upscale, self.background)
        strengths = self.strengths(found.crops, restored, strength, identity, found.needed)
        return RestoredImage(canvas, paste_faces(canvas, found, restored, strengths))

    def strengths(
        self,
        crops: Sequence[np.ndarray],
        restored: Sequence[np.ndarray],
        strength: float | str = AUTO_STRENGTH,
        identity: float | None = None,
        needed: Sequence[float] | None = None,
    ) -> list[float]:
        """Return how strongly each face is restored, see ``face_strengths``."""
        embed = None if identity is None else self.embedder
        return face_strengths(crops, restored, strength, identity, embed, needed)

    def restore_aligned(
        self,
        faces: Sequence[np.ndarray],
        *,
        sample: bool = False,
        seed: int = 0,
        color_fix: str | None = None,
    ) -> list[np.ndarray]:
        """Restore faces that are already aligned; the middle step of :meth:`restore`.

        Args:
            faces: (512, 512, 3) RGB arrays in uint8 or uint16.
            sample, seed: as in :meth:`restore`.
            color_fix: overrides the restorer's colour fix; None keeps it.

        Returns:
            restored faces of the same shapes and dtypes, in the same order. A face's result does
            not depend on the other faces or on their order, and a grey face stays grey.

        Raises:
            QuantFaceError: a face has another shape or dtype, ``color_fix`` is unknown, or the
                model has no latent to sample.
        """
        for face in faces:
            if checked_rgb(face).shape[:2] != (FACE_SIZE, FACE_SIZE):
                raise QuantFaceError(
                    f"aligned face has {face.shape[1]}x{face.shape[0]} pixels: "
                    f"{FACE_SIZE}x{FACE_SIZE} are needed"
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

    def _run(self, faces: Sequence[np.ndarray], sample: bool, seed: int) -> list[np.ndarray]:
        lq = np.stack([face_to_array(face) for face in faces])
        restored = self.model(lq, self._noise(faces, seed) if sample else None)
        if restored.shape != lq.shape:
            raise QuantFaceError(
                f"the model maps faces {lq.shape} to {restored.shape}, expected the same shape; a "
                "network that enlarges belongs to --bg-upsampler"
            )
        if not np.isfinite(restored).all():
            raise QuantFaceError("the model returned values that are not finite")
        return [array_to_face(out, face) for out, face in zip(restored, faces, strict=True)]

    def _noise(self, faces: Sequence[np.ndarray], seed: int) -> np.ndarray:
        """Draw noise from the seed and each face's own pixels, so that no other face affects it."""
        shape = self.model.latent_shape(1, FACE_SIZE, FACE_SIZE)
        draws = []
        for face in faces:
            digest = hashlib.sha256(f"{seed}:".encode() + np.ascontiguousarray(face).tobytes())
            generator = np.random.default_rng(int.from_bytes(digest.digest(), "big"))
            draws.append(generator.standard_normal(shape, np.float32))
        return np.concatenate(draws)
