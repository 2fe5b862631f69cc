from collections.abc import Sequence

import numpy as np

def random_mixed_kernels(
    kernel_list: Sequence[str],
    kernel_prob: Sequence[float],
    kernel_size: int = 21,
    sigma_x_range: tuple[float, float] = ...,
    sigma_y_range: tuple[float, float] = ...,
    *,
    noise_range: tuple[float, float] | None = None,
) -> np.ndarray: ...
def random_add_gaussian_noise(
    img: np.ndarray,
    sigma_range: Sequence[float] = ...,
    gray_prob: float = 0,
    clip: bool = True,
    rounds: bool = False,
) -> np.ndarray: ...
def add_jpg_compression(img: np.ndarray, quality: int = 90) -> np.ndarray: ...
