"""Networks that map arrays to arrays, whatever computes them; none of this needs torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

from quantface_arch.archs.pipeline_config import LOGVAR, OSDFACE, PipelineConfig
from quantface_arch.errors import QuantFaceError

__all__ = ["ArrayForward", "ArrayNetwork", "ArrayPipeline", "array_network"]

# A compiled method of a network: float32 arrays to one array, or to several.
Part: TypeAlias = Callable[..., Any]


class ArrayNetwork(ABC):
    """A network on float32 arrays.

    Attributes:
        arch_options: the options from which the network was built, ``type`` included; empty if they
            are unknown.
        input_range: smallest and largest value of the images that it takes.
        device_type: the type of the torch device on which it runs.
    """

    arch_options: Mapping[str, Any]
    input_range: tuple[float, float]
    device_type: str = "cpu"

    @abstractmethod
    def __call__(self, images: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        """Map images (N, 3, H, W) in ``input_range`` to others of as many.

        Args:
            images: float32.
            noise: standard normal values of ``latent_shape``, to sample the latent; None takes its
                mean.

        Raises:
            QuantFaceError: the network does not take images of this shape.
        """

    def latent_shape(self, batch: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of the noise for images of a size in pixels.

        Raises:
            QuantFaceError: the network has no latent.
        """
        raise QuantFaceError("the model has no latent to sample")


class ArrayForward(ArrayNetwork):
    """A network whose one part is ``forward``.

    Args:
        parts: the compiled methods by their names.
        arch_options, input_range: see ``ArrayNetwork``.
    """

    def __init__(
        self,
        parts: Mapping[str, Part],
        arch_options: Mapping[str, Any],
        input_range: tuple[float, float],
    ) -> None:
        self.parts, self.arch_options, self.input_range = parts, arch_options, input_range

    def __call__(self, images: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        return self.parts["forward"](images)


class ArrayPipeline(PipelineConfig, ArrayForward):
    """OSDFace, whose parts are those of ``Pipeline``, with the same computations as there.

    Args:
        parts, arch_options, input_range: see ``ArrayForward``.
    """

    def __init__(
        self, parts: Mapping[str, Part], arch_options: Mapping[str, Any], *rest: Any
    ) -> None:
        PipelineConfig.__init__(self, **self.known(arch_options))
        ArrayForward.__init__(self, parts, arch_options, *rest)

    def __call__(self, images: np.ndarray, noise: np.ndarray | None = None) -> np.ndarray:
        self.check_input(images.shape, None if noise is None else noise.shape)
        prompt, _ = self.parts["encode_prompt"](images)
        z = self._latent(images, noise)
        eps = self.parts["predict_noise"](z, prompt)
        x0 = (z.astype(float) - self.sqrt_one_minus_alpha * eps.astype(float)) / self.sqrt_alpha
        return self.parts["decode"](x0.astype(np.float32)).clip(-1, 1)

    def _latent(self, images: np.ndarray, noise: np.ndarray | None) -> np.ndarray:
        """Return the scaled latent."""
        mean, logvar = np.split(self.parts["encode_moments"](images), 2, axis=1)
        if noise is not None:
            mean = mean + np.exp(np.float32(0.5) * logvar.clip(*LOGVAR)) * noise
        return mean * np.float32(self.latent_scale)


def array_network(
    parts: Mapping[str, Part], arch_options: Mapping[str, Any], input_range: tuple[float, float]
) -> ArrayNetwork:
    """Return the network that compiled parts make up."""
    kind = ArrayPipeline if arch_options.get("type") == OSDFACE else ArrayForward
    return kind(parts, arch_options, input_range)
