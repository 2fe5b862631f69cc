"""GPTQ: rounding a weight column by column, later columns making up for earlier ones.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2023: the layer's squared output error is quadratic in the weight with the Hessian
H = Σ x xᵀ over the layer's inputs, so after rounding one column the best change of the others is
known.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.quantizer import fake_quantize

__all__ = ["MAX_COLUMNS", "check_memory", "free_memory", "gptq"]

# Columns that are rounded before the rest of the weight is changed.
BLOCK = 128
# Share of H's mean diagonal that is added to it.
DAMPING = 0.01
# Beyond this H itself takes more than a gigabyte.
MAX_COLUMNS = 2**14


def gptq(
    weight: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Values on a given grid for a weight, with little error of the layer's output.

    Args:
        weight: float (rows, columns).
        hessian: float (columns, columns), sum or mean of x xᵀ over inputs x.
        scale, zero_point: of the grid, broadcast against the weight.

    Returns:
        of the weight's shape and dtype.

    Raises:
        QuantFaceError: the Hessian is not finite.
    """
    if not bool(hessian.isfinite().all()):
        raise QuantFaceError("gptq: the Hessian of the inputs holds NaN or infinity")
    left = weight.detach().double().clone()
    scale, zero_point = (value.expand_as(weight) for value in (scale, zero_point))
    factor = _inverse_factor(hessian)
    rounded = torch.empty_like(left)
    for start in range(0, weight.shape[1], BLOCK):
        end = min(start + BLOCK, weight.shape[1])
        errors = left.new_empty(len(left), end - start)
        for column in range(start, end):
            value = left[:, column]
            steps = scale[:, column], zero_point[:, column]
            rounded[:, column] = fake_quantize(value, *steps, qmin, qmax)
            error = (value - rounded[:, column]) / factor[column, column]
            left[:, column:end] -= error[:, None] * factor[column, column:end]
            errors[:, column - start] = error
        left[:, end:] -= errors @ factor[start:end, end:]
    # In the weight's own precision: the very values that the integers read back as.
    return fake_quantize(rounded.to(weight.dtype), scale, zero_point, qmin, qmax)


def check_memory(columns: Sequence[int], copies: int = 1) -> None:
    """Raise QuantFaceError if the Hessians of a network do not fit into the memory that is free.

    Args:
        columns: of each layer's weight, which is the side of its float64 Hessian.
        copies: of all Hessians, held at one time.
    """
    wanted = 8 * copies * sum(side * side for side in columns)
    free = free_memory()
    if free is not None and wanted > free:
        raise QuantFaceError(
            f"recipe weights: rounding: gptq needs {wanted / 1e9:.1f} GB for the Hessians of "
            f"{len(columns)} layers, {free / 1e9:.1f} GB of memory are free; allowed are nearest, "
            "or fewer and narrower layers by include and exclude"
        )


def free_memory() -> int | None:
    """Return the bytes that the system can give, or None where it does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return 1024 * int(found[0]) if found else None


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Upper Cholesky factor of H⁻¹, float64; inputs that are never seen count as unit ones."""
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    diagonal[diagonal <= 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return torch.linalg.cholesky(inverse, upper=True)
