"""GPTQ: round a weight column by column, and let later columns compensate for earlier errors.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers", 2023: the layer's squared output error is quadratic in the weight with the Hessian
H = Σ x xᵀ over the layer's inputs, so the best change of the other columns after rounding one has a
closed form.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from quantface_arch.errors import QuantFaceError
from quantface_arch.quant.ops.quantizer import fake_quantize

__all__ = ["MAX_COLUMNS", "check_memory", "gptq", "hessian_bytes", "system_memory"]

# After this many columns, the rest of the weight is updated at once.
BLOCK = 128
# We add this share of the mean of H's diagonal to the diagonal.
DAMPING = 0.01
# With more columns than this, a float64 Hessian takes more than 2 GiB.
MAX_COLUMNS = 2**14


def gptq(
    weight: Tensor, hessian: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int
) -> Tensor:
    """Round a weight to a given grid with a small error of the layer's output.

    Args:
        weight: float (rows, columns).
        hessian: float (columns, columns), sum or mean of x xᵀ over inputs x.
        scale, zero_point: those of the grid; they broadcast against the weight.

    Returns:
        the rounded values, in the weight's shape and dtype.

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
    # Rounding again in the weight's own dtype gives exactly the values that the integers dequantize
    # to.
    return fake_quantize(rounded.to(weight.dtype), scale, zero_point, qmin, qmax)


def check_memory(columns: Sequence[int], copies: int = 1) -> None:
    """Raise QuantFaceError if the Hessians of a network do not fit into the memory that is free.

    Args:
        columns: the number n of columns of each layer's weight; its float64 Hessian is (n, n).
        copies: how many copies of all Hessians are held at a time.
    """
    wanted, free = hessian_bytes(columns, copies), system_memory()
    if free is not None and wanted > free:
        raise QuantFaceError(
            f"recipe weights: rounding: gptq needs {wanted / 1e9:.1f} GB for the Hessians of "
            f"{len(columns)} layers, {free / 1e9:.1f} GB of memory are free; use nearest, or "
            "select fewer or narrower layers by include and exclude"
        )


def hessian_bytes(columns: Sequence[int], copies: int = 1) -> int:
    """Return the size in bytes of a network's Hessians; see ``check_memory``."""
    return 8 * copies * sum(side * side for side in columns)


def system_memory(kind: str = "MemAvailable") -> int | None:
    """Return an entry of Linux's /proc/meminfo in bytes; None where there is none.

    Args:
        kind: ``MemAvailable`` for what processes may still take, ``MemTotal`` for all memory.
    """
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{kind}:")]
    return 1024 * int(found[0]) if found else None


def _inverse_factor(hessian: Tensor) -> Tensor:
    """Return the upper Cholesky factor of H⁻¹ in float64; inputs that are always 0 count as 1."""
    matrix = hessian.double().clone()
    diagonal = matrix.diagonal()
    diagonal[diagonal <= 0] = 1
    diagonal += DAMPING * diagonal.mean()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(matrix))
    return torch.linalg.cholesky(inverse, upper=True)
