"""Define the options of bit allocation in options files."""

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
        f"candidate bit widths of weights, {WIDTHS}; a single one is used without measuring.",
        [4],
        old_name="weights",
    )
    activations: Sequence[int] = option(
        f"candidate bit widths of inputs, {WIDTHS}.", [3, 4, 5, 6, 8]
    )
    budget: Mapping[str, Any] = option(
        "upper limits, see `allocate: budget` below.", {}, shown="none"
    )
    # "lambda" is a keyword of Python.
    lambda_: float = option(
        "share of the quantization error in what a bit width costs; the rest is the perceptual "
        "distance.",
        0.5,
        limits=Limits(least=0, most=1),
        key="lambda",
    )
    perceptual: Mapping[str, Any] | None = option(
        "a registered loss, `{type: ..., ...}`.", None, shown="null: 1 - SSIM"
    )
    protect: Mapping[str, int] = option(
        "name pattern → bit width of layers that are not allocated.",
        {},
        shown="none besides the network's own 8-bit layers",
    )
    count: Sequence[str] = option(
        "name patterns of the layers that count towards averages.", ["*"], shown="all"
    )
    macs_size: int = option(
        "side in pixels of the image whose multiply-accumulates are the weights of inputs.",
        512,
        limits=Limits(least=1),
    )
