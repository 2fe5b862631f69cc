"""The options of bit allocation, as options files give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quantface_arch.quant.config.specs import MAX_BITS, MIN_BITS
from quantface_arch.utils.option_fields import Limits, option

__all__ = ["WIDTHS", "AllocateOptions"]

WIDTHS = f"{MIN_BITS} to {MAX_BITS}"


@dataclass(frozen=True, kw_only=True)
class AllocateOptions:
    """The block ``allocate`` of an options file."""

    weight_bits: Sequence[int] = option(
        f"candidate bit widths of weights, {WIDTHS}; one alone is fixed and not measured.",
        [4],
        old_name="weights",
    )
    activations: Sequence[int] = option(
        f"candidate bit widths of inputs, {WIDTHS}.", [3, 4, 5, 6, 8]
    )
    budget: Mapping[str, Any] = option(
        "upper limits, see `allocate: budget` below.", {}, shown="none"
    )
    # "lambda" is a word of Python.
    lambda_: float = option(
        "what a bit width costs. 1: the quantization error alone; 0: the perceptual distance "
        "alone.",
        0.5,
        limits=Limits(least=0, most=1),
        key="lambda",
    )
    perceptual: Mapping[str, Any] | None = option(
        "a registered loss, `{type: ..., ...}`.", None, shown="null: 1 - SSIM"
    )
    protect: Mapping[str, int] = option(
        "name pattern → bit width, of layers to leave alone.",
        {},
        shown="none beside the network's own 8-bit layers",
    )
    count: Sequence[str] = option(
        "name patterns of the layers that count in averages.", ["*"], shown="all"
    )
    macs_size: int = option(
        "side in pixels of the images whose multiply-accumulates weigh inputs.",
        512,
        limits=Limits(least=1),
    )
