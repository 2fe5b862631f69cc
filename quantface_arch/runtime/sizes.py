"""Trace parts of a network, and check that the graphs are right at other sizes, too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.utils._pytree import tree_leaves

from quantface_arch.errors import QuantFaceError, one_line
from quantface_arch.runtime.parts import Part, other_image, record

__all__ = ["OneSizeError", "inputs_at_another_size", "traced"]

# A traced network may add in another order than the network itself, so outputs may differ by this
# share of their largest magnitude.
_MOST_DIFFERENCE = 1e-3


class OneSizeError(QuantFaceError):
    """The graph of a part is right at the traced size alone."""


@torch.no_grad()
def traced(
    part: Part, inputs: tuple[Tensor, ...], other: tuple[Tensor, ...] | None, path: Path
) -> torch.jit.ScriptModule:
    """Trace a part, and compare it with the graph at a size at which it was not traced.

    A size that Python code reads during tracing becomes a constant of the graph, and torch warns of
    it. Without a warning, nothing is compared.

    Args:
        inputs: inputs of the traced size.
        other: inputs of another size. Nothing is compared if this is None, or if the network
            refuses these inputs.
        path: the checkpoint's path, for the message.

    Raises:
        OneSizeError: the graph fails at the other size, or its output is wrong there.
        QuantFaceError: the part cannot be traced.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            graph: Any = torch.jit.trace(part, inputs, check_trace=False, strict=False)
        except Exception as error:
            # A network may raise any exception for what tracing does to it.
            raise QuantFaceError(
                f"{path}: {_named(part)} cannot be traced ({one_line(error)}); choose the runtime "
                "reference"
            ) from error
    if other is not None and any(issubclass(it.category, TracerWarning) for it in caught):
        _check(part, graph, inputs, other, path)
    return graph


def _named(part: Part) -> str:
    return f"{type(part.network).__name__}.{part.name}"


def _check(
    part: Part,
    graph: Any,
    inputs: tuple[Tensor, ...],
    other: tuple[Tensor, ...],
    path: Path,
) -> None:
    """Compare a part with its graph on other inputs, unless the part refuses them."""
    try:
        wanted = tree_leaves(part(*other))
    except Exception:
        # A network may raise any exception for a size that it refuses.
        return
    try:
        found = tree_leaves(graph(*other))
    except RuntimeError:
        found = []
    if len(found) != len(wanted) or not all(map(_alike, wanted, found)):
        raise OneSizeError(
            f"{path}: the graph of {_named(part)} depends on the size "
            f"of its input: traced at {tuple(inputs[0].shape)}, it is wrong at "
            f"{tuple(other[0].shape)}; restore with the checkpoint itself"
        )


@torch.no_grad()
def inputs_at_another_size(network: nn.Module) -> dict[str, tuple[Tensor, ...]]:
    """Return the inputs of every part at another size; empty if the network refuses that size."""
    try:
        found = record(network, other_image(network))
    except Exception:
        # A network may raise any exception for a size that it refuses.
        return {}
    return {name: inputs for name, (inputs, _) in found.items()}


def _alike(wanted: object, found: object) -> bool:
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return wanted == found
    if wanted.shape != found.shape:
        return False
    scale = float(wanted.nan_to_num().abs().amax()) if wanted.numel() else 0.0
    return torch.allclose(wanted, found, rtol=0, atol=_MOST_DIFFERENCE * scale, equal_nan=True)
