"""The faces of an image, before and after restoration."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from quantface_arch.faces.align import warp_face
from quantface_arch.faces.face import Face
from quantface_arch.utils.images import RGBImage

__all__ = ["FoundFaces", "RestoredFace", "RestoredImage", "cut_out"]


@dataclass(frozen=True)
class FoundFaces:
    """An image and the aligned crops of its faces, ready for the network.

    Attributes:
        image: the image.
        faces: its faces that can be restored, from left to right.
        matrices: for each face, the (2, 3) map from the image to the aligned frame.
        crops: for each face, (512, 512, 3) in the image's dtype.
        implausible: faces whose landmarks no real face can have; they stay unrestored.
        needed: for each face, how strongly it should be restored, 0 to 1; None if it has not been
            measured yet.
    """

    image: RGBImage
    faces: list[Face]
    matrices: list[np.ndarray]
    crops: list[np.ndarray]
    implausible: list[Face] = field(default_factory=list)
    needed: list[float] | None = None


def cut_out(
    image: RGBImage,
    visible: np.ndarray,
    faces: list[Face],
    matrices: list[np.ndarray],
    needed: list[float] | None = None,
) -> FoundFaces:
    """Return an image and the crops of faces that were found in it.

    Args:
        image: the image.
        visible: its (H, W, 3) pixels without hidden colours, see ``RGBImage.visible``.
        faces: its faces.
        matrices: for each face, the (2, 3) map from the image to the aligned frame.
        needed: see ``FoundFaces``.
    """
    crops = [warp_face(visible, matrix) for matrix in matrices]
    return FoundFaces(image, faces, matrices, crops, needed=needed)


@dataclass(frozen=True)
class RestoredFace:
    """One face of a restored image.

    Attributes:
        box: (4,) left, top, right and bottom, in pixels of the input.
        landmarks: (5, 2) eyes, nose and mouth corners, or (2, 2) eyes; in pixels of the input.
        crop: (512, 512, 3) aligned face before restoration, in the image's dtype.
        restored: aligned face after restoration.
        strength: weight of the network's face in it, 0 to 1.
    """

    box: np.ndarray
    landmarks: np.ndarray
    crop: np.ndarray
    restored: np.ndarray
    strength: float = 1.0


@dataclass(frozen=True)
class RestoredImage:
    """An image with restored faces, or the input, enlarged on request, if it has none.

    Attributes:
        rgb_image: the image with its alpha and colour profile.
        faces: its faces, from left to right.
    """

    rgb_image: RGBImage
    faces: list[RestoredFace]

    @property
    def image(self) -> np.ndarray:
        """The (H, W, 3) RGB array in the input's dtype."""
        return self.rgb_image.rgb

    @property
    def picture(self) -> RGBImage:
        """The former name of ``rgb_image``."""
        return self.rgb_image
