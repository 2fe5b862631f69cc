"""Restore uploaded files for the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

import numpy as np

from quantface_arch.errors import QuantFaceError, check_choice
from quantface_arch.faces.align import FACE_SIZE
from quantface_arch.faces.choices import COLOR_FIXES
from quantface_arch.pretrained.names import usable_models
from quantface_arch.restore.restorer import FaceRestorer
from quantface_arch.restore.results import FoundFaces, RestoredFace
from quantface_arch.restore.strength import check_strength
from quantface_arch.utils.images import RGBImage, read_image
from quantface_arch.web.limits import Limits

__all__ = ["Restoration", "Service"]

# A function that receives the fraction of the work that is done, from 0 to 1, and the current step.
Report = Callable[[float, str], object]


@dataclass
class Restoration:
    """A restored upload.

    Attributes:
        name: name of the uploaded file without its suffix.
        before: the upright input.
        after: the image with restored faces.
        faces: its faces, at least one, from left to right.
        seconds: duration of each step of the work.
    """

    name: str
    before: RGBImage
    after: RGBImage
    faces: list[RestoredFace]
    seconds: dict[str, float]


class Sampling(TypedDict, total=False):
    """The options of :meth:`FaceRestorer.restore_aligned` that choose a sample of the latent."""

    sample: bool
    seed: int


@dataclass
class Service:
    """Restores uploaded files, one at a time.

    Args:
        load: loads a restorer, given a model's name or path.
        model: the default model: a shipped name, or a path.
        limits: limits on uploads.
        sampling: how the latent is sampled; empty takes its mean.
        identity: least cosine between the embeddings of a face before and after; None has no limit.

    Visitors choose a model by name: they can neither load another file nor learn its path.
    """

    load: Callable[[str], FaceRestorer]
    model: str
    limits: Limits
    sampling: Sampling = field(default_factory=Sampling)
    identity: float | None = None

    def __post_init__(self) -> None:
        self.models = {name: name for name in usable_models()}
        if self.model not in self.models:
            self.models = {_label(self.model, self.models): self.model, **self.models}
        self._restorers: dict[str, FaceRestorer] = {}
        self._lock = threading.Lock()

    @property
    def first_model(self) -> str:
        """The name that visitors see for the default model."""
        return next(name for name, model in self.models.items() if model == self.model)

    def open(self) -> None:
        """Load the default model and what it needs, and warm up the model in the background.

        Raises:
            QuantFaceError: the model, the detector or the network of identity cannot be loaded.
        """
        restorer = self._restorer(self.first_model)
        _ = restorer.detector
        if self.identity is not None:
            _ = restorer.embedder
        threading.Thread(target=self._warm_up, args=(restorer,), daemon=True).start()

    def _warm_up(self, restorer: FaceRestorer) -> None:
        with self._lock:
            restorer.restore_aligned([np.zeros((FACE_SIZE, FACE_SIZE, 3), np.uint8)])

    def _restorer(self, name: str) -> FaceRestorer:
        """Return the restorer of a model, which is loaded on first use."""
        if name not in self.models:
            raise QuantFaceError(f"model {name!r}: choose from {', '.join(self.models)}")
        if name not in self._restorers:
            self._restorers[name] = self.load(self.models[name])
        return self._restorers[name]

    def restore(
        self,
        path: Path,
        model: str,
        strength: float | str,
        report: Report,
        color_fix: str | None = None,
    ) -> Restoration:
        """Restore one uploaded file.

        Args:
            path: the upload, whose file name was chosen by the visitor.
            model: one of ``models``.
            strength: 0 leaves the faces unchanged, 1 replaces them; ``auto`` takes what each needs.
            report: receives the progress.
            color_fix: one of ``COLOR_FIXES``; None is the restorer's own.

        Raises:
            QuantFaceError: the file cannot be read, is too large, or has no face or too many faces;
                or an option has an unsupported value. The message does not contain the folder.
        """
        try:
            with self._lock:
                return self._restore(path, model, strength, report, color_fix)
        except QuantFaceError as error:
            raise QuantFaceError(str(error).replace(str(path), path.name)) from error

    def _restore(
        self, path: Path, model: str, strength: float | str, report: Report, color_fix: str | None
    ) -> Restoration:
        check_strength(strength)
        if color_fix is not None:
            check_choice("color_fix", color_fix, COLOR_FIXES)
        seconds: dict[str, float] = {}
        report(0, "Reading")
        with _timed(seconds, "read"):
            image = read_image(path, self.limits.max_side)
        if model not in self._restorers:
            report(0, "Loading the model")
            with _timed(seconds, "load the model"):
                self._restorer(model)
        restorer = self._restorer(model)
        report(0.05, "Finding faces")
        with _timed(seconds, "find faces"):
            found = restorer.find(image)
        self._check(path, found)
        with _timed(seconds, f"restore {count(len(found.crops))}"):
            faces = self._restore_faces(restorer, found, report, color_fix)
        report(0.9, "Pasting back")
        with _timed(seconds, "paste back"):
            result = restorer.assemble(found, faces, strength=strength, identity=self.identity)
        return Restoration(path.stem, image, result.rgb_image, result.faces, seconds)

    def _check(self, path: Path, found: FoundFaces) -> None:
        """Raise QuantFaceError if there is no face or there are too many."""
        if not found.faces:
            raise QuantFaceError(
                f"{path}: no face found. Detection works best for faces that look at the camera "
                "and are at least 40 pixels wide"
            )
        if len(found.faces) > self.limits.max_faces:
            raise QuantFaceError(
                f"{path}: found {len(found.faces)} faces, "
                f"at most {self.limits.max_faces} are allowed"
            )

    def _restore_faces(
        self, restorer: FaceRestorer, found: FoundFaces, report: Report, color_fix: str | None
    ) -> list[np.ndarray]:
        restored: list[np.ndarray] = []
        for start in range(0, len(found.crops), restorer.batch_size):
            report(0.1 + 0.8 * start / len(found.crops), f"Face {start + 1} of {len(found.crops)}")
            batch = found.crops[start : start + restorer.batch_size]
            restored += restorer.restore_aligned(batch, color_fix=color_fix, **self.sampling)
        return restored


def count(faces: int) -> str:
    """Return a number of faces in words, such as ``1 face`` or ``2 faces``."""
    return f"{faces} face{'' if faces == 1 else 's'}"


def _label(model: str, taken: dict[str, str]) -> str:
    """Return the name that visitors see for a path."""
    name = Path(model).name
    return f"{name} (yours)" if name in taken else name


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    """Add the duration of the block to ``seconds``."""
    start = time.perf_counter()
    yield
    seconds[step] = time.perf_counter() - start
